"""The way in to services: one address, requests to replicas, none lost because we did something."""

from __future__ import annotations

from orchestrator.gateway.keys import Key, Keys
from orchestrator.gateway.routes import Replica, Routes, ServiceRoute, routes_of

__all__ = ["Key", "Keys", "Replica", "Routes", "ServiceRoute", "routes_of"]
