"""What a backend is held to: the numbered clauses of ``docs/backends.md``, for us and for third parties."""

from orchestrator.testing.contract import BackendContract

__all__ = ["BackendContract"]
