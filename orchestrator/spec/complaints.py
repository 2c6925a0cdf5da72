"""What the models refuse, as problems at their place in the file, with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from orchestrator.spec.forms import FormError, nearest, shown
from orchestrator.spec.models import TYPES, Model, Probe, Service, Train, TrainAdapter
from orchestrator.spec.parts import Part, part_of
from orchestrator.spec.tree import Entries, Items, Node, Scalar, Source, resolve

Path: TypeAlias = tuple[str | int, ...]
Words: TypeAlias = tuple[str, str | None]
"""What happened, and what to do."""

_THOUSANDS = re.compile(r"([1-9]\d{0,6})[kK]")
_STEP = re.compile(r"\['(.*?)'\](?=[.\[]|$)|([^.\[\]]+)|\[(\d+)\]", re.DOTALL)
_YES = frozenset(("yes", "on", "y", "1"))
_NO = frozenset(("no", "off", "n", "0"))


def parse_path(path: str) -> Path:
    """Return the steps of a path such as ``resources.gpu``, ``commands[1]`` or ``tags['a.b/c']``.

    >>> parse_path("volumes[1].path"), parse_path("tags['a.b/c']")
    (('volumes', 1, 'path'), ('tags', 'a.b/c'))
    """
    return tuple(int(found[3]) if found[3] else found[2] or found[1] for found in _STEP.finditer(path))


def write_path(path: Sequence[str | int]) -> str:
    """Return the steps of a path as text.

    >>> write_path(("volumes", 1, "path"))
    'volumes[1].path'
    """
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def locate(root: Node, path: Sequence[str | int]) -> tuple[Node, tuple[int, int]]:
    """Return the deepest value on ``path`` that the file has, and where it stands."""
    node = root
    for step in path:
        if isinstance(node, Entries) and step in node.entries:
            node = node.entries[str(step)].node
        elif isinstance(node, Items) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        elif isinstance(node, Items) and (found := named(node, str(step))):
            node = found
        else:
            break
    return node, (node.line, node.column)


def named(items: Items, name: str) -> Node | None:
    """Return the entry of a list of variables, ``NAME=value`` or ``NAME``, that sets ``name``."""
    texts = (item for item in items.items if isinstance(item, Scalar))
    return next((item for item in texts if item.text.partition("=")[0] == name), None)


def complain(source: Source, root: Node, spec_type: type[Part], errors: Sequence[Mapping[str, Any]]) -> None:
    """Add a problem to ``source`` for each of pydantic's ``errors`` about ``root``.

    Of a number that could not be read nothing more is said.
    """
    for error in errors:
        path: Path = tuple(error["loc"])
        value, _ = locate(root, path)
        if isinstance(value, Scalar) and value.is_unread:
            continue
        if error["type"] == "extra_forbidden":
            _unknown_key(source, root, spec_type, path)
        elif error["type"] == "missing":
            _, place = locate(root, path)
            key = path[-1]
            source.add(*place, f"missing key {write_path(path)!r}", f"add {key}: …")
        else:
            _bad_value(source, root, path, error)


def _unknown_key(source: Source, root: Node, spec_type: type[Part], path: Path) -> None:
    parent, place = locate(root, path[:-1])
    key = str(path[-1])
    if isinstance(parent, Entries) and key in parent.entries:
        entry = parent.entries[key]
        place = entry.line, entry.column
    source.add(*place, f"unknown key {write_path(path)!r}", _meant(key, spec_type, path[:-1]))


_THEIRS = {
    "python": "write image: python:3.12, with the version you want",
    "docker": "write privileged: true and an image such as docker:dind",
    "nvcc": "name an image that has the CUDA toolkit",
    **dict.fromkeys(("cmd", "command", "run", "script"), "write commands, one a line"),
    **dict.fromkeys(("environment", "envs", "variables"), "write env"),
    "restart": "a service is kept up by itself; a task is tried again by retry",
    "ram": "write memory",
    **dict.fromkeys(("cores", "vcpu", "vcpus"), "write cpu"),
    **dict.fromkeys(("accelerator", "accelerators"), "write resources: {gpu: …}"),
    "workdir": "write working_dir",
}
"""Keys that other tools have, and what says the same here."""

_THEIR_MODEL = {
    **dict.fromkeys(("name", "repo", "repo_id", "model_id", "path"), "write id: a hub id or a folder"),
    **dict.fromkeys(("dtype", "data_type", "torch_dtype"), "write precision"),
    **dict.fromkeys(("max_model_len", "max_length", "context_length", "max_context"), "write context"),
}
"""Keys of a model that other tools have."""

_THEIR_TRAIN = {
    **dict.fromkeys(("max_seq_length", "max_length", "seq_len", "cutoff_len"), "write sequence_length"),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), "write epochs"),
    **dict.fromkeys(("lora_rank", "lora_r", "lora", "rank"), "write adapter: {type: lora, rank: 16}"),
}
"""Keys of a training job that trainers have."""

_OF_KIND: Mapping[type[Part], Mapping[str, str]] = {
    Model: _THEIR_MODEL,
    Train: _THEIR_TRAIN,
    Probe: {"path": "write url"},
    TrainAdapter: dict.fromkeys(("r", "lora_r"), "write rank"),
    Service: dict.fromkeys(
        ("max_model_len", "max_length", "context_length"), "write model: {id: …, context: …}"
    ),
}
_HAS_ARGS: Mapping[type[Part], str] = {Service: "engine", Train: "trainer"}
"""What has a mapping of arguments that go to a program as they are, and whose they are."""


def _meant(key: str, spec_type: type[Part], parents: Path) -> str:
    """Guess what ``key`` was to be: a key of another document or tool, a near spelling, a key further in."""
    import difflib  # only a mistake needs it

    owner = _owner(spec_type, parents)
    word = key.lower().replace("-", "_")
    if owner is not None and f"{word}s" in owner.model_fields:
        return f"did you mean '{word}s'?"
    others = [word for word, kind in TYPES.items() if not parents and key in kind.model_fields]
    if others:
        return f"that is a key of {' and '.join(others)}"
    if owner is None:
        return _LISTED
    if key.isupper() and "env" in owner.model_fields:
        return f"write env: [{key}]"
    theirs = {**_THEIRS, **_OF_KIND.get(owner, {})}
    for spelt in (word, *difflib.get_close_matches(word, theirs, n=1, cutoff=0.9)):
        if spelt in theirs:
            return theirs[spelt]
    inner = {name: part for name, info in owner.model_fields.items() if (part := part_of(info.annotation))}
    deeper = {name: name for part in inner.values() for name in part.model_fields}
    # the key itself, further in, is nearer than another key spelt almost so
    near = None if word in deeper else nearest(word, {name: name for name in owner.model_fields})
    if near:
        return near
    if found := difflib.get_close_matches(word, deeper, n=1, cutoff=0.8):
        homes = [f"{name}.{found[0]}" for name, part in inner.items() if found[0] in part.model_fields]
        return f"did you mean {' or '.join(homes)}?"
    if owner in _HAS_ARGS:
        return f"what the {_HAS_ARGS[owner]} itself takes goes into args: {{{key}: …}}; {_LISTED}"
    return _LISTED


_LISTED = "docs/reference/spec.md lists the keys, as does 'modelyard schema'"


def _owner(spec_type: type[Part], parents: Path) -> type[Part] | None:
    """Return the part that holds what stands below ``parents``."""
    owner: type[Part] | None = spec_type
    for step in parents:
        if owner is not None and isinstance(step, str):
            info = owner.model_fields.get(step)
            owner = part_of(info.annotation) if info else None
    return owner


def _bad_value(source: Source, root: Node, path: Path, error: Mapping[str, Any]) -> None:
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, FormError) and cause.item is not None:
        path = (*path, cause.item)
    node, place = locate(root, path)
    if isinstance(cause, FormError):
        what, fix = cause.what, cause.fix
        if cause.offset and isinstance(node, Scalar):
            place = source.place(node, cause.offset)
    else:
        what, fix = _words(error, node)
    where = write_path(path)
    source.add(*place, f"{where}: {what}" if where else what, fix)


def _words(error: Mapping[str, Any], node: Node) -> Words:
    kind, value, limits = error["type"], error["input"], error.get("ctx", {})
    if kind in _SHAPES:
        return _SHAPES[kind](value, node)
    if kind == "literal_error":
        return _choice(re.findall(r"'([^']*)'", limits["expected"]), value)
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("more than", "gt"),
        "less_than_equal": ("at most", "le"),
    }
    if kind in bounds:
        word, key = bounds[kind]
        return f"expected {word} {_round(limits[key])}, got {_round(value)}", None
    return str(error["msg"]), None


def _round(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_number(value: object, _: Node) -> Words:
    return f"expected a whole number, got {shown(value)}", _in_figures(value, "2") or _unset(value)


def _any_number(value: object, _: Node) -> Words:
    return f"expected a number, got {shown(value)}", _in_figures(value, "0.5") or _unset(value)


def _in_figures(value: object, example: str) -> str | None:
    """Return how to write a number that was given as text: ``16k`` tokens are 16,384."""
    if not isinstance(value, str):
        return None
    if isinstance(_resolved(value), int | float):
        return f"write it without quotes: {value}"
    if thousands := _THOUSANDS.fullmatch(value):
        return f"write {int(thousands[1]) * 1024}, or {thousands[1]}000"
    bare = value.strip().lstrip("$").replace(",", "").replace("_", "")
    return (
        f"write {bare}" if isinstance(_resolved(bare), int | float) else f"write a number, such as {example}"
    )


def _resolved(text: str) -> object:
    try:
        return resolve(text)
    except ValueError:
        return None


def _truth(value: object, _: Node) -> Words:
    word = str(value).lower()
    fix = "write true" if word in _YES else "write false" if word in _NO else None
    return f"expected true or false, got {shown(value)}", fix


def _text(value: object, node: Node) -> Words:
    fix = f'put it in quotes: "{node.text}"' if isinstance(node, Scalar) and value is not None else None
    return f"expected text, got {shown(value)}", fix or _unset(value)


def _list(value: object, _: Node) -> Words:
    return f"expected a list, got {shown(value)}", _unset(value) or "write it as [a, b], or one - a line"


def _mapping(value: object, _: Node) -> Words:
    return f"expected a mapping, got {shown(value)}", _unset(value) or "write key: value"


def _unset(value: object) -> str | None:
    return "give it a value, or remove the key" if value is None else None


def _choice(choices: Sequence[str], value: object) -> Words:
    listed = ", ".join(choices[:-1]) + f" or {choices[-1]}" if len(choices) > 1 else choices[0]
    guess = nearest(str(value).lower(), {choice: choice for choice in choices})
    return f"expected {listed}, got {shown(value)}", guess


_SHAPES: Mapping[str, Callable[[object, Node], Words]] = {
    "int_type": _whole_number,
    "int_parsing": _whole_number,
    "int_from_float": _whole_number,
    "float_type": _any_number,
    "float_parsing": _any_number,
    "bool_type": _truth,
    "string_type": _text,
    "tuple_type": _list,
    "list_type": _list,
    "mapping_type": _mapping,
    "dict_type": _mapping,
    "model_type": _mapping,
    "model_attributes_type": _mapping,
}
