"""Who drives a run: leases that end by themselves, and at once when their owner is seen dead."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from pathlib import Path


def this_owner() -> str:
    """Return the name of this process as an owner: ``host:pid:start-ticks``.

    The third part tells two processes apart that had the same number one after the other.
    """
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_start_ticks(pid)}"


def is_gone(owner: str) -> bool:
    """Return whether ``owner`` was a process of this machine that has ended.

    An owner elsewhere is never said to be gone: nobody here can know.

    >>> is_gone("elsewhere:1:1"), is_gone(this_owner())
    (False, False)
    """
    host, pid, ticks = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is there, and someone else's
    return _start_ticks(int(pid)) != int(ticks)


def _start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 where there is no /proc.

    The name in parentheses may hold spaces: the fields are counted from behind it (proc(5):
    start time is the 22nd of the line, the 20th behind the name).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


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
