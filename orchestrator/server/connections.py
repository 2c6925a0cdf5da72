"""Connections: as many as the system lets a server have, and none held open by who asks nothing."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""How long the head of a request may take, its connection included."""
MOST_FILES = 65_536
QUIET_S = 60.0
"""How often it is said that there are too many connections."""


class Connection(H11Protocol):
    """uvicorn's connection, closed where the head of a request does not come.

    uvicorn itself waits for ever for the first request and for the rest of a head (seen in 0.54).
    """

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for the first request, not for ever."""
        super().connection_made(transport)
        self._time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._stop()

    def handle_events(self) -> None:
        """Take what came, and wait for the rest of a head, not for ever."""
        super().handle_events()
        self._time()

    def _time(self) -> None:
        has_begun = self.cycle is None or bool(self.conn.trailing_data[0])  # else it is kept alive, for 5 s
        if self.conn.their_state is not h11.IDLE or not has_begun:
            self._stop()
        elif self._overdue is None:
            self._overdue = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def allow_files() -> None:
    """Let this process open as many files as it may: systemd gives 1,024, and a connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def said_seldom(
    complain: Callable[[str], None],
) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return what an event loop tells its troubles: that no connection can be taken is said once a minute.

    asyncio tells it with a traceback for each place in the queue of connections, every second.
    """
    said_at = -QUIET_S

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said_at
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif time.monotonic() - said_at >= QUIET_S:
            said_at = time.monotonic()
            complain("no connection can be taken: too many files are open, or connections")

    return tell


def is_news(record: logging.LogRecord) -> bool:
    """Return whether what uvicorn logs tells of a fault.

    A WebSocket that was refused is none (said so in 0.54), nor is a call that was cut off at the end.
    """
    is_cut = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not is_cut and "without completing handshake" not in record.getMessage()
