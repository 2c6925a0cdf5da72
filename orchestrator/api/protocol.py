"""What can be asked of Modelyard, as one protocol; the values that cross it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from orchestrator.apply import NO_SET, NOTHING_LOST, Consent, Difference, Plan, Scope
from orchestrator.apply.drift import Drift
from orchestrator.apply.lock import LockedModel
from orchestrator.backend import Check, Host, Instance, Leave, LogLine, Machine, Offer, Volume
from orchestrator.errors import AuthFailed, BackendError, Misconfigured, SpecError, Unreachable
from orchestrator.frozen import frozen
from orchestrator.planner.plan import Sort
from orchestrator.reconcile import Job, Run, RunEvent, Wanted
from orchestrator.spec.load import Document
from orchestrator.store.values import Artifact, SecretName

if TYPE_CHECKING:  # http, ssl and threads: only where runs are driven
    from orchestrator.loop import Hooks


Plans = tuple[Plan, ...]
Goal = Literal["accepted", "started", "ready", "settled", "ended", "deleted"]
"""Where to follow a run to: *accepted* by a backend, *settled* (a task has ended, what is kept up
is ready), or what the word says. A run that has ended has reached whatever it can.
"""


@frozen
class RunView:
    """A run with its jobs, oldest first."""

    run: Run
    jobs: tuple[Job, ...]
    artifacts: tuple[Artifact, ...] = ()
    """What training left; only where one run is asked for."""


@frozen
class Offers:
    """What can be had, and the places that did not answer, with the reason of each.

    ``denied`` are those among them that answered, and let us see nothing; ``wrong`` those that were
    not asked, because what the configuration says of them is wrong.
    """

    offers: tuple[Offer, ...]
    silent: Mapping[str, str] = field(default_factory=dict)
    denied: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()

    def refusal(self) -> BackendError | None:
        """Return why there is nothing to choose from, None where there is, or where nobody is silent."""
        if self.offers or not self.silent:
            return None
        return self._refusal(self.silent)

    def refusal_of(self, names: Collection[str]) -> BackendError | None:
        """Return why none of the places that somebody names can be had, None where one answered."""
        silent = {name: self.silent[name] for name in names if name in self.silent}
        return self._refusal(silent) if silent and len(silent) == len({*names}) else None

    def _refusal(self, silent: Mapping[str, str]) -> BackendError:
        what = "; ".join(f"backend {name!r}: {why}" for name, why in sorted(silent.items()))
        kinds = ((AuthFailed, self.denied), (Misconfigured, self.wrong))
        kind = next((kind for kind, names in kinds if names >= silent.keys()), Unreachable)
        return kind(what, fix="see: modelyard backend check")


@frozen
class Rehearsal:
    """What a cluster says of a plan: the fields it would change, a phrase each, or why it refuses."""

    place: str
    changes: tuple[str, ...] = ()
    refusal: str = ""
    fix: str | None = None
    exit_code: int = SpecError.exit_code
    """What a command ends with that it refuses."""

    def phrases(self) -> tuple[str, ...]:
        """Return it for people, one phrase a line.

        >>> Rehearsal("lab", ("Deployment web: spec.replicas 7 -> 2",)).phrases()
        ('lab: Deployment web: spec.replicas 7 -> 2',)
        """
        said = (f"refuses it: {self.refusal}",) if self.refusal else self.changes
        return tuple(f"{self.place}: {phrase}" for phrase in said)


@frozen
class Orphan:
    """An instance that carries our labels and whose run nobody has on record."""

    backend: str
    instance: Instance


@frozen
class Stray:
    """A machine that is paid for, carries our deployment's tag, and serves no run; ``why`` says how."""

    backend: str
    machine: Machine
    why: str


Item = TypeVar("Item", Orphan, Stray, Drift)


@frozen
class Found(Generic[Item]):
    """What places were looked through for, and those that could not be, with the reason of each."""

    items: tuple[Item, ...]
    silent: Mapping[str, str] = field(default_factory=dict)
    exit_code: int = 0
    """What a command ends with for the places that could not be looked at."""


@frozen
class FleetView:
    """A place that is made of hosts, as it is now.

    ``on`` are the runs with a launch that has not ended, by host. ``applied`` says whether a spec asked
    for it; else it is configured.
    """

    name: str
    hosts: tuple[Host, ...]
    on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    applied: bool = True
    nodes: str = ""
    """How many machines a fleet that rents them holds, as ``1..4``; "" for machines of one's own."""
    note: str = ""
    """What a fleet that rents waits for."""


class Api(Protocol):
    """Everything the command line can ask for; held in process and over HTTP by the same tests."""

    @property
    def silent(self) -> Mapping[str, str]:
        """The places of which the last plan or look at runs knew nothing, with the reason of each."""

    def plan(
        self,
        documents: Sequence[Document],
        *,
        rerun: bool = False,
        resume: bool = False,
        sort: Sort = "price",
        strict: bool = False,
        scope: Scope = NO_SET,
        models: Mapping[str, LockedModel] | None = None,
    ) -> Plans:
        """Return what ``apply`` would do, with ``models`` by run as a lock has them; changes nothing."""

    def resolve_models(self, documents: Sequence[Document]) -> dict[str, LockedModel]:
        """Return the commits that the documents' models are at now, by run; asks the hub."""

    def save(
        self,
        plans: Plans,
        *,
        scope: Scope = NO_SET,
        consent: Consent = NOTHING_LOST,
        lasts_s: int | None = None,
        locks: Sequence[Path] = (),
    ) -> str:
        """Return plans as the text of a plan file, good until the day after tomorrow or ``lasts_s``."""

    def resume(self, path: str) -> tuple[Plans, Consent]:
        """Return the plans of a file and what they may lose, or refuse when they no longer hold."""

    def diff(
        self, documents: Sequence[Document], *, models: Mapping[str, LockedModel] | None = None
    ) -> tuple[Difference, ...]:
        """Return how the documents differ from the record, and from what clusters have of their runs."""

    def apply(self, plans: Plans, *, consent: Consent = NOTHING_LOST) -> tuple[str, ...]:
        """Write down what the plans say; return the names of the runs that changed."""

    def finish_deletions(self, plans: Plans, *, hooks: Hooks | None = None) -> None:
        """See the runs off that the plans delete, then delete the plans' volumes."""

    def drift(self) -> Found[Drift]:
        """Return where the places differ from the record, which is left as it is."""

    def follow(
        self, names: Sequence[str], goal: Goal, *, hooks: Hooks | None = None, timeout_s: float | None = None
    ) -> bool:
        """Drive the runs until each has reached ``goal`` or its end; False when time ran out."""

    def runs(self) -> list[RunView]:
        """Return every run, by name, as it is at this moment."""

    def run(self, name: str) -> RunView:
        """Return one run as it is at this moment."""

    def recorded(self, name: str) -> RunView:
        """Return one run as it is on record, asking no backend."""

    def on_record(self) -> list[RunView]:
        """Return every run, by name, as it is on record, asking no backend."""

    def events(self, name: str | None, *, after: int = 0) -> list[tuple[int, RunEvent]]:
        """Return events with their serials, oldest first."""

    def output(self, launch: str, *, follow: bool) -> Iterator[LogLine]:
        """Yield the output of one launch."""

    def logs(
        self,
        name: str,
        *,
        replica: int = 0,
        node: int = 0,
        follow: bool = False,
        since: datetime | None = None,
        tail: int | None = None,
    ) -> Iterator[LogLine]:
        """Yield a run's output; with ``follow`` over all attempts until the run ends."""

    def execute(
        self, name: str, command: Sequence[str], *, replica: int = 0, node: int = 0, tty: bool
    ) -> int:
        """Run a command inside a running job on this terminal; return its exit code."""

    def container(self, name: str, *, replica: int = 0, node: int = 0) -> str:
        """Return what a running job's container is called on this machine, "" where there is none."""

    def forwarded(
        self, name: str, *, replica: int = 0, node: int = 0
    ) -> AbstractContextManager[Mapping[int, tuple[str, int]]]:
        """Give addresses of this machine that lead to a running job's ports, where it has none yet."""

    def ask(self, names: Sequence[str], wanted: Wanted) -> None:
        """Write down that the runs shall stop, or be deleted."""

    def offers(self) -> Offers:
        """Return what every place offers now."""

    def check(self) -> list[tuple[str, Check]]:
        """Look whether every configured place is usable."""

    def diagnose(self) -> list[tuple[str, Check]]:
        """Look whether this installation, its record and every place are well."""

    def orphans(self) -> Found[Orphan]:
        """Return instances that carry our labels and belong to no run on record."""

    def remove_orphans(self, orphans: Sequence[Orphan]) -> None:
        """Stop and remove them."""

    def strays(self) -> Found[Stray]:
        """Return machines that are paid for and serve no run on record."""

    def terminate(self, strays: Sequence[Stray]) -> None:
        """End them, and all that belongs to them."""

    def volumes(self) -> list[tuple[str, Volume]]:
        """Return every volume with its backend."""

    def delete_volume(self, name: str) -> None:
        """Delete a volume and what it holds."""

    def fleets(self, name: str | None = None) -> list[FleetView]:
        """Return every fleet by name, or one, with its hosts as they are at this moment."""

    def delete_fleet(self, name: str) -> None:
        """Let go of a fleet's hosts; what ended there goes with its output."""

    def cordon(self, fleet: str, host: str, *, reason: str = "", leave: Leave = "") -> None:
        """Let nothing new start on a host; with ``leave`` also move away what is there."""

    def uncordon(self, fleet: str, host: str) -> None:
        """Let launches start on a host again."""

    def emptied(
        self, fleet: str, host: str, *, hooks: Hooks | None = None, timeout_s: float | None = None
    ) -> bool:
        """Drive runs until none has a launch on a host; False when time ran out."""

    def secrets(self) -> list[SecretName]:
        """Return the names of the secrets, when each was last set and what it goes with."""

    def set_secret(self, name: str, value: str) -> None:
        """Keep a secret, encrypted."""

    def delete_secret(self, name: str) -> None:
        """Forget a secret."""
