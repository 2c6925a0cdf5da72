"""The reference of the YAML, written from the models: ``python -m orchestrator.spec.reference``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from orchestrator.spec.models import TYPES, Named, Placement, Work
from orchestrator.spec.parts import Part, exact_seconds, mark_of, part_of, unit_of
from orchestrator.spec.schema import json_schema
from orchestrator.spec.values import MAX_NAME

_INTRO = f"""\
# The spec

Written by `python -m orchestrator.spec.reference`; a test holds it against the models.

A file holds one document or several, divided by `---`. Each has a `type`:
{", ".join(f"`{word}`" for word in TYPES)}. Names are lower case DNS labels of at most
{MAX_NAME} characters. Unknown keys are refused. Nothing is asked for
that is not written: a task without `resources` goes anywhere.

"on change" says what a changed field needs when the document is applied again: *replace*, new
containers; *in place*, what runs takes it up.

## YAML

YAML 1.2: only `true` and `false` are booleans, `1:30` is text, `010` is ten. Duplicate keys are
errors. Anchors, aliases and `<<` merges work within a document. A file has at most 10 MB, 200,000
values with aliases expanded, and 64 levels. Folders are searched for `*.yaml` and `*.yml`, hidden
ones left out; `-` is stdin. Relative paths count from the file's folder.

## Short forms

| of | examples | means |
|---|---|---|
| size | `512MB`, `16GiB` | GB is 10^9 bytes, GiB 2^30; the unit is required |
| duration | `90s`, `5m`, `1h30m`, `2d`, `1w`, `90`, `off` | a bare number counts seconds; `off` is no limit |
| range | `2`, `1..4`, `2..`, `..8` | both ends included; also of sizes, `24GB..80GB` |
| cpu | `8`, `8..`, `0.5`, `arm:8..` | cores, and the instruction set |
| gpu | `1`, `24GB`, `A10G,A100`, `24GB..80GB:2`, `amd:MI300X:8` | vendor, names, memory, count in any order |
| port | `8000`, `80:8080`, `*:8080` | local and container port; `*` is any free one |
| env | `[A=1, HF_TOKEN]`, `{{A: 1, HF_TOKEN: }}` | a bare name: from the environment or the secrets |
| mount | `cache:/path`, `/host:/path`, `./folder:/path` | a volume, or a folder of the machine |
| file | `train.py`, `train.py:/app/train.py` | local path, and path inside |
| model | `org/name` | the same as `{{id: org/name}}` |

## References

`${{{{ env.NAME }}}}` is filled in from the environment and `${{{{ run.args }}}}` from the command line when
the file is read, anywhere in text. `${{{{ secrets.NAME }}}}` stays a reference until a container starts, and
may stand in `env` and `registry_auth` only. A variable whose name says that it is a secret
(`HF_TOKEN`, `API_KEY`) is not written into plans: give its bare name in `env`.

## Ports

In a container a program listens on its `port`, and any free port of the machine leads there; `ps`
and `show` tell which. Commands that run without a container (the `process` backend) share the
ports of their machine: the launch is given `port` itself where that is free, and another one where
it is not, as it is while an older replica still serves. A program that listens on
**`$MODELYARD_PORT`** is right everywhere: it is the port it was given, and in a container the
`port` of the spec. (The process backend also sets `PORT`, and `MODELYARD_PORT_<number>` for each
further port.) A service whose commands name the number instead cannot run twice on one machine:
its old replica is stopped before the new one starts, and the plan says so.

## What a program is told

| variable | holds |
|---|---|
| `MODELYARD_RUN_NAME`, `MODELYARD_REPLICA` | the run, and the number of the replica from 0 |
| `MODELYARD_PORT` | the port to listen on, where the spec names any |
| `MODELYARD_NODES_NUM`, `MODELYARD_NODE_RANK` | how many nodes there are, and this one's rank from 0 |
| `MODELYARD_MASTER_NODE_IP` | the address of rank 0, where there are several nodes |
| `MODELYARD_NODES_IPS` | the addresses of all, one a line by rank; not in a cluster, where they come and go |
| `MODELYARD_GPUS_NUM`, `MODELYARD_GPUS_PER_NODE` | accelerators of all nodes together, and of each |
"""


def reference() -> str:
    """Return the whole page as Markdown: every document, every part, every field."""
    schemas = json_schema()["$defs"]
    lines = [_INTRO]
    lines += _section("All documents", "What every document has.", Named, schemas, except_=frozenset())
    common = frozenset(Named.model_fields)
    where = "Where something may run: tasks, services, dev environments and fleets."
    lines += _section("Placement", where, Placement, schemas, except_=common)
    common |= frozenset(Placement.model_fields)
    lines += _section("Work", "Tasks, services and dev environments.", Work, schemas, except_=common)
    for word, kind in TYPES.items():
        inherited = frozenset(kind.model_fields) - frozenset(inspect.get_annotations(kind))
        lines += _section(f"type: {word}", _about(kind), kind, schemas, except_=inherited | {"type"})
    for part in _parts():
        lines += _section(part.__name__, _about(part), part, schemas, except_=frozenset())
    return "\n".join(lines).rstrip() + "\n"


def _parts() -> list[type[Part]]:
    """Return every part that a document can hold, by name."""
    found: dict[str, type[Part]] = {}
    waiting: list[type[Part]] = list(TYPES.values())
    while waiting:
        for info in waiting.pop().model_fields.values():
            part = part_of(info.annotation)
            if part is not None and part.__name__ not in found:
                found[part.__name__] = part
                waiting.append(part)
    return [found[name] for name in sorted(found)]


def _about(part: type[Part]) -> str:
    return inspect.cleandoc(part.__doc__ or "").replace("``", "`")


def _section(
    title: str, about: str, part: type[Part], schemas: Mapping[str, Any], *, except_: frozenset[str]
) -> Iterator[str]:
    # bases have no schema of their own; any document that inherits from them has the fields
    fields = next(
        _fields_of(schemas[kind.__name__])
        for kind in (part, *TYPES.values())
        if kind.__name__ in schemas and issubclass(kind, part)
    )
    yield f"\n## {title}\n\n{about}\n"
    yield "| field | takes | default | on change | |"
    yield "|---|---|---|---|---|"
    for name in part.model_fields:
        if name not in except_:
            yield _row(name, fields[name], part.model_fields[name])


def _fields_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a part, whose long form may stand beside short ones."""
    found: Mapping[str, Any] = schema["anyOf"][-1] if "anyOf" in schema else schema
    return found["properties"]  # type: ignore[no-any-return]  # JSON has no types


def _row(name: str, field: Mapping[str, Any], info: FieldInfo) -> str:
    takes = _UNITS.get(unit_of(info) or "") or " or ".join(_takes(field))
    examples = ", ".join(f"`{_written(example)}`" for example in field.get("examples") or ())
    text = field["description"] + (f" For example {examples}." if examples else "")
    change = mark_of(info).replace("-", " ")
    return f"| `{name}` | {takes} | {_default(info)} | {change} | {text.replace('|', chr(92) + '|')} |"


_UNITS = {"bytes": "size", "seconds": "duration"}


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default.canonical() if isinstance(info.default, Part) else info.default
    if isinstance(value, int) and unit_of(info) == "seconds":
        value = exact_seconds(value)
    return "" if value in (None, (), {}) else f"`{_written(value)}`"


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _takes(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a field may be, in a reader's words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield "anything" if name == "JsonValue" else f"[{name}](#{name.lower()})"
    elif "anyOf" in schema:
        seen: list[str] = []
        for choice in schema["anyOf"]:
            seen += [word for word in _takes(choice) if word not in seen and word != "nothing"]
        yield from seen
    elif "enum" in schema:
        yield ", ".join(f"`{choice}`" for choice in schema["enum"])
    elif "const" in schema:
        yield f"`{_written(schema['const'])}`"
    elif schema.get("type") == "array":
        yield f"list of {' or '.join(_takes(schema.get('items', {})))}"
    elif schema.get("type") == "object":
        yield "mapping"
    else:
        yield _WORDS[schema.get("type", "")]


_WORDS = {
    "": "anything",
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "nothing",
}


if __name__ == "__main__":
    print(reference(), end="")
