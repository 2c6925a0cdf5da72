"""Which runs are ours to drive: leases that are taken up, renewed and let go of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from orchestrator.reconcile import Run

if TYPE_CHECKING:  # it imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.store.records import Store

LEASE_S = 30.0
"""How long a run is ours without a renewal; a local owner that died is found out at once."""

LOOK_S = 0.2
"""How often the record is read while another process drives some of the runs."""

AGAIN_S = 0.5
"""How often a server asks for a run that another one drives, in case it is gone."""


class Leases:
    """The runs that one loop drives, and that nobody else drives meanwhile.

    Args:
        store: The record.
        owner: Who we are to other loops on this record.
        clock: The time, in UTC.
        look_s: How often the record is read while others drive some of the runs; None leaves it to
            whoever wakes the loop.
        share: How many of so many active runs are ours to drive.
    """

    def __init__(
        self,
        store: Store,
        owner: str,
        clock: Callable[[], datetime],
        *,
        look_s: float | None,
        share: Callable[[int], int],
    ) -> None:
        self._store, self._owner, self._clock = store, owner, clock
        self._look_s, self._share = look_s, share
        self._ours: dict[str, datetime] = {}
        self._theirs: dict[str, datetime] = {}
        """Runs that others drive, and when to ask for them again."""
        self._others_drive = False

    def __len__(self) -> int:
        return len(self._ours)

    def close(self) -> None:
        """Let go of all of them."""
        if self._ours:
            self._store.release(self._owner, self._ours)

    def take(self, runs: Sequence[Run], *, is_busy: Callable[[Run], bool]) -> list[Run]:
        """Return the runs that are ours to drive: renewed, taken up to our share, or given back.

        What is above our share, for a server with less, is kept while an action on it is under way.
        """
        now = self._clock()
        active = {run.id for run in runs}
        self._ours = {id: until for id, until in self._ours.items() if id in active}
        self._theirs = {id: again for id, again in self._theirs.items() if id in active and again > now}
        most = self._share(len(runs))
        self._give_back([run for run in [r for r in runs if r.id in self._ours][most:] if not is_busy(run)])
        safe = now + timedelta(seconds=LEASE_S / 2)
        due = [id for id, until in self._ours.items() if until < safe]
        free = [run.id for run in runs if run.id not in self._ours and run.id not in self._theirs]
        room = max(0, most - len(self._ours))
        due += free if room else []
        if due:
            until = now + timedelta(seconds=LEASE_S)
            ours = self._store.lease(due, owner=self._owner, until=until, now=now, most=room)
            for run_id in due:
                self._ours.pop(run_id, None)
            self._ours.update(dict.fromkeys(ours, until))
            again = now + timedelta(seconds=AGAIN_S if self._look_s is None else self._look_s / 2)
            self._theirs.update(dict.fromkeys(set(due) - ours, again))
        found = [run for run in runs if run.id in self._ours]
        self._others_drive = len(found) < len(runs)
        return found

    def _give_back(self, runs: Sequence[Run]) -> None:
        if runs:
            self._store.release(self._owner, [run.id for run in runs])
            for run in runs:
                del self._ours[run.id]

    def next_s(self) -> float:
        """Return how soon leases have to be looked at again."""
        waits = [LEASE_S / 3]
        if self._theirs and self._look_s is None:
            waits.append(AGAIN_S)  # they were not let go of, and may be by then
        if self._others_drive and self._look_s is not None:
            waits.append(self._look_s)  # what another process writes wakes nobody here
        return min(waits)
