"""Let the nodes of a training run meet before the trainer starts, and agree where to go on from.

Put into the container beside ``tuning_entry.py``; standard library only. The nodes meet on the port
that the trainer's own rendezvous takes right afterwards: one that is taken, or that a firewall
closes, is told in words and in seconds, where a trainer would wait and then name a socket.
"""

from __future__ import annotations

import errno
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

WAIT_S = 900.0
"""For the last node to come: its image is pulled meanwhile. torchrun 2.13 waits as long."""
NOTE_AFTER_S = 15.0
"""Until a node that waits says for whom."""
TRY_S = 1.0
NOTE_EVERY_S = 60.0
_ANSWER_S, _HELLO_S, _LONGEST = 120.0, 5.0, 2**16
_SILENT = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Apart(Exception):
    """The nodes cannot come together, or do not see the same output."""


class Told(Exception):
    """The run was asked to end while its nodes waited for each other."""


class Noted:
    """Says for whom is waited, not at once and not all the time."""

    def __init__(self, note: Callable[[str], object]) -> None:
        self._note = note
        self._next_s = NOTE_AFTER_S

    def at(self, waited_s: float, text: str) -> None:
        """Say ``text`` where it is time to."""
        if waited_s >= self._next_s:
            self._next_s = waited_s + NOTE_EVERY_S
            self._note(text)


class Line:
    """A connection that carries one JSON object a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def say(self, **fact: Any) -> bool:
        """Send one object; False where the other side is gone."""
        try:
            self._connection.sendall(json.dumps(fact).encode() + b"\n")
        except OSError:
            return False
        return True

    def hear(self, within_s: float, is_told: Callable[[], bool]) -> dict[str, Any]:
        """Return the next object, an empty one where the other side is gone, silent or no node.

        Raises:
            Told: the run was asked to end.
        """
        self._connection.settimeout(TRY_S)
        for _ in _waiting(is_told, within_s):
            if b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                return _object(line)
            try:
                chunk = self._connection.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                break
            if not chunk or len(self._rest) > _LONGEST:
                break
            self._rest += chunk
        return {}


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def lead(
    run: str,
    nodes: int,
    port: int,
    step: int,
    *,
    is_told: Callable[[], bool],
    note: Callable[[str], object],
    wait_s: float = WAIT_S,
) -> None:
    """Gather all other nodes as rank 0, and have them confirm the checkpoint of ``step``.

    Args:
        run: Whose nodes these are; strangers are sent away.
        nodes: How many there are, this one included.
        port: Where to listen.
        step: The checkpoint gone on from, 0 for none.
        is_told: Says whether the run was asked to end.
        note: Told for whom is waited.
        wait_s: How long.

    Raises:
        Apart: the port is taken, a node did not come, or one does not see the checkpoint.
        Told: the run was asked to end.
    """
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise Apart(f"port {port}, where the nodes meet, cannot be had here: {error.strerror}") from None
        listener.listen(nodes)
        listener.settimeout(TRY_S)
        came: dict[int, Line] = {}
        noted = Noted(note)
        for waited_s in _waiting(is_told, wait_s):
            missing = ", ".join(str(rank) for rank in range(1, nodes) if rank not in came)
            if not missing:
                break
            if waited_s >= wait_s:
                raise Apart(f"node {missing} did not come to port {port} in {wait_s:.0f} s")
            noted.at(waited_s, f"waits on port {port} for node {missing}")
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            line = Line(opened.enter_context(connection))
            said = line.hear(_HELLO_S, is_told)
            if said.get("run") == run and said.get("rank") in range(1, nodes):
                came[said["rank"]] = line
            else:
                connection.close()
        told = [line for line in came.values() if line.say(step=step)]
        answers = {rank: line.hear(_ANSWER_S, is_told) for rank, line in came.items() if line in told}
        blind = [rank for rank in sorted(came) if not answers.get(rank, {}).get("sees")]
        for line in told:
            line.say(go=not blind)
        for line in told:
            line.hear(_HELLO_S, is_told)  # the other side closes first: the port is free at once
    if blind:
        raise Apart(unseen(blind, step))


def follow(
    run: str,
    rank: int,
    master: str,
    port: int,
    *,
    sees: Callable[[int], bool],
    is_told: Callable[[], bool],
    note: Callable[[str], object],
    wait_s: float = WAIT_S,
) -> int:
    """Come to rank 0 as another node; return the step of the checkpoint that all go on from, 0 for none.

    Args:
        run: Whose node this is.
        rank: Its number.
        master: Rank 0's address.
        port: Where it listens.
        sees: Says whether the checkpoint of a step is whole here.
        is_told: Says whether the run was asked to end.
        note: Told for whom is waited.
        wait_s: How long.

    Raises:
        Apart: rank 0 cannot be reached, or a node does not see the checkpoint.
        Told: the run was asked to end.
    """
    connection = _reach(master, port, is_told, note, wait_s)
    with connection:
        line = Line(connection)
        line.say(run=run, rank=rank)
        said = line.hear(wait_s, is_told)
        if "step" not in said:
            raise Apart(f"node 0 at {master}:{port} left before all nodes had come")
        step = int(said["step"])
        seen = step == 0 or sees(step)
        line.say(sees=seen)
        goes = line.hear(_ANSWER_S, is_told).get("go")
    if not goes:
        raise Apart(unseen([] if seen else [rank], step))
    return step


def _reach(
    master: str, port: int, is_told: Callable[[], bool], note: Callable[[str], object], wait_s: float
) -> socket.socket:
    why, noted = "", Noted(note)
    for waited_s in _waiting(is_told, wait_s):
        if waited_s >= wait_s:
            break
        try:
            return socket.create_connection((master, port), timeout=5.0)
        except OSError as error:
            is_silent = isinstance(error, TimeoutError) or error.errno in _SILENT
            why = "no answer, is the port open?" if is_silent else str(error.strerror or error).lower()
        noted.at(waited_s, f"waits for node 0 at {master}:{port}: {why}")
        time.sleep(TRY_S)
    raise Apart(f"node 0 cannot be reached at {master}:{port}: {why}")


def _waiting(is_told: Callable[[], bool], wait_s: float) -> Iterator[float]:
    """Yield how long it has been waited, until that is ``wait_s`` or more."""
    began = time.monotonic()
    while True:
        if is_told():
            raise Told
        waited_s = time.monotonic() - began
        yield waited_s
        if waited_s >= wait_s:
            return


def unseen(ranks: Sequence[int], step: int) -> str:
    """Return what is wrong where nodes do not see a checkpoint.

    >>> unseen([1], 50)
    'node 1 does not see checkpoint-50: all nodes need one folder, or a bucket, for output'
    """
    who = f"node {', '.join(map(str, ranks))} does not see" if ranks else "another node does not see"
    return f"{who} checkpoint-{step}: all nodes need one folder, or a bucket, for output"
