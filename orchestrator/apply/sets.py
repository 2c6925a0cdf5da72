"""Sets: which runs and volumes were applied together, and what of them a prune takes away."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from typing import Literal

from orchestrator.errors import UsageError
from orchestrator.frozen import frozen
from orchestrator.reconcile import Run, Wanted
from orchestrator.spec.parts import Change
from orchestrator.spec.values import NAME, NAME_RULE
from orchestrator.store.values import Fleet, Volume


@frozen
class Scope:
    """Under which set documents are applied, and whether what is no longer among them goes.

    Without a name documents join no set, and nothing is ever pruned. ``take`` lets them join that
    another set has, which then no longer has them.
    """

    name: str = ""
    prune: bool = False
    take: bool = False

    def __post_init__(self) -> None:
        if self.prune and not self.name:
            raise UsageError("--prune without a set: nobody knows what it may delete", fix="add --set NAME")
        if self.take and not self.name:
            raise UsageError("--take without a set: nobody knows who takes it", fix="add --set NAME")
        if self.name and not NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} is no name for a set", fix=NAME_RULE)


NO_SET = Scope()


@frozen
class FleetRecord:
    """A fleet as it is on record, and who is on it.

    ``on`` are the runs with a launch that has not ended, by host; "" is a host that is not known yet.
    ``bound`` are the runs that have not ended and may only, or also, go there.
    """

    fleet: Fleet
    on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bound: tuple[str, ...] = ()

    @property
    def users(self) -> frozenset[str]:
        """Every run that may be on it."""
        return frozenset(self.bound).union(*self.on.values())


@frozen
class Deletion:
    """What a prune would delete: a run as it is on record, a volume or a fleet."""

    name: str
    type: str
    set_name: str
    run: Run | None = None
    backend: str = ""
    action: Literal["delete"] = "delete"

    @property
    def reason(self) -> str:
        """Why it goes."""
        return f"set {self.set_name!r} no longer has it"


def joined(name: str, there: str, scope: Scope) -> str:
    """Return the set that ``name`` belongs to once applied; ``there`` is the one on record.

    Applied without a set, a thing stays in the set it is in.

    Raises:
        UsageError: another set has it, and it is not to be taken over.

    >>> joined("chat", "", Scope("prod")), joined("chat", "prod", Scope())
    ('prod', 'prod')
    >>> joined("chat", "prod", Scope("serving", take=True))
    'serving'
    """
    if scope.name and there and scope.name != there and not scope.take:
        raise UsageError(
            f"{name!r} belongs to set {there!r}, not {scope.name!r}",
            fix=f"apply it under --set {there}, take it over with --take, or choose another name",
        )
    return scope.name or there


def joining(there: str, joins: str) -> tuple[Change, ...]:
    """Return the change of a thing's set as a field that changes in place, nothing where it stays.

    >>> joining("", "prod")
    (Change(path='set', old=None, new='prod', mark='in-place'),)
    """
    return (Change("set", there or None, joins or None, "in-place"),) if there != joins else ()


def deletions(
    scope: Scope,
    *,
    kept: Collection[tuple[str, str]],
    runs: Mapping[str, Run],
    volumes: Mapping[str, Volume],
    uses: Mapping[str, str],
    fleets: Mapping[str, FleetRecord],
) -> tuple[Deletion, ...]:
    """Return what a prune of the set deletes: runs by name, then the volumes and fleets they may have used.

    Args:
        scope: The set; one that does not prune deletes nothing.
        kept: What the documents hold, as kind (``run`` or ``volume``) and name.
        runs: Every run on record, by name.
        volumes: Every volume on record, by name.
        uses: Volumes that the documents' runs use, each with the name of one such run.
        fleets: Every fleet on record, by name.

    Raises:
        UsageError: a run that stays uses a volume or a fleet that would go.
    """
    if not scope.prune:
        return ()
    gone = [
        Deletion(name, run.type, scope.name, run)
        for name, run in sorted(runs.items())
        if run.set_name == scope.name
        and run.wanted is not Wanted.DELETE
        and ("run", name) not in kept
        and run.type != "fleet"
    ]
    leaving = {deletion.name for deletion in gone}
    used = {**_used_by(run for name, run in runs.items() if name not in leaving), **uses}
    for name, volume in sorted(volumes.items()):
        if volume.set_name == scope.name and ("volume", name) not in kept:
            if name in used:
                raise UsageError(
                    f"volume {name!r} cannot go: run {used[name]!r} uses it",
                    fix=f"keep the volume in the files, or modelyard delete {used[name]}",
                )
            gone.append(Deletion(name, "volume", scope.name, backend=volume.backend))
    for name, record in sorted(fleets.items()):
        if record.fleet.set_name == scope.name and ("fleet", name) not in kept:
            staying = sorted(record.users - leaving)
            if staying:
                raise UsageError(
                    f"fleet {name!r} cannot go: run {staying[0]!r} uses it",
                    fix=f"keep the fleet in the files, or modelyard delete {staying[0]}",
                )
            gone.append(Deletion(name, "fleet", scope.name, backend=name))
    return tuple(gone)


def _used_by(runs: Iterable[Run]) -> dict[str, str]:
    """Return the volumes that runs have mounted, each with the name of one such run."""
    return {
        mount.source: run.name
        for run in runs
        if run.wanted is Wanted.RUN and not run.state.is_final
        for launch in (run.template.launch, run.template.follower)
        if launch is not None
        for mount in launch.mounts
        if mount.kind != "folder"
    }
