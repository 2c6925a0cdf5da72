"""The catalog's facts, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any, Literal

from orchestrator.catalog import Accelerator, Image, ModelFacts, PriceRow, parameters
from orchestrator.render.table import columns, table, to_json
from orchestrator.units import format_bytes

Fact = Accelerator | ModelFacts | Image | PriceRow
Kind = Literal["accelerators", "models", "images", "prices"]

_HEADERS: Mapping[Kind, tuple[str, ...]] = {
    "accelerators": ("NAME", "VENDOR", "MEMORY", "GB/S", "BF16 TFLOPS", "CAPABILITY"),
    "models": ("NAME", "PARAMETERS", "LAYERS", "CONTEXT", "WEIGHTS"),
    "images": ("ENGINE", "VERSION", "FAMILY", "IMAGE", "REMARK"),
    "prices": ("PROVIDER", "REGION", "INSTANCE", "ACCELERATOR", "$/H", "SPOT $/H", "AS OF"),
}


def facts_text(kind: Kind, facts: Sequence[Fact]) -> str:
    """Return facts of one kind as a table, in their order."""
    return table(_HEADERS[kind], [_cells(fact) for fact in facts]) if facts else f"no {kind}"


def facts_json(found: Mapping[Kind, Sequence[Fact]]) -> str:
    """Return facts as ``modelyard/catalog/v1``, by kind; fields that nobody knows are left out."""
    return to_json(
        "modelyard/catalog/v1", {kind: [_object(fact) for fact in facts] for kind, facts in found.items()}
    )


def fact_text(fact: Fact) -> str:
    """Return all that is known of one fact, a line a field, with its source.

    >>> print(fact_text(Image("vllm", "0.33.0", "cuda", "vllm/vllm-openai", "v0.33.0", "docs")))
    image vllm/0.33.0/cuda
      engine      vllm
      version     0.33.0
      family      cuda
      repository  vllm/vllm-openai
      tag         v0.33.0
      source      docs
    """
    rows = [(key, _shown(key, value)) for key, value in _known(fact).items()]
    return "\n".join([f"{_word(fact)} {name_of(fact)}", *columns(rows, indent="  ")])


def name_of(fact: Fact) -> str:
    """Return the key under which a fact stands in its table."""
    match fact:
        case ModelFacts():
            return fact.id
        case Image():
            return f"{fact.engine}/{fact.version}/{fact.family}"
        case _:
            return fact.name


def _word(fact: Fact) -> str:
    words = {Accelerator: "accelerator", ModelFacts: "model", Image: "image", PriceRow: "price"}
    return words[type(fact)]


def _cells(fact: Fact) -> list[str]:
    match fact:
        case Accelerator():
            memory, bf16 = format_bytes(fact.visible_bytes), fact.tflops.get("bf16")
            capability = ".".join(map(str, fact.capability)) if fact.capability else "-"
            return [fact.name, fact.vendor, memory, _number(fact.bandwidth_gbs), _number(bf16), capability]
        case ModelFacts():
            weights = format_bytes(fact.weights_bytes) if fact.weights_bytes else "-"
            return [fact.id, f"{parameters(fact).total:,}", str(fact.layers), _number(fact.context), weights]
        case Image():
            return [fact.engine, fact.version, fact.family, fact.reference, fact.ended or ""]
        case PriceRow():
            what = f"{fact.count} × {fact.accelerator}" if fact.accelerator else "-"
            prices = [_number(usd) for usd in (fact.on_demand_usd_hour, fact.spot_usd_hour)]
            return [
                fact.provider,
                fact.region or "-",
                fact.instance_type,
                what,
                *prices,
                str(fact.as_of or "-"),
            ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}" if value < 1e6 else f"{value:,.0f}"


def _known(fact: Any) -> dict[str, object]:
    """Return the fields of a fact, or of a part of one, that say something, in their order."""
    said = {field.name: (getattr(fact, field.name), field.default) for field in fields(fact)}
    return {
        key: value
        for key, (value, default) in said.items()
        if value not in (None, "", (), frozenset(), {}) and (value != default or isinstance(value, str))
    }


def _object(fact: Any) -> dict[str, object]:
    return {key: _plain(value) for key, value in _known(fact).items()}


def _plain(value: object) -> object:
    """Return a field's value as JSON has it; parts of facts by their own fields."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return _object(value) if is_dataclass(value) else value


def _shown(key: str, value: object) -> str:
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{value} ({format_bytes(value)})"
    if isinstance(value, tuple) and len(set(value)) == 1 and len(value) > 3:
        return f"{len(value)} × {value[0]}"
    if key in ("capability", "min_capability") and isinstance(value, tuple):
        return ".".join(map(str, value))
    plain = _plain(value)
    if isinstance(plain, list):
        return ", ".join(map(str, plain))
    if isinstance(plain, dict):
        return ", ".join(f"{name} {item}" for name, item in plain.items())
    return str(plain)
