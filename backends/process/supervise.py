"""Keep one launch of the process backend: run it, write down its output and its end, stop it when told.

Run as ``python -I -S supervise.py DIRECTORY``; the order comes as JSON on stdin, because secrets
are in it and arguments and files can be read by others. Standard library only, and nothing of
ours: it has to live on while the program that started it is replaced. It holds a lock on
``alive`` for as long as it lives; whoever can take that lock knows that it is gone. It is told
to stop through the FIFO ``control``, which takes the grace in seconds, and never by a signal to a
number that may be someone else's by now.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

LOG_BYTES = 16 * 2**20
"""At this size the log becomes ``log.1``; with the one before it gone, twice this is kept."""
LINE_BYTES = 64 * 2**10
RESTARTS = 5
"""How often a launch that fails is started again before the loop has to look at it."""
BACKOFF_S, STEADY_S = 0.2, 60.0
DRAIN_S, FULL_S = 1.0, 1.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
PYTHONS = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""Signals that Python ignores for itself, and gives back to what it starts."""
NOT_FOUND, NOT_RUNNABLE = 127, 126  # what a shell says, POSIX 2.8.2
IN_USE = (b"address already in use", b"eaddrinuse")
"""How programs tell that a port is taken, in lower case: strerror(3) of EADDRINUSE, and its name."""


def start_ticks(pid: int) -> int | None:
    """Return when ``pid`` began, in clock ticks since boot; None when it is gone.

    With the number of the process this tells it from a later one of the same number.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the second field is the program's name in parentheses, and may hold spaces and parentheses
    return int(text.rpartition(")")[2].split()[19])


def boot_id() -> str:
    """Return what tells this run of the machine from the one before a restart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old content or the new, never half of it."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    draft.replace(path)


class Log:
    """The output of a launch: a time, a letter for the stream and the text on each line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()
        self._last_us = 0
        self._second = (0, b"")
        self._rest = {"o": b"", "e": b""}

    def take(self, stream: str, chunk: bytes) -> None:
        """Write the whole lines in ``chunk``, and keep what is left for the next."""
        *lines, rest = (self._rest[stream] + chunk).split(b"\n")
        while len(rest) > LINE_BYTES:
            lines.append(rest[:LINE_BYTES])
            rest = rest[LINE_BYTES:]
        self._rest[stream] = rest
        self._write(stream, lines)

    def finish(self) -> None:
        """Write what came without a line's end."""
        for stream, rest in self._rest.items():
            if rest:
                self._write(stream, [rest])
                self._rest[stream] = b""

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        self.finish()
        self._file.close()

    def _write(self, stream: str, lines: list[bytes]) -> None:
        letter, now_us = stream.encode(), time.time_ns() // 1000
        text = b"".join(b"%s %s %s\n" % (self._stamp(now_us), letter, line) for line in lines)
        try:
            self._file.write(text)
            if self._file.tell() > LOG_BYTES:
                self._path.replace(self._path.with_name("log.1"))
                full, self._file = self._file, self._open()
                full.close()
        except OSError:
            return  # a full disk costs output, not the launch

    def _open(self) -> IO[bytes]:
        return self._path.open("ab", buffering=0)

    def _stamp(self, now_us: int) -> bytes:
        # each line its own time, so that "since the last one I saw" is exact
        self._last_us = max(now_us, self._last_us + 1)
        second, fraction = divmod(self._last_us, 1_000_000)
        if second != self._second[0]:
            self._second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%s.%06d+00:00" % (self._second[1], fraction)


class Supervisor:
    """One launch, from its start to its end."""

    def __init__(self, directory: Path, order: dict[str, Any], answer: Callable[[], None]) -> None:
        self._directory = directory
        self._order = order
        self._answer = answer
        self._status_file = directory / "status.json"
        self._log = Log(directory / "log")
        self._pid = 0
        self._pipes: dict[str, IO[bytes]] = {}
        self._ends: dict[int, int] = {}
        self._reason = ""
        self._kill_at: float | None = None
        self._killed = False
        self._oom = False
        self._in_use = False
        self._ready = selectors.DefaultSelector()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.status: dict[str, Any] = {
            "phase": "pending",
            "boot": boot_id(),
            "supervisor": [os.getpid(), start_ticks(os.getpid())],
            "restarts": 0,
        }

    def run(self) -> None:
        """Keep the launch until its end is written down."""
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._listen()
        self._tell()
        self._live_on()
        self._log.close()
        self.status |= {"phase": "exited", "finished_at": _now(), **self._end()}
        while not self._tell():
            time.sleep(FULL_S)  # the disk is full: until there is room for its end it counts as running

    # --- one life after another

    def _live_on(self) -> None:
        """Run the command, and again after a failure where it is to be restarted."""
        failures = 0
        while True:
            began = time.monotonic()
            self._live()
            failures = 1 if time.monotonic() - began > STEADY_S else failures + 1
            if failures > RESTARTS or not self._may_restart():
                return
            pause_s = BACKOFF_S * 2 ** (failures - 1)
            self._tell(phase="pending", message=f"{self._why_failed()}, starts again in {pause_s:g} s")
            self._rest(pause_s)
            if self._is_told():
                return
            self.status["restarts"] += 1

    def _may_restart(self) -> bool:
        failed = self._pid != 0 and self.status["exit_code"] != 0
        return failed and self._order["restart"] and not self._is_told()

    def _live(self) -> None:
        self._killed = self._in_use = False
        kills_before = _oom_kills()
        try:
            child = self._spawn()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the command or the environment
            self._pid = 0
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
            self.status |= {"exit_code": code, "message": str(error)}
            self._answer()
            return
        self._pid = child.pid
        self.status.pop("message", None)
        self._tell(phase="running", pid=[child.pid, start_ticks(child.pid)], started_at=_now())
        self._answer()
        child.returncode = ended = self._outlive()
        self._sweep()
        self._drain()
        self.status["exit_code"] = ended if ended >= 0 else 128 - ended
        self._oom = ended == -signal.SIGKILL and not self._killed and _oom_kills() > kills_before

    def _outlive(self) -> int:
        """Wait for the command's end, kill it when its time is over, and return its exit code."""
        while self._pid not in self._ends:
            self._wait(self._kill_at)
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._kill_at = None
                self._kill()
        return self._ends.pop(self._pid)

    def _spawn(self) -> subprocess.Popen[bytes]:
        order = self._order
        child = subprocess.Popen(
            order["command"],
            env=order["env"],
            cwd=order["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            umask=order["umask"],
            preexec_fn=self._before_command,
        )
        for pipe, letter in ((child.stdout, "o"), (child.stderr, "e")):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            self._pipes[letter] = pipe
            self._ready.register(pipe, selectors.EVENT_READ, letter)
        return child

    def _before_command(self) -> None:
        # in the child: it shall not outlive us, and a supervisor killed here already is seen as one
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.status["supervisor"][0]:
            os._exit(NOT_RUNNABLE)
        limit = self._order["memory_bytes"]
        if limit is not None:
            _, most = resource.getrlimit(resource.RLIMIT_DATA)
            limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def _end(self) -> dict[str, Any]:
        code = self.status.get("exit_code")
        if self._reason:
            return {"reason": self._reason}
        if not self._pid:
            return {"reason": "no-start"}
        if self._oom:
            return {"reason": "oom", "message": "the kernel killed it: this machine ran out of memory"}
        return {"reason": "error", "message": self._why_failed()} if code else {"reason": ""}

    def _why_failed(self) -> str:
        code = f"exit code {self.status['exit_code']}"
        return f"{code}: {self._order['taken']}" if self._in_use else code

    # --- waiting

    def _listen(self) -> None:
        reader, writer = os.pipe()
        for end in (reader, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in signal.valid_signals() - PYTHONS:
            if signal.getsignal(number) is signal.SIG_IGN:  # by a script's "&", nohup or trap ''
                signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # a handler and not SIG_IGN, which the command would inherit
            signal.signal(number, lambda *_: None)
        self._ready.register(self._order["control"], selectors.EVENT_READ, "control")
        self._ready.register(reader, selectors.EVENT_READ, "signal")

    def _wait(self, until: float | None) -> None:
        timeout = None if until is None else max(0.0, until - time.monotonic())
        for key, _ in self._ready.select(timeout):
            if key.data == "control":
                self._obey(os.read(key.fd, 4096))
            elif key.data == "signal":
                self._hear(os.read(key.fd, 4096))
            else:
                self._read(self._pipes[key.data], key.data)

    def _is_told(self) -> bool:
        return self._reason != ""

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_told() and time.monotonic() < until:
            self._wait(until)

    def _read(self, pipe: IO[bytes], letter: str) -> bool:
        """Take what is in a pipe; False when it has ended or is empty."""
        try:
            chunk = os.read(pipe.fileno(), 2**16)
        except BlockingIOError:
            return False
        if chunk:
            self._log.take(letter, chunk)
            if self._order["taken"] and any(words in chunk.lower() for words in IN_USE):
                self._in_use = True
            return True
        self._close(pipe)
        return False

    def _close(self, pipe: IO[bytes]) -> None:
        if not pipe.closed:
            self._ready.unregister(pipe)
            pipe.close()

    def _hear(self, signals: bytes) -> None:
        if signal.SIGTERM in signals or signal.SIGINT in signals:
            # not a stop that was asked for: the machine goes down, or someone cleans up
            if not self._is_told():
                self._reason, self.status["message"] = "lost", "its supervisor was told to end"
            self._stop(self._order["stop_grace_s"])
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._ends[pid] = os.waitstatus_to_exitcode(status)

    # --- ending

    def _obey(self, told: bytes) -> None:
        for grace_s in told.split():
            self._reason = "stopped"
            self._stop(float(grace_s))

    def _stop(self, grace_s: float) -> None:
        """Ask the group to end, and set the time at which it is killed; a second call may shorten it."""
        kill_at = time.monotonic() + grace_s
        self._kill_at = kill_at if self._kill_at is None else min(kill_at, self._kill_at)
        if self.status["phase"] == "running" and self._pid not in self._ends:
            _signal_group(self._pid, signal.SIGTERM)

    def _kill(self) -> None:
        self._killed = True
        _signal_group(self._pid, signal.SIGKILL)

    def _sweep(self) -> None:
        """Kill what the command left behind: its group, and what came to us as its orphans."""
        _signal_group(self._pid, signal.SIGKILL)
        deadline = time.monotonic() + DRAIN_S
        while (orphans := _children()) and time.monotonic() < deadline:
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
            for pid in orphans:
                os.waitpid(pid, 0)

    def _drain(self) -> None:
        for letter, pipe in self._pipes.items():
            while not pipe.closed and self._read(pipe, letter):
                pass
            self._close(pipe)
        self._log.finish()

    def _tell(self, **changes: Any) -> bool:
        """Write the state down, and say whether that is done with."""
        self.status |= changes
        try:
            write_whole(self._status_file, json.dumps(self.status))
        except FileNotFoundError:
            self._reason = self._reason or "stopped"  # removed under us: there is nobody left to tell
        except OSError:
            return False
        return True


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN: the group was killed, that has to do
        return []


def _oom_kills() -> int:
    """Return how often this machine's kernel has killed for want of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def main() -> None:
    """Take the order, leave the process that gave it, and keep the launch."""
    directory = Path(sys.argv[1])
    order = json.load(sys.stdin.buffer)
    if os.fork():
        os._exit(0)  # so that the starter need not wait for us, and is not our parent
    os.umask(0o077)
    os.chdir("/")
    nowhere, said = os.open(os.devnull, os.O_RDWR), os.dup(1)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    fcntl.fcntl(order["alive"], fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    fcntl.fcntl(order["control"], fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    answers = [said]

    def answer() -> None:
        while answers:
            os.close(answers.pop())  # the starter waits for this end to close

    Supervisor(directory, order, answer).run()


if __name__ == "__main__":
    main()
