"""A sim that keeps whole groups by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backends.sim.host import Call, Sim
from orchestrator.backend import Can, Group, GroupStatus, Instance, Launch, Phase


class SimCluster(Sim):
    """A sim that keeps whole groups by itself, as Kubernetes does.

    Takes what :class:`Sim` takes. A service's launches are restarted for ever, a task's as often
    as its group says. Ready replicas are those whose every node is ready, or runs where the
    script does not probe.
    """

    def __init__(self, name: str = "sim", *, can: Iterable[Can] | None = None, **options: Any) -> None:
        super().__init__(
            name, can=set(Can) - {Can.RENT, Can.KEEP, Can.HOLD, Can.SCALES} if can is None else can, **options
        )

    def apply_group(self, group: Group, *, secrets: Mapping[str, str]) -> GroupStatus:
        """Make the launches here those of ``group``: start what lacks, remove what is too much."""
        with self._changing(Call("apply_group", group.name)):
            wanted = {launch.name: launch for launch in _launches(group)}
            for name in [n for n in self._names if self._slots[n].group == group.name]:
                if name not in wanted or self._slots[name].instance.spec_hash != wanted[name].spec_hash:
                    self._write("remove", name)
            for name, launch in wanted.items():
                if name not in self._slots:
                    self._add_to_group(group, launch, secrets)
            return self._status(group.name)

    def groups(self) -> Sequence[GroupStatus]:
        """Return the groups, ordered by name."""
        with self._reading(Call("groups")):
            return tuple(
                self._status(name) for name in sorted({s.group for s in self._slots.values()} - {""})
            )

    def delete_group(self, name: str, *, grace_s: float) -> None:  # noqa: ARG002 - the port's
        """Remove the launches of a group."""
        with self._changing(Call("delete_group", name)):
            for launch in [n for n in self._names if self._slots[n].group == name]:
                self._write("remove", launch)

    def _add_to_group(self, group: Group, launch: Launch, secrets: Mapping[str, str]) -> None:
        script = self._script(launch)
        if script.refuse is not None:
            raise self._refusal(script, launch)
        slot = self._accept(launch, script, secrets)
        lives = None if group.kind != "task" else 1 + (group.retries if script.exit_code else 0)
        self._write("start", replace(slot, group=group.name, lives=lives))

    def _status(self, name: str) -> GroupStatus:
        instances = tuple(i for i in self._list() if self._slots[i.name].group == name)
        replicas: dict[int, list[Instance]] = {}
        for instance in instances:
            replicas.setdefault(instance.replica, []).append(instance)
        failed = next((i for i in instances if i.phase is Phase.EXITED and i.reason), None)
        ended = all(i.phase is Phase.EXITED for i in instances)
        running = any(i.phase is Phase.RUNNING for i in instances)
        phase = Phase.EXITED if ended else Phase.RUNNING if running else Phase.PENDING
        return GroupStatus(
            name=name,
            spec_hash=instances[0].spec_hash,
            phase=phase,
            ready_replicas=sum(all(_serves(i) for i in nodes) for nodes in replicas.values()),
            instances=instances,
            exit_code=(failed.exit_code if failed else 0) if ended else None,
            reason=failed.reason if failed and ended else "",
            message=failed.message if failed and ended else "",
        )


def _serves(instance: Instance) -> bool:
    return instance.phase is Phase.RUNNING and instance.ready is not False


def _launches(group: Group) -> Iterator[Launch]:
    """Yield the launches of ``group``: its template for every replica and node."""
    template = group.template
    for replica in range(template.replica, template.replica + group.replicas):
        for node in range(template.node, template.node + group.nodes):
            name = f"{template.run}-{replica}-{node}-{template.attempt}"
            yield replace(template, name=name, replica=replica, node=node)
