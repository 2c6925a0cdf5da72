"""What all calls to one server share: the record, the places, the feed, and the loop's thread."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.api import Local
from orchestrator.api.activity import note_active
from orchestrator.api.opened import machines_of, recorded_places
from orchestrator.api.runs import Driver
from orchestrator.errors import ModelyardError
from orchestrator.loop import Hooks, Loop
from orchestrator.places import Places, Recorded, read_places
from orchestrator.reconcile import RunEvent
from orchestrator.server.audit import Audit
from orchestrator.server.feed import Feed
from orchestrator.spec.models import Fleet
from orchestrator.store import open_store
from orchestrator.store.leases import is_gone, this_owner

THERE_S = 12.0
"""How long a server is taken to be there after it last said so."""
SAY_S = 3.0
LOOK_S = 0.5
"""How soon a server of this machine that was killed is found out."""
MOST_SOCKETS = 64
"""Terminals and ports that one server carries at a time."""
PAUSE_S = 1.0
"""How long the loop waits after a pass that failed."""


class Site:
    """One server's share of the world; closed when the server ends.

    Args:
        url: Where the record is.
        config: The configuration of places, None for the defaults.
        environ: Where the hub's token and the secrets' key come from.
        complain: Told what went wrong where nobody asked.
        clock: The time, in UTC.
        owner: Who this server is to others on the same record.
    """

    def __init__(
        self,
        url: str,
        *,
        config: Path | None,
        environ: Mapping[str, str],
        complain: Callable[[str], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        owner: str | None = None,
    ) -> None:
        self.url = url
        self.config = config
        self.environ = environ
        self.clock = clock
        self.owner = owner or this_owner()
        self.complain = complain
        self.store = open_store(url, secret_key=environ.get("MODELYARD_SECRET_KEY"))
        self.audit = Audit(self.store.access, clock, complain)
        self.places = Places(read_places(config), recorded=self._recorded_places)
        for name in self.places:
            self.places[name]  # built now: two calls at once must not build one twice
        self.passes = 0
        """How often the loop has looked, for whoever asks whether it still does."""
        self.peers: Sequence[str] = (self.owner,)
        self.serving: Callable[[], Mapping[str, int]] = dict
        """How many requests each replica works on, where a gateway runs here too."""
        self.sockets = threading.BoundedSemaphore(MOST_SOCKETS)
        self._inside: Counter[str] = Counter()
        self._closed = threading.Event()
        self.loop = Loop(
            self.store, self.places, owner=self.owner, clock=clock,
            hooks=Hooks(event=self._written, serving=lambda: self.serving()), look_s=None, share=self._share,
            refresh=self.places.refresh,
        )  # fmt: skip
        self.feed = Feed(self.store.glance(), self.loop.wake)
        self._driver = threading.Thread(target=self._drive, name="loop", daemon=True)
        self._herald = threading.Thread(target=self._be_there, name="herald", daemon=True)

    def _recorded_places(self) -> Recorded:
        return recorded_places(
            self.store.fleets(), self.store.cordons(), wishes={},
            machines=lambda fleet: machines_of(self.store, fleet),
        )  # fmt: skip

    def start(self) -> None:
        """Begin to drive runs."""
        self._say_there()
        self.feed.start()
        self._driver.start()
        self._herald.start()

    def close(self) -> None:
        """End the pass under way, write down what became of its actions, and let go of the runs."""
        self._closed.set()
        self.loop.wake()
        self.feed.close()
        for thread in (self._driver, self._herald):
            if thread.is_alive():
                thread.join()
        try:
            self.loop.close()
            self.audit.tell(ended=True)
            self.store.access.leave(self.owner)
        except ModelyardError as error:
            self.complain(f"on the way out: {error.what}")
        self.store.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether the server is on its way out."""
        return self._closed.is_set()

    def api(self, project: str | None) -> Hosted:
        """Return the api as one project sees it, None for all; cheap, and for one call."""
        return Hosted(self, project)

    @contextmanager
    def inside(self, run: str) -> Iterator[None]:
        """Have somebody be inside a run, until left."""
        self._inside[run] += 1
        self.note_active(run)
        try:
            yield
        finally:
            self._inside[run] -= 1
            self.note_active(run)

    def note_sockets(self) -> None:
        """Note on the record, for whichever server looks, that somebody is inside runs through this one."""
        for run in [run for run, many in self._inside.items() if many]:
            self.note_active(run)

    def note_active(self, run: str) -> None:
        """Note that somebody is inside a run."""
        note_active(self.store, run, now=self.clock())

    def wrote(self) -> None:
        """Say that a call wrote something: those who wait and the loop need not look for it."""
        self.feed.poke()
        self.loop.wake()

    def _written(self, _event: RunEvent) -> None:
        self.feed.poke()

    def _drive(self) -> None:
        while not self._closed.is_set():
            try:
                self.loop.drive(self._is_over, closed=self._closed.is_set)
            except ModelyardError as error:
                self.complain(f"a pass of the loop failed: {error.what}")
                self._closed.wait(PAUSE_S)
            except Exception as error:
                # A fault of ours, or of a backend, in one pass: the runs it is about are looked at
                # again, and the others must not wait for a person.
                self.complain(f"a pass of the loop broke: {type(error).__name__}: {error}")
                self._closed.wait(PAUSE_S)

    def _is_over(self) -> bool:
        self.passes += 1
        return self._closed.is_set()

    def _be_there(self) -> None:
        said = time.monotonic()
        while not self._closed.wait(LOOK_S):
            self._take_peers([peer for peer in self.peers if not is_gone(peer)])
            if time.monotonic() - said < SAY_S:
                continue
            said = time.monotonic()
            self.audit.tell()
            try:
                self._say_there()
            except ModelyardError as error:
                self.complain(f"other servers cannot be told of this one: {error.what}")

    def _say_there(self) -> None:
        now = self.clock()
        until = now + timedelta(seconds=THERE_S)
        found = self.store.access.be_there(self.owner, until=until, now=now)
        self._take_peers([peer for peer in found if not is_gone(peer)])

    def _take_peers(self, peers: Sequence[str]) -> None:
        """Go on with the servers that are there; the loop sees at once what that leaves to drive."""
        if list(peers) != list(self.peers):
            self.peers = tuple(peers)
            self.loop.wake()

    def _share(self, active: int) -> int:
        """Return how many of the active runs this server should drive: an equal part."""
        return -(-active // max(1, len(self.peers)))


class Hosted(Local):
    """The api of one project inside a server, whose own loop drives the runs.

    Args:
        site: What calls share.
        project: Whose runs are seen and made, None for all.
    """

    def __init__(self, site: Site, project: str | None) -> None:
        super().__init__(
            site.url, config=site.config, environ=site.environ, clock=site.clock, project=project
        )
        self._site = site
        # both are made once for all calls, and outlive this one
        self.__dict__["store"] = site.store
        self.__dict__["places"] = site.places

    def expect(self, fleets: Sequence[Fleet]) -> frozenset[str]:
        """Count on nothing: the places are those of all calls."""
        del fleets
        return frozenset()

    def _settle(self) -> None:
        """Do nothing: the server's loop keeps the record up to date."""

    def _loop(self, hooks: Hooks | None = None) -> Driver:  # noqa: ARG002  # as in process
        return _Onlooker(self._site)


class _Onlooker:
    """Waits for what the server's loop does, where a command would drive runs itself."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hold nothing."""

    def settle(self) -> None:
        """Do nothing: the server's loop settles what there is."""

    def drive(self, until: Callable[[], bool], *, timeout_s: float | None = None) -> bool:
        """Wait until ``until`` holds; False when time ran out or the server ends."""
        deadline = None if timeout_s is None else self._site.clock() + timedelta(seconds=timeout_s)
        while not self._site.is_closed:
            seen = self._site.feed.serial
            if until():
                return True
            if deadline is not None and self._site.clock() >= deadline:
                return False
            self._site.feed.wait(seen, 1.0)
        return False
