"""The gateway's sockets: asyncio protocols, and nothing that decides."""

from __future__ import annotations

from orchestrator.gateway.server.gateway import Gateway, Limits
from orchestrator.gateway.server.scaler import scale
from orchestrator.gateway.server.watch import follow, read

__all__ = ["Gateway", "Limits", "follow", "read", "scale"]
