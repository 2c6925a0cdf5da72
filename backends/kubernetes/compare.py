"""What an apply would change in the objects that are there, as the server itself says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from backends.kubernetes.names import DIGEST

Json = Mapping[str, Any]

_LONGEST = 60


def changes(live: Json | None, planned: Json) -> list[str]:
    """Return each field that would have another value, in one phrase; none where nothing would.

    Args:
        live: The object as it is, None where there is none.
        planned: As the server would have it: the answer of a dry run.

    >>> there = {"kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 7}}
    >>> changes(there, {**there, "spec": {"replicas": 2}})
    ['Deployment web: spec.replicas 7 -> 2']
    """
    what = f"{planned['kind']} {planned['metadata']['name']}"
    if live is None:
        return [f"{what}: is made"]
    return [f"{what}: {phrase}" for phrase in _differences(_said(live), _said(planned), "")]


def _said(one: Json) -> Json:
    """Return what somebody says of an object, without what its server keeps of it."""
    kept = {
        key: value for key, value in one.items() if key not in {"status", "metadata", "kind", "apiVersion"}
    }
    metadata = one["metadata"]
    annotations = {k: v for k, v in (metadata.get("annotations") or {}).items() if k != DIGEST}
    return {**kept, "metadata": {"labels": metadata.get("labels") or {}, "annotations": annotations}}


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif _is_named(old) and _is_named(new):
        before, after = ({one["name"]: one for one in many} for many in (old, new))
        for name in sorted({*before, *after}):
            yield from _differences(before.get(name), after.get(name), f"{path}[{name}]")
    elif old != new:
        yield f"{path} {_shown(old)} -> {_shown(new)}"


def _is_named(many: Any) -> bool:
    """Return whether a list is one whose items have names: their order says nothing."""
    return isinstance(many, list) and all(isinstance(one, Mapping) and "name" in one for one in many)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, sort_keys=True)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
