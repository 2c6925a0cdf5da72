"""Statements compiled once for a dialect; Core's work per execution is most of a small commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.sql import ClauseElement

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite


class Prepared:
    """One statement of Core, as the driver's text and the order of its parameters."""

    def __init__(self, statement: ClauseElement, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        # Constants of the statement are parameters too.
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}
        order = getattr(compiled, "positiontup", None)
        self._order: tuple[str, ...] | None = tuple(order) if order is not None else None

    def run(self, connection: sa.Connection, **values: Any) -> sa.CursorResult[Any]:
        """Execute once."""
        return connection.exec_driver_sql(self.text, self.arguments(values))

    def run_many(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute for every row; no rows, no statement."""
        if rows:
            connection.exec_driver_sql(self.text, [self.arguments(row) for row in rows])

    def arguments(self, values: Mapping[str, Any]) -> Any:
        """Return ``values`` and the statement's constants as the driver takes them."""
        given = {**self._fixed, **values} if self._fixed else values
        if self._order is None:
            return given
        return tuple([given[name] for name in self._order])


def among(column: sa.ColumnElement[str], parameter: str, dialect: sa.Dialect) -> sa.ColumnElement[bool]:
    """Return whether ``column`` is in a list that is given as a JSON array of texts.

    One parameter for any number of values: the text of the statement stays the same, and no
    limit on parameters is met.
    """
    given: sa.ColumnElement[Any] = sa.bindparam(parameter, type_=sa.Text)
    if dialect.name == "sqlite":
        values = sa.func.json_each(given).table_valued("value")
        return column.in_(sa.select(values.c.value))
    return column.in_(sa.select(sa.func.json_array_elements_text(sa.cast(given, sa.JSON))))


def insert_for(dialect: sa.Dialect, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that knows what to do on conflict, in the words of ``dialect``."""
    if dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    # importing PostgreSQL's words costs 60 ms of CPU: a local record does without
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)
