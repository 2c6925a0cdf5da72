"""The gateway on a real record, and as a program."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.apply.recording import record
from orchestrator.cli import run as modelyard
from orchestrator.errors import StoreError
from orchestrator.gateway.keys import PREFIX, new_key
from orchestrator.gateway.server import Gateway, follow, read
from orchestrator.reconcile.steps import Record, Turn
from orchestrator.reconcile.values import Job, Run, RunEvent
from orchestrator.store import open_store
from orchestrator.store.records import Store
from tests.gateway.clients import completion, dial, in_a_loop, until
from tests.gateway.test_parts import a_job, a_run
from tests.gateway.upstream import Upstream, engine
from tests.places import plan_everywhere

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@contextmanager
def a_store(folder: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{folder}/state.db") as store:
        yield store


def write(store: Store, run: Run, *jobs: Job) -> None:
    """Write a run down, and its jobs with their events."""

    def event(subject: str) -> RunEvent:
        return RunEvent(run.id, run.name, NOW, subject, "", "ready", "a test")

    store.commit([Turn(run, event(run.name)), *(Record(job, event(job.name)) for job in jobs)])


def a_ready(run: Run, port: int) -> Job:
    return a_job(run, ports={8000: ("127.0.0.1", port)})


def test_the_record_is_read_only_where_it_moved(tmp_path: Path) -> None:
    with a_store(tmp_path) as store:
        run = a_run()
        write(store, run, a_ready(run, 1))
        first, _ = read(store, -1, with_keys=False)
        assert first is not None
        assert [replica.port for replica in first.services["chat"].replicas] == [1]
        assert read(store, first.serial, with_keys=False) == (None, None)


def test_a_replica_that_is_asked_to_stop_is_out_of_the_routes_at_once(tmp_path: Path) -> None:
    @in_a_loop
    async def check() -> None:
        (folder := tmp_path / os.urandom(4).hex()).mkdir()
        with a_store(folder) as store:
            run = a_run()
            job = a_ready(run, 1)
            write(store, run, job)
            gateway = Gateway()
            await gateway.open("127.0.0.1", 0)
            following = asyncio.create_task(follow(gateway, store, complain=pytest.fail))
            await until(lambda: bool(gateway.routes.services))
            started = asyncio.get_running_loop().time()
            write(store, store.run("chat"), replace(job, stop_asked_at=NOW))
            await until(lambda: not gateway.routes.services["chat"].replicas)
            took_s = asyncio.get_running_loop().time() - started
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            await gateway.close()
        assert took_s < 0.6

    check()


SPEC = """
type: service
name: chat
model: {id: Qwen/Qwen2.5-7B-Instruct, adapters: [{name: sql, id: org/sql-lora}]}
engine: vllm
"""


def test_what_apply_writes_down_is_what_the_gateway_needs(tmp_path: Path) -> None:
    with a_store(tmp_path) as store:
        record(plan_everywhere(SPEC), store, environ={}, now=NOW, new_id=lambda: "id")
        routes, _ = read(store, -1, with_keys=False)
    assert routes is not None
    service = routes.services["chat"]
    assert service.paths is not None
    assert {"/v1/chat/completions", "/v1/completions"} < service.paths
    assert "/v1/load_lora_adapter" not in service.paths
    assert dict(service.models) == {
        "Qwen/Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct", "sql": "sql",
    }  # fmt: skip


class Broken:
    """A store that fails, then is back."""

    def __init__(self, store: Store) -> None:
        self.store, self.fails = store, True
        self.secrets = store.secrets
        self.runs, self.jobs = store.runs, store.jobs

    def last_serial(self) -> int:
        if self.fails:
            raise StoreError("the disk is gone")
        return self.store.last_serial()


def test_the_last_routes_stand_while_the_record_cannot_be_read(tmp_path: Path) -> None:
    @in_a_loop
    async def check() -> None:
        (folder := tmp_path / os.urandom(4).hex()).mkdir()
        with a_store(folder) as store:
            run = a_run()
            write(store, run, a_ready(run, 1))
            broken, said = Broken(store), []
            gateway = Gateway()
            await gateway.open("127.0.0.1", 0)
            routes, keys = read(store, -1, with_keys=True)
            assert routes is not None
            gateway.update(routes, keys)
            following = asyncio.create_task(follow(gateway, broken, complain=said.append))  # type: ignore[arg-type]
            await until(lambda: bool(said))
            await asyncio.sleep(0.5)
            assert gateway.routes is routes
            write(store, store.run("chat"), a_ready(run, 2))
            broken.fails = False
            await until(lambda: gateway.routes is not routes)
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            await gateway.close()
        assert len(said) == 1

    check()


@contextmanager
def program(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``modelyard gateway`` on the record in ``folder``; give it and where it listens."""
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "gateway", "--listen", "127.0.0.1:0", *options],
        env=os.environ | {"MODELYARD_DATABASE_URL": f"sqlite:///{folder}/state.db", "PYTHONPATH": root},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert found is not None, process.communicate()[1]
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_program_serves_the_record_until_it_is_told_to_end(tmp_path: Path) -> None:
    async def check() -> None:
        async with Upstream(engine) as replica:
            with a_store(tmp_path) as store:
                run = a_run(auth=True)
                write(store, run, a_ready(run, replica.port))
                key, secret = new_key("ann", None)
                store.secrets.set(PREFIX + "ann", key.text(), now=NOW)
            # where a Docker engine runs, it would say that it has no such launch
            with program(tmp_path, "--access-log", "--no-scale") as (process, url):
                port = int(url.rpartition(":")[2])
                async with dial(port) as (reader, writer):
                    writer.write(completion("org/llama", key=secret))
                    assert b" 200 OK" in await reader.readuntil(b"}}")
                    process.send_signal(signal.SIGTERM)
                    assert await reader.read() == b""
                out, err = await asyncio.to_thread(process.communicate)
        assert (process.returncode, err) == (0, "")
        told = json.loads(out)
        assert (told["key"], told["service"], told["output_tokens"]) == ("ann", "chat", 4)
        assert secret not in out

    asyncio.run(check())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{tmp_path}/state.db")
    return tmp_path


def test_keys_are_made_listed_and_revoked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert modelyard(["gateway", "key", "ci", "--service", "chat"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("my-")
    assert modelyard(["gateway", "keys"]) == 0
    assert capsys.readouterr().out == "ci  chat\n"
    assert modelyard(["gateway", "keys", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["keys"] == [{"name": "ci", "services": ["chat"]}]
    assert modelyard(["gateway", "revoke", "ci"]) == 0
    assert modelyard(["gateway", "keys"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["gateway", "--listen", "8080"], 64, "is no address and port"),
        (["gateway", "--listen", "127.0.0.1:99999"], 64, "is no address and port"),
        (["gateway", "--listen", "192.0.2.1:0"], 64, "cannot listen on 192.0.2.1:0"),
        (["gateway", "--private-key", "x.pem"], 64, "--private-key without --certificate"),
        (["gateway", "--certificate", "/nonexistent.pem"], 78, "cannot be used"),
        (["gateway", "key", "a/b"], 64, "is no name for a key"),
        (["gateway", "revoke", "nobody"], 64, "no key 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert modelyard(arguments) == code
    assert said in capsys.readouterr().err


def test_a_stranger_is_told_how_keys_are_made(tmp_path: Path) -> None:
    with a_store(tmp_path) as store:
        write(store, a_run())
    with program(tmp_path) as (_, url), pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/v1/models")
    with refused.value as answer:
        assert answer.code == 401
        assert "modelyard gateway key" in json.loads(answer.read())["error"]["message"]
