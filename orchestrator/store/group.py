"""Let the transitions of many threads share one commit, and so one wait for the disk.

A thread that finds no write under way writes for all who queued behind it; the others wait
for that and find their own work done. Alone, a thread pays for no thread switch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator.errors import ModelyardError, StoreBusy, StoreError

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Ticket(Generic[Ask, Answer]):
    ask: Ask
    answer: Answer | ModelyardError | None = None


@dataclass
class Group(Generic[Ask, Answer]):
    """Hands asks to ``write`` in groups; ``write`` answers each in turn, with a value or an error."""

    write: Callable[[Sequence[Ask]], Sequence[Answer | ModelyardError]]
    _waiting: deque[_Ticket[Ask, Answer]] = field(default_factory=deque)
    _one_writes: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, ask: Ask) -> Answer:
        """Return what ``write`` answered to ``ask``.

        Raises:
            ModelyardError: ``write`` answered with it, or failed with it as a whole.
        """
        ticket: _Ticket[Ask, Answer] = _Ticket(ask)
        self._waiting.append(ticket)
        with self._one_writes:
            if ticket.answer is None:
                self._write_all()
        answer = ticket.answer
        if isinstance(answer, ModelyardError):
            raise answer
        assert answer is not None, "every ticket of a group is answered"
        return answer

    def _write_all(self) -> None:
        # Counted first: only this thread takes, others may still add.
        group = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            self._answer(group)
        finally:
            for ticket in group:  # Ctrl-C, or no memory: nobody may wait for what never comes
                if ticket.answer is None:
                    ticket.answer = StoreError("the write was interrupted; read the record before going on")

    def _answer(self, group: Sequence[_Ticket[Ask, Answer]]) -> None:
        try:
            answers = self.write([ticket.ask for ticket in group])
        except StoreError as error:
            if len(group) == 1 or isinstance(error, StoreBusy):
                answers = [error] * len(group)
            else:  # what one of them cannot have written must not cost the others theirs
                for ticket in group:
                    self._answer([ticket])
                return
        for ticket, answer in zip(group, answers, strict=True):
            ticket.answer = answer
