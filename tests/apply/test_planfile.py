"""Saved plans from the command line: applied once and exactly, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.api import Local
from orchestrator.apply import NO_SET, NOTHING_LOST, Deletion, FleetPlan, Plan, RunPlan, VolumePlan
from orchestrator.apply.planfile import Origin, default_expiry, plan_file, read_plan, resume
from orchestrator.apply.prices import check_prices, is_priced
from orchestrator.backend import Offer
from orchestrator.catalog.digest import digest
from orchestrator.errors import PlanRefused, StateMoved, Unreachable, UsageError
from orchestrator.planner.plan import Choice, Placed
from orchestrator.reconcile import RunEvent
from orchestrator.reconcile.steps import Turn
from orchestrator.spec.load import load
from orchestrator.store import open_store
from orchestrator.units import GIB
from tests.apply import scenes
from tests.apply.scenes import CACHE, HELLO, WEB, edited, names, refused, saved
from tests.cli.conftest import Cli
from tests.places import offers, plan_everywhere

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_saved_plan_is_applied_once_and_without_a_question(cli: Cli) -> None:
    plan = saved(cli, HELLO)
    applied = cli.program("apply", plan, stdin="")
    assert (applied.code, applied.out) == (0, "hi\n42\n")
    refused(cli("apply", plan), "the plan is stale: run 'hello' moved")


def test_a_plan_that_does_nothing_can_be_applied_any_time(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("specs.yaml", CACHE + "---\n" + HELLO))
    plan = saved(cli, CACHE + "---\n" + HELLO, "--detailed-exitcode")
    assert [cli("apply", plan).code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    "scene",
    [
        scenes.a_changed_plan_is_refused,
        scenes.a_plan_whose_run_moved_is_refused,
        scenes.a_plan_whose_input_changed_is_refused,
        scenes.a_file_is_not_in_the_plan_and_held_to_what_it_was,
        scenes.a_plan_made_against_another_record_is_refused,
        scenes.an_expired_plan_is_refused,
    ],
)
def test_what_no_longer_holds_is_refused(cli: Cli, scene: Callable[[Cli], None]) -> None:
    scene(cli)


def test_the_same_input_gives_the_same_bytes(cli: Cli) -> None:
    first = Path(saved(cli, WEB + "---\n" + CACHE)).read_bytes()
    assert Path(saved(cli, WEB + "---\n" + CACHE)).read_bytes() == first


def test_a_plan_is_applied_where_its_inputs_are_gone(cli: Cli) -> None:
    plan = saved(cli, HELLO)
    (cli.folder / "specs.yaml").unlink()
    assert cli("apply", plan).code == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tool": "0.0.1"}, "was made by modelyard 0.0.1"),
        ({"catalog_sha256": "0" * 64}, "was made with another catalog"),
        ({"schema": "modelyard/planfile/v9"}, "has the form 'modelyard/planfile/v9'"),
        ({"steps": [{"name": "x"}]}, "does not hold what a plan file holds"),
        ({"expires_at": None}, "does not hold what a plan file holds"),
    ],
)
def test_a_plan_of_another_make_is_refused(cli: Cli, changes: dict[str, object], said: str) -> None:
    plan = saved(cli, HELLO)
    edited(plan, sealed=True, **changes)
    refused(cli("apply", plan), said)


def test_a_plan_of_a_fresh_machine_is_good_for_a_record_that_holds_nothing(cli: Cli) -> None:
    plan = saved(cli, HELLO)
    cli.program("secret", "set", "HF_TOKEN", stdin="hf_value\n")  # makes the record
    assert cli("apply", plan).code == 0
    cli("delete", "-y", "hello")
    cli("apply", "-y", "-f", cli.write("web.yaml", WEB))
    refused(cli("apply", plan), "it was made before there was a record, and this one is in use")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["apply"], "nothing to apply"),
        (["apply", "a.json", "b.json"], "one saved plan at a time"),
        (["apply", "none.json"], "cannot read none.json"),
        (["apply", "specs.yaml"], "is no saved plan"),
        (["apply", "specs.yaml", "--rerun"], "a saved plan says itself what to do"),
        (["plan", "-f", "specs.yaml", "--expires", "soon"], "--expires"),
        (["plan", "-f", "specs.yaml", "--out", "none/plan.json"], "cannot write none/plan.json"),
        (["plan", "-f", "specs.yaml", "--prune"], "--prune without a set"),
        (["apply", "-f", "specs.yaml", "--set", "Prod 1"], "'Prod 1' is no name for a set"),
    ],
)
def test_what_is_asked_wrongly_ends_with_64(cli: Cli, arguments: list[str], said: str) -> None:
    cli.write("specs.yaml", HELLO)
    result = cli(*arguments)
    assert (result.code, said in result.err) == (64, True), result


def test_of_two_who_apply_a_plan_at_once_one_does(cli: Cli) -> None:
    plan = saved(cli, WEB)
    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(lambda _: cli.program("apply", "-d", plan).code, range(3)))
    assert sorted(codes) == [0, 1, 1]
    begun = [e for e in json.loads(cli("events", "--json").out)["events"] if e["cause"] == "apply: create"]
    assert len(begun) == 1


@settings(
    max_examples=80, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), keep=st.booleans())
def test_a_damaged_plan_is_refused_or_says_the_same(
    whole: tuple[Path, bytes], at: float, byte: int, keep: bool
) -> None:
    path, content = whole
    place = int(at * len(content))
    path.write_bytes(content[:place] + bytes([byte]) + (content[place + 1 :] if keep else b""))
    origin = Origin(version("modelyard"), digest())
    now = datetime.now(UTC)
    try:
        found = read_plan(str(path), origin=origin, now=now)
    except (PlanRefused, UsageError):
        return
    path.write_bytes(content)
    assert found == read_plan(str(path), origin=origin, now=now)


@pytest.fixture
def whole(cli: Cli) -> tuple[Path, bytes]:
    """A plan file, and what it held when it was written."""
    path = Path(saved(cli, WEB))
    return path, path.read_bytes()


def test_a_new_run_of_the_name_makes_a_plan_stale(cli: Cli) -> None:
    plan = saved(cli, HELLO)
    cli("apply", "-y", "-f", str(cli.folder / "specs.yaml"))
    cli("delete", "-y", "hello")
    assert cli("apply", plan).code == 0  # as it was: no such run
    refused(cli("apply", plan), "run 'hello' moved")


SCALING = WEB + "replicas: 1..4\nscaling: {metric: rps, target: 1}\n"


def scaled(cli: Cli, replicas: int) -> None:
    """Have the load say how many replicas of ``web`` there are, as the gateway writes it down."""
    with closing(open_store(f"sqlite:///{cli.folder}/state.db")) as store:
        run = store.run("web")
        turned = replace(run, template=replace(run.template, replicas=replicas), ready=replicas)
        event = RunEvent(run.id, "web", datetime.now(UTC), "web", "ready", "ready", "scaled")
        store.commit([Turn(turned, event)], expected={run.id: run.serial})


def asked(cli: Cli) -> tuple[str, int]:
    """Return the command of ``web`` on record, and its replicas."""
    with closing(open_store(f"sqlite:///{cli.folder}/state.db")) as store:
        run = store.run("web")
        return json.loads(run.spec)["commands"][0], run.template.replicas


@pytest.mark.parametrize(
    ("spec", "after"),
    [
        (SCALING.replace("serve", "serve better"), ("serve better", 3)),
        (SCALING.replace("target: 1", "target: 2"), ("serve", 3)),
        (SCALING.replace("1..4", "1..2"), ("serve", 2)),
    ],
    ids=["replaced", "updated in place", "within the new range"],
)
def test_a_service_that_scales_between_plan_and_apply_is_still_the_one_planned_for(
    cli: Cli, spec: str, after: tuple[str, int]
) -> None:
    cli("apply", "-y", "-f", cli.write("specs.yaml", SCALING))
    plan = saved(cli, spec)
    scaled(cli, 3)
    applied = cli("apply", "-d", plan)
    assert (applied.code, asked(cli)) == (0, after), applied.err
    refused(cli("apply", plan), "run 'web' moved")  # once, as ever


def test_a_service_that_scales_before_it_is_pruned_is_deleted(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("specs.yaml", SCALING + "---\n" + HELLO), "--set", "prod")
    plan = saved(cli, HELLO, "--set", "prod", "--prune")
    scaled(cli, 3)
    assert cli("apply", plan).code == 0
    assert set(names(cli)) == {"hello"}


def test_what_a_loop_writes_while_plans_are_written_down_is_no_objection(cli: Cli) -> None:
    cli("apply", "-y", "-f", cli.write("specs.yaml", SCALING))
    better = load([cli.write("specs.yaml", SCALING.replace("serve", "serve better"))])
    with closing(Local(f"sqlite:///{cli.folder}/state.db", config=cli.folder / "config.yaml")) as api:
        plans, others = api.plan(better), api.plan(better)
        scaled(cli, 3)
        assert api.apply(plans) == ("web",)
        assert asked(cli) == ("serve better", 3)
        with pytest.raises(StateMoved, match="run 'web' changed since it was read"):
            api.apply(others)  # somebody asked for something else meanwhile


def test_a_task_that_begins_while_it_is_replaced_is_not_lost_unasked(cli: Cli) -> None:
    long = load([cli.write("specs.yaml", scenes.LONG)])
    with closing(Local(f"sqlite:///{cli.folder}/state.db", config=cli.folder / "config.yaml")) as api:
        api.apply(api.plan(long))
        plans = api.plan(load([cli.write("specs.yaml", scenes.LONG.replace("sleep", "sleep more"))]))
        api.follow(["long"], "started")
        with pytest.raises(StateMoved):
            api.apply(plans)


def test_a_plan_lasts_as_long_as_it_says(cli: Cli) -> None:
    now = datetime(2026, 11, 25, 23, 59, tzinfo=UTC)
    documents = load([cli.write("specs.yaml", HELLO)])
    path = cli.folder / "plan.json"

    def at(time: datetime) -> Local:
        return Local(
            f"sqlite:///{cli.folder}/state.db", config=cli.folder / "config.yaml", clock=lambda: time
        )

    for lasts_s, last in [(None, timedelta(days=1)), (60, timedelta(seconds=59))]:
        with closing(at(now)) as api:
            path.write_text(api.save(api.plan(documents), lasts_s=lasts_s))
        with closing(at(now + last)) as api:
            assert api.resume(str(path))
        with (
            closing(at(now + last + timedelta(seconds=61))) as api,
            pytest.raises(PlanRefused, match="expired"),
        ):
            api.resume(str(path))


def test_a_secret_is_not_in_a_plan(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_12345")
    text = HELLO + "env: [HF_TOKEN]\n"
    plan = saved(cli, text, "--set", "prod", "--lock")
    printed = [cli("plan", "-f", str(cli.folder / "specs.yaml"), "--format", f) for f in ("md", "github")]
    assert all("hf_canary" not in result.out for result in printed)
    assert cli("apply", plan).code == 0
    kept = [*cli.folder.glob("state.db*"), Path(plan), cli.folder / "modelyard.lock"]
    assert [path for path in kept if b"hf_canary" in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("text", "arguments", "code"),
    [
        (HELLO + "env: {API_TOKEN: hf_canary_12345}\n", [], 65),
        (HELLO.replace("[echo hi]", "['echo ${{ run.args }}']"), ["--", "hf_canary_12345"], 1),
        (HELLO.replace("echo hi", "echo hf_canary_12345"), [], 1),
    ],
    ids=["a variable's value", "an argument", "a command"],
)
def test_a_plan_that_would_hold_a_secret_is_not_saved(
    cli: Cli, text: str, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_12345")
    result = cli("plan", "-f", cli.write("specs.yaml", text), "--out", "plan.json", *arguments)
    assert result.code == code, result
    assert "canary" not in result.out + result.err
    assert not (cli.folder / "plan.json").exists()


def test_a_missing_variable_is_told_where_the_spec_began(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    result = cli("apply", saved(cli, CACHE + "---\n" + HELLO + "env: [HF_TOKEN]\n"))
    assert result.code == 65
    assert f"{cli.folder}/specs.yaml:5:1: HF_TOKEN has no value" in result.err


def test_a_service_is_updated_and_replaced_by_saved_plans(cli: Cli) -> None:
    cli("apply", saved(cli, WEB))
    assert cli("apply", saved(cli, WEB + "replicas: 2\n")).code == 0
    shown = json.loads(cli("show", "web", "--json").out)["run"]
    assert shown["ready"] == 2
    assert cli("apply", saved(cli, WEB.replace("serve", "serve better") + "replicas: 2\n")).code == 0
    jobs = json.loads(cli("show", "web", "--json").out)["run"]["jobs"]
    assert [job["name"] for job in jobs if job["state"] == "ready"] == ["web-0-0-1", "web-1-0-1"]


def test_consent_may_come_with_the_plan_or_later(cli: Cli) -> None:
    cli("apply", "-y", "-d", "-f", cli.write("specs.yaml", scenes.LONG))
    plan = saved(cli, scenes.LONG.replace("sleep", "sleep more"))
    assert cli("apply", "-d", plan).code == 64
    assert cli("apply", "-d", plan, "--allow-replace").code == 0
    plan = saved(cli, scenes.LONG.replace("sleep", "sleep most"), "--allow-replace")
    assert cli("apply", "-d", plan).code == 0


RENTED = "type: task\nname: rented\ncommands: [x]\nbackends: [cloud]\nresources: {gpu: L4}\n"


def rented(more: str = "") -> RunPlan:
    """Return a plan that rents a machine."""
    (plan,) = plan_everywhere(RENTED + more)
    assert isinstance(plan, RunPlan)
    assert is_priced([plan])
    return plan


@pytest.mark.parametrize("most", [None, 1.3])
def test_a_plan_file_lists_every_machine_a_launch_may_go_on_to_with_its_price(
    most: float | None, tmp_path: Path
) -> None:
    path = tmp_path / "specs.yaml"
    path.write_text(
        f"type: task\nname: rented\ncommands: [x]\nbackends: [cloud]\nresources: {{gpu: 24GB..80GB}}\n"
        f"max_price: {most or 'null'}\n"
    )
    (plan,) = plan_everywhere(path.read_text(), file=str(path))
    assert isinstance(plan, RunPlan)
    assert plan.placed
    now = datetime(2026, 11, 25, tzinfo=UTC)
    text = plan_file(
        [plan], origin=Origin("1", "2"), record="", scope=NO_SET, consent=NOTHING_LOST, expires_at=now,
        environ={},
    )  # fmt: skip
    (step,) = json.loads(text)["steps"]
    rents, cap = step["template"]["rents"], step["placed"]["cap_usd_hour"]
    assert [(rent["instance_type"], rent["price_usd_hour"]) for rent in rents] == [
        (offer.instance_type, offer.price_usd_hour) for offer in plan.placed.tries
    ]
    assert step["placed"]["tries_usd_hour"] == [rent["price_usd_hour"] for rent in rents]
    assert step["template"]["backends"] == ["cloud"] * len(rents)
    assert len(rents) > len(step["placed"]["choices"])  # more than the plan shows
    dearest = max(rent["price_usd_hour"] for rent in rents)
    assert dearest <= cap if most else dearest > cap


def test_a_plan_file_tells_what_other_places_of_ones_own_cost(cli: Cli) -> None:
    card = {"accelerator": "L4-24GB", "count": 4, "vram_bytes": 24 * GIB, "divisible": True}
    places = [
        {"name": name, "type": "sim", "prices": {"L4": price},
         "offers": [card | {"instance_type": f"{name}{at}"} for at in range(6)]}
        for name, price in (("near", 1), ("far", 5))
    ]  # fmt: skip
    config = cli.write("places.yaml", json.dumps({"backends": places}))
    spec = cli.write("specs.yaml", "type: task\nname: own\ncommands: [x]\nresources: {gpu: L4:2}\n")
    assert cli("plan", "-f", spec, "--config", config, "--out", "plan.json").code == 0
    (step,) = json.loads((cli.folder / "plan.json").read_text())["steps"]
    assert {choice["offer"]["backend"] for choice in step["placed"]["choices"]} == {"near"}
    assert step["template"]["backends"] == ["near", "far"]
    assert (step["placed"]["cap_usd_hour"], step["placed"]["tries_usd_hour"]) == (2.0, [2.0, 10.0])


def test_a_dearer_machine_is_refused_and_a_cheaper_one_taken() -> None:
    check_prices([rented()], offers(), {})
    check_prices([rented()], [replace(o, price_usd_hour=o.price_usd_hour / 2) for o in offers()], {})
    dearer = [replace(o, price_usd_hour=o.price_usd_hour + 0.01) for o in offers()]
    with pytest.raises(PlanRefused, match=r"costs .* for 'rented', more than the plan's"):
        check_prices([rented()], dearer, {})
    check_prices([rented("max_price: 99\n")], dearer, {})


@pytest.mark.parametrize("price", [0.2, 0.1, 0.7, 1.1, 3.3, 0.7548, 23.92])
def test_a_price_that_has_not_moved_is_no_dearer_in_its_last_bit(price: float) -> None:
    machine = Offer("cloud", "m1", 4, 2**34, price_usd_hour=price)
    chosen = Choice(machine, nodes=1, price_usd_hour=price, chosen=True)
    check_prices([replace(rented(), placed=Placed((chosen,), 1, (), ("cloud",)))], [machine], {})


RACK = Offer(
    "rack", "r1", 64, 2**39, accelerator="L4-24GB", count=8, vram_bytes=24 * GIB, divisible=True,
    own_usd_hour=0.5,
)  # fmt: skip


def planned_on(offer: Offer) -> RunPlan:
    """Return a plan that takes two accelerators of a machine of one's own."""
    chosen = Choice(offer, nodes=1, price_usd_hour=offer.costs_usd_hour(count=2), chosen=True, count=2)
    return replace(rented(), placed=Placed((chosen,), 1, (), (offer.backend,)))


def test_a_share_of_a_machine_of_ones_own_is_held_to_its_price() -> None:
    plan = planned_on(RACK)
    check_prices([plan], [RACK], {})
    with pytest.raises(PlanRefused, match=r"costs \$1.2/h for 'rented', more than the plan's \$1/h"):
        check_prices([plan], [replace(RACK, own_usd_hour=0.6)], {})


@pytest.mark.parametrize("free", [2, 1, 0])
def test_a_machine_of_ones_own_that_others_use_meanwhile_is_still_offered(free: int) -> None:
    listed = replace(RACK, own_usd_hour=0.0, price_usd_hour=1.0)
    for rack in (RACK, listed):  # priced by its owner for each accelerator, or as a whole
        check_prices([planned_on(rack)], [replace(rack, count=free)], {})
    whole = replace(RACK, divisible=False)
    with pytest.raises(PlanRefused, match="r1 on rack, chosen for 'rented', is no longer offered"):
        check_prices([planned_on(whole)], [replace(whole, count=free)], {})  # rented whole: another one


def test_hosts_of_ones_own_are_held_to_their_price_whichever_of_them_is_there() -> None:
    host = replace(RACK, fleet="rack")
    plan = planned_on(host)
    other = replace(host, instance_type="r2", count=4)
    check_prices([plan], [other], {})  # r1 was drained meanwhile: the place starts it on r2
    check_prices([plan], [replace(other, own_usd_hour=0.0)], {})  # it costs nothing by now
    with pytest.raises(PlanRefused, match=r"costs \$1.2/h for 'rented', more than the plan's \$1/h"):
        check_prices([plan], [replace(other, own_usd_hour=0.6)], {})
    with pytest.raises(PlanRefused, match="is no longer offered"):
        check_prices([plan], [replace(other, accelerator="T4-16GB")], {})


@pytest.mark.parametrize("reservation", [None, "cr-1"])
def test_a_machine_on_demand_and_a_reserved_one_are_two(reservation: str | None) -> None:
    on_demand = Offer("cloud", "m1", 4, 2**34, price_usd_hour=2.0)
    reserved = replace(on_demand, reservation="cr-1", price_usd_hour=1.0)
    taken = reserved if reservation else on_demand
    chosen = Choice(taken, nodes=1, price_usd_hour=taken.price_usd_hour, chosen=True)
    plan = replace(rented(), placed=Placed((chosen,), 1, (), ("cloud",)))
    both = [on_demand, reserved]
    check_prices([plan], both, {})
    check_prices([plan], both[::-1], {})
    dearer = [replace(o, price_usd_hour=o.price_usd_hour + (o is taken)) for o in both]
    for order in (dearer, dearer[::-1]):
        with pytest.raises(PlanRefused, match="more than the plan's"):
            check_prices([plan], order, {})
    with pytest.raises(PlanRefused, match="is no longer offered"):
        check_prices([plan], [o for o in both if o is not taken], {})


def test_a_machine_that_is_gone_is_refused() -> None:
    with pytest.raises(PlanRefused, match="is no longer offered"):
        check_prices([rented()], [o for o in offers() if o.accelerator != "L4-24GB"], {})


def test_a_place_that_does_not_answer_is_not_called_dearer() -> None:
    with pytest.raises(Unreachable, match="the price of 'rented' cannot be checked: no route"):
        check_prices([rented()], [], {"cloud": "no route"})


def test_a_plan_does_what_was_reviewed_on_processes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    config = f"backends: [{{type: process, state_dir: {cli.folder / 'process'}}}]\n"
    monkeypatch.setenv("MODELYARD_CONFIG", cli.write("real.yaml", config))
    cli.write("said.txt", "as reviewed\n")
    text = "type: task\nname: say\nbackends: [process]\ncommands: [cat said.txt]\nfiles: [said.txt]\n"
    plan = saved(cli, text)
    assert cli("apply", plan).out == "as reviewed\n"
    assert names(cli) == {"say": "succeeded"}
    cli("delete", "-y", "say")


def test_a_saved_plan_leaves_the_same_record_as_its_files(cli: Cli) -> None:
    text = "type: service\nname: chat\nport: 8000\nmodel: Qwen/Qwen3-8B\nreplicas: 2\ntags: {team: a}\n"

    def record() -> tuple[object, ...]:
        with open_store(f"sqlite:///{cli.folder}/state.db") as store:
            run = store.run("chat")
        cli("delete", "-y", "chat")
        return run.spec, run.spec_hash, run.template, run.plan, run.set_name

    cli("apply", "-y", "-d", "-f", cli.write("specs.yaml", text), "--set", "prod")
    by_files = record()
    cli("apply", "-d", saved(cli, text, "--set", "prod"))
    assert record() == by_files


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_comes_back_from_a_plan_file_as_it_was_planned(path: Path, tmp_path: Path) -> None:
    plans = plan_everywhere(path.read_text(), file=str(path))
    origin, now = Origin("1", "2"), datetime(2026, 11, 25, tzinfo=UTC)
    file = tmp_path / "plan.json"
    file.write_text(
        plan_file(
            plans, origin=origin, record="a/main", scope=NO_SET, consent=NOTHING_LOST, environ={},
            expires_at=default_expiry(now),
        )
    )  # fmt: skip
    read = read_plan(str(file), origin=origin, now=now)
    again = resume(read, record="a/main", runs={}, volumes={}, fleets={})
    assert [written_down(plan) for plan in again] == [written_down(plan) for plan in plans]
    assert [costs_of(plan) for plan in again] == [costs_of(plan) for plan in plans]


def costs_of(plan: Plan) -> tuple[float, ...]:
    """Return what a replica costs at every place that it is tried on, none where nothing is placed."""
    if not isinstance(plan, RunPlan):
        return ()
    assert plan.placed
    assert plan.template
    assert len(plan.placed.tries_usd_hour) == len(plan.template.backends)
    assert plan.placed.tries_usd_hour[0] == next(iter(plan.placed.choices)).price_usd_hour
    return plan.placed.tries_usd_hour


def written_down(plan: Plan) -> tuple[object, ...]:
    """Return all of a plan that reaches the record."""
    assert not isinstance(plan, Deletion)
    head = plan.name, plan.action, plan.spec.canonical(), plan.spec.hash(), plan.set_name
    if isinstance(plan, VolumePlan):
        return *head, plan.backend
    if isinstance(plan, FleetPlan):
        return *head, plan.leaving, plan.notes
    return *head, plan.spec_hash, plan.template, plan.serving
