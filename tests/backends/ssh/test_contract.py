"""The contract over real ``sshd``s: one host, and two hosts with an engine each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any, ClassVar

import pytest

from backends.ssh import Ssh
from orchestrator.testing import BackendContract
from tests import images
from tests.backends.ssh.farm import MAIN_SOCKET, Farm, Machine, Sshd

pytestmark = pytest.mark.docker


class SshContract(BackendContract):
    """What both have in common."""

    options: ClassVar[dict[str, Any]]
    engines: ClassVar[tuple[str, ...]] = (MAIN_SOCKET,)
    scripts: ClassVar[Mapping[str, str]] = {
        **BackendContract.scripts,
        "serving": "exec httpd -f -p 8080 -h /etc",
    }

    def make(self, namespace: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Ssh:
        monkeypatch.setattr(type(self), "image", images.busybox())
        monkeypatch.setattr(type(self), "options", {**options, "namespace": namespace}, raising=False)
        return Ssh(**self.options)

    def source(self, backend: Ssh) -> str:
        return f"from backends.ssh import Ssh; backend = Ssh(**{self.options!r})"

    def stranger(self, backend: Ssh) -> Ssh:
        return Ssh("stranger", **{**self.options, "namespace": f"{self.options['namespace']}-x"})

    def broken(self, backend: Ssh) -> Ssh:
        return Ssh("broken", **{**self.options, "hosts": [{"hostname": "127.0.0.1", "port": 1}]})

    def traces(self, backend: Ssh) -> Iterable[bytes]:
        """Return all the engines say but the environment, which is where a secret has to be."""
        import docker

        for socket in self.engines:
            with closing(docker.APIClient(f"unix://{socket}", version="auto")) as client:
                for one in client.containers(all=True):
                    config = client.inspect_container(one["Id"])["Config"]
                    kept = [config["Labels"], config["Cmd"], config["Entrypoint"], one["Names"]]
                    yield json.dumps(kept).encode()
        for path in backend._memory._folder.rglob("*"):
            if path.is_file():
                yield path.read_bytes()


class TestOneHost(SshContract):
    """The clauses of docs/backends.md on one host."""

    @pytest.fixture
    def backend(self, shared_farm: Farm, host: Sshd, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Ssh:
        return self.make(namespace, shared_farm.options(host), monkeypatch)


class TestTwoHosts(SshContract):
    """The clauses on two hosts with an engine each."""

    @pytest.fixture
    def backend(
        self,
        shared_farm: Farm,
        host: Sshd,
        other_host: Sshd,
        machine: Machine,
        namespace: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Ssh:
        monkeypatch.setattr(type(self), "engines", (MAIN_SOCKET, machine.socket))
        options = shared_farm.options(host, other_host, machine=machine)
        return self.make(namespace, options, monkeypatch)
