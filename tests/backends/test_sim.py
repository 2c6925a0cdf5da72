"""What the scripted backend must hold: the contract, and what tests rely on it for."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from backends.sim import Call, Hand, Script, Sim, SimCluster
from orchestrator.backend import (
    Backend,
    Can,
    Group,
    Growth,
    Instance,
    Launch,
    LogLine,
    Offer,
    Phase,
    Port,
    Resources,
)
from orchestrator.errors import (
    AuthFailed,
    BackendError,
    Busy,
    ConfigError,
    NoCapacity,
    NotFound,
    Quota,
    Rejected,
    Temporary,
    Unreachable,
)
from orchestrator.testing import BackendContract
from orchestrator.testing.contract import Kind

COUNTED = tuple(f"line {n}" for n in range(1, 6))
SCRIPTS: dict[str, Script] = {
    "quick": Script(run_s=0.0, prints=("once",)),
    "failing": Script(run_s=0.0, exit_code=7),
    "long": Script(prints=("up",), stop_code=5, ready_s=0.0),
    "stubborn": Script(prints=("up",), stubborn=True),
    "printing": Script(run_s=0.0, prints=(*COUNTED, "end")),
    "talking": Script(run_s=0.1, prints=(*COUNTED, "end"), every_s=0.02),
    "digest": Script(run_s=0.0, digests=("TOKEN", "PLAIN")),
    "hungry": Script(run_s=0.0, exit_code=137, reason="oom"),
    "serving": Script(),
    "flaky": Script(run_s=0.01, exit_code=3),
    "literal": Script(run_s=0.0, prints=("$HOME; exit 9",)),
    "missing": Script(refuse="rejected"),
    "file": Script(run_s=0.0, prints=("from a file",)),
    "writing": Script(run_s=0.0),
    "reading": Script(run_s=0.0, prints=("kept",)),
}
T = Launch("chat-0-0-1", "chat", attempt=1, spec_hash="h")


def script(launch: Launch) -> Script:
    """Return what a launch of the contract does: its command is its kind."""
    return SCRIPTS[launch.command[0]]


def quiet(_: str) -> None:
    """Hear nothing."""


def start(sim: Sim, launch: Launch = T) -> Instance:
    return sim.start(launch, secrets={}, progress=quiet)


class SimContract(BackendContract):
    """How the clauses are put to a sim: a kind is the command, and time is the machine's."""

    wait_s = 5.0
    kind_of_sim: type[Sim] = Sim

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        return self.make(tmp_path / "world")

    def make(self, state: Path, namespace: str = "modelyard") -> Sim:
        return self.kind_of_sim(script=script, state=state, namespace=namespace)

    def launch(self, kind: Kind, name: str = "contract-0-0-1", **fields: Any) -> Launch:
        return super().launch(kind, name, **{"command": (kind,), **fields})

    def exec_command(self, exit_code: int) -> Sequence[str]:
        return ("exit", str(exit_code))

    def source(self, backend: Backend) -> str | None:
        assert isinstance(backend, Sim)
        made = f"{self.kind_of_sim.__name__}(script=script, state={str(backend.state)!r})"
        return (
            "from tests.backends.test_sim import script\n"
            f"from {self.kind_of_sim.__module__} import {self.kind_of_sim.__name__}\n"
            f"backend = {made}"
        )

    def stranger(self, backend: Backend) -> Backend | None:
        assert isinstance(backend, Sim)
        assert backend.state is not None
        return self.make(backend.state, "stranger")

    def broken(self, backend: Backend) -> Backend | None:
        broken = self.kind_of_sim()
        broken.unreachable = True
        return broken

    def traces(self, backend: Backend) -> Iterable[bytes]:
        assert isinstance(backend, Sim)
        assert backend.state is not None
        return [path.read_bytes() for path in backend.state.parent.iterdir()]

    def reaches(self, backend: Backend, address: tuple[str, int]) -> bool:
        return any(i.phase is Phase.RUNNING and address in i.ports.values() for i in backend.instances())


class TestSim(SimContract):
    """A sim that can all a host backend may be able to."""


class TestSimCluster(SimContract):
    """A sim that keeps groups by itself."""

    kind_of_sim = SimCluster


class TestBareSim(SimContract):
    """A sim that can do next to nothing, for the clauses about refusal."""

    def make(self, state: Path, namespace: str = "modelyard") -> Sim:
        return Sim(script=script, state=state, namespace=namespace, can={Can.BARE})


def test_life_follows_the_clock() -> None:
    clock = Hand()
    sim = Sim(script={"chat-*": Script(boot_s=30, run_s=60, exit_code=3, ready_s=10)}, clock=clock)
    seen = [(start(sim).phase, start(sim).ready)]
    for step in (30, 10, 49.5, 0.5):
        clock.advance(step)
        seen.append((sim.instances()[0].phase, sim.instances()[0].ready))
    assert seen == [
        (Phase.PENDING, False),
        (Phase.RUNNING, False),
        (Phase.RUNNING, True),
        (Phase.RUNNING, True),
        (Phase.EXITED, False),
    ]
    ended = sim.instances()[0]
    assert (ended.exit_code, ended.reason) == (3, "error")
    assert ended.started_at is not None
    assert ended.finished_at == ended.started_at + timedelta(seconds=60)


@pytest.mark.parametrize(
    ("refuse", "error"),
    [
        ("no-capacity", NoCapacity),
        ("quota", Quota),
        ("auth", AuthFailed),
        ("image", Rejected),
        ("rejected", Rejected),
        ("busy", Busy),
        ("unreachable", Unreachable),
    ],
)
def test_script_refuses_with_its_error(refuse: Any, error: type[BackendError]) -> None:
    sim = Sim(script={"*": Script(refuse=refuse)})
    with pytest.raises(error):
        start(sim)
    assert sim.instances() == ()
    assert sim.starts == {}


def test_lost_answer_starts_all_the_same() -> None:
    sim = Sim(script={"*": Script(lost_answer=True)})
    with pytest.raises(Unreachable):
        start(sim)
    assert start(sim).name == T.name
    assert sim.starts == {T.name: 1}


def test_lost_contact_says_nothing_and_changes_nothing() -> None:
    sim = Sim()
    start(sim)
    sim.unreachable = True
    with pytest.raises(Temporary):
        sim.instances()
    with pytest.raises(Unreachable):
        sim.stop(T.name, grace_s=1)
    sim.unreachable = False
    assert [i.phase for i in sim.instances()] == [Phase.RUNNING]


@pytest.mark.parametrize("reason", ["oom", "preempted", "lost", "error"])
def test_launch_can_be_made_to_end(reason: Any) -> None:
    sim = Sim(clock=Hand())
    start(sim)
    sim.end(T.name, 137, reason, "told so")
    (ended,) = sim.instances()
    assert (ended.phase, ended.exit_code, ended.reason) == (Phase.EXITED, 137, reason)
    assert ended.message == "told so"


def test_image_failure_ends_without_having_run() -> None:
    clock = Hand()
    sim = Sim(script={"*": Script(boot_s=5, run_s=0, reason="image")}, clock=clock)
    start(sim)
    clock.advance(5)
    (ended,) = sim.instances()
    assert (ended.phase, ended.reason, ended.exit_code, ended.started_at) == (
        Phase.EXITED,
        "image",
        None,
        None,
    )


def test_readiness_can_be_set() -> None:
    sim = Sim(clock=Hand(), script={"*": Script(ready_s=60)})
    start(sim)
    sim.set_ready(T.name, True)
    assert sim.instances()[0].ready is True
    sim.set_ready(T.name, None)
    assert sim.instances()[0].ready is False
    with pytest.raises(NotFound):
        sim.set_ready("nobody-0-0-1", True)


def test_capacity_is_given_back() -> None:
    sim = Sim(capacity=1, clock=Hand())
    start(sim)
    other = Launch("chat-1-0-1", "chat", replica=1)
    with pytest.raises(NoCapacity):
        start(sim, other)
    sim.stop(T.name, grace_s=1)
    assert start(sim, other).phase is Phase.RUNNING


def test_capacity_is_given_back_by_the_clock() -> None:
    clock = Hand()
    sim = Sim(capacity=1, clock=clock, script={"*": Script(run_s=10)})
    start(sim)
    clock.advance(10)
    assert start(sim, Launch("chat-1-0-1", "chat")).phase is Phase.RUNNING


def test_offers_of_a_configuration_are_those_of_a_program() -> None:
    said: dict[str, Any] = {"instance_type": "m1", "accelerator": "H100-80GB", "count": 1, "cpu": 16}
    sim = Sim("lab", offers=[said | {"compute_capability": [9, 0], "growth": {"usd_step_hour": 1}}])
    (offer,) = sim.offers()
    assert offer == Offer(
        "lab", "m1", 16.0, 64 * 2**30, accelerator="H100-80GB", count=1, compute_capability=(9, 0),
        growth=Growth(1.0), available=offer.available,
    )  # fmt: skip
    assert hash(offer)


@pytest.mark.parametrize(
    ("offers", "said"),
    [
        ("m1", "offers: expected a list, got 'm1'"),
        ({"instance_type": "m1"}, "offers: expected a list, got {'instance_type': 'm1'}"),
        (3, "offers: expected a list, got 3"),
        (["m1"], "offers: expected mappings, got 'm1'"),
        ([{"cpu": 2}], "offers: one lacks its instance_type"),
        ([{"instance_type": "m1", "cpus": 2}], "offers: no field 'cpus'"),
        ([{"instance_type": "m1", "backend": "x"}], "offers: no field 'backend'"),
        ([{"instance_type": 1}], "offers: instance_type: expected text, got 1"),
        ([{"instance_type": "m1", "count": [1]}], "offers: count: expected a whole number, got [1]"),
        ([{"instance_type": "m1", "cpu": "many"}], "offers: cpu: expected a number, got 'many'"),
        ([{"instance_type": "m1", "spot": "maybe"}], "offers: spot: expected true or false, got 'maybe'"),
        (
            [{"instance_type": "m1", "compute_capability": [9]}],
            "offers: compute_capability: expected two whole numbers, such as [9, 0], got [9]",
        ),
        (
            [{"instance_type": "m1", "compute_capability": 9.0}],
            "offers: compute_capability: expected two whole numbers, such as [9, 0], got 9.0",
        ),
    ],
)
def test_offers_of_another_shape_are_refused_by_name(offers: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sim("lab", offers=offers)
    assert caught.value.what == f"backend 'lab': {said}"


def test_indivisible_offers_count_down() -> None:
    offer = Offer("sim", "a100", cpu=8, memory_bytes=2**36, accelerator="A100-80GB", count=1, available=2)
    sim = Sim(offers=[offer])
    one = Resources(accelerator="A100-80GB", accelerators=1)
    for replica in (0, 1):
        start(sim, Launch(f"chat-{replica}-0-1", "chat", resources=one))
    assert [o.available for o in sim.offers()] == [0]
    with pytest.raises(NoCapacity):
        start(sim, Launch("chat-2-0-1", "chat", resources=one))


def test_held_instances_are_there_as_they_are() -> None:
    held = [
        Instance("chat-1-0-1", "chat", 1, 0, 1, "h", Phase.EXITED, exit_code=1, reason="error"),
        Instance("chat-0-0-1", "chat", 0, 0, 1, "h", Phase.RUNNING, ready=True),
        Instance("chat-2-0-1", "chat", 2, 0, 1, "h", Phase.PENDING),
    ]
    sim = Sim(holding=held, clock=Hand())
    assert [(i.name, i.phase, i.ready, i.exit_code) for i in sim.instances()] == [
        ("chat-0-0-1", Phase.RUNNING, True, None),
        ("chat-1-0-1", Phase.EXITED, None, 1),
        ("chat-2-0-1", Phase.PENDING, None, None),
    ]
    assert sim.starts == {}


def test_calls_are_remembered_in_order() -> None:
    sim = Sim()
    start(sim)
    sim.instances()
    sim.stop(T.name, grace_s=1)
    assert sim.calls == [Call("start", T.name), Call("instances"), Call("stop", T.name)]


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize(("done", "starts"), [(False, 0), (True, 1)])
def test_death_around_a_change_leaves_it_whole(tmp_path: Path, done: bool, starts: int) -> None:
    def die(call: Call, at: bool) -> None:
        if (call.method, at) == ("start", done):
            raise Killed

    with pytest.raises(Killed):
        start(Sim(state=tmp_path / "world", around=die))
    assert len(Sim(state=tmp_path / "world").instances()) == starts


def test_half_a_line_is_no_change(tmp_path: Path) -> None:
    state = tmp_path / "world"
    start(Sim(state=state))
    with state.open("ab") as journal:
        journal.write(b'{"in":"modelyard","remove":"chat-')
    other = Sim(state=state)
    start(other, Launch("chat-1-0-1", "chat"))
    assert [i.name for i in Sim(state=state).instances()] == ["chat-0-0-1", "chat-1-0-1"]


def test_world_on_disk_keeps_all_it_knows(tmp_path: Path) -> None:
    clock = Hand()
    state = tmp_path / "world"
    first = Sim(
        state=state, clock=clock, script={"*": Script(run_s=9, exit_code=1, prints=("hi",), ready_s=1)}
    )
    launch = Launch(
        "chat-0-0-1", "chat", ports=(Port(80),), resources=Resources(cpu=2, accelerators=2), restart=True
    )
    start(first, launch)
    first.create_volume("v", size_bytes=7)
    clock.advance(12)
    second = Sim(state=state, clock=clock)
    assert second.instances() == first.instances()
    assert second.instances()[0].restarts == 1
    assert second.offers() == first.offers()
    assert second.volumes() == first.volumes()
    assert (
        list(second.logs(T.name))
        == list(first.logs(T.name))
        == [LogLine("hi", at=clock() - timedelta(seconds=12))]
    )


def _start_many(state: str, replica: int) -> None:
    sim = Sim(state=state)
    for attempt in range(20):
        start(sim, Launch(f"chat-{replica}-0-{attempt}", "chat"))
        start(sim, Launch(f"shared-0-0-{attempt}", "shared"))


def test_processes_share_one_world(tmp_path: Path) -> None:
    state = str(tmp_path / "world")
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_start_many, args=(state, n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    sim = Sim(state=state)
    assert len(sim.instances()) == 60
    assert set(sim.starts.values()) == {1}


def test_port_can_lead_to_a_real_server() -> None:
    sim = Sim(script={"*": Script(ports={80: ("127.0.0.1", 4321)})})
    assert start(sim, Launch("chat-0-0-1", "chat", ports=(Port(80),))).ports == {80: ("127.0.0.1", 4321)}


def test_taken_port_names_its_holder() -> None:
    sim = Sim()
    start(sim, Launch("chat-0-0-1", "chat", ports=(Port(80, 8080),)))
    with pytest.raises(Rejected, match="chat-0-0-1"):
        start(sim, Launch("chat-1-0-1", "chat", ports=(Port(80, 8080),)))


def test_script_comes_from_configuration() -> None:
    sim = Sim(script={"chat-*": {"run_s": 1, "prints": ["a", "b"]}, "*": {}}, clock=Hand())
    start(sim)
    assert [line.text for line in sim.logs(T.name)] == ["a", "b"]


def test_unknown_key_of_a_script_is_named() -> None:
    with pytest.raises(ConfigError, match="runs_s"):
        Sim(script={"chat-*": {"runs_s": 1}})


def test_ten_thousand_launches_are_no_burden() -> None:
    clock = Hand()
    sim = Sim(clock=clock, script={"*": Script(run_s=60)})
    for n in range(10_000):
        start(sim, Launch(f"chat-{n}-0-1", "chat", replica=n, resources=Resources(cpu=0.001)))
    assert len(sim.instances()) == 10_000
    assert sim.instances() is sim.instances()  # nothing is built again while nothing changes
    assert sim.offers()[0].cpu == pytest.approx(54.0)
    clock.advance(60)
    assert all(i.phase is Phase.EXITED for i in sim.instances())
    assert sim.offers()[0].cpu == 64.0


def test_task_of_a_group_is_tried_again(tmp_path: Path) -> None:
    clock = Hand()
    cluster = SimCluster(script={"*": Script(run_s=10, exit_code=1)}, clock=clock)
    cluster.apply_group(Group("tune", Launch("tune-0-0-1", "tune"), "task", retries=1), secrets={})
    clock.advance(15)
    assert cluster.groups()[0].instances[0].restarts == 1
    clock.advance(10)
    (status,) = cluster.groups()
    assert (status.phase, status.exit_code, status.reason) == (Phase.EXITED, 1, "error")


def test_group_with_another_spec_replaces_its_launches() -> None:
    cluster = SimCluster(clock=Hand())
    old = Launch("chat-0-0-1", "chat", attempt=1, spec_hash="old")
    cluster.apply_group(Group("chat", old, "service", replicas=2), secrets={})
    new = Launch("chat-0-0-2", "chat", attempt=2, spec_hash="new")
    cluster.apply_group(Group("chat", new, "service", replicas=2), secrets={})
    assert [(i.name, i.spec_hash) for i in cluster.instances()] == [
        ("chat-0-0-2", "new"),
        ("chat-1-0-2", "new"),
    ]


def test_every_field_of_a_script_is_described() -> None:
    docs = Path(__file__).parents[2] / "docs" / "backends.md"
    described = docs.read_text().partition("## The sim")[2]
    assert [f.name for f in fields(Script) if f"`{f.name}`" not in described] == []


def test_offers_of_a_configuration_are_mappings() -> None:
    sim = Sim("cloud", offers=[{"instance_type": "a3", "accelerator": "H100-80GB", "count": 8}])
    (offer,) = sim.offers()
    assert (offer.backend, offer.instance_type, offer.count) == ("cloud", "a3", 8)


def test_an_offer_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ConfigError, match="offers"):
        Sim("cloud", offers=[{"instance_tpye": "a3"}])
