"""The prompt of the command line's tests: a sim that ends ``hello``, fails ``bad`` and keeps ``web``."""

from __future__ import annotations

from tests.cli.conftest import cli

__all__ = ["cli"]
