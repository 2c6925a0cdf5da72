"""Prices of instances at providers: a dated snapshot, and how old it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import date
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from orchestrator.catalog.lines import Row, own, shipped
from orchestrator.catalog.overlay import in_use
from orchestrator.catalog.values import PriceRow
from orchestrator.errors import ConfigError, Position

STALE_DAYS = 90
"""After how many days a price is said to be old: neoclouds changed theirs every two to three months
through 2026 (Nebius H100 3.85 in September, 4.50 in October)."""

_FIELDS = frozenset(field.name for field in fields(PriceRow)) - {"provider", "region", "instance_type"}
_PRICES = ("on_demand_usd_hour", "spot_usd_hour")


def prices(*, overlay: Path | None = None) -> tuple[PriceRow, ...]:
    """Return every price row, ordered by provider, region and instance type.

    Args:
        overlay: A folder whose ``prices.yaml`` adds rows or replaces those of the same name;
            unset: the one in use.

    Raises:
        ConfigError: the overlay has a price that is no number above 0, or is no catalog table.

    >>> min(row.on_demand_usd_hour for row in prices() if row.accelerator == "H100-80GB" and row.count == 8
    ...     and row.on_demand_usd_hour) > 8
    True
    """
    return _prices(overlay or in_use())


def listed(provider: str, region: str, instance_type: str, *, spot: bool) -> float | None:
    """Return the price of an instance in dollars an hour, None where the table has none.

    A row for ``any`` region holds where the region has no row of its own.

    >>> listed("aws", "us-east-1", "g6.xlarge", spot=False)
    0.8048
    """
    known = _by_name(in_use())
    row = known.get(f"{provider}/{region}/{instance_type}") or known.get(f"{provider}/any/{instance_type}")
    return None if row is None else row.spot_usd_hour if spot else row.on_demand_usd_hour


def age_days(row: PriceRow, today: date) -> int | None:
    """Return how many days old a price is on ``today``, or None when nobody dated it.

    >>> age_days(PriceRow("p", "r", "i", "list", as_of=date(2026, 11, 1)), date(2026, 11, 25))
    24
    """
    return (today - row.as_of).days if row.as_of else None


def is_stale(row: PriceRow, today: date, *, limit_days: int = STALE_DAYS) -> bool:
    """Say whether a price is older than ``limit_days`` on ``today``; an undated one always is."""
    age = age_days(row, today)
    return age is None or age > limit_days


def as_of(rows: Iterable[PriceRow]) -> date | None:
    """Return the oldest day among the dated ``rows``: the day the whole table can be trusted as of."""
    return min((row.as_of for row in rows if row.as_of), default=None)


def price_line(row: PriceRow) -> str:
    """Return ``row`` as a line of ``prices.yaml``.

    >>> price_line(PriceRow("acme", "eu", "gpu-1", "my list", on_demand_usd_hour=0.8))
    '"acme/eu/gpu-1": {"on_demand_usd_hour": 0.8, "source": "my list"}'
    """
    said: dict[str, Any] = {}
    for field in fields(PriceRow):
        value = getattr(row, field.name)
        if field.name in _FIELDS and field.name != "source" and value != field.default:
            said[field.name] = value.isoformat() if isinstance(value, date) else value
    said["source"] = row.source
    return f"{json.dumps(row.name)}: {json.dumps(said, ensure_ascii=False)}"


@cache
def _prices(overlay: Path | None) -> tuple[PriceRow, ...]:
    rows = shipped("prices")
    if overlay is not None:
        path = overlay / "prices.yaml"
        added = own("prices", overlay)
        for name, row in added.items():
            _check(name, row, path)
        rows.update(added)
    return tuple(_price(name, row) for name, row in sorted(rows.items()))


@cache
def _by_name(overlay: Path | None) -> Mapping[str, PriceRow]:
    return {row.name: row for row in _prices(overlay)}


def _price(name: str, row: Row) -> PriceRow:
    provider, region, instance_type = name.split("/", 2)
    dated = row.get("as_of")
    values: dict[str, Any] = {**row, "as_of": date.fromisoformat(dated) if isinstance(dated, str) else dated}
    return PriceRow(provider=provider, region=region, instance_type=instance_type, **values)


def _check(name: str, row: Mapping[str, Any], path: Path) -> None:
    where = Position(str(path), 1, 1)
    if name.count("/") < 2:
        raise ConfigError(
            f"price {name!r} has no name", where=where, fix="write provider/region/instance-type"
        )
    if unknown := sorted(row.keys() - _FIELDS):
        raise ConfigError(f"price {name!r} has an unknown field {unknown[0]!r}", where=where)
    if "source" not in row:
        raise ConfigError(f"price {name!r} lacks its source", where=where, fix="say who quotes it")
    said = {key: row[key] for key in _PRICES if row.get(key) is not None}
    if not said:
        raise ConfigError(f"price {name!r} has no price", where=where, fix="give on_demand_usd_hour")
    for key, value in said.items():
        if not is_price(value):
            raise ConfigError(
                f"price {name!r}: {key} is {value!r}",
                where=where,
                fix="a price is above 0; leave it out when you do not know it",
            )


def is_price(value: object) -> bool:
    """Say whether ``value`` can be an hourly price: a finite number above 0.

    >>> is_price(2.5), is_price(0), is_price(float("nan"))
    (True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value > 0
