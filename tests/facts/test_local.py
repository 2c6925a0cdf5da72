"""Folders: what the index names counts, what is missing is named, unknown architectures show their shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.catalog import count_parameters
from orchestrator.errors import ModelError
from orchestrator.facts import resolve
from tests.facts.making import CONFIG, index, novel_shapes, safetensors

NOVEL = {**CONFIG, "architectures": ["NovelForCausalLM"], "num_experts": 4}


def folder(path: Path, config: dict[str, Any] | None = None, **files: bytes) -> Path:
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    for name, raw in files.items():
        (path / name.replace("__", ".").replace("_", "-")).write_bytes(raw)
    return path


def test_a_folder_is_read_by_its_config(tmp_path: Path) -> None:
    facts = resolve(folder(tmp_path, CONFIG))
    assert (facts.layers, facts.context, facts.weights_bytes) == (2, 2048, None)
    assert facts.id == tmp_path.name


def test_a_lone_config_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(CONFIG))
    assert resolve(path).hidden == 64


def test_only_files_the_index_names_count(tmp_path: Path) -> None:
    one, two = safetensors({"a": (8, 8)}), safetensors({"b": (4, 4)})
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
    kept = safetensors({"a": (8, 8)})
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
