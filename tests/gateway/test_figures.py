"""What the gateway tells of itself: well formed, bounded, and all that the dashboard asks for."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli import run as modelyard
from orchestrator.engines.exposition import EngineLoad
from orchestrator.gateway.routes import Replica, Scaled, routes_of
from orchestrator.gateway.scaling import Rule
from orchestrator.gateway.top import services, told_of
from orchestrator.loop.figures import Figures
from orchestrator.render.services import services_text
from tests.gateway.clients import Stage, chat, completion, in_a_loop, request, stage
from tests.gateway.test_parts import T0, a_job, a_run
from tests.gateway.test_record import a_store, program, write
from tests.gateway.upstream import STREAM_HEAD, USAGE, Asked, Upstream, engine, event

DASHBOARD = Path(__file__).parents[2] / "docs" / "dashboards" / "services.json"
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="[^"\n]*",?)*)\})? (\S+)')
PRICED = {"scaled": Scaled(Rule("rps", 1.0, 1, 4), 3), "held": 2, "price_usd_hour": 3.0}


async def figures(here: Stage) -> str:
    """Return the exposition of a gateway that has served, with an engine that told its load."""
    await here.ask(completion(stream=True))
    await here.ask(completion())
    await here.ask(completion("none"))
    (replica, *_) = here.gateway.routes.services["chat"].replicas
    load = EngineLoad(queue=1.0, running=2.0, kv_cache=0.5)
    here.gateway.engines = {"chat": {replica: load, Replica("chat-0-0-7", "h", 1): load}}
    return (await here.ask(request("/metrics", method="GET"))).body.decode()


def names_of(text: str) -> set[str]:
    return {
        name for line in text.splitlines() if not line.startswith("#") for name in [line.partition("{")[0]]
    }


@in_a_loop
async def test_figures_are_well_formed_and_every_series_is_told_once() -> None:
    loop = Figures()
    loop.passed(0.5, driven=3)
    loop.acted("start", "docker", "done")
    async with (
        Upstream(engine) as replica,
        stage(chat(replica.port, **PRICED), beside=loop.text) as here,
    ):
        text = await figures(here)
    assert text.endswith("\n")
    families: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in families
            families[family] = kind
        elif not line.startswith("# HELP "):
            found = SAMPLE.fullmatch(line)
            assert found is not None, line
            name, labels, value = found.groups()
            float(value)
            assert (name, labels) not in seen
            seen.add((name, labels))
            assert re.sub(r"_(bucket|sum|count)$", "", name) in families or name in families, name
    assert families["modelyard_gateway_ttft_seconds"] == "histogram"
    assert families["modelyard_loop_actions_total"] == "counter"


@in_a_loop
async def test_nothing_that_a_client_says_becomes_a_label() -> None:
    async with Upstream(engine) as replica, stage(chat(replica.port, **PRICED)) as here:
        await figures(here)
        before = len((await here.ask(request("/metrics", method="GET"))).body.splitlines())
        for at in range(20):
            await here.ask(completion(f"model-{at}"))
            await here.ask(request(f"/services/name-{at}/", method="GET"))
            await here.ask(completion(key=f"my-key-{at}"))
        after = (await here.ask(request("/metrics", method="GET"))).body.decode()
    assert len(after.splitlines()) - before <= 2  # another status that was refused
    assert "model-" not in after
    assert "name-" not in after


@in_a_loop
async def test_times_are_counted_where_they_belong() -> None:
    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if not json.loads(asked.body).get("stream"):
            await engine(asked, writer)
            return
        await asyncio.sleep(0.03)
        writer.write(STREAM_HEAD + event("{}"))
        await writer.drain()
        await asyncio.sleep(0.06)
        writer.write(event(json.dumps({"usage": USAGE})) + b"0\r\n\r\n")
        await writer.drain()

    async with Upstream(slow) as replica, stage(chat(replica.port)) as here:
        await here.ask(completion(stream=True))
        await here.ask(completion())
        desk = here.gateway.desks["chat"]
    assert (sum(desk.queue_s.counts), sum(desk.ttft_s.counts), sum(desk.token_s.counts)) == (2, 1, 1)
    # The loop's clock stands still within one of its turns: half of what was slept is sure.
    assert desk.ttft_s.total >= 0.015
    assert desk.token_s.total >= 0.03 / (USAGE["completion_tokens"] - 1)
    assert desk.queue_s.total >= 0.0


@in_a_loop
async def test_replicas_cost_what_the_plan_says_for_as_long_as_they_are_held() -> None:
    async with Upstream(engine) as replica, stage(chat(replica.port, **PRICED)) as here:
        gateway = here.gateway
        await here.ask(completion())
        gateway.now -= 1800.0  # half an hour goes by until the next tick
        gateway._tick()
        text = (await here.ask(request("/metrics", method="GET"))).body.decode()
    told = told_of(text)
    assert told["usd_per_hour", "chat"] == 6.0
    assert told["cost_usd_total", "chat"] == pytest.approx(3.0, rel=0.01)
    assert told["usd_per_million_tokens", "chat"] == pytest.approx(3e6 / 4, rel=0.01)


def test_price_and_what_is_held_come_from_the_record() -> None:
    run = a_run(plan=json.dumps({"price_usd_hour": 1.5}))
    jobs = [a_job(run), a_job(run, 1, ready_at=None), replace(a_job(run, 2), stop_asked_at=T0)]
    service = routes_of([run], jobs).services["chat"]
    assert (service.held, service.price_usd_hour) == (3, 1.5)


def test_the_dashboard_asks_for_what_is_told_and_for_nothing_else() -> None:
    found: list[str] = []

    @in_a_loop
    async def ask() -> None:
        async with Upstream(engine) as replica, stage(chat(replica.port, **PRICED)) as here:
            found.append(await figures(here))

    ask()
    told = names_of(found[-1])
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    targets += [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    asked = {name for expr in targets for name in re.findall(r"\bmodelyard_\w+", expr)}
    assert asked <= told, asked - told
    assert all(expr.count("(") == expr.count(")") for expr in targets)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told}
    assert families - shown == {"modelyard_gateway_untold_total"}


TEXT = """\
modelyard_gateway_replicas{service="chat"} 2
modelyard_gateway_replicas_held{service="chat"} 3
modelyard_gateway_outstanding{service="chat"} 7
modelyard_gateway_arrived_total{service="chat"} %d
modelyard_gateway_output_tokens_total{key="a",service="chat"} %d
modelyard_gateway_output_tokens_total{key="b",service="chat"} 50
modelyard_gateway_ttft_seconds_sum{service="chat"} %d
modelyard_gateway_ttft_seconds_count{service="chat"} %d
modelyard_gateway_usd_per_hour{service="chat"} 7.2
"""


def test_rates_are_over_the_time_between_two_looks() -> None:
    (found,) = services(told_of(TEXT % (10, 100, 5, 10)), told_of(TEXT % (30, 2100, 7, 14)), over_s=2.0)
    assert (found.ready, found.held, found.running) == (2, 3, 7)
    assert (found.requests_s, found.tokens_s, found.ttft_s) == (10.0, 1000.0, 0.5)
    assert services_text([found]).splitlines()[1].split() == [
        "chat", "2/3", "0", "7", "10.0", "1000", "0.50s", "7.20", "2.00",
    ]  # fmt: skip


def test_a_gateway_that_was_started_anew_has_no_rate_below_zero() -> None:
    (found,) = services(told_of(TEXT % (30, 2100, 7, 14)), told_of(TEXT % (1, 10, 0, 0)), over_s=2.0)
    assert (found.requests_s, found.tokens_s, found.ttft_s) == (0.0, 0.0, None)


def test_top_shows_a_gateway_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{tmp_path}/state.db")
    with a_store(tmp_path) as store:
        write(store, a_run())
    assert modelyard(["gateway", "key", "ops"]) == 0
    key = capsys.readouterr().out.strip()
    with program(tmp_path, "--no-scale") as (_, url):
        assert modelyard(["top", "--gateway", url, "--every", "0.2"]) == 77
        assert "modelyard gateway key" in capsys.readouterr().err
        monkeypatch.setenv("MODELYARD_GATEWAY_KEY", key)
        assert modelyard(["top", "--gateway", url, "--every", "0.2"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["chat", "0/0"]
        assert modelyard(["top", "--gateway", url, "--every", "0.2", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["services"][0]["name"] == "chat"
    assert modelyard(["top", "--gateway", url]) == 69
