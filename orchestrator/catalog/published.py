"""Published models by their hub id: a trimmed ``config.json`` a line, read like any other config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.catalog.config import from_config, pooling
from orchestrator.catalog.lines import Row, own, shipped
from orchestrator.catalog.overlay import in_use
from orchestrator.catalog.values import ModelFacts
from orchestrator.errors import ConfigError, Position

_FIELDS = frozenset(
    (
        "config",
        "same",
        "quantization_config",
        "context",
        "gated",
        "languages",
        "licence",
        "parameters",
        "source",
        "weights_bytes",
    )
)


class Models(Mapping[str, ModelFacts]):
    """Models by hub id, each read from its line when it is first asked for."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self._rows = rows
        self._found: dict[str, ModelFacts] = {}

    def __getitem__(self, id: str) -> ModelFacts:
        if id not in self._found:
            self._found[id] = self._read(id)
        return self._found[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, id: str) -> ModelFacts:
        """Build the facts of one line; ``same`` names the line whose config it shares."""
        row = self._rows[id]
        config = row.get("config") or self._rows[row["same"]]["config"]
        if "quantization_config" in row:
            config = {**config, "quantization_config": row["quantization_config"]}
        facts = from_config(config, id=id, source=row["source"])
        said: dict[str, Any] = {
            "context": row.get("context", facts.context),
            "gated_access": row.get("gated"),
            "languages": tuple(row.get("languages", ())),
            "licence": row.get("licence"),
            "parameters": row.get("parameters"),
            "weights_bytes": row.get("weights_bytes"),
        }
        facts = replace(facts, **said)
        return pooling(facts) if row.get("pools") else facts


def models(*, overlay: Path | None = None) -> Mapping[str, ModelFacts]:
    """Return every model of the catalog by its hub id.

    Args:
        overlay: A folder whose ``models.yaml`` adds to the catalog or replaces its entries;
            unset: the one in use.

    Raises:
        ConfigError: the overlay is no catalog table.

    >>> models()["Qwen/Qwen3-30B-A3B"].experts
    128
    """
    return _models(overlay or in_use())


def model(id: str, *, overlay: Path | None = None) -> ModelFacts | None:
    """Return the model with that hub id, whatever its case, or None.

    >>> model("META-LLAMA/Llama-3.1-8b-instruct").id
    'meta-llama/Llama-3.1-8B-Instruct'
    """
    overlay = overlay or in_use()
    found = _models(overlay)
    if id in found:
        return found[id]
    spelled = _spellings(overlay).get(id.casefold())
    return found[spelled] if spelled else None


def nearest_model(id: str, *, overlay: Path | None = None) -> str | None:
    """Return the id that is spelled most like ``id``, which may lack its owner; None where none is.

    >>> nearest_model("meta-llama/Llama-3.1-70B-Instuct"), nearest_model("qwen3-8b")
    ('meta-llama/Llama-3.1-70B-Instruct', 'Qwen/Qwen3-8B')
    """
    import difflib  # only a mistake needs it

    spelled = _spellings(overlay or in_use())
    if "/" not in id:
        spelled = {key.rpartition("/")[2]: known for key, known in reversed([*spelled.items()])}
    near = difflib.get_close_matches(id.casefold(), spelled, n=1, cutoff=0.85)
    return spelled[near[0]] if near else None


@cache
def _models(overlay: Path | None) -> Models:
    rows = shipped("models")
    if overlay is not None:
        rows.update(_checked(own("models", overlay), rows, overlay / "models.yaml"))
    return Models(rows)


@cache
def _spellings(overlay: Path | None) -> Mapping[str, str]:
    return {id.casefold(): id for id in _models(overlay)}


def _checked(added: dict[str, Row], known: Mapping[str, Row], path: Path) -> dict[str, Row]:
    where = Position(str(path), 1, 1)
    for id, row in added.items():
        if unknown := sorted(row.keys() - _FIELDS):
            raise ConfigError(f"model {id!r} has an unknown field {unknown[0]!r}", where=where)
        if "source" not in row:
            raise ConfigError(
                f"model {id!r} lacks its source", where=where, fix="say where the config is from"
            )
        base = added.get(row.get("same", ""), known.get(row.get("same", "")))
        if "config" not in row and not (base and "config" in base):
            raise ConfigError(
                f"model {id!r} has no config",
                where=where,
                fix="give the fields of its config.json as 'config', or 'same: ID' of a model that has them",
            )
    return added
