"""The audit log as a server writes it: what was changed, and who was refused, a flood in few lines."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.errors import ModelyardError, StoreError
from orchestrator.server.users import NOBODY, Barred
from orchestrator.store.access import Access
from orchestrator.store.values import Deed
from orchestrator.units import plain
from orchestrator.wire import outcome_of

WINDOW = timedelta(minutes=5)
"""For how long a refusal that comes again is counted instead of written down again."""
MOST = 20
"""Refusals of one kind, of one caller, that are written down in a window; the others are counted."""
KEPT, PRUNE_EVERY = 100_000, 1_000
"""Refusals that the record keeps, the newest; and how many are written before the old ones are dropped."""


class Audit:
    """Writes the audit log of one server; safe from any thread.

    What was carried out has a line each. Refusals cost whoever makes them nothing, so a flood of them must
    not fill a disk, nor hide what somebody else was refused: the first of a kind is written at once, the
    same again is counted, and each caller has a number of lines of their own.

    Args:
        access: Where the log is kept.
        clock: The time, in UTC.
        complain: Told where a refusal cannot be written down.
    """

    def __init__(
        self, access: Access, clock: Callable[[], datetime], complain: Callable[[str], None]
    ) -> None:
        self._access = access
        self._clock = clock
        self._complain = complain
        self._lock = threading.Lock()
        self._window = _Window(clock())
        self._unpruned = PRUNE_EVERY  # by a server before this one
        self.refused: Counter[str] = Counter()
        """How many calls this server has refused, by outcome."""

    def note(
        self,
        who: str,
        action: str,
        outcome: str,
        *,
        address: str = "",
        project: str = "",
        subject: str = "",
        spec_hash: str = "",
    ) -> None:
        """Write down what somebody did, and how it ended; a call that was refused, as refusals are.

        Raises:
            StoreError: what was done cannot be written down.
        """
        deed = Deed(
            self._clock(), plain(who)[:200], plain(address)[:300], plain(project)[:63], action,
            plain(subject)[:500], outcome, spec_hash,
        )  # fmt: skip
        if not outcome.startswith("4"):
            self._access.note_deed(deed)
            return
        with self._lock:
            self.refused[outcome] += 1
            due = self._turn(deed.at) + ([deed] if self._window.takes(deed) else [])
        self._write(due)

    def refuse(
        self,
        action: str,
        error: ModelyardError,
        *,
        who: str = NOBODY,
        address: str = "",
        project: str = "",
        subject: str = "",
    ) -> None:
        """Write down that somebody was refused; ``who`` is told where it is proven."""
        outcome = outcome_of(error)
        if isinstance(error, Barred):
            who, outcome = error.who, error.outcome
        self.note(who, action, outcome, address=address, project=project, subject=subject)

    def tell(self, *, ended: bool = False) -> None:
        """Write down how many more were refused in a window that is over, or with ``ended`` in any."""
        with self._lock:
            due = self._turn(self._clock(), ended=ended)
        self._write(due)

    def _turn(self, now: datetime, *, ended: bool = False) -> list[Deed]:
        """Open the next window where the last is over; return the lines about what it counted."""
        if not ended and self._window.since <= now < self._window.since + WINDOW:
            return []
        due = self._window.counted(now)
        self._window = _Window(now)
        return due

    def _write(self, deeds: list[Deed]) -> None:
        try:
            for deed in deeds:
                self._access.note_deed(deed)
            with self._lock:
                self._unpruned += len(deeds)
                is_due = bool(deeds) and self._unpruned >= PRUNE_EVERY
                self._unpruned = 0 if is_due else self._unpruned
            if is_due:
                self._access.forget_refusals(keep=KEPT)
        except StoreError as error:  # refused is refused, written down or not
            self._complain(f"{len(deeds)} refused calls are missing in the audit log: {error.what}")


@dataclass
class _Window:
    """The refusals of some minutes: of each caller and outcome the first kinds, and how often each came."""

    since: datetime
    seen: dict[tuple[str, str], Counter[Deed]] = field(default_factory=dict)

    def takes(self, deed: Deed) -> bool:
        """Count a refusal; return whether it is to be written down now."""
        kind = replace(deed, at=self.since)
        kinds = self.seen.setdefault((deed.who, deed.outcome), Counter())
        is_new = kind not in kinds
        if is_new and len(kinds) >= MOST:
            kind, is_new = Deed(self.since, deed.who, deed.address, "", "", "", deed.outcome), False
            if kind not in kinds and len(kinds) >= 2 * MOST:
                kind = replace(kind, address="")  # of some addresses each is told, of others that there were
        kinds[kind] += 1
        return is_new

    def counted(self, now: datetime) -> list[Deed]:
        """Return a line for each kind of which more came than were written down."""
        since = self.since.isoformat(timespec="seconds").replace("+00:00", "Z")
        lines = []
        for kinds in self.seen.values():
            for kind, count in kinds.items():
                more = count - (1 if kind.action else 0)
                if more:
                    said = f"{more} more since {since}"
                    subject = f"{kind.subject[:400]}: {said}" if kind.subject else said
                    lines.append(replace(kind, at=now, action=kind.action or "several", subject=subject))
        return lines
