"""The Docker backend on a real engine: the contract, and what is Docker's own."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.docker import Docker
from backends.machine import Device, Machine
from orchestrator.backend import (
    Can,
    File,
    Launch,
    Mount,
    Phase,
    Port,
    Probe,
    Resources,
)
from orchestrator.errors import AuthFailed, Busy, NoCapacity, NotFound, Rejected, Unreachable
from orchestrator.testing import BackendContract
from tests import images

pytestmark = pytest.mark.docker

NOWHERE = "unix:///nonexistent/docker.sock"
DEVICES = tuple(Device(n, f"test-{n}", "Test One", 2**30, "test", paths=("/dev/null",)) for n in range(3))
WAIT_S = 30.0


def machine() -> Machine:
    """Return a machine with three accelerators that are all /dev/null."""
    return Machine(cpu=2, memory_bytes=2**33, disk_bytes=2**36, arch="x86", accelerators=DEVICES)


def quiet(_: str) -> None:
    """Hear of progress and say nothing."""


@pytest.fixture
def client() -> Iterator[Any]:
    """Lend a client of our own, to look at and to tamper with what the backend did."""
    images.require_engine()
    import docker

    with closing(docker.APIClient(version="auto", timeout=60)) as lent:
        yield lent


@pytest.fixture
def namespace(client: Any) -> Iterator[str]:
    """Lend a namespace, and remove all that was made in it."""
    lent = f"modelyard-test-{uuid.uuid4().hex[:8]}"
    yield lent
    for container in client.containers(all=True):
        if any(name.startswith(f"/{lent}") for name in container["Names"]):
            with suppress(Exception):
                client.remove_container(container["Id"], v=True, force=True)
    for volume in client.volumes()["Volumes"] or []:
        if volume["Name"].startswith(lent):
            client.remove_volume(volume["Name"])


@pytest.fixture
def docker(namespace: str) -> Docker:
    """Lend a backend in a namespace of its own."""
    return Docker(namespace=namespace)


def sh(script: str, name: str = "job-0-0-0", **fields: Any) -> Launch:
    """Return a launch that runs a shell script."""
    return Launch(name, "job", image=images.busybox(), command=("sh", "-c", script), **fields)


def idle(name: str = "job-0-0-0", **fields: Any) -> Launch:
    """Return a launch that runs until it is stopped."""
    return sh("trap 'exit 0' TERM; echo up; while :; do sleep 1 & wait $!; done", name, **fields)


def start(docker: Docker, launch: Launch, **secrets: str) -> Any:
    """Start a launch."""
    return docker.start(launch, secrets=secrets, progress=quiet)


def ended(docker: Docker, launch: Launch, **secrets: str) -> Any:
    """Start a launch and return the instance once it has ended."""
    start(docker, launch, **secrets)
    for _ in docker.logs(launch.name, follow=True):
        pass
    return until(lambda: next(i for i in docker.instances() if i.name == launch.name), Phase.EXITED)


def until(look: Callable[[], Any], phase: Phase) -> Any:
    """Return what ``look`` sees once it is in ``phase``."""
    deadline = time.monotonic() + WAIT_S
    while (seen := look()).phase is not phase:
        assert time.monotonic() < deadline, seen
        threading.Event().wait(0.02)
    return seen


def inspect(client: Any, docker_name: str) -> Any:
    """Return what the engine says of a container."""
    return client.inspect_container(docker_name)


class TestContract(BackendContract):
    """The clauses of docs/backends.md."""

    scripts: ClassVar[Mapping[str, str]] = {
        **BackendContract.scripts,
        "serving": "exec httpd -f -p 8080 -h /etc",
    }

    @pytest.fixture
    def backend(self, docker: Docker, monkeypatch: pytest.MonkeyPatch) -> Docker:
        monkeypatch.setattr(type(self), "image", images.busybox())
        return docker

    def source(self, backend: Docker) -> str:
        return f"from backends.docker import Docker; backend = Docker(namespace={backend._namespace!r})"

    def stranger(self, backend: Docker) -> Docker:
        return Docker(namespace=f"{backend._namespace}-x")

    def broken(self, backend: Docker) -> Docker:
        return Docker(host=NOWHERE)

    def traces(self, backend: Docker) -> Iterable[bytes]:
        """Return all the engine says but the environment, which is where a secret has to be."""
        import docker

        with closing(docker.APIClient(version="auto")) as client:
            for one in client.containers(all=True):
                config = client.inspect_container(one["Id"])["Config"]
                yield json.dumps(
                    [config["Labels"], config["Cmd"], config["Entrypoint"], one["Names"]]
                ).encode()


# -- accelerators --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clause",
    [
        BackendContract.test_offers_shrink_by_what_launches_hold,
        BackendContract.test_devices_are_held_by_one_launch_each,
        BackendContract.test_too_much_is_refused_at_the_start,
    ],
)
def test_clause_holds_where_there_are_accelerators(
    clause: Callable[[BackendContract, Docker], None], namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TestContract, "image", images.busybox())
    clause(TestContract(), Docker(namespace=namespace, machine=machine))


class Meeting(Docker):
    """A backend that meets another one between choosing accelerators and creating the container."""

    gate: threading.Barrier

    def _choose(self, launch: Launch) -> tuple[Device, ...]:
        chosen = super()._choose(launch)
        with suppress(threading.BrokenBarrierError):
            self.gate.wait(WAIT_S)
            self.gate.abort()  # the second choice is made alone
        return chosen


class Careless(Meeting):
    """A planted fault: it never looks whether it met anyone."""

    def _meets_another(self, container: Any) -> bool:
        return False


def devices_of_two_that_meet(kind: type[Meeting], namespace: str) -> list[str]:
    """Return the accelerators that two launches hold, which were chosen at the same time."""
    gate = threading.Barrier(2)

    def starter(number: int) -> Any:
        backend = kind(namespace=namespace, machine=machine)  # nothing in common, as two processes
        backend.gate = gate
        backend._raises_limits = False  # where the engine may not, it would choose a second time
        launch = idle(f"job-{number}-0-0", resources=Resources(accelerator="Test One", accelerators=1))
        return start(backend, launch)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(starter, range(2)))
    return [i.devices[0] for i in Docker(namespace=namespace).instances() if i.phase is Phase.RUNNING]


def test_starters_that_meet_never_share_an_accelerator(namespace: str) -> None:
    held = devices_of_two_that_meet(Meeting, namespace)
    assert len(held) == len(set(held)) == 2


def test_starters_that_do_not_look_are_caught(namespace: str) -> None:
    held = devices_of_two_that_meet(Careless, namespace)
    assert len(set(held)) < len(held)


def test_crowd_gets_as_many_accelerators_as_there_are(namespace: str) -> None:
    def starter(number: int) -> str:
        backend = Docker(namespace=namespace, machine=machine)
        launch = idle(f"job-{number}-0-0", resources=Resources(accelerator="Test One", accelerators=1))
        try:
            start(backend, launch)
        except (NoCapacity, Busy) as refused:
            return type(refused).__name__
        return "started"

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(starter, range(5)))
    running = [i.devices[0] for i in Docker(namespace=namespace).instances()]
    assert len(running) == len(set(running)) == answers.count("started")
    assert 1 <= len(running) <= 3


def test_accelerators_are_free_again_when_their_launch_has_ended(namespace: str) -> None:
    docker = Docker(namespace=namespace, machine=machine)
    three = Resources(accelerator="Test One", accelerators=3)
    ended(docker, sh("true", resources=three))
    again = start(docker, idle("job-1-0-0", resources=three))
    assert len(again.devices) == 3


def test_offer_counts_what_other_namespaces_hold(namespace: str) -> None:
    other = Docker(namespace=f"{namespace}-other", machine=machine)
    start(other, idle(resources=Resources(accelerators=2, cpu=0.5, memory_bytes=2**28)))
    (offer,) = Docker(namespace=namespace, machine=machine).offers()
    assert (offer.accelerator, offer.count, offer.vram_bytes) == ("Test One", 1, 2**30)
    assert offer.cpu == pytest.approx(_engine_cpus() - 0.5)


def _engine_cpus() -> float:
    return Docker(namespace="modelyard-test-nobody").offers()[0].cpu + 0.5


def test_device_files_reach_the_container(namespace: str) -> None:
    docker = Docker(namespace=namespace, machine=lambda: replace(machine(), accelerators=(_loop_control(),)))
    seen = ended(docker, sh("test -c /dev/loop-control", resources=Resources(accelerators=1)))
    assert seen.exit_code == 0


def _loop_control() -> Device:
    return Device(0, "loop", "Loop", 0, "test", paths=("/dev/loop-control",))


def test_nvidia_request_is_what_the_engine_keeps(namespace: str, client: Any) -> None:
    gpus = tuple(Device(n, f"GPU-{n}", "NVIDIA L4", 2**34, "nvidia") for n in range(2))
    launch = idle(resources=Resources(accelerator="NVIDIA L4", accelerators=2, memory_bytes=2**30))
    with pytest.raises(KeyboardInterrupt):
        start(Dies(namespace=namespace, machine=lambda: replace(machine(), accelerators=gpus)), launch)
    host = inspect(client, f"{namespace}-job-0-0-0")["HostConfig"]
    (request,) = host["DeviceRequests"]
    assert (request["Driver"], request["DeviceIDs"]) == ("nvidia", ["GPU-0", "GPU-1"])
    assert request["Capabilities"] == [["gpu"]]
    assert (host["ShmSize"], len(host["Ulimits"])) == (2**29, 2)


def test_engine_that_knows_no_gpus_says_what_to_install(namespace: str) -> None:
    gpu = Device(0, "GPU-0", "NVIDIA L4", 2**34, "nvidia")
    docker = Docker(namespace=namespace, machine=lambda: replace(machine(), accelerators=(gpu,)))
    if any(check.what == "engine hands out GPUs" and check.ok for check in docker.check()):
        pytest.skip("this engine hands out GPUs")
    with pytest.raises(Rejected) as refused:
        start(docker, idle(resources=Resources(accelerators=1)))
    assert "Container Toolkit" in (refused.value.fix or "")
    assert docker.instances() == []


# -- killed halfway ------------------------------------------------------------------------------


class Dies(Docker):
    """A backend that is killed between creating a container and starting it."""

    def _run(self, found: Any, launch: Launch) -> bool:
        raise KeyboardInterrupt


def test_killed_between_create_and_start_converges(namespace: str, docker: Docker) -> None:
    launch = sh("cat /note; echo ran", files=(File("/note", b"hello\n"),))
    with pytest.raises(KeyboardInterrupt):
        start(Dies(namespace=namespace), launch)
    (left,) = docker.instances()
    assert left.phase is Phase.PENDING
    after = ended(docker, launch)
    assert after.exit_code == 0
    assert [line.text for line in docker.logs(launch.name)] == ["hello", "ran"]


def test_killed_before_it_looked_gives_its_accelerator_up(namespace: str) -> None:
    one = Resources(accelerator="Test One", accelerators=1)
    with pytest.raises(KeyboardInterrupt):
        start(Dies(namespace=namespace, machine=machine), idle("job-0-0-0", resources=one))
    careless = Careless(namespace=namespace, machine=machine)
    careless._choose = lambda launch: DEVICES[:1]  # type: ignore[method-assign]  # it saw none of the other
    start(careless, idle("job-1-0-0", resources=one))
    start(Docker(namespace=namespace, machine=machine), idle("job-0-0-0", resources=one))
    held = {i.name: i.devices for i in Docker(namespace=namespace).instances()}
    assert held["job-1-0-0"] == ("test-0",)
    assert held["job-0-0-0"] != held["job-1-0-0"]


def test_stopped_before_it_ran_never_runs(namespace: str, docker: Docker) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(Dies(namespace=namespace), idle())
    docker.stop("job-0-0-0", grace_s=0)
    again = start(docker, idle())
    assert (again.phase, again.reason) == (Phase.EXITED, "stopped")


def test_killed_between_the_record_and_the_stop_goes_on(docker: Docker, namespace: str, client: Any) -> None:
    start(docker, idle())
    client.rename(f"{namespace}-job-0-0-0", f"{namespace}-job-0-0-0.stopped")
    (running,) = docker.instances()
    assert running.phase is Phase.RUNNING
    docker.stop("job-0-0-0", grace_s=WAIT_S)
    (stopped,) = docker.instances()
    assert (stopped.phase, stopped.reason, stopped.exit_code) == (Phase.EXITED, "stopped", 0)


# -- how it ended --------------------------------------------------------------------------------


def test_killed_by_someone_else_is_an_error_and_no_stop(docker: Docker, namespace: str, client: Any) -> None:
    start(docker, idle())
    client.kill(f"{namespace}-job-0-0-0")
    seen = until(lambda: docker.instances()[0], Phase.EXITED)
    assert (seen.reason, seen.exit_code, seen.message) == ("error", 137, "exit code 137 (SIGKILL)")


def test_restarts_end_and_are_counted(docker: Docker) -> None:
    start(docker, sh("exit 3", restart=True))
    (seen,) = docker.instances()
    assert seen.phase is Phase.RUNNING or seen.restarts > 0
    docker.stop("job-0-0-0", grace_s=0)


def test_followed_logs_go_on_through_restarts(docker: Docker) -> None:
    script = "echo run; test -e /tmp/second && exit 0; touch /tmp/second; exit 1"
    start(docker, sh(script, restart=True))
    assert [line.text for line in docker.logs("job-0-0-0", follow=True)] == ["run", "run"]


def test_image_health_is_ready(docker: Docker, namespace: str, client: Any) -> None:
    image = _variant(client, namespace, 'HEALTHCHECK --interval=1s CMD ["true"]')
    try:
        start(docker, replace(idle(), image=image))
        deadline = time.monotonic() + WAIT_S
        while docker.instances()[0].ready is not True:
            assert time.monotonic() < deadline
            threading.Event().wait(0.1)
        with_probe = start(docker, replace(idle("job-1-0-0"), image=image, probe=Probe(port=80)))
        assert with_probe.ready is None
    finally:
        for name in ("job-0-0-0", "job-1-0-0"):
            docker.remove(name)
        client.remove_image(image)


def test_anonymous_volumes_go_with_their_container(docker: Docker, namespace: str, client: Any) -> None:
    image = _variant(client, namespace, "VOLUME /data")
    try:
        start(docker, replace(idle(), image=image))
        (mount,) = inspect(client, f"{namespace}-job-0-0-0")["Mounts"]
        docker.remove("job-0-0-0")
        assert mount["Name"] not in [one["Name"] for one in client.volumes()["Volumes"] or []]
    finally:
        client.remove_image(image)


def _variant(client: Any, namespace: str, change: str) -> str:
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w") as tar:
        tar.add(images.BUSYBOX, "bin/busybox")
        for command in ("sh", "sleep", "true", "echo"):
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "/bin/busybox"
            tar.addfile(link)
    image = f"{namespace}:variant"
    client.import_image_from_data(
        empty.getvalue(), repository=namespace, tag="variant", changes=["ENV PATH=/bin", change]
    )
    return image


# -- what the container gets ---------------------------------------------------------------------


def test_limits_and_policies_are_what_the_engine_keeps(docker: Docker, namespace: str, client: Any) -> None:
    wanted = Resources(cpu=0.5, memory_bytes=2**27, shm_bytes=2**25)
    start(docker, idle(resources=wanted, restart=True, user="1000", working_dir="/tmp", stop_grace_s=7.5))
    seen = inspect(client, f"{namespace}-job-0-0-0")
    host, config = seen["HostConfig"], seen["Config"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"], host["ShmSize"]) == (
        500_000_000,
        2**27,
        2**27,
        2**25,
    )
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 5}
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "50m", "max-file": "3"}}
    assert (host["Init"], host["Privileged"]) == (True, False)
    assert (config["User"], config["WorkingDir"], config["StopTimeout"]) == ("1000", "/tmp", 8)


def test_files_belong_to_the_user_who_reads_them(docker: Docker) -> None:
    launch = sh("cat /a/b/secret; ls -ln /a/b", user="1000:1000", files=(File("/a/b/secret", b"x\n", 0o600),))
    assert ended(docker, launch).exit_code == 0
    text = "\n".join(line.text for line in docker.logs(launch.name))
    assert "-rw-------    1 1000     1000" in text


def test_entrypoint_may_be_set_and_emptied(docker: Docker) -> None:
    launch = replace(sh(""), entrypoint=("echo", "a"), command=("b", "c"))
    ended(docker, launch)
    emptied = replace(sh("", "job-1-0-0"), entrypoint=(), command=("echo", "d"))
    ended(docker, emptied)
    assert [line.text for line in docker.logs("job-0-0-0")] == ["a b c"]
    assert [line.text for line in docker.logs("job-1-0-0")] == ["d"]


def test_host_network_gives_the_port_itself(docker: Docker) -> None:
    seen = start(docker, idle(host_network=True, ports=(Port(8123),)))
    assert seen.ports == {8123: ("127.0.0.1", 8123)}


def test_fixed_port_is_bound_to_loopback_only(docker: Docker, namespace: str, client: Any) -> None:
    number = _free_port()
    seen = start(docker, idle(ports=(Port(80, number),)))
    assert seen.ports == {80: ("127.0.0.1", number)}
    bindings = inspect(client, f"{namespace}-job-0-0-0")["HostConfig"]["PortBindings"]
    assert bindings == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(number)}]}


def test_bind_opens_ports_to_others_when_asked(namespace: str) -> None:
    docker = Docker(namespace=namespace, bind="0.0.0.0")
    seen = start(docker, idle(ports=(Port(80),)))
    assert seen.ports[80][0] == "127.0.0.1"


def test_port_taken_by_a_launch_names_it(docker: Docker) -> None:
    number = _free_port()
    start(docker, idle("job-0-0-0", ports=(Port(80, number),)))
    with pytest.raises(Rejected, match=f"port {number} is taken by launch 'job-0-0-0'"):
        start(docker, idle("job-1-0-0", ports=(Port(80, number),)))
    assert [i.name for i in docker.instances()] == ["job-0-0-0"]


def test_port_taken_by_a_program_says_so(docker: Docker) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(Rejected, match=f"port {number} is taken by another program"):
            start(docker, idle(ports=(Port(80, number),)))
    assert docker.instances() == []


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# -- refusals ------------------------------------------------------------------------------------


def test_program_that_is_missing_says_so(docker: Docker) -> None:
    seen = ended(docker, replace(idle(), command=("nosuch",)))
    assert (seen.reason, seen.message) == ("error", "exit code 127 (no such command)")
    assert "nosuch" in "\n".join(line.text for line in docker.logs(seen.name))


def test_more_processors_than_there_are_is_rejected(docker: Docker) -> None:
    with pytest.raises(Rejected, match="CPUs"):
        start(docker, idle(resources=Resources(cpu=10_000)))


def test_folder_that_is_missing_is_rejected(docker: Docker, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="bind source path does not exist"):
        start(docker, idle(mounts=(Mount(str(tmp_path / "none"), "/x", "folder"),)))
    assert not (tmp_path / "none").exists()


def test_volume_that_is_missing_is_rejected_and_not_made(docker: Docker, client: Any, namespace: str) -> None:
    with pytest.raises(Rejected, match="no volume 'none'"):
        start(docker, idle(mounts=(Mount("none", "/x"),)))
    assert docker.volumes() == []


def test_volume_of_someone_else_is_left_alone(docker: Docker, client: Any, namespace: str) -> None:
    client.create_volume(f"{namespace}-theirs")
    with pytest.raises(Rejected, match="not made by us"):
        docker.delete_volume("theirs")
    with pytest.raises(Rejected, match="not made by us"):
        docker.create_volume("theirs", size_bytes=None)
    with pytest.raises(Rejected, match="not made by us"):
        start(docker, idle(mounts=(Mount("theirs", "/x"),)))
    assert docker.volumes() == []


def test_container_of_someone_else_is_left_alone(docker: Docker, client: Any, namespace: str) -> None:
    theirs = client.create_container(images.busybox(), ["true"], name=f"{namespace}-job-0-0-0")["Id"]
    with pytest.raises(Rejected, match="not ours"):
        start(docker, idle())
    docker.stop("job-0-0-0", grace_s=0)
    docker.remove("job-0-0-0")
    assert inspect(client, theirs)["State"]["Status"] == "created"


def test_without_an_image_the_default_runs(namespace: str) -> None:
    docker = Docker(namespace=namespace, default_image=images.busybox())
    assert Can.BARE in docker.can
    assert ended(docker, replace(sh("exit 4"), image=None)).exit_code == 4


def test_image_that_may_not_be_pulled_is_rejected(namespace: str) -> None:
    docker = Docker(namespace=namespace, pull="never")
    with pytest.raises(Rejected, match="pulls none") as refused:
        start(docker, replace(idle(), image="127.0.0.1:1/none:1"))
    assert "docker pull 127.0.0.1:1/none:1" in (refused.value.fix or "")


def test_registry_that_does_not_answer_is_worth_a_retry(docker: Docker) -> None:
    with pytest.raises(Busy, match="connection refused"):
        start(docker, replace(idle(), image="127.0.0.1:1/none:1"))


def test_credential_store_that_fails_is_named(
    namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"credsStore": "locked"}')
    store = tmp_path / "docker-credential-locked"
    store.write_text("#!/bin/sh\necho the keyring is locked; exit 1\n")
    store.chmod(0o755)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(AuthFailed) as refused:
        start(Docker(namespace=namespace), replace(idle(), image="127.0.0.1:1/none:1"))
    assert "credsStore" in (refused.value.fix or "")


# -- output --------------------------------------------------------------------------------------


def test_output_keeps_its_streams_and_times(docker: Docker) -> None:
    ended(docker, sh("echo out; sleep 0.1; echo err >&2"))
    first, second = docker.logs("job-0-0-0")
    assert [(line.stream, line.text) for line in (first, second)] == [("stdout", "out"), ("stderr", "err")]
    assert first.at
    assert second.at
    assert timedelta(0) < second.at - first.at < timedelta(seconds=WAIT_S)


def test_long_line_is_one_line(docker: Docker) -> None:
    ended(docker, sh("head -c 100000 /dev/zero | tr '\\0' x; echo; printf end"))
    assert [len(line.text) for line in docker.logs("job-0-0-0")] == [100_000, 3]


def test_big_output_comes_whole(docker: Docker) -> None:
    ended(docker, sh("seq 1 50000"))
    lines = [line.text for line in docker.logs("job-0-0-0")]
    assert lines == [str(number) for number in range(1, 50_001)]
    assert [line.text for line in docker.logs("job-0-0-0", tail=1)] == ["50000"]


def test_follower_may_leave(docker: Docker) -> None:
    start(docker, idle())
    follower = docker.logs("job-0-0-0", follow=True)
    assert next(follower).text == "up"
    follower.close()  # type: ignore[attr-defined]  # it is a generator
    assert docker.instances()[0].phase is Phase.RUNNING


# -- commands inside -----------------------------------------------------------------------------


def test_command_inside_writes_to_both_streams(docker: Docker, capfdbinary: Any) -> None:
    start(docker, idle())
    code = docker.execute("job-0-0-0", ["sh", "-c", "echo out; echo err >&2; exit 3"], tty=False)
    written = capfdbinary.readouterr()
    assert (code, written.out, written.err) == (3, b"out\n", b"err\n")


def test_command_inside_that_is_missing_has_its_shell_code(docker: Docker) -> None:
    start(docker, idle())
    assert docker.execute("job-0-0-0", ["nosuch"], tty=False) in (126, 127)


def test_command_inside_reads_what_is_piped_to_it(docker: Docker) -> None:
    start(docker, idle())
    answer = subprocess.run(
        [sys.executable, "-c", _executor(docker, ["sh", "-c", "read x; echo got $x"], tty=False)],
        input="hello\n",
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    assert answer.stdout == "got hello\n"


def test_command_on_a_terminal_has_one_of_its_size(docker: Docker) -> None:
    start(docker, idle())
    child, terminal = pty.fork()
    if child == 0:
        program = _executor(docker, ["sh", "-c", "tty; read x; stty size; echo got $x"], tty=True)
        os.execv(sys.executable, [sys.executable, "-c", program])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    seen = _read_until(terminal, b"/dev/pts/")
    os.write(terminal, b"hello\r")
    seen += _read_until(terminal, b"got hello")
    os.close(terminal)
    os.waitpid(child, 0)
    assert b"33 111" in seen


def _read_until(terminal: int, words: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + WAIT_S
    while words not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096)
    return seen


def _executor(docker: Docker, command: list[str], *, tty: bool) -> str:
    return (
        "import sys; from backends.docker import Docker;"
        f" sys.exit(Docker(namespace={docker._namespace!r}).execute('job-0-0-0', {command!r}, tty={tty}))"
    )


# -- an engine that does not answer --------------------------------------------------------------

CALLS: dict[str, Callable[[Docker], object]] = {
    "offers": lambda docker: docker.offers(),
    "start": lambda docker: start(docker, Launch("job-0-0-0", "job", image="any")),
    "instances": lambda docker: docker.instances(),
    "stop": lambda docker: docker.stop("job-0-0-0", grace_s=0),
    "remove": lambda docker: docker.remove("job-0-0-0"),
    "logs": lambda docker: list(docker.logs("job-0-0-0")),
    "execute": lambda docker: docker.execute("job-0-0-0", ["true"], tty=False),
    "volumes": lambda docker: docker.volumes(),
    "create_volume": lambda docker: docker.create_volume("x", size_bytes=None),
    "delete_volume": lambda docker: docker.delete_volume("x"),
}


@pytest.mark.parametrize("call", CALLS)
def test_engine_that_is_not_there_is_unreachable(call: str) -> None:
    with pytest.raises(Unreachable) as unknown:
        CALLS[call](Docker(host=NOWHERE))
    assert "DOCKER_HOST" in (unknown.value.fix or "")


@pytest.mark.parametrize("call", CALLS)
def test_engine_that_hangs_is_unreachable(call: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute.sock"))
        mute.listen()
        with pytest.raises(Unreachable, match="timed out"):
            CALLS[call](Docker(host=f"unix://{tmp_path}/mute.sock", timeout_s=0.2))


@pytest.mark.parametrize("call", ["instances", "offers"])
@pytest.mark.parametrize("words", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n[{", b""])
def test_something_else_that_answers_is_unreachable(call: str, words: bytes, tmp_path: Path) -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(words)

    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other.sock"))
        other.listen()
        thread = threading.Thread(target=answer, args=(other,))
        thread.start()
        with pytest.raises(Unreachable):
            CALLS[call](Docker(host=f"unix://{tmp_path}/other.sock", timeout_s=5))
        thread.join(WAIT_S)


def test_engine_behind_ssh_is_unreachable_and_says_how() -> None:
    with pytest.raises(Unreachable) as unknown:
        Docker(host="ssh://host").instances()
    assert "ssh -N -L" in (unknown.value.fix or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_engine_that_is_forbidden_says_which_group(tmp_path: Path) -> None:
    program = (
        "import os, backends.docker\n"
        "from orchestrator.errors import AuthFailed\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: backends.docker.Docker(host='unix:///run/docker.sock').instances()\n"
        "except AuthFailed as error: print(error.fix)\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    environment = {"PYTHONPATH": path, "PATH": os.environ["PATH"], "HOME": "/"}
    if not Path("/run/docker.sock").exists():
        pytest.skip("the engine listens elsewhere")
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert "group 'docker'" in told.stdout


class Proxy:
    """A socket in front of the engine's, whose connections can be cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def up(self) -> None:
        """Listen."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Cut every connection and stop listening."""
        assert self._listener
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect("/var/run/docker.sock")
                self._open += [here, there]
                for source, target in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65_536):
                target.sendall(chunk)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of all sockets."""
        with suppress(OSError):
            self.down()
        for one in self._open:
            one.close()


def test_watch_survives_a_lost_connection(namespace: str, docker: Docker, tmp_path: Path) -> None:
    with closing(Proxy(tmp_path / "proxy.sock")) as proxy:
        proxy.up()
        watched = Docker(namespace=namespace, host=f"unix://{proxy.path}")
        closed = threading.Event()
        names = watched.watch(closed)
        assert next(names) == ""
        proxy.down()
        with pytest.raises(Unreachable):
            watched.instances()
        proxy.up()
        assert next(names) == ""  # connected again, and something may have been missed
        start(docker, idle("job-7-0-0"))
        assert next(names) == "job-7-0-0"
        closed.set()
        assert set(names) <= {"job-7-0-0"}


# -- a private registry --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run Debian's registry on loopback behind a password, with one image in it."""
    images.require_engine()
    for program in ("docker-registry", "htpasswd"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install docker-registry apache2-utils")
    folder = tmp_path_factory.mktemp("registry")
    port = _free_port()
    passwords = subprocess.run(
        ["htpasswd", "-Bbn", "someone", "right"], capture_output=True, text=True, check=True
    )
    (folder / "htpasswd").write_text(passwords.stdout)
    (folder / "config.yml").write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/store}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
        f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
    )
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        _await_port(port)
        _push(f"127.0.0.1:{port}/private")
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(WAIT_S)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def _push(repository: str) -> None:
    import docker

    with closing(docker.APIClient(version="auto")) as client:
        client.tag(images.busybox(), repository, "1")
        auth = {"username": "someone", "password": "right"}
        for message in client.push(repository, "1", stream=True, decode=True, auth_config=auth):
            assert "error" not in message, message
        client.remove_image(f"{repository}:1")


def test_private_image_is_pulled_with_its_login(registry: str, docker: Docker, client: Any) -> None:
    image = f"{registry}/private:1"
    told: list[str] = []
    launch = replace(sh("exit 6"), image=image, registry_secret=("registry", "secrets.registry"))
    try:
        docker.start(launch, secrets={"registry": "someone:right"}, progress=told.append)
        assert told[0] == f"pulling {image}"
        assert until(lambda: docker.instances()[0], Phase.EXITED).exit_code == 6
    finally:
        docker.remove(launch.name)
        client.remove_image(image)


@pytest.mark.parametrize("secrets", [{}, {"registry": "someone:wrong"}], ids=["none", "wrong"])
def test_private_image_without_its_login_is_refused(
    registry: str, docker: Docker, secrets: dict[str, str]
) -> None:
    with pytest.raises(AuthFailed) as refused:
        docker.start(replace(idle(), image=f"{registry}/private:1"), secrets=secrets, progress=quiet)
    assert "wrong" not in str(refused.value)
    assert "registry_auth" in (refused.value.fix or "")


def test_image_that_the_registry_does_not_have_is_rejected(registry: str, docker: Docker) -> None:
    with pytest.raises(Rejected, match="no image"):
        start(docker, replace(idle(), image=f"{registry}/private:none"), registry="someone:right")


# -- cost ----------------------------------------------------------------------------------------


def test_reading_does_not_import_the_client_library(docker: Docker) -> None:
    program = (
        "import sys; from backends.docker import Docker; d = Docker();"
        " d.offers(); d.instances(); d.volumes(); d.check();"
        " print([m for m in ('docker', 'requests', 'http.client') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_unknown_launch_is_not_found(docker: Docker) -> None:
    with pytest.raises(NotFound):
        list(docker.logs("job-9-9-9"))
