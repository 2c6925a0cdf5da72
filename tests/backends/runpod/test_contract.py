"""The contract on pods that a fake of RunPod keeps and processes of this machine run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.runpod import Runpod
from orchestrator.backend import Launch, Rent
from orchestrator.testing import BackendContract
from orchestrator.testing.contract import Kind
from tests.backends.runpod.api import H100, FakeRunpod


class TestRunpod(BackendContract):
    """The clauses of docs/backends.md, each launch in a pod of its own."""

    image: ClassVar[str | None] = "busybox"
    options: ClassVar[dict[str, Any]]
    account: ClassVar[FakeRunpod]

    @pytest.fixture
    def backend(self, cloud: FakeRunpod, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Runpod:
        monkeypatch.setattr(type(self), "options", options, raising=False)
        monkeypatch.setattr(type(self), "account", cloud, raising=False)
        return Runpod(**options)

    def launch(self, kind: Kind, name: str = "contract-0-0-1", **fields: Any) -> Launch:
        return super().launch(kind, name, **{"rent": Rent(H100, "US-KS-2"), **fields})

    def source(self, backend: Runpod) -> str:
        return f"from backends.runpod import Runpod; backend = Runpod(**{self.options!r})"

    def stranger(self, backend: Runpod) -> Runpod:
        return Runpod("runpod", **{**self.options, "namespace": "another"})

    def broken(self, backend: Runpod) -> Runpod:
        return Runpod("broken", **{**self.options, "endpoint_url": "http://127.0.0.1:1"})

    def traces(self, backend: Runpod) -> Iterable[bytes]:
        """Return what the account shows but the variables, and all that is kept here."""
        for one in self.account.there.values():
            yield json.dumps({**one.data["body"], "env": list(one.data["body"]["env"])}).encode()
        for path in Path(os.environ["XDG_STATE_HOME"]).rglob("*"):
            if path.is_file():
                yield path.read_bytes()
