"""Who drives a run: leases that end by themselves, and at once when their owner is seen dead."""

from __future__ import annotations

import functools
import os
import re
import socket
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

_OWNER = re.compile(r"(.+):(\d+):(\d+)")


class _Seen(NamedTuple):
    """What /proc says of a process: its state's letter, and its start in clock ticks since boot."""

    state: str
    start_ticks: int


def this_owner() -> str:
    """Return the name of this process as an owner: ``place:pid:start-ticks``.

    The last part tells two processes apart that had the same number one after the other.
    """
    pid = os.getpid()
    seen = _look(pid)
    return f"{_place()}:{pid}:{seen.start_ticks if seen else 0}"


def is_gone(owner: str) -> bool:
    """Return whether ``owner`` was a process of this machine that has ended.

    An owner elsewhere is never said to be gone: nobody here can know.

    >>> is_gone("elsewhere:1:1"), is_gone(this_owner())
    (False, False)
    """
    found = _OWNER.fullmatch(owner)
    if found is None or found[1] != _place():
        return False
    try:
        os.kill(int(found[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is there, and someone else's
    seen = _look(int(found[2]))
    if seen is None:
        return False  # it cannot be looked at, and so may be the one
    # A zombie has ended; it only waits for a parent that may never ask.
    return seen.state == "Z" or seen.start_ticks != int(found[3])


def is_free(holder: str | None, until: datetime | None, *, owner: str, now: datetime, gone: bool) -> bool:
    """Return whether ``owner`` may take a lease that ``holder`` has until ``until``.

    >>> from datetime import UTC
    >>> now = datetime(2026, 1, 1, tzinfo=UTC)
    >>> is_free("a", now.replace(hour=1), owner="b", now=now, gone=False)
    False
    """
    if holder is None or until is None or holder == owner:
        return True
    return gone or until <= now


@functools.cache
def _place() -> str:
    """Return where process numbers mean what they mean here: ``host/boot-namespace``.

    Host names are not unique, and containers of one host may share its name but not its
    process numbers. Without /proc the name has to do.
    """
    host = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return host
    return f"{host}/{boot[:8]}-{re.sub(r'[^0-9]', '', namespace)}"


def _look(pid: int) -> _Seen | None:
    """Return what /proc says of a process, None where it says nothing.

    The name in parentheses may hold spaces: fields are counted from behind it (proc(5): the
    state is the 3rd of the line, the start time the 22nd).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return _Seen(fields[0], int(fields[19]))
