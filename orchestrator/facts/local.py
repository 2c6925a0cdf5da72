"""Reads a model from a folder or a file of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from orchestrator.catalog.values import ModelFacts
from orchestrator.errors import ModelError
from orchestrator.facts.files import CONFIG, assemble
from orchestrator.facts.gguf import gguf_facts, read_gguf

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def local_facts(path: Path, *, id: str | None = None) -> ModelFacts:
    """Return the facts of the model at ``path``: a folder, its ``config.json``, or a ``.gguf`` file.

    Raises:
        ModelError: nothing there says what the model is.
    """
    try:
        return _read(path, id or _name(path))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", fix="check its permissions") from error


def _name(path: Path) -> str:
    if path.is_dir():
        return path.resolve().name
    return path.resolve().parent.name if path.name == CONFIG else path.stem


def _read(path: Path, name: str) -> ModelFacts:
    if path.is_dir():
        return _folder(path, name)
    if path.suffix == ".gguf":
        return _gguf(path, name)
    if path.suffix == ".safetensors":
        return _folder(path.parent, name)
    return assemble(_OneConfig(path), id=name, source=str(path))


def _folder(path: Path, id: str) -> ModelFacts:
    models = sorted(path.glob("*.gguf"))
    if models and not (path / CONFIG).is_file():
        whole = [model for model in models if not _SPLIT.search(model.name) or "-00001-of-" in model.name]
        if len(whole) > 1:
            raise ModelError(
                f"{path} holds {len(whole)} GGUF models", fix=f"name one of them, for example {whole[0].name}"
            )
        return _gguf(whole[0] if whole else models[0], id)
    try:
        return assemble(Folder(path), id=id, source=str(path))
    except ModelError as error:
        raise ModelError(f"{path}: {error.what}", fix=error.fix) from error


def _gguf(path: Path, id: str) -> ModelFacts:
    """Return the facts of a GGUF file and, where it was split, of the parts beside it."""
    facts = gguf_facts(path, id=id)
    found = _SPLIT.search(path.name)
    if not found:
        return facts
    parts = [
        path.with_name(path.name[: found.start()] + f"-{number:05d}-of-{found[2]}.gguf")
        for number in range(1, int(found[2]) + 1)
    ]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ModelError(f"{path.name} is one of {len(parts)} parts, and {missing[0]} is missing")
    return _joined(facts, [part for part in parts if part != path])


def _joined(facts: ModelFacts, parts: list[Path]) -> ModelFacts:
    headers = [read_gguf(part) for part in parts]
    parameters = (facts.parameters or 0) + sum(sum(header.elements.values()) for header in headers)
    weights = (facts.weights_bytes or 0) + sum(sum(header.bytes.values()) for header in headers)
    return replace(
        facts,
        parameters=parameters,
        weights_bytes=weights,
        quantization_bits=weights * 8 / parameters if parameters else None,
    )


@dataclass(frozen=True)
class Folder:
    """A folder's files, as ``Files``."""

    path: Path

    @property
    def near(self) -> bool:
        """Whether headers cost next to nothing: a disk's do."""
        return True

    @cached_property
    def sizes(self) -> Mapping[str, int | None]:
        """Names of the files at the top, with their bytes."""
        return {file.name: file.stat().st_size for file in sorted(self.path.iterdir()) if file.is_file()}

    def read(self, name: str) -> bytes:
        """Return the whole of a small file."""
        return (self.path / name).read_bytes()

    def read_part(self, name: str, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes of a file from ``start``."""
        with (self.path / name).open("rb") as file:
            file.seek(start)
            return file.read(length)


@dataclass(frozen=True)
class _OneConfig:
    """A lone config file, whatever its name, and no weights."""

    path: Path

    @property
    def near(self) -> bool:
        return True

    @property
    def sizes(self) -> Mapping[str, int | None]:
        return {CONFIG: None}

    def read(self, _name: str) -> bytes:
        return self.path.read_bytes()

    def read_part(self, _name: str, start: int, length: int) -> bytes:
        return self.path.read_bytes()[start : start + length]
