"""Scaling end to end: engines asked, samples made, decisions written down, replicas from zero."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.api import Local
from orchestrator.engines.exposition import EngineLoad, load_of
from orchestrator.engines.job import Metrics
from orchestrator.engines.vllm import METRICS as VLLM
from orchestrator.gateway.routes import routes_of
from orchestrator.gateway.sampling import Told, sample_of
from orchestrator.gateway.scaling import Sample
from orchestrator.gateway.server import Gateway
from orchestrator.gateway.server.scaler import Scaler
from orchestrator.gateway.server.scrape import fetch
from orchestrator.reconcile.values import Job, Run, Wanted
from orchestrator.spec.load import load
from orchestrator.store.records import Store
from tests.gateway.clients import Stage, dial, in_a_loop, request, until
from tests.gateway.test_parts import a_job, a_run
from tests.gateway.test_record import NOW, a_store, program, write
from tests.gateway.upstream import Asked, Upstream, plain, saying

TOLD = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } \\" b"} 7.0
vllm:num_requests_waiting{engine="0",model_name="x"} 3.0
vllm:num_requests_waiting_by_reason{reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:time_to_first_token_seconds_bucket{le="0.1"} 5.0
vllm:time_to_first_token_seconds_count{engine="0"} 10.0
vllm:time_to_first_token_seconds_sum{engine="0"} 4.0
vllm:iteration_tokens_total_count{engine="0"} 55.0
"""


def test_an_engine_is_read_under_its_own_names() -> None:
    assert load_of(TOLD, VLLM) == EngineLoad(3.0, 7.0, 0.5, 4.0, 10.0, 55.0)


def test_of_two_spellings_one_is_counted() -> None:
    both = "new 2\nold 2\nnew 1\n"
    assert load_of(both, Metrics(queue=("new", "old"))).queue == 3.0


@pytest.mark.parametrize(
    "text", ["", "queue\n", "queue NaN\n", 'queue{a="b 1\n', "queuer 1\n", "# queue 1\n"]
)
def test_what_is_not_told_is_not_known(text: str) -> None:
    assert load_of(text, Metrics(queue=("queue",))).queue is None


def sample(*engines: Told, waiting: int = 0, outstanding: int = 0) -> Sample:
    return sample_of(0.0, waiting=waiting, outstanding=outstanding, rps=1.0, engines=engines)


def test_what_waits_anywhere_is_queued_and_a_silent_engine_counts_as_the_others() -> None:
    busy = Told(EngineLoad(queue=4.0, running=8.0, kv_cache=0.5))
    found = sample(busy, Told(None), waiting=1, outstanding=40)
    assert (found.queue, found.running, found.kv_cache) == (9.0, 16.0, 0.5)


def test_engines_that_all_are_silent_make_nothing_known_but_what_the_gateway_knows() -> None:
    found = sample(Told(None), waiting=1, outstanding=3)
    assert (found.queue, found.running, found.kv_cache, found.ttft_s) == (None, 3.0, None, None)


def test_the_first_token_is_that_of_the_requests_since_the_last_look() -> None:
    before = EngineLoad(ttft_sum_s=100.0, ttft_count=10.0)
    now = replace(before, ttft_sum_s=106.0, ttft_count=12.0)
    assert sample(Told(now, before), outstanding=1).ttft_s == 3.0
    assert sample(Told(before, now), outstanding=1).ttft_s is None  # it was started anew
    assert sample(Told(before, before)).ttft_s == 0.0


def scaling(run_to: int = 4, **fields: object) -> Run:
    rule = {"metric": "queue", "target": 2, "scale_up_delay": "0s", "scale_down_delay": "1h"}
    told = {"path": "/metrics", "queue": ["vllm:num_requests_waiting"], "running": [], "kv_cache": []}
    plan = json.dumps({"serving": {"metrics": told | {"ttft": []}}})
    return a_run(plan=plan, replicas=f"0..{run_to}", scaling=rule, auth=False, **fields)


def with_replicas(run: Run, replicas: int) -> Run:
    return replace(run, template=replace(run.template, replicas=replicas))


@in_a_loop
async def test_a_replica_is_asked_for_its_metrics_and_what_is_none_is_no_answer() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na 1\r\n0\r\n\r\n"
    for answer, text in ((plain(b"a 1"), "a 1"), (chunked, "a 1"), (plain(b"", status="404 No"), None)):
        async with Upstream(saying(answer, end=True)) as replica:
            (found,) = routes_of([a_run()], [ready(a_run(), replica.port)]).services["chat"].replicas
            assert await fetch(found, "/metrics") == text
    assert await fetch(found, "/metrics") is None


def ready(run: Run, port: int) -> Job:
    return a_job(run, ports={8000: ("127.0.0.1", port)})


def on_record(check: Callable[[Store, Scaler, Gateway], object]) -> Callable[[Path], None]:
    """Run a check with a record of its own in each of the loops."""

    def run(tmp_path: Path) -> None:
        @in_a_loop
        async def within() -> None:
            (folder := tmp_path / os.urandom(4).hex()).mkdir()
            with a_store(folder) as store:
                gateway = Gateway()
                await gateway.open("127.0.0.1", 0)
                try:
                    await check(store, Scaler(gateway, store, clock=lambda: NOW, wrote=lambda: None), gateway)  # type: ignore[misc]
                finally:
                    await gateway.close(drain_s=0.0)

        within()

    return run


def follow(gateway: Gateway, store: Store) -> None:
    gateway.update(routes_of(store.runs(), store.jobs()))


@on_record
async def check_engines(store: Store, scaler: Scaler, gateway: Gateway) -> None:
    async def tell(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        assert asked.target == "/metrics"
        writer.write(plain(b"vllm:num_requests_waiting 5\n"))
        await writer.drain()
        return True

    async with Upstream(tell) as replica:
        run = with_replicas(scaling(), 1)
        write(store, run, ready(run, replica.port))
        follow(gateway, store)
        await scaler.look()
    assert store.run("chat").template.replicas == 3
    told = [event for _, event in store.events("chat") if event.action == "chat:scale"]
    assert [event.cause for event in told] == ["scaled 1 → 3: 5 queue over 2 a replica"]


def test_what_engines_tell_is_decided_on_and_written_down_with_its_reason(tmp_path: Path) -> None:
    check_engines(tmp_path)


@on_record
async def check_silence(store: Store, scaler: Scaler, gateway: Gateway) -> None:
    async with Upstream(saying(plain(b"", status="500 No"), end=True)) as replica:
        run = with_replicas(scaling(), 2)
        write(store, run, ready(run, replica.port))
        follow(gateway, store)
        await scaler.look()
    assert store.run("chat").template.replicas == 2


def test_nothing_is_scaled_while_engines_do_not_answer(tmp_path: Path) -> None:
    check_silence(tmp_path)


@on_record
async def check_moved(store: Store, scaler: Scaler, gateway: Gateway) -> None:
    write(store, with_replicas(scaling(), 0))
    follow(gateway, store)
    asking = asyncio.create_task(
        Stage(gateway, gateway_port(gateway)).ask(request("/services/chat/v1/completions", b"{}", key=None))
    )
    await until(lambda: bool(gateway.desks["chat"].waiting))
    stopped = replace(store.run("chat"), wanted=Wanted.STOP)
    write(store, stopped)
    await scaler.look()
    assert store.run("chat").template.replicas == 0
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking


def gateway_port(gateway: Gateway) -> int:
    assert gateway._server is not None
    return int(gateway._server.sockets[0].getsockname()[1])


def test_a_run_that_was_stopped_meanwhile_is_not_scaled(tmp_path: Path) -> None:
    check_moved(tmp_path)


SERVICE = """\
type: service
name: web
commands: ["exec {python} {program}"]
port: 8000
auth: false
replicas: 0..2
scaling: {{metric: queue, target: 100, scale_down_delay: 2s}}
probes: [{{url: /, interval: 1s, timeout: 5s}}]
backends: [process]
"""
PROGRAM = """\
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep, time

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"%f" % up
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

ThreadingHTTPServer.request_queue_size = 512
sleep(0.5)
with ThreadingHTTPServer(("127.0.0.1", int(os.environ["MODELYARD_PORT"])), Handler) as server:
    up = time()
    server.serve_forever()
"""


def test_from_zero_100_requests_wait_and_are_served_and_it_falls_asleep_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user would: a file, ``modelyard gateway``, processes of this machine, nothing else."""
    (tmp_path / "program.py").write_text(PROGRAM)
    config = tmp_path / "config.yaml"
    config.write_text(f"backends: [{{type: process, state_dir: {tmp_path}/process}}]\n")
    monkeypatch.setenv("MODELYARD_CONFIG", str(config))
    file = tmp_path / "web.yaml"
    file.write_text(SERVICE.format(python=sys.executable, program=tmp_path / "program.py"))
    api = Local(f"sqlite:///{tmp_path}/state.db", config=config)
    api.apply(api.plan(load([str(file)])))

    async def ask_all(port: int) -> list[tuple[int, float, float]]:
        async def one() -> tuple[int, float, float]:
            async with dial(port) as (reader, writer):
                writer.write(request("/services/web/", method="GET", key=None))
                status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1])
                first = datetime.now(UTC).timestamp()
                return status, first, float(await reader.read(17))

        return await asyncio.gather(*(one() for _ in range(100)))

    try:
        with program(tmp_path) as (_, url):
            answers = asyncio.run(ask_all(int(url.rpartition(":")[2])))
            assert Counter(status for status, _, _ in answers) == {200: 100}
            api.follow(["web"], "settled", timeout_s=30)
            run = api.store.run("web")
            ready_at = min(job.ready_at for job in api.store.jobs(run.id) if job.ready_at)
            first = min(first for _, first, _ in answers)
            assert first - ready_at.timestamp() < 1.0  # 0.02 to 0.1 on a machine that is not shared
            wakes = [e.cause for _, e in api.store.events("web") if e.action == "web:scale"]
            assert wakes[0].startswith("scaled 0 → ")
            while (run := api.store.run("web")).template.replicas or run.ready:
                asyncio.run(asyncio.sleep(0.05))
            ended = api.store.jobs(run.id)
            assert {(job.stop_cause, job.reason) for job in ended} == {("scaled down", "")}
    finally:
        api.ask(["web"], Wanted.DELETE)
        api.follow(["web"], "deleted", timeout_s=30)
        api.close()


REPLACED = """\
type: service
name: web
commands: ["serve {version}"]
port: 8000
replicas: 1..4
scaling: {{metric: rps, target: 2}}
rollout: {{rollback: {rollback}}}
backends: [sim]
"""


@pytest.mark.parametrize("rollback", ["auto", "off"])
def test_an_apply_keeps_the_number_the_load_took_and_what_worked_before(
    tmp_path: Path, rollback: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"backends: [{{type: sim, state: {tmp_path}/sim.jsonl}}]\n")
    api = Local(f"sqlite:///{tmp_path}/state.db", config=config)

    def apply(version: int) -> Run:
        file = tmp_path / "web.yaml"
        file.write_text(REPLACED.format(version=version, rollback=rollback))
        api.apply(api.plan(load([str(file)])))
        return api.store.run("web")

    try:
        first = apply(1)
        write(api.store, replace(with_replicas(first, 3), was_ready=True))
        second = apply(2)
        assert second.template.replicas == 3
        assert second.template.before is not None
        assert second.template.before.spec_hash == first.spec_hash
        third = apply(3)  # the second never worked: what did is still the first
        assert third.template.before == second.template.before
    finally:
        api.close()
