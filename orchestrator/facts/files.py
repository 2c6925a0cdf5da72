"""Puts a model's facts together from its files, wherever they are: config, index, headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from orchestrator.catalog import count_parameters
from orchestrator.catalog.config import architecture_of, from_config, is_known, pooling
from orchestrator.catalog.values import ModelFacts
from orchestrator.errors import ModelError
from orchestrator.facts.safetensors import Tensor, read_header, read_index
from orchestrator.facts.shapes import facts_from_shapes

CONFIG = "config.json"
_QUANTIZED = "hf_quant_config.json"  # where NVIDIA's Model Optimizer says what the config does not
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_MODULES = "modules.json"
_FEWEST_BITS = 4.0


class Files(Protocol):
    """A model's files: a folder, or one commit of a repository."""

    @property
    def near(self) -> bool:
        """Whether the headers of all weight files can be read at next to no cost."""

    @property
    def sizes(self) -> Mapping[str, int | None]:
        """Names of the files at the top, with their bytes where known."""

    def read(self, name: str, /) -> bytes:
        """Return the whole of a small file."""

    def read_part(self, name: str, /, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes of a file from ``start``."""


def assemble(files: Files, *, id: str, source: str) -> ModelFacts:
    """Return the facts of the model in ``files``.

    Only the files that the index names count; of those that are near, every header is held against
    the file's size. An architecture we do not know is read from the shapes of its tensors.

    Raises:
        ModelError: there is no config, a file is damaged, the index names one that is missing, the
            weights are too few for the config, or nothing tells the sizes of an unknown architecture.
    """
    facts = _assembled(files, id=id, source=source)
    return pooling(facts) if _is_sentence_transformer(files) else facts


def _assembled(files: Files, *, id: str, source: str) -> ModelFacts:
    config = _config(files)
    named = weight_files(files)
    weights_bytes = _total(files, named)
    if is_known(config):
        facts = from_config(config, id=id, source=source)
        uncounted = bool(facts.vision and facts.vision.estimated and facts.quantization is None)
        tensors = _tensors(files, named) if files.near or uncounted else []
        if uncounted:
            facts = replace(facts, parameters=sum(tensor.elements for tensor in tensors) or None)
        facts = replace(facts, weights_bytes=weights_bytes)
        refuse_too_few(facts, named)
        return facts
    tensors = _tensors(files, named)
    if not tensors:
        return replace(from_config(config, id=id, source=source), weights_bytes=weights_bytes)
    return facts_from_shapes(config, tensors, id=id, architecture=architecture_of(config), source=source)


def _is_sentence_transformer(files: Files) -> bool:
    """Return whether the files make a model that pools, whatever architecture it has: vLLM reads them so."""
    if _MODULES not in files.sizes:
        return False
    listed = _parsed(files, _MODULES)
    modules = listed if isinstance(listed, list) else []
    return any(str(each.get("type")).endswith("Pooling") for each in modules if isinstance(each, Mapping))


def refuse_too_few(facts: ModelFacts, named: tuple[str, ...]) -> None:
    """Refuse weights of below half the bytes that the parameters take in their number format.

    Half is far from any published model (0.996 of what is computed at the least, of 42 in the
    catalog whose bytes are known) and leaves room for a tower or a head kept elsewhere.

    Raises:
        ModelError: the bytes are known and too few.
    """
    if facts.weights_bytes is None:
        return
    parameters = facts.parameters or count_parameters(facts)
    if facts.weights_bytes * 8 * 2 < parameters * _least_bits(facts):
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        raise ModelError(
            f"{named[0] if named else 'the index'}{more}: {facts.weights_bytes} bytes are too few for the "
            f"{parameters} parameters of {CONFIG}",
            fix=f"fetch the files again, or the {CONFIG} that belongs to them",
        )


def _least_bits(facts: ModelFacts) -> float:
    """Return the bits that a parameter takes at the least, 4 where the config is silent."""
    if facts.quantization is not None:
        return facts.quantization_bits or _FEWEST_BITS
    # a config may say fp32 of weights that were saved in 16 bits
    return 16.0 if facts.dtype in ("fp32", "bf16", "fp16") else _FEWEST_BITS


def weight_files(files: Files) -> tuple[str, ...]:
    """Return the weight files to count, by name: those of the index, else the only one.

    Raises:
        ModelError: the index is damaged or names a file that is not there.
    """
    for index in _INDEXES:
        if index in files.sizes:
            named, _ = read_index(files.read(index), index)
            if missing := sorted(named - files.sizes.keys()):
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise ModelError(
                    f"{index} names {missing[0]}{more}, which is not there", fix="fetch the missing files"
                )
            return tuple(sorted(named))
    for single in _SINGLE:
        if single in files.sizes:
            return (single,)
    return _unindexed(files)


def _unindexed(files: Files) -> tuple[str, ...]:
    """Return safetensors without an index; a second copy under the training's own names does not count."""
    found = sorted(
        name for name in files.sizes if name.endswith(".safetensors") and not name.startswith("adapter_")
    )
    return tuple(name for name in found if not name.startswith("consolidated")) or tuple(found)


def _config(files: Files) -> Mapping[str, Any]:
    if CONFIG not in files.sizes:
        raise ModelError(f"there is no {CONFIG}", fix=f"put the {CONFIG} that came with the weights there")
    config = _json(files, CONFIG)
    if config.get("quantization_config") is None and _QUANTIZED in files.sizes:
        said = _json(files, _QUANTIZED).get("quantization")
        if isinstance(said, Mapping):
            return {**config, "quantization_config": {"quant_method": "modelopt", **said}}
    return config


def _parsed(files: Files, name: str) -> object:
    try:
        return json.loads(files.read(name))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is no JSON: {error}", fix="fetch the file again") from error


def _json(files: Files, name: str) -> Mapping[str, Any]:
    found = _parsed(files, name)
    if not isinstance(found, Mapping):
        raise ModelError(f"{name} is no mapping", fix="fetch the file again")
    return found


def _total(files: Files, named: tuple[str, ...]) -> int | None:
    """Return the bytes of the weight files, from their sizes or else from what the index says."""
    sizes = [files.sizes[name] for name in named]
    if named and all(size is not None for size in sizes):
        return sum(size for size in sizes if size is not None)
    index = next((index for index in _INDEXES if index in files.sizes), None)
    return read_index(files.read(index), index)[1] if index else None


def _tensors(files: Files, named: tuple[str, ...]) -> list[Tensor]:
    found: list[Tensor] = []
    for name in named:
        if name.endswith(".safetensors"):

            def read(start: int, length: int, name: str = name) -> bytes:
                return files.read_part(name, start, length)

            found.extend(read_header(read, name, file_bytes=files.sizes[name]))
    return found
