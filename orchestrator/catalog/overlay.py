"""The folder whose tables stand over the shipped ones wherever a caller names no other."""

from __future__ import annotations

from pathlib import Path

_in_use: Path | None = None


def use(folder: Path | None) -> None:
    """Have every table read with that of the same name in ``folder`` over it; None for the shipped ones.

    A program calls it once, before it reads anything: plans of one process rest on one catalog.
    """
    global _in_use  # the one setting of the catalog, and it is set before it is read
    _in_use = folder


def in_use() -> Path | None:
    """Return the folder in use, None where only the shipped tables are.

    >>> in_use() is None
    True
    """
    return _in_use
