"""Ask a replica for its metrics: one GET on a connection of its own, bounded in time and size."""

from __future__ import annotations

import asyncio

from orchestrator.gateway.routes import Replica
from orchestrator.gateway.wire import BadMessage, Chunks, parse_response

PATIENCE_S = 2.0
MOST_BYTES = 4 * 2**20
"""Of an answer; vLLM's is about 100 KB."""


async def fetch(replica: Replica, path: str) -> str | None:
    """Return what ``replica`` answers to a GET of ``path``, None where that is no 200 in time."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await _fetch(replica, path)
    except (OSError, BadMessage, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None  # TimeoutError is an OSError


async def _fetch(replica: Replica, path: str) -> str | None:
    reader, writer = await asyncio.open_connection(replica.host, replica.port)
    try:
        host = f"{replica.host}:{replica.port}"
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode("latin-1"))
        response = parse_response(await reader.readuntil(b"\r\n\r\n"), method=b"GET")
        if response.status != 200:
            return None
        if response.body == "length":
            body = await reader.readexactly(min(response.length, MOST_BYTES))
        else:
            body = await _read(reader, Chunks() if response.body == "chunked" else None)
        return body.decode("utf-8", "replace")
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, chunks: Chunks | None) -> bytes:
    """Read a body until its end, or until it is too large for one that is worth reading."""
    body = b""
    while len(body) < MOST_BYTES and (piece := await reader.read(2**16)):
        body += chunks.feed(piece) if chunks else piece
        if chunks and chunks.ended:
            break
    return body
