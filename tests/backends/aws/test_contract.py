"""The contract on machines that moto keeps and a real sshd and engine answer for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.aws import Aws
from backends.vm import boot
from orchestrator.backend import Launch, Rent
from orchestrator.testing import BackendContract
from orchestrator.testing.contract import Kind
from tests import images
from tests.backends.aws.cloud import Cloud
from tests.backends.ssh.conftest import sweep
from tests.backends.ssh.farm import MAIN_SOCKET

pytestmark = pytest.mark.docker


class TestAws(BackendContract):
    """The clauses of docs/backends.md, each launch on a machine of its own."""

    options: ClassVar[dict[str, Any]]
    scripts: ClassVar[Mapping[str, str]] = {
        **BackendContract.scripts,
        "serving": "exec httpd -f -p 8080 -h /etc",
    }

    @pytest.fixture
    def backend(self, aws: Cloud, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Aws:
        monkeypatch.setattr(type(self), "image", images.busybox())
        options = aws.options(namespace=namespace)
        monkeypatch.setattr(type(self), "options", options, raising=False)
        return Aws(**options)

    @pytest.fixture
    def namespace(self) -> Iterator[str]:
        images.require_engine()
        lent = f"modelyard-test-{os.urandom(4).hex()}"
        yield lent
        sweep(MAIN_SOCKET, lent)

    def launch(self, kind: Kind, name: str = "contract-0-0-1", **fields: Any) -> Launch:
        rent = Rent("t3.micro", "us-east-1", "us-east-1a")
        return super().launch(kind, name, **{"rent": rent, **fields})

    def source(self, backend: Aws) -> str:
        books = f"from backends.vm import boot; boot.FOLDER = {boot.FOLDER!r}"
        return f"{books}; from backends.aws import Aws; backend = Aws(**{self.options!r})"

    def stranger(self, backend: Aws) -> Aws:
        return Aws("aws", **{**self.options, "namespace": f"{self.options['namespace']}-x"})

    def broken(self, backend: Aws) -> Aws:
        return Aws("broken", **{**self.options, "endpoint_url": "http://127.0.0.1:1"})

    def traces(self, backend: Aws) -> Iterable[bytes]:
        """Return what engine and cloud say but the environment, and all that is kept here but the key."""
        import docker

        with closing(docker.APIClient(f"unix://{MAIN_SOCKET}", version="auto")) as client:
            for one in client.containers(all=True):
                config = client.inspect_container(one["Id"])["Config"]
                kept = [config["Labels"], config["Cmd"], config["Entrypoint"], one["Names"]]
                yield json.dumps(kept).encode()
        for path in Path(os.environ["XDG_STATE_HOME"]).rglob("*"):
            if path.is_file() and path.name != "key":
                yield path.read_bytes()
