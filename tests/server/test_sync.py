"""A repository applied continuously, with the real git; what is wrong with it, and what it may not reach."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyrage import x25519

from orchestrator.apply import Scope
from orchestrator.catalog.hardware import known_names
from orchestrator.errors import UsageError
from orchestrator.reconcile import RunState, Wanted
from orchestrator.server.git import Checkout, Source
from orchestrator.server.idle import Reaper
from orchestrator.server.sync import Syncer, Wish
from orchestrator.spec.load import load, read
from orchestrator.store.codec import encode
from orchestrator.store.values import Limits, Project
from tests.cli.conftest import Cli
from tests.server.conftest import Served

SOPS = Path(sys.executable).with_name("sops")
HELLO = "type: task\nname: hello\ncommands: [echo hi]\n"
WEB = "type: service\nname: web\nport: 8000\ncommands: [serve]\nprobes: [{type: http, url: /}]\n"


class Repository:
    """A repository of the test's own, with a folder of specs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", "-C", str(self.root), *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, *how: str, **files: str) -> str:
        """Write files of the folder ``specs``, commit them, and return the commit."""
        (self.root / "specs").mkdir(exist_ok=True)
        for name, text in files.items():
            path = self.root / "specs" / f"{name}.yaml"
            path.write_text(text) if text else path.unlink()
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "change", *how)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def syncer(served: Served, repository: Repository, tmp_path: Path) -> Syncer:
    """What syncs the folder, each time it is asked to."""
    source = Source.parse(f"git+{repository.root}@main//specs")
    return Syncer(served.site, Wish(source, interval_s=60), tmp_path / "checkout")


def names(served: Served) -> list[str]:
    return [run.name for run in served.site.store.runs() if run.wanted.value == "run"]


def let_it_end(served: Served) -> None:
    """Wait until the task has ended: one that runs is replaced only where that is allowed."""
    assert served.client().follow(["hello"], "settled", timeout_s=60)


def test_a_commit_is_applied_once_and_stands_in_every_event(
    served: Served, repository: Repository, syncer: Syncer
) -> None:
    commit = repository.commit(hello=HELLO)

    first, again = syncer.once(), syncer.once()

    assert (first.state, first.commit, first.changed) == ("applied", commit, ["hello"])
    assert again.changed == []
    (event,) = [e for _, e in served.site.store.events("hello") if e.cause.startswith("apply")]
    assert event.message == f"commit {commit}"
    (deed,) = [deed for _, deed in served.site.store.access.deeds("main") if deed.action == "sync"]
    assert (deed.who, deed.subject, deed.outcome) == (f"commit {commit}", "hello", "200")
    assert deed.address == f"git+{repository.root}@main//specs"
    assert deed.spec_hash == served.site.store.run("hello").spec_hash[:16]
    assert [status.commit for status in syncer.history()] == [commit]


def test_what_the_repository_no_longer_has_goes_and_what_is_not_of_it_stays(
    served: Served, repository: Repository, syncer: Syncer
) -> None:
    client = served.client()
    client.apply(client.plan(read(HELLO.replace("hello", "hello-ours"))))
    repository.commit(hello=HELLO, web=WEB)
    syncer.once()
    repository.commit(web="")
    syncer.once()

    assert names(served) == ["hello", "hello-ours"]


def test_a_branch_that_was_pushed_by_force_is_followed(
    served: Served, repository: Repository, syncer: Syncer
) -> None:
    repository.commit(hello=HELLO)
    syncer.once()
    let_it_end(served)
    commit = repository.commit("--amend", hello=HELLO.replace("echo hi", "echo ho"))

    assert syncer.once().commit == commit
    assert "echo ho" in served.site.store.run("hello").spec


def test_a_repository_is_not_looked_at_without_a_pause(repository: Repository) -> None:
    with pytest.raises(UsageError, match="once a second at most"):
        Wish(Source.parse(f"git+{repository.root}"), interval_s=0)


def test_an_error_is_told_at_its_line_and_waited_for_ever_longer(
    served: Served, repository: Repository, syncer: Syncer
) -> None:
    repository.commit(hello=HELLO.replace("commands", "comands"))

    failed = [syncer.once() for _ in range(3)]

    assert "specs/hello.yaml:3:1: " in failed[0].message
    assert [status.failures for status in failed] == [1, 2, 3]
    assert [syncer.pause_s(status) for status in failed] == [120, 240, 480]
    repository.commit(hello=HELLO)
    assert (syncer.once().state, syncer.pause_s(syncer.once())) == ("applied", 60)


def test_what_failed_is_put_off_and_a_newer_commit_is_not(repository: Repository, syncer: Syncer) -> None:
    bad = HELLO.replace("commands", "comands")
    repository.commit(hello=bad)
    for _ in range(3):
        assert syncer.duty() == 60
    assert [status.failures for status in syncer.history()] == [1]

    commit = repository.commit(hello=HELLO)
    syncer.duty()

    newest = syncer.history()[0]
    assert (newest.commit, newest.state) == (commit, "applied")


def test_a_clock_that_is_set_back_puts_nothing_off(
    serve: Callable[..., Served], repository: Repository, tmp_path: Path
) -> None:
    now = datetime(2026, 11, 30, 12, tzinfo=UTC)
    served = serve(clock=lambda: now)
    source = Source.parse(f"git+{repository.root}@main//specs")
    syncer = Syncer(served.site, Wish(source, interval_s=60), tmp_path / "checkout")
    repository.commit(hello=HELLO.replace("commands", "comands"))
    syncer.duty()

    now -= timedelta(days=1)
    syncer.duty()

    assert [status.failures for status in syncer.history()] == [2]


def test_who_asks_does_not_wait_for_what_failed(repository: Repository, syncer: Syncer) -> None:
    repository.commit(hello=HELLO.replace("commands", "comands"))
    syncer.duty()

    syncer.poke()
    syncer.duty()

    assert [status.failures for status in syncer.history()] == [2]


BAD = "type: service\nname: bad\nport: 8000\ncommands: [serve]\n"
REFUSING = """
backends:
  - {type: sim, script: {"hello-*": {run_s: 0.0}, "bad-*": {refuse: rejected}}}
"""


@pytest.fixture
def refusing(serve: Callable[..., Served], repository: Repository, tmp_path: Path) -> tuple[Served, Syncer]:
    """A server whose only place refuses the service ``bad`` for good, and what syncs to it."""
    config = tmp_path / "refusing.yaml"
    config.write_text(REFUSING)
    served = serve(config=config)
    source = Source.parse(f"git+{repository.root}@main//specs")
    return served, Syncer(served.site, Wish(source, interval_s=60), tmp_path / "checkout")


def attempts(served: Served, run: str) -> int:
    """Return how often a run was begun by an apply."""
    return sum(event.cause.startswith("apply") for _, event in served.site.store.events(run))


def test_a_service_that_failed_stays_so_until_the_next_commit(
    refusing: tuple[Served, Syncer], repository: Repository
) -> None:
    served, syncer = refusing
    repository.commit(bad=BAD)
    syncer.once()
    client = served.client()
    assert client.follow(["bad"], "settled", timeout_s=60)

    status = [syncer.once() for _ in range(2)][-1]

    assert (status.state, status.changed, status.left) == ("applied", [], ["bad"])
    assert (served.site.store.run("bad").state, attempts(served, "bad")) == (RunState.FAILED, 1)
    (kept,) = syncer.history()
    assert (kept.changed, kept.left) == (["bad"], ["bad"])
    repository.commit(hello=HELLO)
    assert syncer.once().changed == ["bad", "hello"]
    assert attempts(served, "bad") == 2


def test_who_asks_has_it_start_again_and_a_webhook_does_not(
    refusing: tuple[Served, Syncer], repository: Repository
) -> None:
    served, syncer = refusing
    repository.commit(bad=BAD)
    syncer.duty()
    assert served.client().follow(["bad"], "settled", timeout_s=60)

    syncer.poke()
    syncer.duty()
    assert attempts(served, "bad") == 1
    syncer.ask()
    syncer.duty()

    assert attempts(served, "bad") == 2


def test_what_its_own_policy_stopped_stays_so_and_what_a_person_stopped_does_not(
    served: Served, repository: Repository, syncer: Syncer
) -> None:
    repository.commit(web=WEB)
    syncer.once()
    client, store = served.client(), served.site.store
    assert client.follow(["web"], "ready", timeout_s=60)
    assert Reaper(served.site)._end(store.run("web"), "nobody was inside for 5m")
    assert client.follow(["web"], "ended", timeout_s=60)

    assert syncer.once().left == ["web"]
    assert syncer.once(asked=True).changed == ["web"]
    client.ask(["web"], Wanted.STOP)
    assert client.follow(["web"], "ended", timeout_s=60)

    assert (syncer.once().changed, syncer.once().left) == (["web"], [])


def test_a_server_that_is_not_the_first_syncs_when_it_is_told_to(
    served: Served, repository: Repository, syncer: Syncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.site, "peers", ("another", served.site.owner))
    repository.commit(hello=HELLO)
    syncer.turn()
    assert syncer.history() == []

    syncer.ask()
    syncer.turn()

    assert [status.changed for status in syncer.history()] == [["hello"]]


def test_a_work_tree_is_one_servers_at_a_time(
    repository: Repository, syncer: Syncer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, seen = repository.commit(hello=HELLO), []

    def update(_: Checkout) -> str:
        with (tmp_path / "checkout.lock").open() as another, suppress(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen.append("another server has the work tree too")
        return real(syncer._checkout)

    real = Checkout.update
    monkeypatch.setattr(Checkout, "update", update)

    assert (syncer.once().commit, seen) == (commit, [])


@pytest.mark.parametrize(
    ("of", "name", "twin", "check"),
    [
        (Checkout, "newest", lambda self: None, test_what_failed_is_put_off_and_a_newer_commit_is_not),
        (Syncer, "_is_put_off", lambda self: False, test_what_failed_is_put_off_and_a_newer_commit_is_not),
        (Syncer, "poke", lambda self: None, test_who_asks_does_not_wait_for_what_failed),
    ],
    ids=["nothing is newer", "nothing is put off", "who asks waits"],
)
def test_a_broken_twin_is_caught(
    repository: Repository, syncer: Syncer, monkeypatch: pytest.MonkeyPatch,
    of: type, name: str, twin: object, check: Callable[[Repository, Syncer], None],
) -> None:  # fmt: skip
    monkeypatch.setattr(of, name, twin)

    with pytest.raises(AssertionError):
        check(repository, syncer)


@pytest.mark.parametrize("ref", ["v1", "v2", "HEAD", "main"])
def test_the_newest_commit_is_told_without_fetching(repository: Repository, tmp_path: Path, ref: str) -> None:
    commit = repository.commit(hello=HELLO)
    repository.git("tag", "v1")
    repository.git("tag", "--annotate", "--message", "two", "v2")
    repository.git("branch", "feature/main", commit)
    repository.git("branch", "feature/v1", commit)
    if ref in ("HEAD", "main"):
        commit = repository.commit(web=HELLO)
    checkout = Checkout(Source.parse(f"git+{repository.root}@{ref}"), tmp_path / "checkout")

    assert checkout.update() == commit
    assert checkout.newest() == commit


def test_a_repository_that_was_out_of_reach_is_no_commits_fault(
    repository: Repository, syncer: Syncer
) -> None:
    commit = repository.commit(hello=HELLO)
    syncer.duty()
    gone = repository.root.rename(repository.root.with_name("gone"))
    syncer.duty()
    assert [(each.commit, each.state) for each in syncer.history()] == [("", "failed"), (commit, "applied")]

    gone.rename(repository.root)
    syncer.duty()

    assert [(each.commit, each.state) for each in syncer.history()] == [(commit, "applied")]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda r: r.root.rename(r.root.with_name("gone")), "does not appear to be a git repository"),
        (lambda r: r.git("branch", "--move", "main", "other"), "couldn't find remote ref main"),
        (
            lambda r: r.commit(hello=HELLO + "files: [/etc/hostname]\n"),
            "/etc/hostname lies outside of the repository",
        ),
        (
            lambda r: r.commit(hello=HELLO + "env: [HF_HUB_OFFLINE]\n"),
            "HF_HUB_OFFLINE has no value",
        ),
        (lambda r: r.commit(one=HELLO, two=HELLO), "a second run named 'hello'"),
    ],
    ids=["unreachable", "no such branch", "a file of the server", "a variable of the server", "twins"],
)
def test_what_cannot_be_synced_changes_nothing(
    served: Served,
    repository: Repository,
    syncer: Syncer,
    break_it: Callable[[Repository], object],
    said: str,
) -> None:
    repository.commit(hello=HELLO)
    syncer.once()
    let_it_end(served)
    before = served.site.store.run("hello").spec_hash
    break_it(repository)

    status = syncer.once()

    assert status.state == "failed"
    assert said in status.message
    assert served.site.store.run("hello").spec_hash == before


@pytest.mark.parametrize("target", ["../../outside", "/etc/hostname", "../.git/config", "loop.yaml"])
@pytest.mark.parametrize("name", ["loop.yaml", "data"])
def test_a_link_out_of_the_repository_fails_its_commit(
    served: Served, repository: Repository, syncer: Syncer, tmp_path: Path, target: str, name: str
) -> None:
    (tmp_path / "outside").write_text(HELLO.replace("hello", "planted"))
    repository.commit(hello=HELLO + f"files: [{name}]\n")
    (repository.root / "specs" / name).symlink_to(target)
    repository.commit()

    status = syncer.once()

    assert (status.state, names(served)) == ("failed", [])
    assert f"specs/{name}" in status.message


def test_a_link_beside_the_specs_that_leads_out_is_not_there(
    served: Served, repository: Repository, syncer: Syncer, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_text("planted")
    (repository.root / os.fsdecode(b"d\xe9tours")).symlink_to(tmp_path)
    (repository.root / "data").symlink_to(tmp_path / "outside")
    repository.commit(web=WEB)
    assert syncer.once().state == "applied"
    assert not list((tmp_path / "checkout").rglob("outside"))

    repository.commit(hello=HELLO + "files: [../data]\n")

    assert "cannot read data: No such file" in syncer.once().message


def test_a_link_within_the_repository_is_followed(
    served: Served, repository: Repository, syncer: Syncer
) -> None:
    (repository.root / "base").mkdir()
    (repository.root / "base" / "hello.yaml").write_text(HELLO + "files: [data]\n")
    (repository.root / "base" / "text").write_text("the text")
    repository.commit(web=WEB)
    (repository.root / "specs" / "hello.yaml").symlink_to("../base/hello.yaml")
    (repository.root / "specs" / "data").symlink_to("../base/text")
    repository.commit()

    status = syncer.once()

    assert status.changed == ["hello", "web"], status.message
    launch = served.site.store.run("hello").template.launch
    assert [file.content for file in launch.files] == [b"the text"]


def test_specs_in_a_submodule_fail_the_commit_and_others_do_not(
    served: Served, repository: Repository, syncer: Syncer, tmp_path: Path
) -> None:
    other = Repository(tmp_path / "other")
    other.commit(more=HELLO.replace("hello", "more"))
    add = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.root))
    repository.git(*add, "beside")
    repository.commit(hello=HELLO)
    assert syncer.once().changed == ["hello"]
    repository.git(*add, "specs/more")
    repository.commit()

    status = syncer.once()

    assert (status.state, "specs/more is a submodule" in status.message) == ("failed", True)


def test_variables_under_the_prefix_are_secrets_of_the_runs(
    serve: Callable[..., Served], repository: Repository, tmp_path: Path
) -> None:
    served = serve(MODELYARD_SYNC_HF_TOKEN="hf_canary")
    source = Source.parse(f"git+{repository.root}@main//specs")
    syncer = Syncer(served.site, Wish(source), tmp_path / "checkout")
    repository.commit(hello=HELLO + "env: [HF_TOKEN]\n")

    assert syncer.once().state == "applied"
    assert served.site.store.secrets.get("hello/HF_TOKEN") == "hf_canary"
    assert b"hf_canary" not in b"".join(p.read_bytes() for p in tmp_path.glob("state.db*"))


@pytest.fixture(scope="module")
def key() -> tuple[str, str]:
    """A key of age, and the recipient that it opens for."""
    made = x25519.Identity.generate()
    return str(made), str(made.to_public())


def sealed(text: str, recipient: str, folder: Path) -> str:
    """Return what the real sops makes of a text."""
    plain = folder / "plain.yaml"
    plain.write_text(text)
    done = subprocess.run(
        [SOPS, "encrypt", "--age", recipient, str(plain)], check=True, capture_output=True, text=True
    )
    plain.unlink()
    return done.stdout


def test_encrypted_values_reach_runs_and_nothing_else(
    serve: Callable[..., Served], repository: Repository, tmp_path: Path, key: tuple[str, str]
) -> None:
    identity, recipient = key
    served = serve(SOPS_AGE_KEY=identity, PATH=f"{SOPS.parent}:{os.environ['PATH']}")
    syncer = Syncer(
        served.site, Wish(Source.parse(f"git+{repository.root}@main//specs")), tmp_path / "checkout"
    )
    spec = HELLO + "env: [HF_TOKEN]\n"
    first = sealed("HF_TOKEN: hf_canary_1\n", recipient, tmp_path)
    repository.commit(**{"hello": spec, "values.sops": first})

    status = syncer.once()
    assert (status.state, status.changed) == ("applied", ["hello"]), status.message
    kept = served.site.store.secrets
    assert kept.get("hello/HF_TOKEN") == "hf_canary_1"
    repository.commit(**{"values.sops": sealed("HF_TOKEN: hf_canary_2\n", recipient, tmp_path)})
    assert syncer.once().changed == ["hello"]
    assert kept.get("hello/HF_TOKEN") == "hf_canary_2"
    assert served.client().plan(load([str(repository.root / "specs")]))[0].action == "unchanged"
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert b"hf_canary" not in path.read_bytes(), path


def test_a_commit_that_is_refused_renews_no_value(
    serve: Callable[..., Served], repository: Repository, tmp_path: Path, key: tuple[str, str]
) -> None:
    identity, recipient = key
    served = serve(SOPS_AGE_KEY=identity, PATH=f"{SOPS.parent}:{os.environ['PATH']}")
    source = Source.parse(f"git+{repository.root}@main//specs")
    syncer = Syncer(served.site, Wish(source), tmp_path / "checkout")
    first = sealed("HF_TOKEN: hf_canary_1\n", recipient, tmp_path)
    repository.commit(**{"hello": HELLO + "env: [HF_TOKEN]\n", "values.sops": first})
    syncer.once()
    served.site.store.access.put_project(Project("main", served.site.clock(), Limits(backends=())))
    second = sealed("HF_TOKEN: hf_canary_2\n", recipient, tmp_path)
    repository.commit(**{"values.sops": second, "more": HELLO.replace("hello", "more")})

    status = syncer.once()

    assert (status.state, "is not one this project may use" in status.message) == ("failed", True)
    assert served.site.store.secrets.get("hello/HF_TOKEN") == "hf_canary_1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("HF_TOKEN: hf_canary\n", "sops cannot open it: sops metadata not found"),
        (None, "sops cannot open it: Failed to get the data key"),
        ("HF_TOKEN: {deep: hf_canary}\n", "HF_TOKEN holds no single value"),
    ],
    ids=["in the clear", "without its key", "nested"],
)
def test_values_that_cannot_be_had_change_nothing(
    serve: Callable[..., Served], repository: Repository, tmp_path: Path, key: tuple[str, str],
    text: str | None, said: str,
) -> None:  # fmt: skip
    keys = {} if text is None else {"SOPS_AGE_KEY": key[0]}
    served = serve(PATH=f"{SOPS.parent}:{os.environ['PATH']}", HOME=str(tmp_path), **keys)
    source = Source.parse(f"git+{repository.root}@main//specs")
    syncer = Syncer(served.site, Wish(source), tmp_path / "checkout")
    held = text if text and "deep" not in text else sealed(text or "A: b\n", key[1], tmp_path)
    repository.commit(**{"hello": HELLO, "values.sops": held})

    status = syncer.once()

    assert status.state == "failed"
    assert f"specs/values.sops.yaml: {said}" in status.message
    assert "hf_canary" not in status.message
    assert names(served) == []


def test_an_unsigned_commit_is_refused_where_it_has_to_be_signed(
    served: Served, repository: Repository, tmp_path: Path
) -> None:
    source = Source.parse(f"git+{repository.root}@main//specs")
    syncer = Syncer(served.site, Wish(source, signed=True), tmp_path / "checkout")
    repository.commit(hello=HELLO)

    assert "has no good signature" in syncer.once().message
    assert names(served) == []


@pytest.mark.parametrize("secret", ["", "right"])
def test_a_webhook_has_to_know_the_secret(
    serve: Callable[..., Served], repository: Repository, tmp_path: Path, secret: str
) -> None:
    source = Source.parse(f"git+{repository.root}@main//specs")
    served = serve(
        syncer=lambda site: Syncer(site, Wish(source), tmp_path / "checkout"),
        MODELYARD_SYNC_WEBHOOK_SECRET=secret,
    )
    syncer, client, url = served.syncer, served.http, f"{served.url}/hooks/sync"
    assert syncer is not None

    def signed(key: str) -> dict[str, str]:
        return {"X-Hub-Signature-256": "sha256=" + hmac.new(key.encode(), b"{}", hashlib.sha256).hexdigest()}

    assert client.post(url, content=b"{}").status_code == 403
    assert client.post(url, content=b"{}", headers=signed("wrong")).status_code == 403
    assert not syncer._poked.is_set()
    right = client.post(url, content=b"{}", headers=signed("right"))
    assert right.status_code == (202 if secret else 403)
    assert syncer._poked.is_set() == bool(secret)


def test_the_same_folder_gives_the_same_record_whoever_applies_it(
    cli: Cli, served: Served, repository: Repository, syncer: Syncer, tmp_path: Path
) -> None:
    """By the command line, through a server, and by pulling: byte for byte."""
    more = HELLO.replace("hello", "hello-more") + "env: {A: b}\nresources: {cpu: 1}\n"
    files = HELLO.replace("hello", "hello-files") + "files: [data.txt, conf:/etc/app]\nvolumes: ['v:/v']\n"
    model = "type: service\nname: llm\nmodel: Qwen/Qwen2.5-7B-Instruct\nenv: {A: '1'}\ntags: {team: a}\n"
    (repository.root / "specs" / "conf").mkdir(parents=True)
    (repository.root / "specs" / "conf" / "app.ini").write_text("a = b")
    (repository.root / "specs" / "data.txt").write_text("data")
    repository.commit(hello=HELLO, web=WEB, more=more, files=files, model=model, v="type: volume\nname: v\n")
    found = {}
    applied = cli("apply", "-y", "-d", "--set", "sync", "-f", str(repository.root / "specs"))
    assert applied.code == 0, applied.err
    found["here"] = _record(served)
    _forget(served)
    client = served.client()
    documents = load([str(repository.root / "specs")], known_accelerators=known_names())
    client.apply(client.plan(documents, scope=Scope("sync")))
    found["server"] = _record(served)
    _forget(served)
    syncer.once()
    found["pulled"] = _record(served)

    assert len(found["here"]) == 5
    assert found["here"] == found["server"] == found["pulled"]
    assert {plan.action for plan in client.plan(documents, scope=Scope("sync"))} == {"unchanged"}


def _record(served: Served) -> list[tuple[object, ...]]:
    return [(r.name, r.spec, r.spec_hash, encode(r.template), r.set_name) for r in served.site.store.runs()]


def _forget(served: Served) -> None:
    client, runs = served.client(), [run.name for run in served.site.store.runs()]
    client.ask(runs, Wanted.DELETE)
    client.follow(runs, "deleted")


@pytest.mark.parametrize(
    "text",
    ["https://host/r", "git+", "git+https://host/r@--upload-pack=x", "git+/r//../etc", "git+--upload-pack=x"],
)
def test_what_names_no_repository_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Source.parse(text)
