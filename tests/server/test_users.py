"""Tokens, projects and the audit log at the prompt: with a server, and on its machine without."""

from __future__ import annotations

import json
from collections.abc import Callable
from getpass import getuser
from pathlib import Path
from socket import gethostname

import pytest

from orchestrator.errors import NotFound, StoreError
from orchestrator.store import open_store
from orchestrator.store.secrets import key_file
from orchestrator.store.values import Project
from tests.cli.conftest import Cli
from tests.server.conftest import Served
from tests.store.values import T0


@pytest.fixture(params=["here", "afar"])
def prompt(request: pytest.FixtureRequest) -> Cli:
    """The prompt on the server's machine, or on any other."""
    found: Cli = request.getfixturevalue("cli" if request.param == "here" else "afar")
    return found


def test_a_project_has_tokens_that_end(prompt: Cli) -> None:
    assert prompt("project", "set", "lab", "--gpus", "8", "--backend", "sim").code == 0
    assert "lab      8     -      sim" in prompt("project", "list").out
    made = prompt("token", "create", "ci", "--project", "lab", "--role", "viewer", "--expires", "30d")
    assert made.out.startswith("my-")
    (token,) = [t for t in json.loads(prompt("token", "list", "--json").out)["tokens"] if t["name"] == "ci"]
    assert (token["project"], token["role"], token["revoked_at"]) == ("lab", "viewer", None)
    assert made.out.strip()[16:] not in prompt("token", "list").out
    assert prompt("token", "revoke", token["id"]).code == 0
    assert "revoked" in prompt("token", "list").out
    assert prompt("project", "delete", "-y", "lab").code == 0
    assert "lab" not in prompt("project", "list").out
    assert "ci" not in prompt("token", "list").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("token create x --project none", 64, "no project 'none'"),
        ("token revoke none", 64, "no token 'none'"),
        ("token create x --expires soon", 64, "--expires"),
        ("project set Lab", 64, "no name for a project"),
        ("project delete -y main", 64, "project 'main' stays"),
    ],
)
def test_what_cannot_be_is_refused(prompt: Cli, arguments: str, code: int, said: str) -> None:
    result = prompt(*arguments.split())
    assert (result.code, said in result.err) == (code, True), result.err


@pytest.mark.parametrize(
    ("project", "of", "said"),
    [
        ("labb", "*", ["no project 'labb'", "one that is there: lab, main", "project set labb makes it"]),
        (
            "labb",
            "lab",
            ["may not do this in project 'labb'", "MODELYARD_PROJECT=lab, the project of"],
        ),
        (
            "",
            "lab",
            ["may not do this in project 'main'", "MODELYARD_PROJECT=lab, the project of"],
        ),
        ("a/b", "*", ["MODELYARD_PROJECT: 'a/b' is no name of a project", "lower case letters"]),
        ("../v1", "lab", ["MODELYARD_PROJECT: '../v1' is no name of a project", "lower case letters"]),
    ],
    ids=["none of it", "not one's own", "none named", "two words", "a path"],
)
def test_a_wrong_project_is_named_and_what_to_name_instead(
    afar: Cli, served: Served, monkeypatch: pytest.MonkeyPatch, project: str, of: str, said: list[str]
) -> None:
    afar("project", "set", "lab")
    monkeypatch.setenv("MODELYARD_PROJECT", project)
    monkeypatch.setenv("MODELYARD_TOKEN", served.token("admin", of))

    result = afar("ps")

    assert result.code in (64, 77)
    assert [words for words in said if words not in result.err] == [], result.err


def test_who_may_not_list_projects_is_told_of_none(served: Served) -> None:
    served.site.store.access.put_project(Project("secret-lab", served.site.clock()))

    with pytest.raises(NotFound) as refused:
        served.client("operator", "nowhere").runs()

    assert "secret-lab" not in str(refused.value)


def test_secrets_are_not_sealed_anew_in_a_record_that_nobody_meant(
    afar: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELYARD_DATABASE_URL")
    monkeypatch.setenv("XDG_STATE_HOME", str(afar.folder / "state"))

    result = afar("secret", "rotate")

    assert (result.code, "MODELYARD_URL names a server elsewhere" in result.err) == (64, True), result.err
    assert not (afar.folder / "state").exists()


def test_the_audit_log_is_read_from_anywhere(afar: Cli, served: Served) -> None:
    afar("project", "set", "lab")
    text = afar("audit").out
    assert "put_project" in text
    assert "lab" in text
    served.site.store.access.put_project(served.site.store.access.project("lab"))
    viewer = served.client("viewer", of="main")
    with pytest.raises(Exception, match="may not do this"):
        viewer.audit()


def test_secrets_are_sealed_anew_and_the_old_key_opens_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    with open_store(url) as store:
        store.secrets.set("A", "one", now=T0)
        store.secrets.of("lab").set("A", "two", now=T0)
        key = key_file(tmp_path / "state.db")
        old = key.read_text()
        assert store.secrets.rotate() == 2
        assert (store.secrets.get("A"), store.secrets.of("lab").get("A")) == ("one", "two")
        assert key.read_text() != old
        assert "," not in key.read_text()
    with open_store(url, secret_key=old) as store, pytest.raises(StoreError, match="another key"):
        store.secrets.get("A")


def test_a_key_before_the_old_one_seals_and_both_open(tmp_path: Path) -> None:
    from cryptography.fernet import Fernet

    url = f"sqlite:///{tmp_path}/state.db"
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    with open_store(url, secret_key=old) as store:
        store.secrets.set("A", "one", now=T0)
    with open_store(url, secret_key=f"{new},{old}") as store:
        assert store.secrets.get("A") == "one"
        store.secrets.rotate()
    with open_store(url, secret_key=new) as store:
        assert store.secrets.get("A") == "one"


def test_a_secret_sealed_with_a_lost_key_stops_the_rotation_whole(tmp_path: Path) -> None:
    from cryptography.fernet import Fernet

    url = f"sqlite:///{tmp_path}/state.db"
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    with open_store(url, secret_key=old) as store:
        store.secrets.set("A", "one", now=T0)
    with open_store(url, secret_key=new) as store:
        store.secrets.set("B", "two", now=T0)
        with pytest.raises(StoreError, match="secret 'A' cannot be opened"):
            store.secrets.rotate()
        assert store.secrets.get("B") == "two"


def test_a_name_of_somebody_elses_moves_no_terminal_and_makes_no_row(prompt: Cli) -> None:
    prompt("token", "create", "ci\x1b[2J\nffffffffffff  root  *  admin  good")

    listed = prompt("token", "list").out

    assert r"ci\x1b[2J\x0affffffffffff  root" in listed
    assert "\x1b" not in listed
    assert not [line for line in listed.splitlines() if line.startswith("ffffffffffff")]


@pytest.mark.postgres
def test_who_may_look_is_not_told_the_databases_password(
    serve: Callable[..., Served], postgres_store_url: str
) -> None:
    """`doctor` of a viewer of any project showed it where the URL has it in its query."""
    served = serve(f"{postgres_store_url}&password=planted")

    checks = served.client("viewer", of="main").diagnose()

    told = [check.detail for place, check in checks if place == "record"]
    assert ["postgresql://modelyard@/store?host=" in each for each in told] == [True]
    assert "planted" not in repr(checks)


def test_what_is_done_at_the_machine_itself_is_written_down(cli: Cli) -> None:
    """A token for everything could be made there, and nobody could tell that it was."""
    cli("project", "set", "lab")
    secret = cli("token", "create", "ci", "--project", "lab").out.strip()
    (token,) = json.loads(cli("token", "list", "--json").out)["tokens"]
    cli("token", "revoke", token["id"])
    cli("secret", "rotate")
    cli("project", "delete", "-y", "lab")

    deeds = json.loads(cli("audit", "--json").out)["deeds"]

    assert [(deed["action"], deed["subject"], deed["outcome"]) for deed in deeds] == [
        ("put_project", "lab", "200"), ("create_token", "ci", "201"), ("revoke", token["id"], "204"),
        ("rotate_secrets", "", "200"), ("delete_project", "lab", "204"),
    ]  # fmt: skip
    assert {(deed["who"], deed["address"]) for deed in deeds} == {(getuser(), gethostname())}
    assert secret.split("-", 2)[2] not in repr(deeds)
