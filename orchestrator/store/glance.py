"""One small question that is asked several times a second, of a database that is far away."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from orchestrator.store.prepared import Prepared


class Glance:
    """Asks on a connection of its own that begins no transaction: one round trip.

    An ordinary reader is sent four: is the connection well, begin, the question, roll back. Where
    its connection breaks it asks the ordinary way, which says what is wrong, and then has a new one.
    Made for one thread.

    Args:
        engine: The database.
        question: What is asked; its answer is one whole number.
        ordinary: Asks the same in a transaction.
    """

    def __init__(self, engine: sa.Engine, question: Prepared, ordinary: Callable[[], int]) -> None:
        self._engine = engine
        self._question = question
        self._ordinary = ordinary
        self._connection: Any = None
        self._is_closed = False

    def __call__(self) -> int:
        """Return the answer of now.

        Raises:
            StoreBusy, StoreError: as the ordinary way does.
        """
        if self._connection is not None:
            with suppress(self._engine.dialect.loaded_dbapi.Error):
                answer = self._connection.execute(self._question.text, self._question.arguments({}))
                return int(answer.fetchone()[0])
            self._let_go()
        newest = self._ordinary()
        if not self._is_closed:
            self._connection = self._own()
        return newest

    def close(self) -> None:
        """Give the connection back to nobody."""
        self._is_closed = True
        self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _own(self) -> Any:
        with suppress(sa.exc.DBAPIError):  # the next look asks the ordinary way again
            pooled = self._engine.raw_connection()
            connection: Any = pooled.driver_connection
            pooled.detach()
            connection.rollback()  # of what the pool may have asked it
            connection.autocommit = True
            return connection
        return None
