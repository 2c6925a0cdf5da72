"""Reads other tools' price lists: gpuhunt's catalog and SkyPilot's (v8), as CSV, into price rows.

A line that cannot be a price is refused with its number, never taken as 0. SkyPilot lists Google's
machines and their GPUs on separate lines; they are joined region by region.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from io import StringIO
from pathlib import Path

from orchestrator.catalog.hardware import accelerator, tpu_slice
from orchestrator.catalog.lines import own
from orchestrator.catalog.pricing import is_price, price_line
from orchestrator.catalog.values import Accelerator, PriceRow
from orchestrator.errors import ConfigError, Position, Problem
from orchestrator.frozen import frozen
from orchestrator.units import GB, GIB

_MEBIBYTES = re.compile(r"'?SizeInMiB'?:\s*([\d.]+)")
_A100_HOSTS = {
    1: "a2-highgpu-1g",
    2: "a2-highgpu-2g",
    4: "a2-highgpu-4g",
    8: "a2-highgpu-8g",
    16: "a2-megagpu-16g",
}
_A100_80_HOSTS = {n: f"a2-ultragpu-{n}g" for n in (1, 2, 4, 8)}
_H100_HOSTS = {n: f"a3-highgpu-{n}g" for n in (1, 2, 4, 8)}
_L4_HOSTS = {1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"}
_HOSTS: Mapping[str, Mapping[int, str]] = {
    "A100": _A100_HOSTS,
    "A100-80GB": _A100_80_HOSTS,
    "H100": _H100_HOSTS,
    "H100-MEGA": {8: "a3-megagpu-8g"},
    "H200": {8: "a3-ultragpu-8g"},
    "B200": {8: "a4-highgpu-8g"},
    "L4": _L4_HOSTS,
}
"""The only machine that Google sells a GPU count with (cloud.google.com/compute/docs/gpus)."""
_N1_HOSTS = {1: "n1-highmem-8", 2: "n1-highmem-16", 4: "n1-highmem-32", 8: "n1-highmem-96"}
"""Older GPUs go with any N1 machine; these are the ones SkyPilot itself chooses."""


@frozen
class PriceList:
    """What was read from a price list, and every line that was refused with the reason."""

    rows: tuple[PriceRow, ...]
    refused: tuple[Problem, ...]


def read_price_list(text: str, *, provider: str, as_of: date | None, file: str) -> PriceList:
    """Return the rows of a price list of either tool, told by its columns.

    Args:
        text: The CSV with its header line.
        provider: Whose list it is.
        as_of: The day of the list.
        file: What to call it in a refusal.

    Raises:
        ConfigError: it is of neither tool.

    >>> head = "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region"
    >>> found = read_price_list(head + "\\nx,L4,1,0.8,,eu", provider="acme", as_of=None, file="vms.csv")
    >>> found.rows[0].name
    'acme/eu/x'
    """
    columns = text.lstrip().partition("\n")[0]
    read = read_skypilot if "AcceleratorName" in columns else read_gpuhunt
    return read(text, provider=provider, as_of=as_of, file=file)


def replace_prices(folder: Path, rows: Sequence[PriceRow]) -> Path:
    """Write ``rows`` into the table of prices in ``folder``, in place of all of their providers'.

    The other lines stay as they are said, though not as they are written. A reader sees the old
    table or the new one, never half of it.

    Returns:
        The table's path.

    Raises:
        ConfigError: the table that is there is none, or the folder cannot be written.
    """
    path = folder / "prices.yaml"
    replaced = {row.provider for row in rows}
    kept = {name: row for name, row in own("prices", folder).items() if name.split("/")[0] not in replaced}
    lines = [f"{json.dumps(name)}: {json.dumps(row, default=str)}" for name, row in kept.items()]
    text = "\n".join(sorted(lines + [price_line(row) for row in rows])) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(text, "utf-8")
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", fix="check the folder") from error
    return path


def read_gpuhunt(text: str, *, provider: str, as_of: date | None, file: str = "catalog.csv") -> PriceList:
    """Return the rows of a gpuhunt catalog file.

    Args:
        text: The CSV with its header line.
        provider: Whose list it is; a ``provider`` column wins.
        as_of: The day of the catalog; its version names it.
        file: What to call it in a refusal.

    Raises:
        ConfigError: it has not gpuhunt's columns.

    >>> head = "instance_name,location,price,gpu_count,gpu_name,spot"
    >>> found = read_gpuhunt(head + "\\ng6.xlarge,us-east-1,0.8,1,L4,False", provider="aws", as_of=None)
    >>> found.rows[0].accelerator, found.rows[0].on_demand_usd_hour
    ('L4-24GB', 0.8)
    """
    needed = ("instance_name", "location", "price", "gpu_count", "gpu_name", "spot")
    found: dict[str, PriceRow] = {}
    refused: list[Problem] = []
    for line, row in _lines(text, needed, file):
        count = _whole(row.get("gpu_count"))
        if not count:
            continue  # machines without an accelerator are no concern of this catalog
        memory = _number(row.get("gpu_memory"))
        device = accelerator(row["gpu_name"], memory_bytes=int(memory * GIB) if memory else None)
        price = _number(row["price"])
        if device is None or not is_price(price):
            refused.append(_refusal(file, line, row["gpu_name"], device, row["price"], "price"))
            continue
        spot = row["spot"].strip().casefold() == "true"
        _add(
            found,
            PriceRow(
                provider=row.get("provider") or provider,
                region=row["location"],
                instance_type=_attached(row["instance_name"], row["gpu_name"], count),
                source=f"gpuhunt {file}",
                accelerator=device.name,
                count=count,
                cpu=_number(row.get("cpu")),
                memory_bytes=_bytes(row.get("memory"), GIB),
                disk_bytes=_bytes(row.get("disk_size"), GB),
                on_demand_usd_hour=None if spot else price,
                spot_usd_hour=price if spot else None,
                as_of=as_of,
            ),
        )
    return _sorted(found, refused)


def read_skypilot(text: str, *, provider: str, as_of: date | None, file: str = "vms.csv") -> PriceList:
    """Return the rows of a SkyPilot v8 catalog file.

    Args:
        text: The CSV with its header line.
        provider: Whose list it is; for ``gcp`` machines and GPUs are joined by region.
        as_of: The day of the list.
        file: What to call it in a refusal.

    Raises:
        ConfigError: it has not SkyPilot's columns.
    """
    needed = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region")
    lines = list(_lines(text, needed, file))
    machines = _machines(lines)
    found: dict[str, PriceRow] = {}
    refused: list[Problem] = []
    for line, row in lines:
        name, count = row["AcceleratorName"], _whole(row["AcceleratorCount"])
        if not name or not count:
            continue
        device, devices = _device(name, count, row.get("GpuInfo") or "")
        price, spot = _price(row["Price"]), _price(row["SpotPrice"])
        if device is None or (price is None and spot is None):
            refused.append(_refusal(file, line, name, device, row["Price"] or row["SpotPrice"], "Price"))
            continue
        quote = _Quote(row["InstanceType"], price, spot, row.get("vCPUs"), row.get("MemoryGiB"))
        if not quote.instance_type and tpu_slice(name) is None:
            joined = _join(quote, name, count, row["Region"], machines)
            if joined is None:
                refused.append(
                    Problem(Position(file, line, 1), f"no machine for {count} × {name} in {row['Region']}")
                )
                continue
            quote = joined
        _add(
            found,
            PriceRow(
                provider=provider,
                region=row["Region"],
                instance_type=quote.instance_type or name,
                source=f"SkyPilot catalog {file}",
                accelerator=device.name,
                count=devices,
                cpu=_number(quote.cpu),
                memory_bytes=_bytes(quote.memory, GIB),
                on_demand_usd_hour=quote.price,
                spot_usd_hour=quote.spot,
                as_of=as_of,
            ),
        )
    return _sorted(found, refused)


@frozen
class _Quote:
    """One line's machine and prices, texts as the list has them."""

    instance_type: str
    price: float | None
    spot: float | None
    cpu: str | None
    memory: str | None


def _machines(lines: Sequence[tuple[int, dict[str, str]]]) -> dict[tuple[str, str], _Quote]:
    """Return the lines that price a machine alone, by region and type; the cheapest of its zones."""
    found: dict[tuple[str, str], _Quote] = {}
    for _, row in lines:
        if not row["InstanceType"] or row["AcceleratorName"]:
            continue
        quote = _Quote(
            row["InstanceType"],
            _price(row["Price"]),
            _price(row["SpotPrice"]),
            row.get("vCPUs"),
            row.get("MemoryGiB"),
        )
        key = (row["Region"], quote.instance_type)
        kept = found.get(key)
        if kept is None or (quote.price or 0) < (kept.price or 0):
            found[key] = quote
    return found


def _join(
    gpu: _Quote, name: str, count: int, region: str, machines: Mapping[tuple[str, str], _Quote]
) -> _Quote | None:
    """Return the GPUs' line with their machine's, or None when there is none in that region."""
    host = machines.get((region, _HOSTS.get(name, _N1_HOSTS).get(count, "")))
    if host is None:
        return None
    price = gpu.price + host.price if gpu.price is not None and host.price is not None else None
    spot = gpu.spot + host.spot if gpu.spot is not None and host.spot is not None else None
    if price is None and spot is None:
        return None
    return _Quote(_attached(host.instance_type, name, count), price, spot, host.cpu, host.memory)


def _attached(instance_type: str, name: str, count: int) -> str:
    """Return what a machine is called with GPUs that are attached to it: alone it has another price.

    >>> _attached("n1-highmem-8", "T4", 2), _attached("g2-standard-4", "L4", 1)
    ('n1-highmem-8+t4x2', 'g2-standard-4')
    """
    return f"{instance_type}+{name.lower()}x{count}" if instance_type.startswith("n1-") else instance_type


def _device(name: str, count: int, described: str) -> tuple[Accelerator | None, int]:
    """Return the device of a name and how many; a TPU's name says how many chips it is."""
    if slice_ := tpu_slice(name):
        return accelerator(slice_[0]), count * slice_[1]
    size = _MEBIBYTES.search(described)
    mebibytes = float(size[1]) if size else 0.0
    # some fetchers write GiB under this name
    memory = int(mebibytes * 2**20) if mebibytes > 1000 else int(mebibytes * GIB)
    return accelerator(name, memory_bytes=memory or None), count


def _lines(text: str, needed: Sequence[str], file: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(StringIO(text))
    missing = [column for column in needed if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(
            f"the price list lacks the column {missing[0]!r}",
            where=Position(file, 1, 1),
            fix=f"its first line names the columns, among them {', '.join(needed)}",
        )
    for row in reader:
        yield (
            reader.line_num,
            {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)},
        )


def _add(found: dict[str, PriceRow], row: PriceRow) -> None:
    """Put a row in; spot and on-demand lines of one instance become one row, the cheaper zone wins."""
    kept = found.get(row.name)
    if kept is None:
        found[row.name] = row
        return
    found[row.name] = PriceRow(
        provider=row.provider,
        region=row.region,
        instance_type=row.instance_type,
        source=row.source,
        accelerator=kept.accelerator,
        count=kept.count,
        cpu=kept.cpu,
        memory_bytes=kept.memory_bytes,
        disk_bytes=kept.disk_bytes,
        on_demand_usd_hour=_lower(kept.on_demand_usd_hour, row.on_demand_usd_hour),
        spot_usd_hour=_lower(kept.spot_usd_hour, row.spot_usd_hour),
        as_of=row.as_of,
    )


def _lower(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _sorted(found: Mapping[str, PriceRow], refused: Sequence[Problem]) -> PriceList:
    return PriceList(tuple(found[name] for name in sorted(found)), tuple(refused))


def _refusal(file: str, line: int, name: str, device: Accelerator | None, price: str, column: str) -> Problem:
    at = Position(file, line, 1)
    if device is None:
        return Problem(
            at, f"no accelerator is called {name!r}", "add it to accelerators.yaml of your catalog"
        )
    return Problem(at, f"{column} {price or 'missing'!r} is no price", "a price is a number above 0")


def _number(text: str | None) -> float | None:
    try:
        found = float(text) if text else None
    except ValueError:
        return None
    return found if found is None or found == found else None


def _price(text: str) -> float | None:
    found = _number(text)
    return found if is_price(found) else None


def _whole(text: str | None) -> int:
    found = _number(text)
    return int(found) if found and found == int(found) else 0


def _bytes(text: str | None, unit: int) -> int | None:
    found = _number(text)
    return int(found * unit) if found else None
