"""Ends of listening sockets."""

from __future__ import annotations

import asyncio

TURNS = 2
"""Of the event loop until what it accepted last has a transport: one to begin its task, one to spare."""


async def accept_no_more(server: asyncio.Server) -> None:
    """Close a server once every connection that it has accepted has its transport.

    asyncio makes that in a task of its own. Where the server was closed meanwhile the task fails, and the
    client's socket is left to the garbage collector (github.com/python/cpython/issues/109564).
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    for _ in range(TURNS):
        await asyncio.sleep(0)
    server.close()
