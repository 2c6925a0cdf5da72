from __future__ import annotations

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet

from orchestrator.errors import ConfigError, NotFound, StoreError
from orchestrator.reconcile.steps import Forget
from orchestrator.store import open_store
from orchestrator.store.records import Store
from orchestrator.store.secrets import key_file, key_of
from orchestrator.store.tables import secrets
from orchestrator.store.urls import sqlite_url
from orchestrator.store.values import Fleet, SecretName, of_hosts
from tests.store.values import KEY, T0, a_run, an_event, made

CANARY = "hf_canary-8d1f0c5e"


def test_a_secret_comes_back_and_is_replaced(store: Store) -> None:
    store.secrets.set("hf", "first", now=T0)
    store.secrets.set("hf", "sécond\n", now=T0 + timedelta(hours=1))

    assert store.secrets.get("hf") == "sécond\n"
    assert store.secrets.list() == [SecretName("hf", T0 + timedelta(hours=1))]


def test_names_are_listed_in_order(store: Store) -> None:
    for name in ("b", "a", "B"):
        store.secrets.set(name, "x", now=T0)

    assert [each.name for each in store.secrets.list()] == ["B", "a", "b"]


def test_what_a_run_was_given_goes_with_it_and_what_was_set_by_hand_stays(store: Store) -> None:
    chat, embed = a_run("chat"), a_run("embed")
    store.commit([made(chat), made(embed)])
    store.secrets.set("chat/HAND", "by hand", now=T0)
    store.secrets.set("chat/HF", "first", now=T0)
    store.commit(
        [],
        kept=[
            store.secrets.sealed("chat/HF", "second", now=T0, given_to="chat"),
            store.secrets.sealed("embed/HF", "theirs", now=T0, given_to="embed"),
            store.secrets.of("lab").sealed("chat2/HF", "a neighbour's", now=T0, given_to="chat2"),
        ],
    )
    assert store.secrets.get("chat/HF") == "second"

    store.commit([Forget(chat, an_event(chat, "deleted"))])

    assert [store.secrets.get(f"chat/{name}") for name in ("HAND", "HF")] == ["by hand", "first"]
    assert store.secrets.get("embed/HF") == "theirs"
    assert store.secrets.of("lab").get("chat2/HF") == "a neighbour's"
    store.commit([Forget(embed, an_event(embed, "deleted"))])
    with pytest.raises(NotFound):
        store.secrets.get("embed/HF")


def test_what_was_set_by_hand_since_counts_and_stays(store: Store) -> None:
    chat = a_run("chat")
    store.commit([made(chat)], kept=[store.secrets.sealed("chat/HF", "given", now=T0, given_to="chat")])

    store.secrets.set("chat/HF", "by hand", now=T0)

    assert store.secrets.list() == [SecretName("chat/HF", T0)]
    store.commit([Forget(chat, an_event(chat, "deleted"))])
    assert store.secrets.get("chat/HF") == "by hand"


def test_values_of_hosts_go_with_their_fleet(store: Store) -> None:
    store.commit(
        [],
        kept=[
            Fleet("rack", "{}", "5pec", T0),
            store.secrets.sealed("rack/PROXY", "given", now=T0, given_to=of_hosts("rack")),
        ],
    )
    run = a_run("rack")  # a run may have the name of a fleet of hosts
    store.commit([made(run)], kept=[store.secrets.sealed("rack/HF", "given", now=T0, given_to="rack")])

    store.commit([Forget(run, an_event(run, "deleted"))])
    assert store.secrets.list() == [SecretName("rack/PROXY", T0, "fleet:rack")]
    store.forget_fleet("rack")
    assert store.secrets.list() == []


def test_a_deleted_secret_is_gone_however_it_came(store: Store) -> None:
    store.secrets.set("chat/HF", "by hand", now=T0)
    store.secrets.set("chat/HF", "given", now=T0, given_to="chat")
    assert [each.given_to for each in store.secrets.list()] == ["", "chat"]

    store.secrets.delete("chat/HF")

    assert store.secrets.list() == []


def test_both_values_of_one_name_are_sealed_anew(url: str) -> None:
    old, new = KEY, Fernet.generate_key().decode()
    with open_store(url, secret_key=old) as store:
        store.secrets.set("chat/HF", "by hand", now=T0)
        store.commit(
            [made(a_run("chat"))], kept=[store.secrets.sealed("chat/HF", "given", now=T0, given_to="chat")]
        )
    with open_store(url, secret_key=f"{new},{old}") as store:
        assert store.secrets.rotate() == 2
    with open_store(url, secret_key=new) as store:
        assert store.secrets.get("chat/HF") == "given"
        run = store.run("chat")
        store.commit([Forget(run, an_event(run, "deleted"))])
        assert store.secrets.get("chat/HF") == "by hand"


def test_a_deleted_secret_is_not_found(store: Store) -> None:
    store.secrets.set("hf", "x", now=T0)

    store.secrets.delete("hf")

    with pytest.raises(NotFound):
        store.secrets.get("hf")
    with pytest.raises(NotFound):
        store.secrets.delete("hf")


def test_another_key_opens_nothing_and_says_so(store: Store, url: str) -> None:
    store.secrets.set("hf", CANARY, now=T0)

    other = open_store(url, secret_key=Fernet.generate_key().decode())
    with other, pytest.raises(StoreError, match="another key") as caught:
        other.secrets.get("hf")

    assert CANARY not in repr(caught.value)


def test_a_secret_copied_over_another_is_noticed(store: Store) -> None:
    store.secrets.set("admin", "x", now=T0)
    store.secrets.set("mine", "y", now=T0)
    mine = sa.select(secrets.c.ciphertext).where(secrets.c.name == "mine").scalar_subquery()
    with store.database.writing() as connection:
        connection.execute(secrets.update().where(secrets.c.name == "admin").values(ciphertext=mine))

    with pytest.raises(StoreError, match="altered"):
        store.secrets.get("admin")


def test_what_is_no_key_is_refused(url: str) -> None:
    with open_store(url, secret_key=CANARY) as store:
        with pytest.raises(ConfigError) as caught:
            store.secrets.set("hf", "x", now=T0)

        assert CANARY not in str(caught.value)
        assert store.secrets.list() == []


@pytest.mark.postgres
def test_a_shared_store_without_a_key_holds_no_secrets(postgres_store_url: str) -> None:
    with open_store(postgres_store_url) as store:
        with pytest.raises(ConfigError, match="MODELYARD_SECRET_KEY"):
            store.secrets.set("hf", CANARY, now=T0)

        assert store.secrets.list() == []


def test_a_local_store_makes_its_key_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with open_store(sqlite_url(path)) as store:
        store.secrets.set("hf", "x", now=T0)
        first = key_file(path).read_text()
    with open_store(sqlite_url(path)) as store:
        store.secrets.set("other", "y", now=T0)

        assert store.secrets.get("hf") == "x"
    assert key_file(path).read_text() == first
    for file in (key_file(path), path):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.db", "state.db.key"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_can_reach_is_refused_with_the_chmod(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "state.db"
    with open_store(sqlite_url(path)) as store:
        store.secrets.set("hf", "x", now=T0)
        key_file(path).chmod(mode)

        with pytest.raises(StoreError) as caught:
            store.secrets.get("hf")

    assert caught.value.fix == f"chmod 600 {key_file(path)}"


def test_a_lost_key_is_named_and_not_made_anew_by_reading(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with open_store(sqlite_url(path)) as store:
        store.secrets.set("hf", "x", now=T0)
        key_file(path).unlink()

        with pytest.raises(StoreError, match="is gone"):
            store.secrets.get("hf")

    assert not key_file(path).exists()


def test_processes_that_make_the_key_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "state.db.key"
    program = (
        "import sys; from pathlib import Path; from orchestrator.store.secrets import key_of;"
        "sys.stdin.read(); print(key_of(Path(sys.argv[1]), make=True))"
    )
    command = [sys.executable, "-c", program, str(path)]
    makers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.close()
        maker.stdin = None

    keys = {maker.communicate()[0].strip() for maker in makers}

    assert keys == {key_of(path, make=False)}
    assert [file.name for file in tmp_path.iterdir()] == ["state.db.key"]


def test_no_secret_value_is_anywhere_in_the_files(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with open_store(sqlite_url(path)) as store:
        store.commit([made(a_run("chat"))])
        store.secrets.set("hf", CANARY, now=T0)
        store.secrets.set("hf", CANARY + CANARY, now=T0)
        store.secrets.delete("hf")
        store.secrets.set("hf", CANARY, now=T0)
        written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

        assert {"state.db", "state.db-wal"} <= set(written)
        assert store.secrets.get("hf") == CANARY
    written["closed"] = path.read_bytes()
    assert b"chat" in written["closed"]
    assert [name for name, content in written.items() if CANARY.encode() in content] == []


def test_no_repr_shows_a_value_or_a_key(tmp_path: Path) -> None:
    with open_store(sqlite_url(tmp_path / "state.db"), secret_key=KEY) as store:
        store.secrets.set("hf", CANARY, now=T0)

        shown = repr(store) + repr(store.secrets) + repr(store.database) + str(store.database.engine)

    assert CANARY not in shown
    assert KEY not in shown


def test_what_is_written_behind_a_rotation_opens_with_the_new_key(tmp_path: Path) -> None:
    """It was sealed with the old one before, which was gone by then: the value was lost."""
    url = sqlite_url(tmp_path / "state.db")
    with open_store(url) as server, open_store(url) as operator:
        server.secrets.set("hf", "first", now=T0)
        given = server.secrets.sealed("chat/HF", "second", now=T0, given_to="chat")

        operator.secrets.rotate()
        server.commit([made(a_run("chat"))], kept=[given])

        assert (server.secrets.get("hf"), server.secrets.get("chat/HF")) == ("first", "second")
        assert "second" not in repr(given)


def test_secrets_that_are_set_while_keys_are_rotated_are_all_there(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "state.db")
    with open_store(url) as server, open_store(url) as operator, ThreadPoolExecutor(4) as pool:
        setting = [pool.submit(server.secrets.set, f"s{n}", str(n), now=T0) for n in range(100)]
        while not all(each.done() for each in setting):
            operator.secrets.rotate()

        assert [server.secrets.get(f"s{n}") for n in range(100)] == [str(n) for n in range(100)]


def test_a_lost_key_is_not_made_anew_by_writing(tmp_path: Path) -> None:
    """A copy put back without its key had two kinds of secrets from the first one that was set."""
    path = tmp_path / "state.db"
    with open_store(sqlite_url(path)) as store:
        store.secrets.set("hf", "x", now=T0)
        key = key_file(path).read_bytes()
        key_file(path).unlink()

        for write in (lambda: store.secrets.set("other", "y", now=T0), store.secrets.rotate):
            with pytest.raises(StoreError, match="the key of the secrets is gone"):
                write()

        assert not key_file(path).exists()
        key_file(path).write_bytes(key)
        key_file(path).chmod(0o600)
        assert (store.secrets.get("hf"), store.secrets.rotate()) == ("x", 1)
