"""JSON Schema of the documents, for editors; made from the models, short forms included."""

from __future__ import annotations

from typing import Any, TypeAlias

from pydantic.json_schema import models_json_schema

from orchestrator.spec.models import TYPES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema: TypeAlias = dict[str, Any]


def json_schema() -> Schema:
    """Return the schema of one document of any kind, in JSON Schema 2020-12.

    Beside the standard's words, each field has ``x-on-change``: ``replace`` where a change needs
    new containers, ``in-place`` where it does not; and ``x-unit`` where a plain number has one.

    >>> json_schema()["oneOf"][0]
    {'$ref': '#/$defs/Task'}
    """
    _, found = models_json_schema([(kind, "validation") for kind in TYPES.values()])
    parts: dict[str, Schema] = found["$defs"]
    for name, part in parts.items():
        parts[name] = _without_titles(part)
    for kind in TYPES.values():
        document = parts[kind.__name__]
        document["required"] = sorted({"type", *document.get("required", ())})
    return {
        "$schema": DIALECT,
        "title": "Modelyard",
        "description": "A task, service, dev environment, fleet or volume.",
        "oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in TYPES.values()],
        "$defs": parts,
    }


def _without_titles(part: Schema) -> Schema:
    """Leave out the titles that repeat the names of fields."""
    part = dict(part)
    if "anyOf" in part:
        part["anyOf"] = [_without_titles(choice) for choice in part["anyOf"]]
    if "properties" in part:
        part["properties"] = {
            name: {key: value for key, value in field.items() if key != "title"}
            for name, field in part["properties"].items()
        }
    return part
