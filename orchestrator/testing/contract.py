"""The contract of the port: one test per numbered clause of ``docs/backends.md``.

A backend's tests subclass :class:`BackendContract`, give it a ``backend`` fixture and, where the
default does not hold, say how a launch is written for that place. Which clauses apply follows
from ``backend.can``. A clause takes nothing but the backend, so that a planted fault can be put
to it as well.
"""

# ruff: noqa: ARG002 - hooks and clauses have one shape, whether or not they look at the backend

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from orchestrator.backend import (
    Backend,
    Can,
    Check,
    File,
    Group,
    GroupBackend,
    Instance,
    Launch,
    Mount,
    Offer,
    Phase,
    Port,
    Renter,
    Resources,
)
from orchestrator.errors import BackendError, NoCapacity, NotFound, Rejected, Unreachable

Kind = Literal[
    "quick",
    "failing",
    "long",
    "stubborn",
    "printing",
    "talking",
    "digest",
    "hungry",
    "serving",
    "flaky",
    "literal",
    "missing",
    "file",
    "writing",
    "reading",
]
"""What a launch of a clause does; ``BackendContract.scripts`` says it in shell."""

SECRET = "s3cr3t-of-the-contract"
ENV = "two\nlines, 'quotes', \"more\" and $HOME"
VOLUME = "contract-volume"
_LITERAL = "$HOME; exit 9"


def quiet(phrase: str) -> None:
    """Hear of progress and say nothing."""
    assert isinstance(phrase, str)


class BackendContract:
    """The clauses; a subclass says how they are put to one backend.

    Attributes:
        image: What launches run in; None where ``Can.BARE``.
        shell: How a shell script becomes a command.
        scripts: What each kind of launch does, as a shell script.
        port: The container's port on which what is ``serving`` answers.
        wait_s: How long a change may take to show.
        grace_s: How long one that does not listen is given to end.
    """

    image: ClassVar[str | None] = None
    shell: ClassVar[tuple[str, ...]] = ("sh", "-c")
    port: ClassVar[int] = 8080
    wait_s: ClassVar[float] = 30.0
    grace_s: ClassVar[float] = 0.3
    scripts: ClassVar[Mapping[str, str]] = {
        "quick": "echo once",
        "failing": "exit 7",
        "long": "trap 'exit 5' TERM; echo up; while :; do sleep 1 & wait $!; done",
        "stubborn": "trap '' TERM; echo up; while :; do sleep 0.1; done",
        "printing": "i=1; while [ $i -le 5 ]; do echo line $i; i=$((i+1)); done; sleep 0.1; echo end >&2",
        "talking": "i=1; while [ $i -le 5 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; echo end",
        "digest": 'printf %s "$TOKEN" | sha256sum; printf %s "$PLAIN" | sha256sum',
        "hungry": "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done",
        "serving": "exec python3 -m http.server ${MODELYARD_PORT:-8080}",
        "flaky": "exit 3",
        "file": "cat contract.txt",
        "writing": "echo kept > /contract/file",
        "reading": "cat /contract/file",
    }

    # --- what a subclass says

    @pytest.fixture
    def backend(self) -> Any:
        """Give a backend in a place of its own, and clear it afterwards."""
        pytest.fail("a contract needs a fixture named backend")

    def source(self, backend: Backend) -> str | None:
        """Return Python lines that bind ``backend`` to a new object for the same place.

        None where the place lives and dies with the object; clauses about other processes then
        do not apply.
        """
        return None

    def stranger(self, backend: Backend) -> Backend | None:
        """Return a backend for the same place under another namespace."""
        return None

    def broken(self, backend: Backend) -> Backend | None:
        """Return a backend like this one whose place does not answer."""
        return None

    def traces(self, backend: Backend) -> Iterable[bytes]:
        """Return everything this backend left on disk or in labels."""
        return ()

    def exec_command(self, exit_code: int) -> Sequence[str]:
        """Return a command that ends with 0 when it sees ``PLAIN=plain``, plus ``exit_code``."""
        return (*self.shell, f'[ "$PLAIN" = plain ] && exit {exit_code}; exit 99')

    def reaches(self, backend: Backend, address: tuple[str, int]) -> bool:
        """Say whether an HTTP server answers at ``address``."""
        connection = http.client.HTTPConnection(*address, timeout=5)
        try:
            connection.request("GET", "/")
            with connection.getresponse() as answer:  # which keeps the socket where the server closes
                return answer.status > 0
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def launch(self, kind: Kind, name: str = "contract-0-0-1", **fields: Any) -> Launch:
        """Return a launch of a ``kind``, as this backend wants it written."""
        command: tuple[str, ...] = (*self.shell, self.scripts.get(kind, ""))
        if kind == "missing":
            command = ("/no/such/program",)
        elif kind == "literal":
            command = ("printf", "%s\\n", _LITERAL)
        base = Launch(
            name=name, run="contract", attempt=1, spec_hash="abc123", image=self.image, command=command
        )
        return replace(base, **fields)

    # --- helpers

    def again(self, backend: Backend) -> Backend:
        """Return a new object for the same place."""
        source = self.source(backend)
        if source is None:
            pytest.skip("the place lives and dies with the object")
        names: dict[str, Any] = {}
        exec(source, names)
        made: Backend = names["backend"]
        return made

    def clear(self, backend: Backend) -> None:
        """Remove every launch and volume; for a fixture's end."""
        for instance in backend.instances():
            backend.remove(instance.name)
        if Can.VOLUMES in backend.can:
            for volume in backend.volumes():
                backend.delete_volume(volume.name)

    def start(self, backend: Backend, launch: Launch, **secrets: str) -> Instance:
        """Start ``launch`` and return what the backend says."""
        return backend.start(launch, secrets=secrets, progress=quiet)

    def eventually(self, claim: Callable[[], bool], what: str) -> None:
        """Fail unless ``claim`` comes true within ``wait_s``."""
        deadline = time.monotonic() + self.wait_s
        pause = threading.Event()
        while not claim():
            assert time.monotonic() < deadline, f"{what}: not within {self.wait_s} s"
            pause.wait(0.02)

    def find(self, backend: Backend, name: str = "contract-0-0-1") -> Instance:
        """Return the one instance of that name."""
        found = [i for i in backend.instances() if i.name == name]
        assert len(found) == 1, f"expected one instance {name}, got {len(found)}"
        return found[0]

    def until(self, backend: Backend, phase: Phase, name: str = "contract-0-0-1") -> Instance:
        """Wait until the launch is in ``phase`` and return it."""
        self.eventually(lambda: self.find(backend, name).phase is phase, f"{name} {phase.value}")
        return self.find(backend, name)

    def up(self, backend: Backend, kind: Kind, name: str = "contract-0-0-1", **fields: Any) -> Instance:
        """Start a launch and wait until it has said so, so that its traps are set."""
        self.start(backend, self.launch(kind, name, **fields))
        self.eventually(lambda: self.lines(backend, name) != [], f"{name} says that it is up")
        return self.until(backend, Phase.RUNNING, name)

    def lines(self, backend: Backend, name: str = "contract-0-0-1", **options: Any) -> list[str]:
        """Return the text of the launch's lines."""
        return [line.text for line in backend.logs(name, **options)]

    def run(self, backend: Backend, launch: Launch, **secrets: str) -> Instance:
        """Start ``launch`` and wait for its end."""
        self.start(backend, launch, **secrets)
        return self.until(backend, Phase.EXITED, launch.name)

    def timely(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns, and fail when that takes longer than ``wait_s``."""
        answers: list[Any] = []
        wrong: list[BaseException] = []

        def attempt() -> None:
            try:
                answers.append(work())
            except BaseException as error:  # carried over to the test's own thread
                wrong.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(self.wait_s)
        if wrong:
            raise wrong[0]
        assert answers, f"no answer within {self.wait_s} s"
        return answers[0]

    def elsewhere(self, backend: Backend, lines: str) -> subprocess.Popen[str]:
        """Run Python ``lines`` in another process, with ``backend`` bound there."""
        source = self.source(backend)
        if source is None:
            pytest.skip("the place lives and dies with the object")
        program = f"from orchestrator.backend import *\n{source}\n{lines}\n"
        return subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    # --- the clauses: the object

    def test_construction_touches_nothing(self, backend: Backend) -> None:
        """Clause 1."""
        self.again(backend)  # imports what it needs
        with _effects() as seen:
            self.again(backend)
        assert seen == []

    def test_is_a_backend_that_says_what_it_can(self, backend: Backend) -> None:
        """Clause 2."""
        assert isinstance(backend, Backend)
        assert isinstance(backend.name, str)
        assert backend.name
        assert isinstance(backend.can, frozenset)
        assert all(isinstance(c, Can) for c in backend.can)
        assert backend.can & {Can.IMAGES, Can.BARE}
        assert (Can.GROUPS in backend.can) == isinstance(backend, GroupBackend)
        assert (Can.RENT in backend.can) == isinstance(backend, Renter)

    def test_check_never_raises(self, backend: Backend) -> None:
        """Clause 3."""
        checks = list(backend.check())
        assert checks
        assert all(isinstance(c, Check) and c.what for c in checks)
        broken = self.broken(backend)
        if broken is not None:
            wrong = [c for c in broken.check() if not c.ok]
            assert wrong
            assert all(c.fix for c in wrong)

    def test_no_answer_is_unreachable_and_not_empty(self, backend: Backend) -> None:
        """Clause 4."""
        broken = self.broken(backend)
        if broken is None:
            pytest.skip("a place that always answers")
        with pytest.raises(Unreachable):
            broken.instances()

    def test_what_it_cannot_do_is_rejected(self, backend: Backend) -> None:
        """Clause 5."""
        needs: dict[Can, dict[str, Any]] = {
            Can.IMAGES: {"image": "contract:none"},
            Can.BARE: {"image": None},
            Can.PRIVILEGED: {"privileged": True},
            Can.VOLUMES: {"mounts": (Mount(VOLUME, "/contract"),)},
            Can.MOUNTS: {"mounts": (Mount("/", "/contract", "folder", read_only=True),)},
        }
        lacking = {can: fields for can, fields in needs.items() if can not in backend.can}
        if not lacking:
            pytest.skip("a place that can do all of it")
        for fields in lacking.values():
            with pytest.raises(Rejected) as refused:
                self.start(backend, self.launch("quick", **fields))
            assert refused.value.fix
        assert list(backend.instances()) == []

    # --- offers

    def test_offers_do_not_change_by_themselves(self, backend: Backend) -> None:
        """Clause 6."""
        offers = list(backend.offers())
        assert all(isinstance(o, Offer) and o.backend == backend.name for o in offers)
        assert [_steady(o) for o in offers] == [_steady(o) for o in backend.offers()]

    def test_offers_shrink_by_what_launches_hold(self, backend: Backend) -> None:
        """Clause 7."""
        if not any(o.divisible for o in backend.offers()):
            pytest.skip("no divisible offers")
        before = _held(backend)
        self.up(backend, "long", resources=Resources(cpu=0.25, memory_bytes=2**26))
        assert _held(backend) == pytest.approx(before - 0.25)
        backend.stop("contract-0-0-1", grace_s=self.grace_s)
        self.until(backend, Phase.EXITED)
        assert _held(backend) == pytest.approx(before)

    def test_devices_are_held_by_one_launch_each(self, backend: Backend) -> None:
        """Clause 8."""
        many = [o for o in backend.offers() if o.count >= 2 and o.divisible]
        if not many:
            pytest.skip("fewer than two accelerators")
        one = Resources(accelerator=many[0].accelerator, accelerators=1)
        first = self.up(backend, "long", "contract-0-0-1", resources=one)
        second = self.up(backend, "long", "contract-1-0-1", replica=1, resources=one)
        if Can.GROUPS not in backend.can or first.devices:  # a cluster need not say which it gave
            assert len(first.devices) == len(second.devices) == 1
            assert first.devices != second.devices
        assert sum(o.count for o in backend.offers()) == sum(o.count for o in many) - 2

    def test_too_much_is_refused_at_the_start(self, backend: Backend) -> None:
        """Clause 9."""
        with pytest.raises((NoCapacity, Rejected)):
            self.start(backend, self.launch("quick", resources=Resources(accelerators=10_000)))
        assert list(backend.instances()) == []

    # --- starting

    def test_started_launch_is_listed_as_it_was_named(self, backend: Backend) -> None:
        """Clause 10."""
        launch = self.launch("long", "contract-2-1-3", replica=2, node=1, attempt=3, spec_hash="f00d")
        told = self.start(backend, launch)
        listed = self.find(backend, "contract-2-1-3")
        for seen in (told, listed):
            assert (seen.name, seen.run) == ("contract-2-1-3", "contract")
            assert (seen.replica, seen.node, seen.attempt) == (2, 1, 3)
            assert seen.spec_hash == "f00d"

    def test_start_returns_once_accepted(self, backend: Backend) -> None:
        """Clause 11."""
        told = self.timely(lambda: self.start(backend, self.launch("long")))
        assert told.phase is not Phase.EXITED
        running = self.until(backend, Phase.RUNNING)
        assert running.exit_code is None
        assert running.started_at is not None
        assert running.started_at.utcoffset() is not None

    def test_started_twice_starts_once(self, backend: Backend) -> None:
        """Clause 12."""
        ended = self.run(backend, self.launch("quick"))
        told = self.start(backend, self.launch("quick"))
        assert told.phase is Phase.EXITED
        assert self.find(backend).started_at == ended.started_at
        assert self.lines(backend) == ["once"]

    def test_started_by_many_threads_starts_once(self, backend: Backend) -> None:
        """Clause 13."""
        gate = threading.Barrier(6)

        def starter(_: int) -> Instance:
            gate.wait(self.wait_s)
            return self.start(backend, self.launch("long"))

        with ThreadPoolExecutor(6) as pool:
            told = list(pool.map(starter, range(6)))
        assert {i.name for i in told} == {"contract-0-0-1"}
        self.until(backend, Phase.RUNNING)
        self.eventually(lambda: self.lines(backend) != [], "its output")
        assert self.lines(backend) == ["up"]

    def test_started_by_two_processes_starts_once(self, backend: Backend) -> None:
        """Clause 14."""
        start = f"backend.start({self.launch('quick')!r}, secrets={{}}, progress=lambda _: None)"
        starters = [self.elsewhere(backend, start) for _ in range(2)]
        for starter in starters:
            _, said = starter.communicate(timeout=self.wait_s)
            assert starter.returncode == 0, said
        self.until(backend, Phase.EXITED)
        assert self.lines(backend) == ["once"]

    def test_launch_outlives_the_process_that_started_it(self, backend: Backend) -> None:
        """Clause 15."""
        start = f"backend.start({self.launch('long')!r}, secrets={{}}, progress=lambda _: None)"
        starter = self.elsewhere(backend, f"{start}\nimport os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        starter.communicate(timeout=self.wait_s)
        self.until(backend, Phase.RUNNING)
        other = self.again(backend)
        assert self.find(other).phase is Phase.RUNNING
        self.eventually(lambda: self.lines(other) == ["up"], "its output")

    def test_command_is_run_as_it_is(self, backend: Backend) -> None:
        """Clause 16."""
        self.run(backend, self.launch("literal"))
        assert self.lines(backend) == [_LITERAL]

    def test_environment_and_secrets_arrive(self, backend: Backend) -> None:
        """Clause 17."""
        self.run(backend, self._secretive("digest"), TOKEN=SECRET)
        digests = [line.split()[0] for line in self.lines(backend)]
        assert digests == [hashlib.sha256(text.encode()).hexdigest() for text in (SECRET, ENV)]

    def test_secrets_are_kept_nowhere(self, backend: Backend) -> None:
        """Clause 18."""
        told = self.start(backend, self._secretive("long"), TOKEN=SECRET)
        self.until(backend, Phase.RUNNING)
        assert SECRET not in repr(told)
        assert SECRET not in repr(backend.instances())
        assert SECRET not in repr(backend.offers())
        assert SECRET not in repr(list(backend.logs("contract-0-0-1")))
        assert not any(SECRET.encode() in trace for trace in self.traces(backend))
        assert not any(SECRET.encode() in arguments for arguments in _process_arguments())

    def test_files_are_there_before_the_command(self, backend: Backend) -> None:
        """Clause 19."""
        ended = self.run(backend, self.launch("file", files=(File("contract.txt", b"from a file\n", 0o600),)))
        assert ended.exit_code == 0
        assert self.lines(backend) == ["from a file"]

    def _secretive(self, kind: Kind) -> Launch:
        return self.launch(kind, env=(("PLAIN", ENV),), secrets=(("TOKEN", "secrets.TOKEN"),))

    # --- ending

    def test_success_is_told(self, backend: Backend) -> None:
        """Clause 20."""
        ended = self.run(backend, self.launch("quick"))
        assert (ended.exit_code, ended.reason) == (0, "")
        assert ended.started_at is not None
        assert ended.finished_at is not None
        assert ended.started_at <= ended.finished_at

    def test_failure_is_told_with_its_code(self, backend: Backend) -> None:
        """Clause 21."""
        ended = self.run(backend, self.launch("failing"))
        assert (ended.exit_code, ended.reason) == (7, "error")

    def test_program_that_is_missing_never_runs(self, backend: Backend) -> None:
        """Clause 22."""
        try:
            ended = self.run(backend, self.launch("missing"))
        except Rejected:
            return
        assert ended.reason in ("no-start", "error")
        assert ended.exit_code != 0
        assert ended.message or ended.exit_code == 127

    def test_out_of_memory_is_told_apart(self, backend: Backend) -> None:
        """Clause 23."""
        _need(backend, Can.LIMITS)
        ended = self.run(backend, self.launch("hungry", resources=Resources(memory_bytes=2**25)))
        assert ended.reason == "oom"

    def test_restarted_launch_counts_and_can_be_stopped(self, backend: Backend) -> None:
        """Clause 24."""
        _need(backend, Can.RESTART)
        self.start(backend, self.launch("flaky", restart=True))
        self.eventually(lambda: self.find(backend).restarts >= 1, "a restart")
        backend.stop("contract-0-0-1", grace_s=self.grace_s)
        stopped = self.until(backend, Phase.EXITED)
        assert stopped.reason == "stopped"
        assert self.find(backend) == stopped
        ended = self.run(backend, self.launch("quick", "contract-1-0-1", replica=1, restart=True))
        assert (ended.exit_code, ended.restarts) == (0, 0)

    def test_stopped_launch_is_asked_first_and_stays_listed(self, backend: Backend) -> None:
        """Clause 25."""
        self.up(backend, "long")
        backend.stop("contract-0-0-1", grace_s=self.wait_s)
        stopped = self.until(backend, Phase.EXITED)
        assert stopped.reason == "stopped"
        assert stopped.exit_code == 5

    def test_launch_that_does_not_listen_is_killed_after_the_grace(self, backend: Backend) -> None:
        """Clause 26."""
        self.up(backend, "stubborn")
        self.timely(lambda: backend.stop("contract-0-0-1", grace_s=self.grace_s))
        stopped = self.until(backend, Phase.EXITED)
        assert (stopped.reason, stopped.exit_code) == ("stopped", 137)

    def test_stop_may_be_repeated(self, backend: Backend) -> None:
        """Clause 27."""
        self.up(backend, "long")
        backend.stop("contract-0-0-1", grace_s=self.wait_s)
        first = self.until(backend, Phase.EXITED)
        backend.stop("contract-0-0-1", grace_s=self.grace_s)
        assert self.find(backend) == first

    def test_stop_of_ended_changes_nothing(self, backend: Backend) -> None:
        """Clause 28."""
        ended = self.run(backend, self.launch("failing"))
        backend.stop("contract-0-0-1", grace_s=self.grace_s)
        assert self.find(backend) == ended

    def test_stop_and_remove_of_unknown_are_silent(self, backend: Backend) -> None:
        """Clause 29."""
        backend.stop("contract-9-9-9", grace_s=self.grace_s)
        backend.remove("contract-9-9-9")

    def test_removed_launch_is_forgotten(self, backend: Backend) -> None:
        """Clause 30."""
        self.run(backend, self.launch("quick"))
        backend.remove("contract-0-0-1")
        backend.remove("contract-0-0-1")
        assert list(backend.instances()) == []
        with pytest.raises(NotFound):
            self.lines(backend)

    def test_remove_of_running_kills_it_and_frees_its_name(self, backend: Backend) -> None:
        """Clause 31."""
        self.up(backend, "long")
        backend.remove("contract-0-0-1")
        assert list(backend.instances()) == []
        ended = self.run(backend, self.launch("quick"))
        assert ended.exit_code == 0
        assert self.lines(backend) == ["once"]

    # --- finding

    def test_instances_are_ordered_by_name(self, backend: Backend) -> None:
        """Clause 32."""
        for replica in (2, 0, 10, 1):
            self.start(backend, self.launch("quick", f"contract-{replica}-0-1", replica=replica))
        names = [i.name for i in backend.instances()]
        assert names == ["contract-0-0-1", "contract-1-0-1", "contract-10-0-1", "contract-2-0-1"]

    def test_another_namespace_is_left_alone(self, backend: Backend) -> None:
        """Clause 33."""
        stranger = self.stranger(backend)
        if stranger is None:
            pytest.skip("a place without namespaces")
        self.up(backend, "long")
        assert list(stranger.instances()) == []
        stranger.stop("contract-0-0-1", grace_s=self.grace_s)
        stranger.remove("contract-0-0-1")
        with pytest.raises(NotFound):
            list(stranger.logs("contract-0-0-1"))
        assert self.find(backend).phase is Phase.RUNNING

    def test_watch_wakes_on_a_change_and_ends_when_closed(self, backend: Backend) -> None:
        """Clause 34."""
        closed, woken, watching = threading.Event(), threading.Event(), threading.Event()
        names: list[str] = []

        def watcher() -> None:
            watching.set()
            for name in backend.watch(closed):
                names.append(name)
                woken.set()

        thread = threading.Thread(target=watcher, daemon=True)
        thread.start()
        watching.wait(self.wait_s)
        try:
            # the watch may begin a moment after its thread does, hence changes until one is seen
            for attempt in range(1, 50):
                self.start(backend, self.launch("quick", f"contract-0-0-{attempt}", attempt=attempt))
                if woken.wait(self.wait_s / 50):
                    break
            assert woken.is_set(), "the watch slept through a change"
            assert all(name == "" or name.startswith("contract-0-0-") for name in names)
        finally:
            closed.set()
            thread.join(self.wait_s)
        assert not thread.is_alive(), "the watch goes on after it was closed"

    # --- output

    def test_logs_come_oldest_first(self, backend: Backend) -> None:
        """Clause 35."""
        self.run(backend, self.launch("printing"))
        assert self.lines(backend) == [*(f"line {n}" for n in range(1, 6)), "end"]

    def test_logs_give_a_tail(self, backend: Backend) -> None:
        """Clause 36."""
        self.run(backend, self.launch("printing"))
        assert self.lines(backend, tail=2) == ["line 5", "end"]
        assert self.lines(backend, tail=0) == []
        assert len(self.lines(backend, tail=99)) == 6

    def test_logs_give_what_came_since(self, backend: Backend) -> None:
        """Clause 37."""
        self.run(backend, self.launch("talking"))
        timed = list(backend.logs("contract-0-0-1"))
        if any(line.at is None for line in timed):
            pytest.skip("lines without times")
        times = [line.at for line in timed]
        assert times == sorted(times, key=lambda at: at or 0)
        assert self.lines(backend, since=timed[3].at) == ["line 4", "line 5", "end"]

    def test_followed_logs_end_with_the_launch(self, backend: Backend) -> None:
        """Clause 38."""
        self.start(backend, self.launch("talking"))
        lines = self.timely(lambda: self.lines(backend, follow=True))
        assert lines == [*(f"line {n}" for n in range(1, 6)), "end"]
        assert self.until(backend, Phase.EXITED).exit_code == 0

    def test_logs_of_unknown_are_not_found(self, backend: Backend) -> None:
        """Clause 39."""
        with pytest.raises(NotFound):
            list(backend.logs("contract-9-9-9"))

    # --- ports

    def test_port_is_reached_where_the_instance_says(self, backend: Backend) -> None:
        """Clause 40."""
        _need(backend, Can.PORTS)
        self.start(backend, self.launch("serving", ports=(Port(self.port),)))
        self.until(backend, Phase.RUNNING)
        assert set(self.find(backend).ports) == {self.port}
        address = self.find(backend).ports[self.port]
        self.eventually(lambda: self.reaches(backend, address), "an answer on the port")
        backend.stop("contract-0-0-1", grace_s=self.grace_s)
        assert not self.reaches(backend, address)

    def test_two_launches_may_have_the_same_port(self, backend: Backend) -> None:
        """Clause 41."""
        _need(backend, Can.PORTS)
        for replica in (0, 1):
            name = f"contract-{replica}-0-1"
            self.start(backend, self.launch("serving", name, replica=replica, ports=(Port(self.port),)))
            self.until(backend, Phase.RUNNING, name)
        addresses = {i.ports[self.port] for i in backend.instances()}
        assert len(addresses) == 2
        self.eventually(lambda: all(self.reaches(backend, a) for a in addresses), "answers on both ports")

    # --- exec

    def test_execute_returns_the_exit_code(self, backend: Backend) -> None:
        """Clause 42."""
        _need(backend, Can.EXEC)
        self.up(backend, "long", env=(("PLAIN", "plain"),))
        assert backend.execute("contract-0-0-1", self.exec_command(0), tty=False) == 0
        assert backend.execute("contract-0-0-1", self.exec_command(6), tty=False) == 6

    def test_execute_needs_a_running_launch(self, backend: Backend) -> None:
        """Clause 43."""
        _need(backend, Can.EXEC)
        with pytest.raises(NotFound):
            backend.execute("contract-9-9-9", self.exec_command(0), tty=False)
        self.run(backend, self.launch("quick"))
        with pytest.raises(BackendError):
            backend.execute("contract-0-0-1", self.exec_command(0), tty=False)

    # --- volumes and folders

    def test_volume_is_made_once_and_listed(self, backend: Backend) -> None:
        """Clause 44."""
        _need(backend, Can.VOLUMES)
        for name in ("contract-b", "contract-a", "contract-b"):
            backend.create_volume(name, size_bytes=None)
        assert [v.name for v in backend.volumes()] == ["contract-a", "contract-b"]
        backend.delete_volume("contract-a")
        backend.delete_volume("contract-a")
        assert [v.name for v in backend.volumes()] == ["contract-b"]

    def test_volume_keeps_what_is_written(self, backend: Backend) -> None:
        """Clause 45."""
        _need(backend, Can.VOLUMES)
        backend.create_volume(VOLUME, size_bytes=None)
        mounts = (Mount(VOLUME, "/contract"),)
        self.run(backend, self.launch("writing", "contract-0-0-1", mounts=mounts))
        self.run(backend, self.launch("reading", "contract-1-0-1", mounts=mounts))
        assert self.lines(backend, "contract-1-0-1") == ["kept"]

    def test_volume_in_use_is_not_deleted(self, backend: Backend) -> None:
        """Clause 46."""
        _need(backend, Can.VOLUMES)
        backend.create_volume(VOLUME, size_bytes=None)
        self.up(backend, "long", mounts=(Mount(VOLUME, "/contract"),))
        assert [v.used_by for v in backend.volumes()] == [("contract-0-0-1",)]
        with pytest.raises(Rejected):
            backend.delete_volume(VOLUME)
        backend.remove("contract-0-0-1")
        backend.delete_volume(VOLUME)
        assert list(backend.volumes()) == []

    def test_folder_is_seen_inside(self, backend: Backend) -> None:
        """Clause 47."""
        _need(backend, Can.MOUNTS)
        with tempfile.TemporaryDirectory(prefix="contract-") as folder:
            Path(folder, "file").write_text("kept\n")
            mounts = (Mount(folder, "/contract", "folder", read_only=True),)
            self.run(backend, self.launch("reading", mounts=mounts))
            assert self.lines(backend) == ["kept"]

    # --- groups

    def test_group_applied_twice_is_there_once(self, backend: Backend) -> None:
        """Clause 48."""
        groups = _groups(backend)
        for _ in range(2):
            groups.apply_group(self._group(replicas=2, nodes=2), secrets={})
        self._settled(groups, ready=2)
        (status,) = groups.groups()
        assert (status.name, status.spec_hash) == ("contract", "abc123")
        assert sorted((i.replica, i.node) for i in status.instances) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert all(i.run == "contract" for i in status.instances)

    def test_group_is_changed_where_it_is(self, backend: Backend) -> None:
        """Clause 49."""
        groups = _groups(backend)
        groups.apply_group(self._group(replicas=1), secrets={})
        self._settled(groups, ready=1)
        groups.apply_group(self._group(replicas=3), secrets={})
        self._settled(groups, ready=3)
        groups.apply_group(self._group(replicas=2), secrets={})
        self._settled(groups, ready=2)
        (status,) = groups.groups()
        assert sorted(i.replica for i in status.instances) == [0, 1]

    def test_group_of_a_task_ends_with_its_code(self, backend: Backend) -> None:
        """Clause 50."""
        groups = _groups(backend)
        group = Group("contract", self.launch("failing"), "task")
        groups.apply_group(group, secrets={})
        self.eventually(lambda: groups.groups()[0].phase is Phase.EXITED, "the task's end")
        (status,) = groups.groups()
        assert (status.exit_code, status.reason) == (7, "error")

    def test_deleted_group_takes_all_it_owns(self, backend: Backend) -> None:
        """Clause 51."""
        groups = _groups(backend)
        groups.apply_group(self._group(replicas=2), secrets={})
        self._settled(groups, ready=2)
        groups.delete_group("contract", grace_s=self.grace_s)
        groups.delete_group("contract", grace_s=self.grace_s)
        self.eventually(lambda: not groups.groups() and not groups.instances(), "the group's end")

    def test_groups_are_ordered_by_name(self, backend: Backend) -> None:
        """Clause 52."""
        groups = _groups(backend)
        for run in ("contract-b", "contract-a"):
            template = self.launch("long", f"{run}-0-0-1", run=run)
            groups.apply_group(Group(run, template, "service"), secrets={})
        assert [g.name for g in groups.groups()] == ["contract-a", "contract-b"]

    def _group(self, *, replicas: int, nodes: int = 1) -> Group:
        return Group("contract", self.launch("long"), "service", replicas=replicas, nodes=nodes)

    def _settled(self, groups: GroupBackend, *, ready: int) -> None:
        def settled() -> bool:
            (status,) = groups.groups()
            replicas = {i.replica for i in status.instances}
            return status.ready_replicas == ready == len(replicas)

        self.eventually(settled, f"{ready} ready replicas")

    # --- renting

    def test_launch_is_rented_one_machine(self, backend: Backend) -> None:
        """Clause 53."""
        renter = _renter(backend)
        self.up(backend, "long")
        self.start(backend, self.launch("long"))
        machines = renter.machines()
        assert [(one.launch, one.run) for one in machines] == [("contract-0-0-1", "contract")]
        found = self.find(backend)
        assert (found.machine, found.rented) == (machines[0].id, True)

    def test_ended_launch_keeps_its_machine_until_it_is_released(self, backend: Backend) -> None:
        """Clause 54."""
        renter = _renter(backend)
        self.run(backend, self.launch("quick"))
        assert self.find(backend).rented
        for name in ("contract-0-0-1", "contract-0-0-1", "contract-0-0-9"):
            renter.release(name, keep_s=0)
        self.eventually(lambda: not self._standing(renter), "the machine's end")
        found = self.find(backend)
        assert (found.phase, found.exit_code, found.rented) == (Phase.EXITED, 0, False)
        assert self.lines(backend) == ["once"]

    def test_machine_that_is_kept_is_taken_over(self, backend: Backend) -> None:
        """Clause 55."""
        renter = _renter(backend)
        self.up(backend, "long")
        with pytest.raises(Rejected):
            renter.release("contract-0-0-1", keep_s=60)
        assert self.find(backend).phase is Phase.RUNNING
        backend.stop("contract-0-0-1", grace_s=self.grace_s)
        self.eventually(lambda: self.find(backend).phase is Phase.EXITED, "the stop")
        renter.release("contract-0-0-1", keep_s=60)
        if Can.KEEP not in backend.can:
            self.eventually(lambda: not self._standing(renter), "the end of a machine that is not kept")
            return
        (idle,) = renter.machines()
        assert not idle.launch
        self.start(backend, self.launch("long", "contract-0-0-2", attempt=2))
        taken = [(one.id, one.launch) for one in renter.machines()]
        assert taken == [(idle.id, "contract-0-0-2")]

    def test_machine_ends_with_what_is_removed_and_when_it_is_told(self, backend: Backend) -> None:
        """Clause 56."""
        renter = _renter(backend)
        self.up(backend, "long")
        backend.remove("contract-0-0-1")
        self.eventually(lambda: not self._standing(renter), "the removed launch's machine")
        with pytest.raises(Rejected):
            renter.terminate("contract-none")
        self.start(backend, self.launch("long", "contract-0-0-2", attempt=2))
        renter.terminate(self._standing(renter)[0])
        self.eventually(lambda: not self._standing(renter), "the terminated machine")

    def _standing(self, renter: Renter) -> list[str]:
        return [one.id for one in renter.machines() if one.state not in ("ending", "ended")]


def _renter(backend: Backend) -> Renter:
    _need(backend, Can.RENT)
    assert isinstance(backend, Renter)
    return backend


def _need(backend: Backend, can: Can) -> None:
    if can not in backend.can:
        pytest.skip(f"this place cannot {can.value}")


def _groups(backend: Backend) -> GroupBackend:
    _need(backend, Can.GROUPS)
    assert isinstance(backend, GroupBackend)
    return backend


def _steady(offer: Offer) -> Offer:
    """Return ``offer`` without the free disk, which others change between two calls."""
    return replace(offer, disk_bytes=None)


def _held(backend: Backend) -> float:
    """Return the CPU that is still to be had."""
    return sum(o.cpu for o in backend.offers() if o.divisible)


def _process_arguments() -> Iterator[bytes]:
    """Yield the arguments of every process of this machine that lets us look."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:  # it ended, or is another user's
            continue


_EFFECTS = frozenset(
    {"socket.connect", "subprocess.Popen", "os.posix_spawn", "os.fork", "os.system", "os.exec"}
    | {"os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "sqlite3.connect"}
)
_watched: dict[int, list[str]] = {}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    seen = _watched.get(threading.get_ident())
    if seen is None:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in _EFFECTS or writes:
        seen.append(f"{event} {arguments[0]!r}")


@cache
def _listen() -> None:
    sys.addaudithook(_audit)  # cannot be taken off again, so it sleeps unless a clause is watching


@contextmanager
def _effects() -> Iterator[list[str]]:
    """Collect what this thread does to the world."""
    _listen()
    seen = _watched[threading.get_ident()] = []
    try:
        yield seen
    finally:
        del _watched[threading.get_ident()]
