"""Fixtures of the ssh backend: a farm of hosts, a second engine, and a namespace of one's own."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests import images
from tests.backends.ssh.farm import MAIN_SOCKET, Farm, Machine, Sshd, disconnect, farm, second_machine


@pytest.fixture(scope="session")
def shared_farm() -> Iterator[Farm]:
    """Lend a farm that tests share; what they break they make on their own."""
    with farm() as lent:
        yield lent


@pytest.fixture(scope="session")
def host(shared_farm: Farm) -> Sshd:
    """Lend a host that stays up."""
    return shared_farm.add()


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """Lend a second machine: an engine and a network of its own."""
    with second_machine() as lent:
        yield lent


@pytest.fixture(scope="session")
def other_host(shared_farm: Farm, machine: Machine) -> Sshd:
    """Lend a host on the second machine, which stays up."""
    return shared_farm.add(machine=machine)


@pytest.fixture
def own_farm() -> Iterator[Farm]:
    """Lend a farm whose hosts a test may break."""
    with farm() as lent:
        yield lent


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Keep connections and memory in a folder of the test's, and end the connections."""
    with tempfile.TemporaryDirectory(prefix="my-run-", dir="/tmp") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        monkeypatch.setenv("XDG_STATE_HOME", f"{name}/state")
        yield Path(name)
        disconnect(Path(name))


@pytest.fixture
def namespace(folders: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Lend a namespace, and remove all that was made in it on every engine."""
    images.require_engine()
    lent = f"modelyard-test-{uuid.uuid4().hex[:8]}"
    yield lent
    sockets = [MAIN_SOCKET]
    if "machine" in request.fixturenames:
        sockets.append(request.getfixturevalue("machine").socket)
    for socket in sockets:
        sweep(socket, lent)


def sweep(socket: str, namespace: str) -> None:
    """Remove containers and volumes whose names begin with a namespace."""
    import docker

    with closing(docker.APIClient(f"unix://{socket}", version="auto", timeout=60)) as client:
        for container in client.containers(all=True):
            if any(name.startswith(f"/{namespace}") for name in container["Names"]):
                with suppress(Exception):
                    client.remove_container(container["Id"], v=True, force=True)
        for volume in client.volumes()["Volumes"] or []:
            if volume["Name"].startswith(namespace):
                client.remove_volume(volume["Name"])
