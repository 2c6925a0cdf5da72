"""Container images of engines, by version and family of accelerators."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.catalog.lines import Row, own, shipped
from orchestrator.catalog.overlay import in_use
from orchestrator.catalog.values import Image
from orchestrator.errors import ConfigError, Position

_FIELDS = frozenset(field.name for field in fields(Image)) - {"engine", "version", "family"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def images(
    engine: str | None = None,
    family: str | None = None,
    version: str | None = None,
    *,
    overlay: Path | None = None,
) -> tuple[Image, ...]:
    """Return the images that match what is given, the newest version of an engine first.

    Args:
        engine: Such as ``vllm``.
        family: As ``Accelerator.family``, or ``cpu`` and ``cpu-arm``.
        version: The engine's version, without a ``v``.
        overlay: A folder whose ``images.yaml`` adds images or pins digests; unset: the one in use.

    Raises:
        ConfigError: the overlay is no catalog table.

    >>> [image.reference for image in images("vllm", "rocm", "0.33.0")]
    ['vllm/vllm-openai-rocm:v0.33.0']
    """
    return _matching(engine, family, version, overlay or in_use())


@cache
def _matching(
    engine: str | None, family: str | None, version: str | None, overlay: Path | None
) -> tuple[Image, ...]:
    return tuple(
        image
        for image in _images(overlay)
        if engine in (None, image.engine)
        and family in (None, image.family)
        and version in (None, image.version)
    )


@cache
def _images(overlay: Path | None) -> tuple[Image, ...]:
    rows = shipped("images")
    if overlay is not None:
        for name, row in own("images", overlay).items():
            rows[name] = {**rows.get(name, {}), **row}
            _check(name, rows[name], overlay / "images.yaml")
    found = [_image(name, row) for name, row in rows.items()]
    return tuple(sorted(found, key=lambda image: (image.engine, _newest_first(image.version), image.family)))


def _image(name: str, row: Row) -> Image:
    engine, version, family = name.split("/")
    values: dict[str, Any] = dict(row)
    if "min_capability" in row:
        values["min_capability"] = tuple(row["min_capability"])
    return Image(engine=engine, version=version, family=family, **values)


def _newest_first(version: str) -> tuple[int, ...]:
    return tuple(-int(number) for number in re.findall(r"\d+", version))


def _check(name: str, row: Row, path: Path) -> None:
    where = Position(str(path), 1, 1)
    if name.count("/") != 2:
        raise ConfigError(f"image {name!r} has no name", where=where, fix="write engine/version/family")
    if unknown := sorted(row.keys() - _FIELDS):
        raise ConfigError(f"image {name!r} has an unknown field {unknown[0]!r}", where=where)
    if missing := [key for key in ("repository", "tag", "source") if key not in row]:
        raise ConfigError(f"image {name!r} lacks {', '.join(missing)}", where=where)
    if row.get("digest") and not _DIGEST.fullmatch(row["digest"]):
        raise ConfigError(f"image {name!r}: a digest is sha256: and 64 hexadecimal digits", where=where)
