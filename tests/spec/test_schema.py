"""The JSON Schema: valid, complete, and of one mind with the loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml

from orchestrator.spec.load import read
from orchestrator.spec.models import TYPES
from orchestrator.spec.schema import json_schema
from tests.spec.test_models import TEXTS
from tests.spec.texts import problems_in, service, task

SCHEMA = json_schema()
CONFIGS = sorted(Path(__file__).parents[2].glob("configs/**/*.y*ml"))


def errors_of(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for choice in schema.get("anyOf", [schema]):
        yield from choice.get("properties", {}).items()


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_field_is_described_and_marked() -> None:
    for name, part in SCHEMA["$defs"].items():
        for field, schema in fields(part):
            assert schema["description"], f"{name}.{field}"
            assert schema["x-on-change"] in ("replace", "in-place"), f"{name}.{field}"


def test_every_reference_leads_somewhere() -> None:
    def references(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    assert {ref.removeprefix("#/$defs/") for ref in references(SCHEMA)} <= set(SCHEMA["$defs"])


@pytest.mark.parametrize("text", [text for text in TEXTS if "0 3 * * *" not in text])
def test_what_loads_is_valid(text: str) -> None:
    assert errors_of(text) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_are_valid(path: Path) -> None:
    assert errors_of(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        service("bogus: 1"), service("replicas: [1]"), service("engine: vlm"), service("traffic: 1"),
        service("priority: 101"), task("nodes: 0"), task("resources: {gpu: [1]}"), task("image: 3"),
        task("resources: {gpus: 1}"), task("ports: [99999]"), task("retry: {on_events: [x]}"),
        "type: pod\nname: a", "name: a", "type: volume", "type: volume\nname: a\nsize: 5",
    ],
)  # fmt: skip
def test_what_is_not_valid_does_not_load(text: str) -> None:
    assert errors_of(text)
    assert problems_in(text)


def examples() -> Iterator[tuple[type, str, object]]:
    for kind in TYPES.values():
        for name, info in kind.model_fields.items():
            for example in info.examples or ():
                yield kind, name, example


@pytest.mark.parametrize(("kind", "name", "example"), tuple(examples()))
def test_examples_of_fields_are_accepted(kind: type, name: str, example: object) -> None:
    (word,) = (word for word, found in TYPES.items() if found is kind)
    document = {"type": word, "name": "a", name: example}

    schema = {"$ref": f"#/$defs/{kind.__name__}", "$defs": SCHEMA["$defs"]}
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)
    # rules may miss other fields; the field itself is well formed
    kind.model_validate({"name": "a", name: example})  # type: ignore[attr-defined]  # a document


def test_a_reference_may_stand_for_a_range() -> None:
    text = service("replicas: ${{ env.N }}")

    assert errors_of(text) == []
    assert read(text, env={"N": "2"})
