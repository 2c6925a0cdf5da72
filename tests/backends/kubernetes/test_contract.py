"""The contract on a whole cluster: ``MODELYARD_TEST_CLUSTER=full`` and ``KUBECONFIG`` name one.

Its image store holds ``localhost/busybox:1``. Pods of this machine's own cluster are reached by
their addresses, so that ports are claimed.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.kubernetes import Kubernetes
from orchestrator.backend import Backend, Launch
from orchestrator.testing import BackendContract
from orchestrator.testing.contract import Kind
from tests.backends.kubernetes.cluster import disks, namespace, whole_cluster


class TestKubernetes(BackendContract):
    image: ClassVar[str | None] = "localhost/busybox:1"
    shell: ClassVar[tuple[str, ...]] = ("/bin/sh", "-c")
    wait_s: ClassVar[float] = 60.0
    grace_s: ClassVar[float] = 1.0
    scripts: ClassVar[Mapping[str, str]] = {
        **BackendContract.scripts,
        "serving": "cd /tmp && echo hello > index.html && exec httpd -f -p 8080",
        "hungry": "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done",
    }

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kubernetes]:
        config = whole_cluster()
        keeps = disks(config, tmp_path) if "volume" in request.node.name else contextlib.nullcontext()
        with keeps, namespace(config, enforce="restricted") as name:
            yield Kubernetes("contract", kubeconfig=config, namespace=name, multinode="statefulset")

    def launch(self, kind: Kind, name: str = "contract-0-0-1", **fields: Any) -> Launch:
        made = super().launch(kind, name, **fields)
        # the image has one program under many names, and none for this one
        return replace(made, entrypoint=("/bin/busybox",)) if kind == "literal" else made

    def source(self, backend: Backend) -> str:
        assert isinstance(backend, Kubernetes)
        return (
            "from backends.kubernetes import Kubernetes\n"
            f"backend = Kubernetes('contract', kubeconfig={whole_cluster()!r}, "
            f"namespace={backend.settings.namespace!r})"
        )

    def broken(self, backend: Backend) -> Backend:
        return Kubernetes("broken", kubeconfig=str(silent_config()), timeout_s=2.0)

    def traces(self, backend: Backend) -> Iterable[bytes]:
        assert isinstance(backend, Kubernetes)
        for status in backend.groups():
            yield repr(status).encode()


def silent_config() -> Path:
    """Return a kubeconfig of a server that does not answer."""
    path = Path(tempfile.gettempdir(), f"silent-{uuid.uuid4().hex}.conf")
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n"
        "clusters: [{name: x, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "contexts: [{name: x, context: {cluster: x, user: x}}]\nusers: [{name: x, user: {}}]\n"
    )
    return path
