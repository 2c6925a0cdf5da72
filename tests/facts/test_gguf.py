"""GGUF: sizes from the metadata, bytes from the tensor table, damage named."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ModelError
from orchestrator.facts import resolve
from orchestrator.facts.gguf import read_gguf
from tests.facts.making import LLAMA_METADATA, LLAMA_TENSORS, gguf


def test_sizes_and_bytes_come_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(LLAMA_METADATA, LLAMA_TENSORS))
    facts = resolve(path)
    assert (facts.layers, facts.hidden, facts.kv_heads, facts.head_dim, facts.vocab) == (2, 256, 2, 64, 4)
    assert facts.parameters == 256 * 4 + 2 * 256 * 128
    # f16 table; Q4_K: 144 bytes per 256; Q6_K: 210 per 256
    assert facts.weights_bytes == 256 * 4 * 2 + 128 * 144 + 128 * 210
    assert (facts.quantization, facts.context, facts.tied) == ("gguf", 4096, True)


def test_per_layer_head_counts_take_the_largest(tmp_path: Path) -> None:
    path = tmp_path / "mixed.gguf"
    path.write_bytes(gguf({**LLAMA_METADATA, "llama.attention.head_count_kv": [0, 4]}, LLAMA_TENSORS))
    assert resolve(path).kv_heads == 4


def test_layers_without_keys_are_linear(tmp_path: Path) -> None:
    path = tmp_path / "hybrid.gguf"
    tensors = {**LLAMA_TENSORS, "blk.1.ssm_in.weight": ((256, 128), 1)}
    del tensors["blk.1.attn_k.weight"]
    path.write_bytes(gguf(LLAMA_METADATA, tensors))
    assert resolve(path).kinds() == ("full", "linear")


def test_a_folder_with_one_gguf_is_that_model(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(gguf(LLAMA_METADATA, LLAMA_TENSORS))
    assert resolve(tmp_path).layers == 2


def test_of_several_ggufs_one_must_be_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf(LLAMA_METADATA, LLAMA_TENSORS))
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "a.gguf" in (caught.value.fix or "")


def test_the_parts_of_a_split_model_add_up(tmp_path: Path) -> None:
    first = tmp_path / "m-00001-of-00002.gguf"
    first.write_bytes(gguf(LLAMA_METADATA, LLAMA_TENSORS))
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(gguf({}, {"output.weight": ((256, 4), 1)}))
    assert resolve(first).parameters == 256 * 4 + 2 * 256 * 128 + 256 * 4
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelError) as caught:
        resolve(first)
    assert "m-00002-of-00002.gguf" in caught.value.what


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"GGML" + bytes(20), "no GGUF"),
        (gguf({}, {}, version=1), "version 1"),
        (gguf(LLAMA_METADATA, LLAMA_TENSORS)[:-5], "cut off"),
        (gguf(LLAMA_METADATA, {"x": ((4,), 77)}), "unknown type 77"),
        (b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 16, "claims"),
        (gguf({"general.architecture": "llama"}, {}), "embedding_length"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, raw: bytes, says: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelError) as caught:
        resolve(path)
    assert says in caught.value.what


SOUND = gguf(LLAMA_METADATA, LLAMA_TENSORS)


@settings(max_examples=100)
@given(st.integers(min_value=0, max_value=len(SOUND) - 1), st.binary(max_size=8), st.booleans())
def test_any_cut_or_garbled_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes, is_cut: bool
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    path.write_bytes(SOUND[:at] + junk + (b"" if is_cut else SOUND[at + len(junk) :]))
    with suppress(ModelError):
        assert len(read_gguf(path).bytes) <= len(LLAMA_TENSORS)
