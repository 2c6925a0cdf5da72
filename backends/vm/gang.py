"""The machines of the nodes of one replica: all of them, or none.

Nodes are started one by one, by several threads and perhaps several processes. Whoever comes first
rents the machines of all nodes, under the gang's claim; the others find what came of it there. A
gang that was refused once stays refused: the next attempt has another name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from backends.ssh.memory import Claim
from backends.vm.port import Vm
from orchestrator.backend import Launch
from orchestrator.errors import AuthFailed, BackendError, NoCapacity, Quota, Rejected

GATHERED = "gathered"

KINDS: Mapping[str, type[BackendError]] = {
    "no-capacity": NoCapacity, "quota": Quota, "denied": AuthFailed, "rejected": Rejected,
}  # fmt: skip
"""What ends a gang, by its word in the claim; anything else may pass, and the start is asked again."""

Seat = tuple[str, str]
"""A machine's id, and its address among the others."""


def nodes_of(launch: Launch, nodes: int) -> Iterator[Launch]:
    """Yield the launch of every node of a gang, by rank, as far as names and labels go.

    >>> [each.name for each in nodes_of(Launch("sft-0-1-3", "sft", node=1, attempt=3), 2)]
    ['sft-0-0-3', 'sft-0-1-3']
    """
    for node in range(nodes):
        name = f"{launch.run}-{launch.replica}-{node}-{launch.attempt}"
        yield replace(launch, name=name, node=node)


def gather(
    claim: Claim,
    nodes: Sequence[Launch],
    *,
    find: Callable[[str], Vm | None],
    make: Callable[[Launch], Vm],
    end: Callable[[Vm], None],
) -> list[Seat]:
    """Return where every node goes, by rank, renting all machines the first time.

    Args:
        claim: The gang's, held by the caller.
        nodes: The launch of every node, by rank.
        find: Returns the machine that a launch has.
        make: Returns a machine for a launch, with its address among the others.
        end: Ends a machine, for good.

    Raises:
        NoCapacity: there are not enough now; those that were made are ended.
        Quota: as above, for a limit of the account.
    """
    written = claim.read()
    if written and written[0] == GATHERED:
        return [(id, ip) for id, _, ip in (line.partition(" ") for line in written[1:])]
    if written:
        kind, backend, what, fix = written
        raise KINDS[kind](what, backend=backend, fix=fix or None)
    held = {node.name: vm for node in nodes if (vm := find(node.name)) is not None}
    try:
        for node in nodes:
            if node.name not in held or held[node.name].internal_ip is None:
                held[node.name] = make(node)
    except tuple(KINDS.values()) as error:
        for vm in held.values():
            end(vm)
        refuse(claim, error)
        raise
    seats = [(held[node.name].id, held[node.name].internal_ip or "") for node in nodes]
    claim.write(GATHERED, *(f"{id} {ip}" for id, ip in seats))
    return seats


def refuse(claim: Claim, error: BackendError) -> None:
    """Write down why there will be no such gang."""
    kind = next((word for word, each in KINDS.items() if isinstance(error, each)), "rejected")
    lines = (kind, error.backend or "", error.what, error.fix or "")
    claim.write(*(" ".join(line.split("\n")) for line in lines))
