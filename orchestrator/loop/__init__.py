"""Observe, reconcile, carry out: the shell around the pure pass, with clock and threads."""

from orchestrator.loop.driver import Hooks, Loop

__all__ = ["Hooks", "Loop"]
