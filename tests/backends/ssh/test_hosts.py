"""Hosts that break, refuse and disagree, on real ``sshd``s and real engines."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.machine import Device
from backends.ssh import Ssh
from backends.ssh.memory import Memory
from backends.ssh.placement import spread
from backends.ssh.survey import Survey, parse
from orchestrator.backend import Instance, Launch, Mount, Phase, Port, Resources
from orchestrator.errors import AuthFailed, Busy, NoCapacity, NotFound, Rejected, Unreachable
from tests import images
from tests.backends.ssh.farm import MAIN_SOCKET, Farm, Machine, Sshd, until

pytestmark = pytest.mark.docker

DEVICES = tuple(Device(n, f"test-{n}", "Test One", 2**30, "test", paths=("/dev/null",)) for n in range(3))
ONE = Resources(accelerator="Test One", accelerators=1)
IDLE = "trap 'exit 0' TERM; echo up; while :; do sleep 1 & wait $!; done"


def quiet(_: str) -> None:
    """Hear of progress and say nothing."""


def sh(script: str, name: str = "job-0-0-0", **fields: Any) -> Launch:
    """Return a launch that runs a shell script."""
    return Launch(name, "job", image=images.busybox(), command=("sh", "-c", script), **fields)


def start(backend: Ssh, launch: Launch) -> Instance:
    """Start a launch."""
    return backend.start(launch, secrets={}, progress=quiet)


def find(backend: Ssh, name: str = "job-0-0-0") -> Instance:
    """Return the one instance of that name."""
    (found,) = (one for one in backend.instances() if one.name == name)
    return found


def masters(folder: Path) -> list[int]:
    """Return the background processes of the connections kept in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"ssh" and any(word.startswith(bytes(folder)) for word in words):
            found.append(int(path.parent.name))
    return found


def cut(folder: Path) -> None:
    """Kill every connection, as a cable that is pulled does."""
    for pid in masters(folder):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not masters(folder), "the connections' end")


def answer(address: tuple[str, int]) -> bool:
    """Say whether an HTTP server answers at ``address``."""
    try:
        urllib.request.urlopen(f"http://{address[0]}:{address[1]}/passwd", timeout=5).close()
    except (OSError, urllib.error.URLError):
        return False
    return True


# -- connections ---------------------------------------------------------------------------------


def test_commands_share_one_connection(shared_farm: Farm, host: Sshd, namespace: str, folders: Path) -> None:
    options = {**shared_farm.options(host), "namespace": namespace}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Ssh(**options).instances(), range(8)))
    assert len(masters(folders)) == 1


def test_cut_connection_is_made_again_and_its_ports_keep_their_numbers(
    shared_farm: Farm, host: Sshd, namespace: str, folders: Path
) -> None:
    backend = Ssh(**shared_farm.options(host), namespace=namespace)
    start(backend, sh("exec httpd -f -p 8080 -h /etc", ports=(Port(8080),)))
    before = find(backend)
    until(lambda: answer(before.ports[8080]), "an answer")
    cut(folders)
    assert not answer(before.ports[8080])
    after = find(backend)
    assert after == before
    assert answer(after.ports[8080])


def test_followed_output_of_a_cut_connection_ends_in_unreachable_and_nothing_restarts(
    own_farm: Farm, namespace: str, folders: Path
) -> None:
    host = own_farm.add()
    backend = Ssh(**own_farm.options(host), namespace=namespace)
    start(backend, sh(IDLE))
    lines = backend.logs("job-0-0-0", follow=True)
    assert next(lines).text == "up"
    host.stop()
    cut(folders)
    with pytest.raises(Unreachable):
        list(lines)
    host.start()
    again = Ssh(**own_farm.options(host), namespace=namespace)  # the next command, without the pause
    assert (find(again).phase, find(again).restarts) == (Phase.RUNNING, 0)


def test_folder_that_others_may_enter_is_refused(shared_farm: Farm, host: Sshd, folders: Path) -> None:
    (folders / "modelyard-ssh").mkdir(mode=0o755)
    backend = Ssh(**shared_farm.options(host))
    (check,) = backend.check()
    assert not check.ok
    assert "not yours alone" in check.detail


def test_watch_sees_the_second_host_too(
    shared_farm: Farm, host: Sshd, other_host: Sshd, machine: Machine, namespace: str
) -> None:
    backend = Ssh(**shared_farm.options(host, other_host, machine=machine), namespace=namespace)
    other = Ssh("direct", **shared_farm.options(other_host, machine=machine), namespace=namespace)
    closed, names = threading.Event(), set[str]()
    watcher = threading.Thread(target=lambda: names.update(backend.watch(closed)))
    watcher.start()
    try:
        for attempt in range(100):
            start(other, sh("true", f"job-0-0-{attempt}"))
            if names - {""}:
                break
    finally:
        closed.set()
        watcher.join(30)
    assert names - {""}


# -- hosts that do not answer --------------------------------------------------------------------


@pytest.fixture
def pair(own_farm: Farm, machine: Machine, namespace: str) -> tuple[Ssh, Sshd, Sshd]:
    """Lend a backend of two machines whose connections a test may break."""
    first, second = own_farm.add(), own_farm.add(machine=machine)
    options = own_farm.options(first, second, machine=machine)
    return Ssh(**options, namespace=namespace), first, second


def test_silent_host_is_taken_at_its_last_word(pair: tuple[Ssh, Sshd, Sshd], folders: Path) -> None:
    backend, first, _ = pair
    start(backend, sh(IDLE))
    before = find(backend)
    first.stop()
    cut(folders)
    silent = find(backend)
    assert (silent.phase, silent.started_at) == (Phase.RUNNING, before.started_at)
    assert "does not answer" in silent.message
    assert [offer.instance_type for offer in backend.offers()] == [pair[2].address]


def test_launch_that_a_silent_host_may_hold_is_not_started_elsewhere(
    pair: tuple[Ssh, Sshd, Sshd], folders: Path
) -> None:
    backend, first, _ = pair
    start(backend, sh(IDLE))
    first.stop()
    cut(folders)
    for act in (
        lambda: start(backend, sh(IDLE)),
        lambda: backend.stop("job-0-0-0", grace_s=1),
        lambda: list(backend.logs("job-0-0-0")),
    ):
        with pytest.raises(Unreachable):
            act()


class Forgetful(Memory):
    """A planted fault: what was sent to a silent host is forgotten."""

    def may_hold(self, host: str, launch: str) -> bool:
        return False


def test_backend_that_forgets_silent_hosts_is_caught(pair: tuple[Ssh, Sshd, Sshd], folders: Path) -> None:
    pair[0]._memory = Forgetful(folders / "forgetful")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_launch_that_a_silent_host_may_hold_is_not_started_elsewhere(pair, folders)


def test_another_launch_goes_to_the_host_that_answers(pair: tuple[Ssh, Sshd, Sshd], folders: Path) -> None:
    backend, first, second = pair
    backend.instances()
    first.stop()
    cut(folders)
    assert start(backend, sh(IDLE)).machine == second.address
    with pytest.raises(NotFound):
        list(backend.logs("job-9-9-9"))


def test_host_that_never_answered_is_told_and_the_others_are_used(pair: tuple[Ssh, Sshd, Sshd]) -> None:
    backend, first, second = pair
    first.stop()
    assert backend.instances() == []
    assert backend.unheard() == {first.address}
    assert start(backend, sh(IDLE)).machine == second.address
    first.start()

    def heard_all() -> bool:  # a host that was silent is asked again after a pause
        assert [one.name for one in backend.instances()] == ["job-0-0-0"]
        return not backend.unheard()

    until(heard_all, "the host that is back answers")


def test_hosts_of_which_none_ever_answered_leave_all_unknown(pair: tuple[Ssh, Sshd, Sshd]) -> None:
    backend, first, second = pair
    first.stop()
    second.stop()
    with pytest.raises(Unreachable) as error:
        backend.instances()
    assert first.address in error.value.what


def test_silent_host_is_not_asked_again_at_once(own_farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    host = own_farm.add()
    host.stop()
    backend = Ssh(**own_farm.options(host))
    for _ in range(2):
        with pytest.raises(Unreachable) as error:
            backend.instances()
    monkeypatch.setenv("PATH", "/nonexistent")  # the same error, without a program that could tell
    with pytest.raises(Unreachable) as again:
        backend.instances()
    assert again.value.what == error.value.what


# -- hosts that refuse ---------------------------------------------------------------------------


def refusal(options: dict[str, Any]) -> AuthFailed:
    """Return why a host does not let us in."""
    with pytest.raises(AuthFailed) as error:
        Ssh(**options).instances()
    assert error.value.fix
    return error.value


def test_key_that_the_host_does_not_know_is_refused(own_farm: Farm) -> None:
    host = own_farm.add()
    stranger = own_farm.folder / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    error = refusal({**own_farm.options(host), "identity_file": str(stranger)})
    assert error.what == "host '127.0.0.1' refuses the login of 'root'"


def test_missing_identity_file_is_named(own_farm: Farm) -> None:
    error = refusal({**own_farm.options(own_farm.add()), "identity_file": "/nonexistent/key"})
    assert "identity_file /nonexistent/key" in error.what


def test_unknown_host_key_is_refused_unless_new_ones_are_accepted(own_farm: Farm) -> None:
    host = own_farm.add(known=False)
    assert "not known" in refusal(own_farm.options(host)).what
    accepting = {**own_farm.options(host), "host_keys": "accept-new"}
    assert Ssh(**accepting).check()[0].ok


@pytest.mark.parametrize("host_keys", ["strict", "accept-new"])
def test_changed_host_key_is_refused(own_farm: Farm, host_keys: str) -> None:
    host = own_farm.add()
    host.stop()
    host.new_key()
    host.start()
    error = refusal({**own_farm.options(host), "host_keys": host_keys})
    assert "has changed" in error.what
    assert f"[127.0.0.1]:{host.port}" in str(error.fix)


def test_host_without_an_engine_is_unreachable_and_says_so(shared_farm: Farm, host: Sshd) -> None:
    backend = Ssh(**shared_farm.options(host), engine_socket="/nonexistent/docker.sock")
    with pytest.raises(Unreachable) as error:
        backend.instances()
    assert "no Docker engine listens at /nonexistent/docker.sock" in error.value.what
    assert [check.detail for check in backend.check() if not check.ok] == [error.value.what]


def test_user_who_may_not_use_docker_is_told_the_group(own_farm: Farm) -> None:
    if "postgres" not in {one.pw_name for one in pwd.getpwall()}:
        pytest.skip("no user with a shell who is not root: apt-get install postgresql")
    own_farm.folder.chmod(0o755)  # for the public keys in it
    host = own_farm.add(extra="UsePAM yes")  # without it nobody enters an account that has no password
    error = refusal({**own_farm.options(host), "user": "postgres"})
    assert "user 'postgres' may not use the Docker engine" in error.what
    assert "usermod -aG docker postgres" in str(error.fix)


def test_host_behind_another_is_reached(
    shared_farm: Farm, host: Sshd, other_host: Sshd, machine: Machine, namespace: str
) -> None:
    options = shared_farm.options(other_host, machine=machine)
    jump = {
        "hostname": host.address,
        "port": host.port,
        "user": "root",
        "identity_file": str(shared_farm.key),
    }
    backend = Ssh(**options, proxy_jump=jump, namespace=namespace)
    assert start(backend, sh("true")).machine == other_host.address


# -- accelerators, blocks, volumes ---------------------------------------------------------------


@contextmanager
def accelerators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every host say that it has three accelerators, which are all /dev/null."""

    def with_devices(output: str) -> Survey:
        said = parse(output)
        return replace(said, machine=replace(said.machine, accelerators=DEVICES))

    with monkeypatch.context() as patch:
        patch.setattr("backends.ssh.host.parse", with_devices)
        yield


def test_two_control_planes_never_share_an_accelerator(
    shared_farm: Farm, host: Sshd, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planes = [Ssh(f"plane-{n}", **shared_farm.options(host), namespace=f"{namespace}-{n}") for n in range(2)]

    def starter(number: int) -> str:
        try:
            start(planes[number % 2], sh(IDLE, f"job-{number}-0-0", replica=number, resources=ONE))
        except (NoCapacity, Busy) as refused:
            return type(refused).__name__
        return "started"

    with accelerators(monkeypatch), ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(starter, range(6)))
        held = [one.devices[0] for plane in planes for one in plane.instances()]
        assert len(held) == len(set(held)) == answers.count("started")
        assert 1 <= len(held) <= 3
        assert planes[0].offers()[0].count == planes[1].offers()[0].count == 3 - len(held)


def test_launches_fill_one_host_before_they_open_another(
    pair: tuple[Ssh, Sshd, Sshd], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = pair[0]
    with accelerators(monkeypatch):
        told = [start(backend, sh(IDLE, f"job-{n}-0-0", replica=n, resources=ONE)) for n in range(4)]
        assert [one.machine for one in told] == [pair[1].address] * 3 + [pair[2].address]
        with pytest.raises(NoCapacity):
            start(backend, sh(IDLE, "job-9-0-0", resources=replace(ONE, accelerators=3)))
        with pytest.raises(Rejected):
            start(backend, sh(IDLE, "job-9-0-0", resources=replace(ONE, accelerators=4)))


def test_blocks_are_taken_whole(
    shared_farm: Farm, host: Sshd, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Ssh(**shared_farm.options(host), blocks=3, namespace=namespace)
    with accelerators(monkeypatch):
        start(backend, sh(IDLE, "job-0-0-0", resources=Resources(memory_bytes=2**24)))
        start(backend, sh(IDLE, "job-1-0-0", replica=1, resources=ONE))
        (offer,) = backend.offers()
        assert offer.count == 1
        with pytest.raises(NoCapacity):
            start(backend, sh(IDLE, "job-2-0-0", replica=2, resources=replace(ONE, accelerators=2)))
        start(backend, sh(IDLE, "job-2-0-0", replica=2, resources=ONE))
        with pytest.raises(NoCapacity):
            start(backend, sh(IDLE, "job-3-0-0", replica=3))


def test_launch_goes_to_the_host_of_its_volume(pair: tuple[Ssh, Sshd, Sshd]) -> None:
    backend = pair[0]
    candidates = [f"data-{n}" for n in range(64)]
    hosts = list(backend._hosts)
    names = sorted(next(c for c in candidates if spread(c, hosts)[0] == host) for host in hosts)
    for name in names:
        backend.create_volume(name, size_bytes=None)
        backend.create_volume(name, size_bytes=None)
    assert [volume.name for volume in backend.volumes()] == names
    machines = {
        name: start(backend, sh("true", f"job-{n}-0-0", mounts=(Mount(name, "/data"),))).machine
        for n, name in enumerate(names)
    }
    assert set(machines.values()) == {pair[1].address, pair[2].address}
    apart = [next(name for name, on in machines.items() if on == where) for where in set(machines.values())]
    with pytest.raises(Rejected):
        start(backend, sh("true", "job-9-0-0", mounts=tuple(Mount(name, f"/{name}") for name in apart)))


# -- nodes ---------------------------------------------------------------------------------------


def node(rank: int, script: str, nodes: int = 2, attempt: int = 0, **fields: Any) -> Launch:
    """Return one node's launch of a replica that spans hosts."""
    env = (("MODELYARD_NODES_NUM", str(nodes)), ("MODELYARD_NODE_RANK", str(rank)))
    return sh(script, f"job-0-{rank}-{attempt}", node=rank, attempt=attempt, env=env, **fields)


def output(backend: Ssh, name: str) -> list[str]:
    """Return a launch's lines once it has ended."""
    return [line.text for line in backend.logs(name, follow=True)]


@pytest.fixture
def pair_in_network(own_farm: Farm, machine: Machine, namespace: str) -> Ssh:
    """Lend a backend of two machines that state the addresses between them."""
    first, second = own_farm.add(), own_farm.add(machine=machine)
    options = own_farm.options(first, second, machine=machine)
    options["network"] = f"{machine.address.rpartition('.')[0]}.0/30"
    return Ssh(**options, namespace=namespace)


def test_nodes_find_their_master_on_another_host(pair_in_network: Ssh, machine: Machine) -> None:
    backend = pair_in_network
    asks = "nc -w 5 $MODELYARD_MASTER_NODE_IP 29871 </dev/null 2>/dev/null"
    follower = node(1, f"for try in $(seq 300); do {asks} && break; sleep 0.1; done")
    told = [start(backend, follower), start(backend, node(0, "exec nc -ll -p 29871 -e echo reached"))]
    assert [one.machine for one in told] == [machine.address, "127.0.0.1"]
    assert output(backend, "job-0-1-0") == ["reached"]


def test_addresses_are_those_of_the_stated_network(pair_in_network: Ssh, machine: Machine) -> None:
    backend, ours = pair_in_network, machine.address.removesuffix("2") + "1"
    start(backend, node(0, "echo $MODELYARD_NODES_IPS $MODELYARD_MASTER_NODE_IP"))
    assert output(backend, "job-0-0-0") == [f"{ours} {machine.address} {ours}"]


def test_nodes_go_where_the_first_of_them_decided_even_without_our_memory(
    pair: tuple[Ssh, Sshd, Sshd], folders: Path
) -> None:
    backend = pair[0]
    first = start(backend, node(1, IDLE))
    shutil.rmtree(folders / "state")
    second = start(backend, node(0, IDLE))
    assert {first.machine, second.machine} == {pair[1].address, pair[2].address}


def test_gang_larger_than_the_rack_starts_nothing(pair: tuple[Ssh, Sshd, Sshd]) -> None:
    backend = pair[0]
    with pytest.raises(NoCapacity) as error:
        start(backend, node(0, IDLE, nodes=3))
    assert "2 of 3 hosts" in error.value.what
    assert backend.instances() == []


def test_user_configuration_with_forwards_of_its_own_is_no_hindrance(
    own_farm: Farm, namespace: str, folders: Path
) -> None:
    host = own_farm.add()
    taken = f"  LocalForward 127.0.0.1:{host.port} 127.0.0.1:1\n  RemoteCommand false\n"
    own_farm.config.write_text(own_farm.config.read_text() + taken)
    backend = Ssh(**own_farm.options(host), namespace=namespace)
    assert backend.instances() == []


def test_port_that_is_taken_on_a_nodes_host_is_named(pair: tuple[Ssh, Sshd, Sshd]) -> None:
    backend, first, _ = pair
    with pytest.raises(Rejected) as error:
        start(backend, node(0, IDLE, ports=(Port(first.port),)))
    assert f"port {first.port} of host '{first.address}'" in error.value.what


def test_main_engine_keeps_its_network(machine: Machine) -> None:
    import docker

    with docker.APIClient(f"unix://{MAIN_SOCKET}", version="auto") as client:
        made = client.create_container(images.busybox(), ["true"])
        try:
            client.start(made["Id"])
        finally:
            client.remove_container(made["Id"], force=True)
