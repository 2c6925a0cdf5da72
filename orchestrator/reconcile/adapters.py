"""Which adapters an engine that runs has to load and to drop."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from orchestrator.reconcile.values import Adapter

_REFUSED = re.compile(r"adapter (\S+) is not loaded: ")


def refused(name: str, why: str) -> str:
    """Return what is told of an adapter that an engine did not load."""
    return f"adapter {name} is not loaded: {why}"


def refused_in(reason: str) -> frozenset[str]:
    """Return the adapters of which a run's reason tells that.

    >>> sorted(refused_in(f"{refused('a', 'no room')}; {refused('b/c', 'no file')}")), refused_in("full")
    (['a', 'b/c'], frozenset())
    """
    return frozenset(_REFUSED.findall(reason))


def differences(
    wanted: Sequence[Adapter], loaded: Mapping[str, str], told: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[Adapter, ...]]:
    """Return the names to drop, then the adapters to load, until an engine serves what is wanted.

    Args:
        wanted: What is to be served, no name twice.
        loaded: What is, each name with the path it was loaded from.
        told: What the record says that it serves, as ``Adapter.told``: an engine knows no revisions.

    >>> a, b = Adapter("a", "/1"), Adapter("b", "/2")
    >>> differences([a, b], {"a": "/old", "c": "/3"})[0]
    ('a', 'c')
    >>> differences([a], {"a": "/1"}), differences([Adapter("a", "/1", "v2")], {"a": "/1"}, ["a@v1"])[0]
    (((), ()), ('a',))
    """
    right = {adapter.name: adapter for adapter in wanted}
    known = {each.partition("@")[0]: each for each in told}

    def stays(name: str, path: str) -> bool:
        adapter = right.get(name)
        return adapter is not None and adapter.path == path and known.get(name, adapter.told) == adapter.told

    drop = tuple(sorted(name for name, path in loaded.items() if not stays(name, path)))
    kept = loaded.keys() - set(drop)
    return drop, tuple(adapter for adapter in wanted if adapter.name not in kept)
