"""Accelerators by any name a tool gives them: nvidia-smi, GFD, GKE, Karpenter, AMD, dstack, SkyPilot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import MappingProxyType

from orchestrator.catalog.lines import Row, own, shipped
from orchestrator.catalog.overlay import in_use
from orchestrator.catalog.values import Accelerator
from orchestrator.errors import ConfigError, Position
from orchestrator.units import GIB

_SEPARATORS = re.compile(r"[\s_\-]+")
_VENDOR = re.compile(r"^(nvidia|amd|intel|tesla|geforce|instinct)+")
_SIZE = re.compile(r"(?<=[a-z0-9])(\d{1,3})g(?:i?b)?$")
_SHARED = re.compile(r"[-_ ]shared$", re.IGNORECASE)
_FIELDS = frozenset(field.name for field in fields(Accelerator))


def accelerators(*, overlay: Path | None = None) -> Mapping[str, Accelerator]:
    """Return every accelerator by its catalog name, in the catalog's order.

    Args:
        overlay: A folder whose ``accelerators.yaml`` adds to the catalog or replaces its entries;
            unset: the one in use (``overlay.use``).

    Raises:
        ConfigError: the overlay is no catalog table.

    >>> accelerators()["H100-80GB"].bandwidth_gbs
    3350
    """
    return _accelerators(overlay or in_use())


def accelerator(
    name: str, *, memory_bytes: int | None = None, overlay: Path | None = None
) -> Accelerator | None:
    """Return the accelerator that ``name`` means, or None when the catalog has none of that name.

    Whole names match, never parts of them: ``L40S`` is no ``L4``. Case, blanks, ``-`` and ``_`` do
    not count, nor does ``-SHARED`` of a time-sliced device. A MIG slice is only itself: an
    unknown profile is None and never the whole device. Of several devices of one name the
    memory decides, and without it the catalog's first.

    Args:
        name: Catalog name or alias, such as ``H100``, ``NVIDIA-A100-SXM4-40GB`` or ``tpu-v6e-slice``.
        memory_bytes: Memory of the device, as its driver or its seller gives it.
        overlay: As for ``accelerators``.

    >>> accelerator("NVIDIA-A100-SXM4-40GB-SHARED").name
    'A100-40GB'
    >>> accelerator("A100", memory_bytes=40 * 2**30).name
    'A100-40GB'
    >>> accelerator("RTX 9999") is None
    True
    """
    found = candidates(name, overlay=overlay)
    if not found:
        return None
    if memory_bytes is None:
        return found[0]
    return min(found, key=lambda device: abs(device.nominal_gb * GIB - memory_bytes))


def candidates(name: str, *, overlay: Path | None = None) -> tuple[Accelerator, ...]:
    """Return every accelerator that ``name`` may mean, the likeliest first.

    >>> [device.name for device in candidates("GH200")]
    ['GH200-96GB', 'GH200-144GB']
    """
    index = _index(overlay or in_use())
    key = _key(_SHARED.sub("", name.strip()))
    if key in index:
        return index[key]
    sized = _SIZE.search(key)
    if sized and key[: sized.start()] in index:  # a name we know, with a size behind it
        near = [d for d in index[key[: sized.start()]] if abs(d.nominal_gb - int(sized[1])) < 2]
        return tuple(near)
    return ()


def known_names(*, overlay: Path | None = None) -> frozenset[str]:
    """Return all catalog names and aliases, as they are spelled, to check and to suggest from.

    >>> {"H100-80GB", "MI300X", "tpu-v6e-slice"} <= known_names()
    True
    """
    devices = _accelerators(overlay or in_use()).values()
    return frozenset(name for device in devices for name in (device.name, *device.aliases))


_SLICE = re.compile(r"(?:tpu-)?(v\d[a-z]*|v5litepod|tpu\d+x)-(\d+)", re.IGNORECASE)
_TWO_CORES = frozenset({"v2", "v3", "v4", "v5p"})
"""Generations whose slices are named by TensorCores, of which a chip has two (Cloud TPU docs)."""


def tpu_slice(name: str) -> tuple[str, int] | None:
    """Return the generation and the chips of a TPU slice as its cloud names it, None for no such name.

    >>> tpu_slice("v5litepod-8"), tpu_slice("tpu-v4-16"), tpu_slice("H100")
    (('v5litepod', 8), ('v4', 8), None)
    """
    found = _SLICE.fullmatch(name)
    if found is None:
        return None
    generation = found[1].lower()
    return generation, int(found[2]) // (2 if generation in _TWO_CORES else 1)


@cache
def _accelerators(overlay: Path | None) -> Mapping[str, Accelerator]:
    devices = {name: _accelerator(name, row) for name, row in shipped("accelerators").items()}
    if overlay is not None:
        for name, row in own("accelerators", overlay).items():
            devices[name] = _checked(name, row, overlay / "accelerators.yaml")
    return MappingProxyType(devices)


def _accelerator(name: str, row: Row) -> Accelerator:
    """Build the value; JSON's lists and text keys become the types it promises."""
    converted = {**row, "name": name}
    for key in ("aliases", "derived", "capability"):
        if key in row:
            converted[key] = tuple(row[key])
    for key in ("native", "weight_only"):
        if key in row:
            converted[key] = frozenset(row[key])
    if "topologies" in row:
        converted["topologies"] = {int(chips): shape for chips, shape in row["topologies"].items()}
    return Accelerator(**converted)


def _checked(name: str, row: Row, path: Path) -> Accelerator:
    where = Position(str(path), 1, 1)
    if unknown := sorted(row.keys() - _FIELDS):
        raise ConfigError(f"accelerator {name!r} has an unknown field {unknown[0]!r}", where=where)
    needed = ("vendor", "architecture", "nominal_gb", "visible_bytes", "source")
    if missing := [key for key in needed if key not in row]:
        raise ConfigError(
            f"accelerator {name!r} lacks {', '.join(missing)}",
            where=where,
            fix="say what it is, how much memory a program sees on it, and who says so",
        )
    if not (isinstance(row["visible_bytes"], int) and row["visible_bytes"] > 0):
        raise ConfigError(f"accelerator {name!r}: visible_bytes is a whole number above 0", where=where)
    return _accelerator(name, row)


@cache
def _index(overlay: Path | None) -> Mapping[str, tuple[Accelerator, ...]]:
    found: dict[str, list[Accelerator]] = {}
    for device in _accelerators(overlay).values():
        for name in (device.name, *device.aliases):
            same = found.setdefault(_key(name), [])
            if device not in same:
                same.append(device)
    # A full catalog name is never ambiguous, whatever else is sold under it.
    for device in _accelerators(overlay).values():
        found[_key(device.name)] = [device]
    return MappingProxyType({key: tuple(devices) for key, devices in found.items()})


def _key(name: str) -> str:
    """Return ``name`` as the index spells it.

    >>> _key("NVIDIA GeForce RTX 4090"), _key("Instinct_MI300X"), _key("AMD_Instinct_MI210")
    ('rtx4090', 'mi300x', 'mi210')
    """
    bare = _SEPARATORS.sub("", name.casefold())
    return _VENDOR.sub("", bare) or bare
