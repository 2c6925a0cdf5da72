"""How a replica that spans machines is launched: one command for all of its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.backend import File
from orchestrator.engines.node_entry import RAY

HOME = "/modelyard"
"""The folder in the container that our own files lie in."""
_ENTRY = "node_entry.py"

NODES = "$(MODELYARD_NODES_NUM)"
RANK = "$(MODELYARD_NODE_RANK)"
MASTER = "$(MODELYARD_MASTER_NODE_IP)"
OWN = "$(MODELYARD_NODE_IP)"

ENV = (
    ("NCCL_SOCKET_IFNAME", "$(MODELYARD_NODE_INTERFACE)"),
    ("GLOO_SOCKET_IFNAME", "$(MODELYARD_NODE_INTERFACE)"),
)
"""Both are needed: GLOO hangs on the wrong interface as NCCL does (vllm issues 7074 and 15744)."""


def entry_file(home: str = HOME) -> File:
    """Return the program that every node of the replica starts with."""
    return File(f"{home}/{_ENTRY}", Path(__file__).with_name(_ENTRY).read_bytes(), mode=0o644)


def gathered(command: Sequence[str], *, home: str = HOME) -> tuple[str, ...]:
    """Return ``command`` as rank 0 starts it on a Ray cluster of all nodes, which the others join.

    >>> gathered(["vllm", "serve"])
    ('python3', '/modelyard/node_entry.py', '--ray', '--', 'vllm', 'serve')
    """
    return ("python3", f"{home}/{_ENTRY}", RAY, "--", *command)


def wrap(command: Sequence[str], *, followers: Sequence[str] = (), home: str = HOME) -> tuple[str, ...]:
    """Return ``command`` as started through the entry; ``followers`` are added on ranks above 0.

    >>> wrap(["vllm", "serve"], followers=["--headless"])
    ('python3', '/modelyard/node_entry.py', '--headless', '--', 'vllm', 'serve')
    """
    return ("python3", f"{home}/{_ENTRY}", *followers, "--", *command)
