"""Observe, reconcile, carry out: the shell around the pure pass, with clock and threads."""

from orchestrator.loop.driver import Hooks, Loop
from orchestrator.loop.keep import Keeper

__all__ = ["Hooks", "Keeper", "Loop"]
