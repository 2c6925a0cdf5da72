"""Folders: what the index names counts, what is missing is named, unknown architectures show their shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.catalog import count_parameters, from_config, models
from orchestrator.errors import ModelError
from orchestrator.facts import resolve
from orchestrator.facts.files import assemble, refuse_too_few
from tests.facts.making import CONFIG, index, llama_shapes, novel_shapes, safetensors

NOVEL = {**CONFIG, "architectures": ["NovelForCausalLM"], "num_experts": 4}


def folder(path: Path, config: dict[str, Any] | None = None, **files: bytes) -> Path:
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    for name, raw in files.items():
        (path / name.replace("__", ".").replace("_", "-")).write_bytes(raw)
    return path


@dataclass(frozen=True)
class InMemory:
    """A folder's files without the folder."""

    held: Mapping[str, bytes]
    near = True

    @property
    def sizes(self) -> Mapping[str, int | None]:
        return {name: len(raw) for name, raw in self.held.items()}

    def read(self, name: str) -> bytes:
        return self.held[name]

    def read_part(self, name: str, start: int, length: int) -> bytes:
        return self.held[name][start : start + length]


def halves() -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Split the tensors of the model that ``CONFIG`` describes into two files' worth."""
    whole = list(llama_shapes().items())
    return dict(whole[::2]), dict(whole[1::2])


def damaged(kind: str) -> bytes:
    """Return a whole weight file of ``CONFIG``, damaged in one way."""
    whole = safetensors(llama_shapes())
    header = 8 + int.from_bytes(whole[:8], "little")
    return {
        "two bytes": whole[:2],
        "header longer than the file": (len(whole) * 2).to_bytes(8, "little") + whole[8:],
        "header of 2**62 bytes": (2**62).to_bytes(8, "little") + whole[8:],
        "cut in the header": whole[: header - 5],
        "cut in the weights": whole[:-1],
        "cut to its first half": whole[: header + (len(whole) - header) // 2],
        "no weights at all": whole[:header],
        "bytes after the end": whole + b"\0",
        "a pointer to large files": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
    }[kind]


DAMAGE = [
    "two bytes",
    "header longer than the file",
    "header of 2**62 bytes",
    "cut in the header",
    "cut in the weights",
    "cut to its first half",
    "no weights at all",
    "bytes after the end",
    "a pointer to large files",
]


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_weight_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder(tmp_path, CONFIG)
    (tmp_path / "model.safetensors").write_bytes(damaged(kind))
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "model.safetensors" in caught.value.what
    assert caught.value.fix == "fetch the file again"
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_file_the_index_names_is_checked(tmp_path: Path, kind: str) -> None:
    folder(tmp_path, CONFIG)
    (tmp_path / "whole.safetensors").write_bytes(safetensors(llama_shapes()))
    (tmp_path / "part.safetensors").write_bytes(damaged(kind))
    (tmp_path / "model.safetensors.index.json").write_bytes(
        index({"a": "whole.safetensors", "b": "part.safetensors"})
    )
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "part.safetensors" in caught.value.what


def test_an_undamaged_weight_file_is_read(tmp_path: Path) -> None:
    whole = safetensors(llama_shapes())
    folder(tmp_path, CONFIG)
    (tmp_path / "model.safetensors").write_bytes(whole)
    assert resolve(tmp_path).weights_bytes == len(whole)


@settings(max_examples=60)
@given(st.data())
def test_no_cut_weight_file_of_a_known_architecture_is_read(data: st.DataObject) -> None:
    whole = safetensors(llama_shapes())
    kept = data.draw(st.integers(0, len(whole) - 1))
    cut = InMemory({"config.json": json.dumps(CONFIG).encode(), "model.safetensors": whole[:kept]})
    with pytest.raises(ModelError) as caught:
        assemble(cut, id="tiny", source="memory")
    assert "model.safetensors" in caught.value.what


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({}, "pytorch_model.bin"),
        ({"quantization_config": {"quant_method": "fp8"}}, "pytorch_model.bin"),
    ],
    ids=["plain", "fp8"],
)
def test_far_fewer_bytes_than_the_config_gives_are_refused(
    tmp_path: Path, said: dict[str, Any], named: str
) -> None:
    needed = count_parameters(from_config(CONFIG)) * (1 if said else 2)
    folder(tmp_path, {**CONFIG, **said})
    (tmp_path / named).write_bytes(bytes(needed // 2 - 1))
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert named in caught.value.what
    assert "again" in (caught.value.fix or "")

    (tmp_path / named).write_bytes(bytes(needed // 2 + 1))
    assert resolve(tmp_path).weights_bytes == needed // 2 + 1


def test_one_file_of_a_set_without_its_index_is_refused(tmp_path: Path) -> None:
    layers = {name: shape for name, shape in llama_shapes().items() if ".layers.0." in name}
    folder(tmp_path, CONFIG)
    (tmp_path / "model-00001-of-00003.safetensors").write_bytes(safetensors(layers))
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "model-00001-of-00003.safetensors" in caught.value.what


def test_a_config_alone_is_held_to_no_weights(tmp_path: Path) -> None:
    assert resolve(folder(tmp_path, CONFIG)).weights_bytes is None


def test_published_weights_are_never_too_few() -> None:
    """No model of the catalog whose bytes are known is refused, nor any near the limit."""
    known = [facts for facts in models().values() if facts.weights_bytes]
    for facts in known:
        refuse_too_few(facts, ("model.safetensors",))
        refuse_too_few(replace(facts, quantization_bits=None), ("model.safetensors",))
    assert len(known) >= 40


def test_an_unknown_quantization_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, {**NOVEL, "quantization_config": {"quant_method": "zorgq", "bits": 3}})
    (tmp_path / "model.safetensors").write_bytes(safetensors(novel_shapes()))
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "zorgq" in caught.value.what


def test_a_folder_is_read_by_its_config(tmp_path: Path) -> None:
    facts = resolve(folder(tmp_path, CONFIG))
    assert (facts.layers, facts.context, facts.weights_bytes) == (2, 2048, None)
    assert facts.id == tmp_path.name


def test_a_lone_config_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(CONFIG))
    assert resolve(path).hidden == 64


def test_only_files_the_index_names_count(tmp_path: Path) -> None:
    one, two = (safetensors(shapes) for shapes in halves())
    folder(tmp_path, CONFIG)
    (tmp_path / "part-1.safetensors").write_bytes(one)
    (tmp_path / "part-2.safetensors").write_bytes(two)
    (tmp_path / "consolidated.safetensors").write_bytes(safetensors({"copy": (64, 64)}))
    (tmp_path / "model.safetensors.index.json").write_bytes(
        index({"a": "part-1.safetensors", "b": "part-2.safetensors"})
    )
    assert resolve(tmp_path).weights_bytes == len(one) + len(two)


def test_a_file_that_the_index_names_and_is_missing_is_said(tmp_path: Path) -> None:
    folder(tmp_path, CONFIG)
    (tmp_path / "model.safetensors.index.json").write_bytes(
        index({"a": "x.safetensors", "b": "y.safetensors"})
    )
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "x.safetensors and 1 more" in caught.value.what
    assert str(tmp_path) in caught.value.what


def test_a_second_copy_beside_the_weights_does_not_count(tmp_path: Path) -> None:
    kept = safetensors(llama_shapes())
    folder(tmp_path, CONFIG)
    (tmp_path / "weights.safetensors").write_bytes(kept)
    (tmp_path / "consolidated.safetensors").write_bytes(safetensors({"a": (64, 64)}))
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors({"a": (64, 64)}))
    assert resolve(tmp_path).weights_bytes == len(kept)


def test_an_unknown_architecture_is_read_from_its_shapes(tmp_path: Path) -> None:
    raw = safetensors(novel_shapes())
    folder(tmp_path, NOVEL)
    (tmp_path / "model.safetensors").write_bytes(raw)
    facts = resolve(tmp_path)
    assert facts.parameters == 2 * 512 * 64 + 3 * (32 * 64 + 128 * 64)
    assert (facts.layers, facts.vocab, facts.hidden, facts.kv_heads) == (3, 512, 64, 2)
    assert facts.kinds() == ("full", "linear", "full")
    assert "shapes" in str(facts.extra["assumed"])


def test_an_unknown_architecture_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(folder(tmp_path, NOVEL))
    assert "NovelForCausalLM" in caught.value.what or "Novel" in caught.value.what


def test_what_no_shape_tells_is_named(tmp_path: Path) -> None:
    config = {key: value for key, value in NOVEL.items() if key != "num_attention_heads"}
    folder(tmp_path, config)
    (tmp_path / "model.safetensors").write_bytes(safetensors(novel_shapes()))
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "num_attention_heads" in caught.value.what


def test_packed_weights_of_an_unknown_architecture_are_not_counted(tmp_path: Path) -> None:
    folder(tmp_path, {**NOVEL, "quantization_config": {"quant_method": "awq", "bits": 4}})
    (tmp_path / "model.safetensors").write_bytes(safetensors(novel_shapes()))
    facts = resolve(tmp_path)
    assert facts.parameters is None
    assert facts.quantization == "awq"


def test_a_truncated_weight_file_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, NOVEL)
    (tmp_path / "model.safetensors").write_bytes(safetensors(novel_shapes())[:40])
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "cut off" in caught.value.what


def test_model_optimizers_own_file_says_the_quantization(tmp_path: Path) -> None:
    folder(tmp_path, CONFIG)
    said = {"quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
    facts = resolve(tmp_path)
    assert (facts.quantization, facts.quantization_bits, facts.quantization_skips) == (
        "nvfp4",
        4.5,
        ("lm_head",),
    )


@pytest.mark.parametrize(("text", "says"), [("{", "no JSON"), ("[1]", "no mapping")])
def test_a_broken_config_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert says in caught.value.what


def test_an_empty_folder_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "config.json" in (caught.value.fix or "")


def test_counts_agree_with_the_weights_of_a_known_architecture(tmp_path: Path) -> None:
    facts = resolve(folder(tmp_path, CONFIG))
    matrices = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    assert count_parameters(facts) == 2 * 512 * 64 + matrices + 5 * 64


@pytest.mark.parametrize(
    ("modules", "pools"),
    [
        (
            [
                {"type": "sentence_transformers.models.Transformer"},
                {"type": "sentence_transformers.models.Pooling"},
            ],
            True,
        ),
        ([{"type": "sentence_transformers.models.Transformer"}], False),
        ({}, False),
    ],
)
def test_sentence_transformers_pool_whatever_their_architecture(
    tmp_path: Path, modules: object, pools: bool
) -> None:
    folder(tmp_path, CONFIG, modules__json=json.dumps(modules).encode())
    facts = resolve(tmp_path)
    assert (facts.pools, facts.tied) == (pools, pools)
