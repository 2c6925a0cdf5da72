"""Which changes of adapters a running engine takes, and which need new containers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from orchestrator.apply import RunPlan, plan_documents, planning
from orchestrator.backend import Can
from orchestrator.catalog.hardware import known_names
from orchestrator.errors import SpecError
from orchestrator.reconcile import Run, RunState
from orchestrator.reconcile.values import Adapter
from orchestrator.spec.load import read
from tests.cli.conftest import Cli
from tests.places import world

NOW = datetime(2026, 11, 29, tzinfo=UTC)
SQL, SUM = "{name: sql, id: org/sql}", "{name: sum, id: org/sum, rank: 32}"


def service(*adapters: str, more: str = "", engine: str = "vllm", **fields: str) -> str:
    listed = f"adapters: [{', '.join(adapters)}]" if adapters else ""
    model = ", ".join(part for part in ("id: Qwen/Qwen2.5-7B-Instruct", listed, more) if part)
    told = "".join(f"{key}: {value}\n" for key, value in fields.items())
    return f"type: service\nname: chat\nmodel: {{{model}}}\nengine: {engine}\n{told}"


def planned(text: str, *runs: Run, on_clusters: bool = False) -> RunPlan:
    """Plan the last document of ``text`` against these runs."""
    documents = read(text, file="a.yaml", known_accelerators=known_names(), env={})
    here = replace(world(), runs={run.name: run for run in runs})
    if not on_clusters:
        here = replace(here, places={name: can - {Can.GROUPS} for name, can in here.places.items()})
    (*_, plan) = plan_documents(documents, here)
    assert isinstance(plan, RunPlan)
    return plan


def run_of(plan: RunPlan) -> Run:
    """Return what is on record once a plan has been applied."""
    assert plan.template is not None
    spec = json.dumps(plan.spec.canonical(), sort_keys=True)
    return Run(
        f"id-{plan.name}", plan.name, "service", spec, plan.spec_hash, plan.template, NOW,
        state=RunState.READY, plan=plan.serving,
    )  # fmt: skip


def after(before: str, now: str) -> RunPlan:
    """Plan ``now`` where ``before`` runs, and again where that was applied: then nothing is left to do."""
    first = run_of(planned(before))
    plan = planned(now, first)
    if plan.action == "replace":
        assert planned(now, run_of(plan)).action == "unchanged"
    elif plan.action == "update":
        assert plan.template is not None
        spec = json.dumps(plan.spec.canonical(), sort_keys=True)
        assert planned(now, replace(first, spec=spec, template=plan.template)).action == "unchanged"
    return plan


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("before", "now"),
    [
        ((SQL,), (SQL, SUM)),
        ((SQL, SUM), (SUM,)),
        ((SQL,), ("{name: sql, id: org/other}",)),
        ((SQL,), ("{name: sql, id: org/sql, revision: v2}",)),
    ],
    ids=["added", "removed", "exchanged", "of another revision"],
)
def test_what_a_running_engine_can_take_changes_in_place(
    engine: str, before: tuple[str, ...], now: tuple[str, ...]
) -> None:
    plan = after(service(*before, engine=engine), service(*now, engine=engine))
    assert plan.action == "update"
    assert {change.mark for change in plan.changes} == {"in-place"}
    assert plan.template is not None
    names = [adapter.name for adapter in plan.template.adapters]
    listed = [word for word in plan.template.launch.command if "=org/" in word]
    assert [word.partition("=")[0] for word in listed] == names  # what starts later starts with the same


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (service(), service(SQL)),
        (service(SQL), service()),
        (service(SQL), service(SQL, more="max_adapters: 4")),
        (service(SUM), service("{name: sql, id: org/sql, rank: 128}")),
        (service(SQL), service(SQL, "{name: sum, id: /adapters/sum}")),
        (service(SQL, engine="tgi").replace("name: sql", "name: org/sql"),
         service(SUM, engine="tgi").replace("name: sum", "name: org/sum")),
    ],
    ids=["the first", "the last", "room", "a larger rank", "a folder that is not mounted", "tgi"],
)  # fmt: skip
def test_what_it_cannot_take_replaces_the_replicas_and_says_so(before: str, now: str) -> None:
    plan = after(before, now)
    assert plan.action == "replace"
    assert {change.mark for change in plan.changes} == {"replace"}


def test_a_folder_that_is_mounted_can_be_left_alone_and_come_back() -> None:
    folder = "{name: sum, id: /adapters/sum}"
    both = run_of(planned(service(SQL, folder)))
    less = planned(service(SQL), both)
    assert less.action == "update"
    assert less.template is not None
    spec = json.dumps(less.spec.canonical(), sort_keys=True)
    assert planned(service(SQL, folder), replace(both, spec=spec, template=less.template)).action == "update"


def test_more_adapters_than_there_is_room_for_take_turns_which_the_plan_says() -> None:
    assert after(service(SQL), service(SQL, SUM)).notes == (
        "2 adapters take turns in device memory, which has room for 1: model.max_adapters makes more",
    )
    assert after(service(SQL, more="max_adapters: 4"), service(SQL, SUM, more="max_adapters: 4")).notes == ()


def test_room_for_adapters_is_counted_as_memory() -> None:
    def adapter_bytes(text: str) -> int:
        served = planned(text).served
        assert served is not None
        return served.size.device.adapter_bytes

    one, four = adapter_bytes(service(SQL)), adapter_bytes(service(SQL, more="max_adapters: 4"))
    assert 0 < one < four == pytest.approx(4 * one)
    assert adapter_bytes(service("{name: sql, id: org/sql, rank: 16}")) == pytest.approx(one / 4)
    assert adapter_bytes(service()) == 0


def test_what_changes_in_place_leaves_an_engine_its_time_to_drain() -> None:
    """On a cluster another grace is another pod: a service that was scaled started all its replicas anew."""
    first = planned(service(), on_clusters=True)
    assert first.template is not None
    graces = []
    for changed in ("replicas: 2\n", "stop_duration: 5s\n", "stop_duration: 120s\n"):
        plan = planned(service() + changed, run_of(first), on_clusters=True)
        assert (plan.action, plan.template is not None) == ("update", True)
        assert plan.template is not None
        graces.append(plan.template.launch.stop_grace_s)
    assert graces == [first.template.launch.stop_grace_s] * 2 + [120.0]


def test_a_cluster_rolls_its_replicas_where_adapters_change() -> None:
    assert "adapters" not in json.loads(planned(service(SQL), on_clusters=True).serving)["serving"]


# Services that share a base ----------------------------------------------------------------------

BASED = "type: service\nname: code\nbase: chat\nadapters: [{name: code, id: org/code}]\n"


def test_a_service_with_a_base_takes_no_place_and_follows_it() -> None:
    for runs, text in (
        ((run_of(planned(service(more="max_adapters: 2"))),), BASED),
        ((), service(SQL) + "---\n" + BASED),
    ):
        plan = planned(text, *runs)
        assert (plan.action, plan.placed) == ("create", None)
        assert plan.template is not None
        assert (plan.template.base, plan.template.replicas) == ("chat", 0)
        assert plan.template.adapters == (Adapter("code", "org/code"),)
    other = BASED.replace("org/code", "org/other")
    update = planned(other, *runs_of(service(SQL)), run_of(plan))
    assert update.action == "update"
    assert update.template is not None
    assert update.template.adapters == (Adapter("code", "org/other"),)


def runs_of(text: str) -> tuple[Run, ...]:
    return (run_of(planned(text)),)


@pytest.mark.parametrize(
    ("runs", "text", "said"),
    [
        ((), BASED, "a.yaml:3:7: no service 'chat' is on record or among these files"),
        ((service(),), BASED, "a.yaml:3:7: service 'chat' loads no adapters while it runs"),
        ((service(SQL),), BASED.replace("org/code", "/adapters/code"),
         "a.yaml:4:29: '/adapters/code' would have to be mounted where 'chat' runs"),
        ((service(SQL),), BASED.replace("name: code, id", "name: sql, id"),
         "a.yaml:4:19: service 'chat' has an adapter called 'sql' on the same base"),
    ],
    ids=["not there", "not able", "not mounted", "taken"],
)  # fmt: skip
def test_a_base_that_will_not_do_is_told_at_its_line(runs: tuple[str, ...], text: str, said: str) -> None:
    known = [run for each in runs for run in runs_of(each)]
    with pytest.raises(SpecError) as error:
        planned(text, *known)
    assert said in str(error.value)


def test_a_saved_plan_of_a_shared_service_is_applied_as_it_was_made(cli: Cli) -> None:
    base = "type: service\nname: chat\nport: 8000\ncommands: [serve]\n"
    cli("apply", "-y", "-d", "-f", cli.write("chat.yaml", base))
    result = cli("plan", "-f", cli.write("code.yaml", BASED))
    assert result.code == 65
    assert "code.yaml:3:7: service 'chat' loads no adapters while it runs" in result.err


# Probes of what an engine serves -----------------------------------------------------------------


def test_an_engine_fills_in_what_a_probe_left_out() -> None:
    plan = planned(
        service(probes="[{type: token, timeout: 20s}, {url: /ready, start_duration: 5m}]", port="9000")
    )
    assert plan.template is not None
    token, ready = plan.template.launch.probes()
    assert (token.method, token.path, token.port, token.timeout_s) == ("POST", "/v1/completions", 9000, 20)
    assert json.loads(token.body or "") == {
        "model": "Qwen/Qwen2.5-7B-Instruct", "prompt": "1", "max_tokens": 1
    }  # fmt: skip
    assert plan.served is not None
    assert plan.served.launch.probe is not None
    assert token.start_s == plan.served.launch.probe.start_s  # as long as its weights take
    assert (ready.port, ready.start_s, ready.silent_s) == (9000, 300, 180)


def test_without_a_port_a_probe_asks_the_engine_s_own() -> None:
    plan = planned(service(probes="[{url: /health, replace_after: off}]"))
    assert plan.template is not None
    (probe,) = plan.template.launch.probes()
    assert (probe.port, probe.silent_s) == (8000, None)


def test_a_follower_is_asked_nothing() -> None:
    text = "type: service\nname: big\nmodel: {id: meta-llama/Llama-3.1-405B-Instruct, precision: bf16}\n"
    plan = planned(text + "env: [HF_TOKEN]\nresources: {gpu: H100:8}\nprobes: [{type: token}]\n")
    assert plan.template is not None
    assert plan.template.nodes > 1
    assert plan.template.launch.probes()
    assert plan.template.of_node(1).probes() == ()


# Ranks -------------------------------------------------------------------------------------------


def ranked(text: str, ranks: dict[str, int], *runs: Run) -> RunPlan:
    """Plan the last document of ``text`` where the weights of some adapters, by id, tell their rank."""
    documents = read(text, file="a.yaml", known_accelerators=known_names(), env={})
    here = replace(world(), runs={run.name: run for run in runs}, rank_of=lambda each: ranks.get(each.id))
    here = replace(here, places={name: can - {Can.GROUPS} for name, can in here.places.items()})
    (*_, plan) = plan_documents(documents, here)
    assert isinstance(plan, RunPlan)
    return plan


def room(plan: RunPlan) -> str:
    """Return the rank that its engine is told to make room for."""
    assert plan.template is not None
    words = plan.template.launch.command
    return words[words.index("--max-lora-rank") + 1]


@pytest.mark.parametrize(("said", "told", "made"), [("", 16, "16"), (", rank: 32", 16, "32"), ("", 0, "64")])
def test_room_is_made_for_the_rank_that_the_weights_tell(said: str, told: int, made: str) -> None:
    text = service(f"{{name: sql, id: org/sql{said}}}")
    plan = ranked(text, {"org/sql": told} if told else {})
    assert room(plan) == made
    run = run_of(plan)
    assert ranked(text, {"org/sql": told} if told else {}, run).action == "unchanged"
    assert ranked(text, {}, run).action == "unchanged"  # planned from a machine without the files


def test_weights_wider_than_there_is_room_for_need_new_containers_though_no_spec_says_so() -> None:
    run = run_of(ranked(service(SQL), {"org/sql": 16}))
    both = service(SQL, "{name: sum, id: org/sum}")
    assert ranked(both, {"org/sql": 16, "org/sum": 16}, run).action == "update"
    plan = ranked(both, {"org/sql": 16, "org/sum": 32}, run)
    assert (plan.action, room(plan)) == ("replace", "32")


def test_a_rank_below_that_of_the_weights_is_refused_where_it_is_written() -> None:
    with pytest.raises(SpecError) as refused:
        ranked(service(SQL, SUM), {"org/sql": 16, "org/sum": 64})
    (problem,) = refused.value.problems
    assert (problem.at.line, problem.what) == (3, "the weights of 'sum' are of rank 64, got 32")
    assert problem.fix == "write 64, or leave it out"


def test_a_service_on_a_base_is_refused_adapters_that_the_base_has_no_room_for() -> None:
    base = run_of(ranked(service(SQL), {"org/sql": 16}))
    based = "type: service\nname: code\nbase: chat\nadapters: [{name: code, id: org/code}]\n"
    assert ranked(based, {"org/code": 16}, base).action == "create"
    with pytest.raises(SpecError) as refused:
        ranked(based, {"org/code": 32}, base)
    (problem,) = refused.value.problems
    assert problem.what == "an adapter of rank 32, and 'chat' has room for 16"


@pytest.mark.parametrize(
    "test",
    [
        test_weights_wider_than_there_is_room_for_need_new_containers_though_no_spec_says_so,
        test_a_rank_below_that_of_the_weights_is_refused_where_it_is_written,
        test_a_service_on_a_base_is_refused_adapters_that_the_base_has_no_room_for,
    ],
)
def test_a_plan_that_believes_the_spec_alone_is_caught(
    test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = planning.known_ranks
    monkeypatch.setattr(
        planning, "known_ranks", lambda document, spec, _: real(document, spec, lambda _: None)
    )
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test()
