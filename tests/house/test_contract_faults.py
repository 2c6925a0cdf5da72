"""Every clause of the contract has a broken twin of the sim that it catches."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from backends.sim import Script, Sim, SimCluster, default_offers
from orchestrator.backend import (
    Backend,
    Can,
    Check,
    Group,
    GroupStatus,
    Instance,
    Launch,
    LogLine,
    Machine,
    Offer,
    Phase,
    Progress,
    Resources,
    Volume,
)
from orchestrator.errors import ModelyardError, NotFound, Rejected, Unreachable
from orchestrator.testing import BackendContract
from tests.backends import test_sim

ROOT = Path(__file__).parents[2]
CLAUSES = {name: test for name, test in vars(BackendContract).items() if name.startswith("test_")}
CAUGHT = (AssertionError, ModelyardError, pytest.fail.Exception)


class Changed(Sim):
    """A twin that says something else of its instances than is so."""

    def change(self, instance: Instance) -> Instance:
        return instance

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        return self.change(super().start(launch, secrets=secrets, progress=progress))

    def instances(self) -> Sequence[Instance]:
        return [self.change(i) for i in super().instances()]


class Altering(Sim):
    """A twin that starts something else than it was given."""

    def alter(self, launch: Launch) -> Launch:
        return launch

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        return super().start(self.alter(launch), secrets=secrets, progress=progress)


class MakesAFolderAtOnce(Sim):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.state is not None:
            self.state.parent.mkdir(exist_ok=True)


class SaysItInAList(Sim):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.can = list(self.can)  # type: ignore[assignment]  # the fault


class ChecksWithATraceback(Sim):
    def check(self) -> Sequence[Check]:
        if self.unreachable:
            raise Unreachable("no answer")
        return super().check()


class TakesSilenceForNothing(Sim):
    def instances(self) -> Sequence[Instance]:
        return () if self.unreachable else super().instances()


class LeavesOutWhatItCannot(Altering):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "can": {Can.BARE}})

    def alter(self, launch: Launch) -> Launch:
        return replace(launch, image=None, privileged=False, mounts=())


class OffersWithTheWind(Sim):
    def offers(self) -> Sequence[Offer]:
        return [replace(o, cpu=o.cpu + len(self.calls)) for o in super().offers()]


class OffersWhatIsTaken(Sim):
    def offers(self) -> Sequence[Offer]:
        return default_offers(self.name)


class SharesDevices(Changed):
    def change(self, instance: Instance) -> Instance:
        return replace(instance, devices=("0",))


class TakesTooMuch(Altering):
    def alter(self, launch: Launch) -> Launch:
        return replace(launch, resources=Resources())


class ForgetsTheAttempt(Changed):
    def change(self, instance: Instance) -> Instance:
        return replace(instance, attempt=1)


class WaitsInStart(Sim):
    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        told = super().start(launch, secrets=secrets, progress=progress)
        threading.Event().wait(1.0)
        return told


class Doubling(Sim):
    """Runs a command as often as it was started, and lets all of them print."""

    def logs(self, name: str, **options: Any) -> Iterator[LogLine]:
        lines = list(super().logs(name, **options))
        return iter(lines * self.starts[name])


class StartsAgain(Doubling):
    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        self.remove(launch.name)
        return super().start(launch, secrets=secrets, progress=progress)


class LooksBeforeItStarts(Doubling):
    pause_s = 0.05

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        if any(i.name == launch.name for i in self.instances()):
            return super().start(launch, secrets=secrets, progress=progress)
        self.pause(launch)  # what happens here is not seen
        self.remove(launch.name)
        return super().start(launch, secrets=secrets, progress=progress)

    def pause(self, launch: Launch) -> None:
        threading.Event().wait(self.pause_s)


class LooksAsAnotherDoes(LooksBeforeItStarts):
    """Of two processes that look, one starts, and then the other, however long each took to begin."""

    def pause(self, launch: Launch) -> None:
        assert self.state is not None
        mark = self.state.with_name(f"looked-{os.getpid()}")
        mark.touch()
        both = self._looked(2)
        if mark != min(both):
            within(lambda: any(i.name == launch.name for i in self.instances()))

    def _looked(self, many: int) -> list[Path]:
        assert self.state is not None
        folder = self.state.parent
        within(lambda: len([*folder.glob("looked-*")]) == many)
        return sorted(folder.glob("looked-*"))


def within(claim: Callable[[], bool], *, tries: int = 1000) -> None:
    """Return once a claim holds, or after 20 s."""
    for _ in range(tries):
        if claim():
            return
        threading.Event().wait(0.02)


class DiesWithItsProcess(Sim):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.state is not None:
            self.state = self.state.with_name(f"{self.state.name}-{os.getpid()}")


class ChangesSecrets(Sim):
    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        changed = {key: value + "\n" for key, value in secrets.items()}
        return super().start(launch, secrets=changed, progress=progress)


class WritesSecretsDown(Sim):
    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        assert self.state is not None
        self.state.with_name("environment").write_text(repr(dict(secrets)))
        return super().start(launch, secrets=secrets, progress=progress)


class ForgetsRestarts(Changed):
    def change(self, instance: Instance) -> Instance:
        return replace(instance, restarts=0)


class KillsAtOnce(Sim):
    def stop(self, name: str, *, grace_s: float) -> None:
        super().stop(name, grace_s=0.0)


class NeverKills(Sim):
    def stop(self, name: str, *, grace_s: float) -> None:
        if not any(line.text == "up" for line in self.logs(name)):
            super().stop(name, grace_s=grace_s)


class RefusesASecondStop(Sim):
    def stop(self, name: str, *, grace_s: float) -> None:
        if any(i.name == name and i.phase is Phase.EXITED for i in self.instances()):
            raise Rejected("it has ended")
        super().stop(name, grace_s=grace_s)


class CallsAllStopped(Changed):
    def change(self, instance: Instance) -> Instance:
        stopped = any(call.method == "stop" for call in self.calls)
        return replace(instance, reason="stopped") if stopped else instance


class MindsTheUnknown(Sim):
    def stop(self, name: str, *, grace_s: float) -> None:
        if all(i.name != name for i in self.instances()):
            raise NotFound(name)
        super().stop(name, grace_s=grace_s)


class KeepsWhatIsRemoved(Sim):
    def remove(self, name: str) -> None:
        """Do nothing: the fault."""


class RemovesOnlyTheEnded(Sim):
    def remove(self, name: str) -> None:
        if any(i.name == name and i.phase is not Phase.EXITED for i in self.instances()):
            raise Rejected("it runs")
        super().remove(name)


class ListsBackwards(Sim):
    def instances(self) -> Sequence[Instance]:
        return super().instances()[::-1]


class KnowsNoNamespace(Sim):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "namespace": "modelyard"})


class SleepsOnWatch(Sim):
    def watch(self, closed: threading.Event) -> Iterator[str]:
        closed.wait()
        yield from ()


class LogsBackwards(Sim):
    def logs(self, name: str, **options: Any) -> Iterator[LogLine]:
        return iter(list(super().logs(name, **options))[::-1])


class IgnoresTail(Sim):
    def logs(self, name: str, *, tail: int | None = None, **options: Any) -> Iterator[LogLine]:
        return super().logs(name, **options)


class IgnoresSince(Sim):
    def logs(self, name: str, *, since: datetime | None = None, **options: Any) -> Iterator[LogLine]:
        return super().logs(name, **options)


class DoesNotFollow(Sim):
    def logs(self, name: str, *, follow: bool = False, **options: Any) -> Iterator[LogLine]:
        return super().logs(name, **options)


class LogsOfTheUnknownAreEmpty(Sim):
    def logs(self, name: str, **options: Any) -> Iterator[LogLine]:
        try:
            return super().logs(name, **options)
        except NotFound:
            return iter(())


class HidesItsPorts(Changed):
    def change(self, instance: Instance) -> Instance:
        return replace(instance, ports={})


class PublishesOnOnePort(Changed):
    def change(self, instance: Instance) -> Instance:
        return replace(instance, ports={port: ("127.0.0.1", port) for port in instance.ports})


class ExecutesWithoutLooking(Sim):
    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:
        try:
            super().execute(name, command, tty=tty)
        except ModelyardError:
            return 0
        return 0


class ListsVolumesBackwards(Sim):
    def volumes(self) -> Sequence[Volume]:
        return super().volumes()[::-1]


class IsSilentAboutUse(Sim):
    def delete_volume(self, name: str) -> None:
        try:
            super().delete_volume(name)
        except Rejected:
            return


class ForgetsNodes(SimCluster):
    def apply_group(self, group: Group, *, secrets: Mapping[str, str]) -> GroupStatus:
        return super().apply_group(replace(group, nodes=1), secrets=secrets)


class NeverChangesAGroup(SimCluster):
    def apply_group(self, group: Group, *, secrets: Mapping[str, str]) -> GroupStatus:
        for status in self.groups():
            if status.name == group.name:
                return status
        return super().apply_group(group, secrets=secrets)


class ForgetsTheGroupsCode(SimCluster):
    def groups(self) -> Sequence[GroupStatus]:
        return [replace(g, exit_code=0) for g in super().groups()]


class LeavesTheGroup(SimCluster):
    def delete_group(self, name: str, *, grace_s: float) -> None:
        """Do nothing: the fault."""


class ListsGroupsBackwards(SimCluster):
    def groups(self) -> Sequence[GroupStatus]:
        return super().groups()[::-1]


class Renting(Sim):
    """A sim whose launches are on machines: sound, and the twins' base."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.can = self.can | {Can.RENT, Can.KEEP}
        self.held: dict[str, str] = {}
        """Launches by machine; "" where none has it."""

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        self.rent(launch.name)
        return self.rented(super().start(launch, secrets=secrets, progress=progress))

    def rent(self, name: str) -> None:
        if name not in self.held.values():
            idle = next((machine for machine, launch in self.held.items() if not launch), None)
            self.held[idle or f"m-{len(self.held)}-{name}"] = name

    def rented(self, instance: Instance) -> Instance:
        machine = self.machine_of(instance.name)
        return replace(instance, machine=machine or "", rented=machine is not None)

    def machine_of(self, name: str) -> str | None:
        return next((machine for machine, launch in self.held.items() if launch == name), None)

    def instances(self) -> Sequence[Instance]:
        return [self.rented(each) for each in super().instances()]

    def release(self, name: str, *, keep_s: float | None) -> None:
        machine = self.machine_of(name)
        if machine is None:
            return
        self.require_over(name)
        if keep_s == 0:
            del self.held[machine]
        else:
            self.held[machine] = ""

    def require_over(self, name: str) -> None:
        if any(each.name == name and each.phase is not Phase.EXITED for each in self.instances()):
            raise Rejected("it runs")

    def remove(self, name: str) -> None:
        super().remove(name)
        self.held.pop(self.machine_of(name) or "", None)

    def machines(self) -> Sequence[Machine]:
        return [
            Machine(machine, launch, launch.rsplit("-", 3)[0], "t1", "here", "running")
            for machine, launch in sorted(self.held.items())
        ]

    def terminate(self, machine: str) -> None:
        if machine not in self.held:
            raise Rejected("not ours")
        del self.held[machine]


class RentsAgain(Renting):
    def rent(self, name: str) -> None:
        self.held[f"m-{len(self.held)}"] = name


class GivesBackAtTheEnd(Renting):
    def rented(self, instance: Instance) -> Instance:
        found = super().rented(instance)
        return replace(found, rented=found.rented and found.phase is not Phase.EXITED)


class ReleasesWhatRuns(Renting):
    def require_over(self, name: str) -> None:
        pass


class LeavesMachinesBehind(Renting):
    def remove(self, name: str) -> None:
        Sim.remove(self, name)


@dataclass(frozen=True)
class Fault:
    """What is wrong: the twin's class, or what its launches do."""

    twin: type[Sim] = Sim
    scripts: Mapping[str, Script] = field(default_factory=dict)
    wait_s: float = 0.4


FAULTS: Mapping[int, Fault] = {
    1: Fault(MakesAFolderAtOnce),
    2: Fault(SaysItInAList),
    3: Fault(ChecksWithATraceback),
    4: Fault(TakesSilenceForNothing),
    5: Fault(LeavesOutWhatItCannot),
    6: Fault(OffersWithTheWind),
    7: Fault(OffersWhatIsTaken),
    8: Fault(SharesDevices),
    9: Fault(TakesTooMuch),
    10: Fault(ForgetsTheAttempt),
    11: Fault(WaitsInStart),
    12: Fault(StartsAgain),
    13: Fault(LooksBeforeItStarts),
    14: Fault(LooksAsAnotherDoes, wait_s=30.0),
    15: Fault(DiesWithItsProcess, wait_s=30.0),
    16: Fault(scripts={"literal": Script(run_s=0, prints=("/home/somebody",), exit_code=9)}),
    17: Fault(ChangesSecrets),
    18: Fault(WritesSecretsDown),
    19: Fault(scripts={"file": Script(run_s=0, exit_code=1)}),
    20: Fault(scripts={"quick": Script(run_s=0, reason="lost")}),
    21: Fault(scripts={"failing": Script(run_s=0, exit_code=1)}),
    22: Fault(scripts={"missing": Script(run_s=0)}),
    23: Fault(scripts={"hungry": Script(run_s=0, exit_code=137)}),
    24: Fault(ForgetsRestarts, wait_s=3.0),  # a sound one has restarted after a second
    25: Fault(KillsAtOnce),
    26: Fault(NeverKills),
    27: Fault(RefusesASecondStop),
    28: Fault(CallsAllStopped),
    29: Fault(MindsTheUnknown),
    30: Fault(KeepsWhatIsRemoved),
    31: Fault(RemovesOnlyTheEnded),
    32: Fault(ListsBackwards),
    33: Fault(KnowsNoNamespace),
    34: Fault(SleepsOnWatch),
    35: Fault(LogsBackwards),
    36: Fault(IgnoresTail),
    37: Fault(IgnoresSince),
    38: Fault(DoesNotFollow),
    39: Fault(LogsOfTheUnknownAreEmpty),
    40: Fault(HidesItsPorts),
    41: Fault(PublishesOnOnePort),
    42: Fault(ExecutesWithoutLooking),
    43: Fault(ExecutesWithoutLooking),
    44: Fault(ListsVolumesBackwards),
    45: Fault(scripts={"reading": Script(run_s=0)}),
    46: Fault(IsSilentAboutUse),
    47: Fault(scripts={"reading": Script(run_s=0)}),
    48: Fault(ForgetsNodes),
    49: Fault(NeverChangesAGroup),
    50: Fault(ForgetsTheGroupsCode),
    51: Fault(LeavesTheGroup),
    52: Fault(ListsGroupsBackwards),
    53: Fault(RentsAgain),
    54: Fault(GivesBackAtTheEnd),
    55: Fault(ReleasesWhatRuns),
    56: Fault(LeavesMachinesBehind),
}


def contract_of(fault: Fault) -> test_sim.SimContract:
    """Return the contract as it is put to the fault's twin."""

    class Contract(test_sim.SimContract):
        kind_of_sim = fault.twin
        wait_s = fault.wait_s

        def make(self, state: Path, namespace: str = "modelyard") -> Sim:
            def script(launch: Launch) -> Script:
                return {**test_sim.SCRIPTS, **fault.scripts}[launch.command[0]]

            return fault.twin(script=script, state=state, namespace=namespace)

    return Contract()


def number(clause: Callable[..., None]) -> int:
    """Return the number that a clause's docstring gives."""
    found = re.fullmatch(r"Clause (\d+)\.", clause.__doc__ or "")
    assert found, f"{clause.__name__} says no number"
    return int(found[1])


def clause(wanted: int) -> str:
    (name,) = [name for name, test in CLAUSES.items() if number(test) == wanted]
    return name


@pytest.mark.parametrize("wanted", sorted(FAULTS))
def test_clause_catches_its_fault(wanted: int, tmp_path: Path) -> None:
    contract = contract_of(FAULTS[wanted])
    backend: Backend = contract.make(tmp_path / "world")
    with pytest.raises(CAUGHT):
        getattr(contract, clause(wanted))(backend)


# a sim that can do everything rejects nothing: clause 5 is passed by TestBareSim
@pytest.mark.parametrize("wanted", sorted(set(FAULTS) - {5}))
def test_clause_lets_a_sound_twin_pass(wanted: int, tmp_path: Path) -> None:
    twin = Renting if wanted >= 53 else SimCluster if wanted >= 48 else Sim
    contract = contract_of(Fault(twin, wait_s=30.0))
    getattr(contract, clause(wanted))(contract.make(tmp_path / "world"))


class KeepsWithoutSayingSo(Renting):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.can = self.can - {Can.KEEP}


class KeepsNone(KeepsWithoutSayingSo):
    def release(self, name: str, *, keep_s: float | None) -> None:
        super().release(name, keep_s=0)


def test_a_place_that_keeps_machines_and_does_not_claim_it_is_caught(tmp_path: Path) -> None:
    contract = contract_of(Fault(KeepsNone, wait_s=30.0))
    getattr(contract, clause(55))(contract.make(tmp_path / "sound"))
    contract = contract_of(Fault(KeepsWithoutSayingSo))
    with pytest.raises(CAUGHT):
        getattr(contract, clause(55))(contract.make(tmp_path / "world"))


def test_every_clause_has_a_test_a_fault_and_a_line_in_the_docs() -> None:
    text = (ROOT / "docs" / "backends.md").read_text()
    described = [int(n) for n in re.findall(r"^(\d+)\. \*\*", text, re.MULTILINE)]
    assert described == list(range(1, len(CLAUSES) + 1))
    assert sorted(number(test) for test in CLAUSES.values()) == described
    assert sorted(FAULTS) == described


def test_every_capability_is_described() -> None:
    text = (ROOT / "docs" / "backends.md").read_text()
    assert re.findall(r"^\| `([A-Z]+)` \|", text, re.MULTILINE) == [can.name for can in Can]
