"""What a backend is held to: the numbered clauses of ``docs/backends.md``, for us and for third parties."""

import pytest

pytest.register_assert_rewrite("orchestrator.testing.contract")  # before its import, or asserts say nothing

from orchestrator.testing.contract import BackendContract  # noqa: E402 - after the line above

__all__ = ["BackendContract"]
