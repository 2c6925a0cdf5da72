"""Scale services by their load: sample it, decide, and write the number down as desired state."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.engines.exposition import load_of
from orchestrator.errors import NotFound, StateMoved, StoreError
from orchestrator.gateway.routes import Replica, Scaled
from orchestrator.gateway.sampling import Told, sample_of
from orchestrator.gateway.scaling import UP_WINDOW_S, Sample, Scale, decide
from orchestrator.gateway.server.gateway import Gateway
from orchestrator.gateway.server.scrape import fetch
from orchestrator.reconcile.steps import Turn
from orchestrator.reconcile.values import Run, RunEvent, Wanted

if TYPE_CHECKING:  # it imports SQLAlchemy
    from orchestrator.store.records import Store

EVERY_S = 1.0
"""How often the load is sampled and a number decided."""
SCRAPE_S = 2.0
"""How often an engine is asked."""
TRUSTED_S = 10.0
"""How long an engine's last word is taken for the present."""


async def scale(
    gateway: Gateway,
    store: Store,
    *,
    clock: Callable[[], datetime],
    complain: Callable[[str], None],
    wrote: Callable[[], None] = lambda: None,
) -> None:
    """Scale the services of ``gateway`` on ``store`` until cancelled.

    Of several gateways on one record one scales: each knows its own load alone. Whoever keeps the
    services up carries the numbers out.

    Args:
        gateway: What samples the load, and knows the services.
        store: The record.
        clock: The time, in UTC, for events.
        complain: Told once of each trouble.
        wrote: Called when a number was written down.
    """
    scaler = Scaler(gateway, store, clock=clock, wrote=wrote)
    failing = ""
    while True:
        try:
            await scaler.look()
            failing = ""
        except StoreError as error:
            if str(error) != failing:
                failing = str(error)
                complain(f"nothing is scaled while the record cannot be written: {failing}")
        await gateway.wait_for_sleeper(EVERY_S)


def scaled(run: Run, decided: Scale, *, now: datetime) -> Turn:
    """Return what is written down of a decision: the new number, with its event."""
    template = replace(run.template, replicas=decided.replicas)
    cause = f"scaled {run.template.replicas} → {decided.replicas}: {decided.reason}"
    event = RunEvent(
        run.id, run.name, now, run.name, run.state.value, run.state.value, cause, action=f"{run.name}:scale"
    )
    return Turn(replace(run, template=template), event)


@dataclass(slots=True)
class _Book:
    """What was seen of one service; ``told`` is what each replica's engine said last, and when."""

    samples: deque[Sample] = field(default_factory=deque)
    arrivals: deque[tuple[float, int]] = field(default_factory=deque)
    told: dict[Replica, tuple[float, Told]] = field(default_factory=dict)
    asked_at_s: float = -math.inf
    up_at_s: float = -math.inf
    changed_at_s: float = -math.inf


class Scaler:
    """Brings the samples of the gateway and of the engines together, and acts on them.

    Args:
        gateway: What samples the load, and knows the services.
        store: The record.
        clock: The time, in UTC.
        wrote: Called when a number was written down.
    """

    def __init__(
        self, gateway: Gateway, store: Store, *, clock: Callable[[], datetime], wrote: Callable[[], None]
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._clock = clock
        self._wrote = wrote
        self._books: dict[str, _Book] = {}

    async def look(self) -> None:
        """Sample every service that scales, decide, and write down what changes.

        Raises:
            StoreError: the record cannot be written; it is decided again the next time.
        """
        routes = self._gateway.routes
        watched = [name for name, route in routes.services.items() if route.scaled or route.metrics]
        self._books = {name: self._books.get(name) or _Book() for name in watched}
        await asyncio.gather(*(self._ask_engines(name) for name in watched))
        self._gateway.engines = {
            name: {replica: told.now for replica, (_, told) in book.told.items() if told.now}
            for name, book in self._books.items()
        }
        found = {name: route.scaled for name, route in routes.services.items() if route.scaled}
        load, now_s = self._gateway.load(), self._gateway.clock()
        for name, each in found.items():
            if name not in load:
                continue
            book = self._books[name]
            book.samples.append(self._sample(name, load[name], now_s))
            kept_s = each.rule.watched_s + 2 * EVERY_S
            while book.samples[0].at_s < now_s - kept_s:
                book.samples.popleft()
            decided = decide(
                each.rule, book.samples, replicas=each.replicas, now_s=now_s, up_at_s=book.up_at_s,
                changed_at_s=book.changed_at_s,
            )  # fmt: skip
            if decided.replicas != each.replicas:
                await self._write(name, each, decided, book)

    async def _write(self, name: str, each: Scaled, decided: Scale, book: _Book) -> None:
        if not await asyncio.to_thread(self._commit, name, each.replicas, decided):
            return
        book.changed_at_s = self._gateway.clock()
        if decided.replicas > each.replicas:
            book.up_at_s = book.changed_at_s
        self._wrote()

    def _commit(self, name: str, before: int, decided: Scale) -> bool:
        """Write the number down, unless the record has moved on from what it was decided on."""
        try:
            run = self._store.run(name)
            if run.wanted is not Wanted.RUN or run.state.is_final or run.template.replicas != before:
                return False
            self._store.commit([scaled(run, decided, now=self._clock())], expected={run.id: run.serial})
        except (StateMoved, NotFound):
            return False
        return True

    async def _ask_engines(self, name: str) -> None:
        """Ask each replica's engine for its load, where that is due and it tells any."""
        book, service, now_s = self._books[name], self._gateway.routes.services[name], self._gateway.clock()
        metrics, replicas = service.metrics, service.replicas
        if metrics is None or now_s - book.asked_at_s < SCRAPE_S:
            return
        book.asked_at_s = now_s
        texts = await asyncio.gather(*(fetch(replica, metrics.path) for replica in replicas))
        told = {}
        for replica, text in zip(replicas, texts, strict=True):
            at_s, last = book.told.get(replica, (-math.inf, Told(None)))
            if text is not None:
                told[replica] = now_s, Told(load_of(text, metrics), last.now)
            elif now_s - at_s <= TRUSTED_S:
                told[replica] = at_s, last
        book.told = told

    def _sample(self, name: str, load: tuple[int, int, int], now_s: float) -> Sample:
        waiting, outstanding, arrived = load
        book, service = self._books[name], self._gateway.routes.services[name]
        book.arrivals.append((now_s, arrived))
        while len(book.arrivals) > 2 and book.arrivals[1][0] <= now_s - UP_WINDOW_S:
            book.arrivals.popleft()
        since_s, before = book.arrivals[0]
        rps = (arrived - before) / (now_s - since_s) if now_s > since_s else None
        engines = None
        if service.metrics is not None:
            engines = [book.told[r][1] if r in book.told else Told(None) for r in service.replicas]
        return sample_of(now_s, waiting=waiting, outstanding=outstanding, rps=rps, engines=engines)
