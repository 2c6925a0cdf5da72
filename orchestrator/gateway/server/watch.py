"""Follow the record: new routes whenever its serial has moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.errors import StoreError
from orchestrator.gateway.keys import Keys
from orchestrator.gateway.routes import Routes, routes_of
from orchestrator.gateway.server.gateway import Gateway

if TYPE_CHECKING:  # it imports SQLAlchemy
    from orchestrator.store.records import Store

LOOK_S = 0.2
"""How often the record's serial is asked for."""
LOOK_AWAITED_S = 0.02
"""The same while somebody waits for a service that has no replica: it may be ready any moment."""
KEYS_S = 2.0
"""How often the keys are read: a key has no event, and one that is revoked shall not last."""


async def follow(
    gateway: Gateway,
    store: Store,
    *,
    complain: Callable[[str], None],
    moved: Callable[[], None] = lambda: None,
) -> None:
    """Keep ``gateway`` on the routes of ``store`` until cancelled; ``moved`` is called when it has moved.

    While the record cannot be read the last routes stand: replicas do not stop to answer because
    a database does.
    """
    failing = ""
    serial, keys_at = -1, 0.0
    while True:
        now = asyncio.get_running_loop().time()
        due = now - keys_at >= KEYS_S
        try:
            routes, keys = await asyncio.to_thread(read, store, serial, with_keys=due)
        except StoreError as error:
            if str(error) != failing:
                failing = str(error)
                complain(f"the record cannot be read, its last state stands: {failing}")
        else:
            failing = ""
            if due:
                keys_at = now
            if routes is not None:
                serial = routes.serial
                moved()
            if routes is not None or (keys is not None and keys != gateway.keys):
                gateway.update(routes if routes is not None else gateway.routes, keys)
        await asyncio.sleep(LOOK_AWAITED_S if gateway.has_sleepers() else LOOK_S)


def read(store: Store, serial: int, *, with_keys: bool) -> tuple[Routes | None, Keys | None]:
    """Return the routes where the record has moved on from ``serial``, and the keys if asked for.

    Raises:
        StoreError: the record cannot be read.
    """
    # The serial first: what is written after it is read with the next one, and nothing is missed.
    newest = store.last_serial()
    routes = None
    if newest != serial:
        routes = routes_of(store.runs(), store.jobs(), serial=newest)
    return routes, Keys.read(store.secrets) if with_keys else None
