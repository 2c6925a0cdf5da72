"""Let the transitions of many threads share one commit, and so one wait for the disk.

A thread that finds no write under way writes at once, for itself. Those who come meanwhile
wait; when it is done, the first of them writes for them all. Nobody takes a lock to learn an
answer: with a queue on one lock, threads that have theirs would stand in line with those that
have not, and groups would stay small.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator.errors import ModelyardError, StoreBusy, StoreError

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


def _taken() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True, eq=False)
class _Ticket(Generic[Ask, Answer]):
    ask: Ask
    answer: Answer | ModelyardError | None = None
    turn: threading.Lock = field(default_factory=_taken)
    """Released when the ticket is answered, or when its thread is to write."""


class Group(Generic[Ask, Answer]):
    """Hands asks to ``write`` in groups; ``write`` answers each in turn, with a value or an error."""

    def __init__(self, write: Callable[[Sequence[Ask]], Sequence[Answer | ModelyardError]]) -> None:
        self._write = write
        self._lock = threading.Lock()  # guards the two below, and is never held for long
        self._waiting: list[_Ticket[Ask, Answer]] = []
        self._writing = False

    def submit(self, ask: Ask) -> Answer:
        """Return what ``write`` answered to ``ask``.

        Raises:
            ModelyardError: ``write`` answered with it, or failed with it as a whole.
        """
        ticket: _Ticket[Ask, Answer] = _Ticket(ask)
        with self._lock:
            self._waiting.append(ticket)
            must_wait, self._writing = self._writing, True
        interrupted = _wait(ticket.turn) if must_wait else None
        if ticket.answer is None:
            self._write_all()
        if interrupted is not None:
            raise interrupted
        if isinstance(ticket.answer, ModelyardError):
            raise ticket.answer
        assert ticket.answer is not None, "whoever writes answers every ticket"
        return ticket.answer

    def _write_all(self) -> None:
        """Write for everyone who waits, then name the next to write."""
        with self._lock:
            group, self._waiting = self._waiting, []
        try:
            self._answer(group)
        finally:
            with self._lock:
                heir = self._waiting[0] if self._waiting else None
                self._writing = heir is not None
            if heir is not None:
                heir.turn.release()
            for ticket in group:
                if ticket.answer is None:  # Ctrl-C, or no memory: what was asked may be half known
                    ticket.answer = StoreError("the write was interrupted", fix="read the record, then go on")
                ticket.turn.release()

    def _answer(self, group: Sequence[_Ticket[Ask, Answer]]) -> None:
        answers: Sequence[Answer | ModelyardError]
        try:
            answers = self._write([ticket.ask for ticket in group])
        except StoreError as error:
            if len(group) > 1 and not isinstance(error, StoreBusy):
                for ticket in group:  # what one of them may not write must not cost the others theirs
                    self._answer([ticket])
                return
            answers = [error] * len(group)
        for ticket, answer in zip(group, answers, strict=True):
            ticket.answer = answer


def _wait(turn: threading.Lock) -> KeyboardInterrupt | None:
    """Wait for ``turn``; a Ctrl-C meanwhile is kept for later.

    The ticket may be in another thread's transaction already, or its thread the next to write:
    to leave now would leave the others without one.
    """
    interrupted = None
    while True:
        try:
            turn.acquire()
            return interrupted
        except KeyboardInterrupt as error:
            interrupted = error
