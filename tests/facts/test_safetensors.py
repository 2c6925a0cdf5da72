"""Headers of weight files: read without a weight, and every kind of damage named."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ModelError
from orchestrator.facts.safetensors import read_header, read_index
from tests.facts.making import index, safetensors


def reading(raw: bytes, *, size: int | None = None) -> int:
    """Count the tensors of a file's bytes."""
    return len(
        read_header(lambda start, length: raw[start : start + length], "w.safetensors", file_bytes=size)
    )


def test_names_shapes_and_bytes_are_read() -> None:
    raw = safetensors({"a": (2, 3), "b": (4,)})
    first, second = read_header(lambda start, length: raw[start : start + length], "w", file_bytes=len(raw))
    assert (first.name, first.shape, first.size_bytes, first.elements) == ("a", (2, 3), 12, 6)
    assert second.dtype == "BF16"


def test_only_the_header_is_read() -> None:
    raw = safetensors({"a": (1000, 1000)})
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(start + length)
        return raw[start : start + length]

    read_header(read, "w", file_bytes=len(raw))
    assert max(asked) < 200


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "too few"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cut off after 1 of 16"),
        (b"\xff" * 8, "claims"),
        ((4).to_bytes(8, "little") + b"nope", "no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no mapping"),
        ((15).to_bytes(8, "little") + b'{"a":{"x": 1}} ', "no shape"),
    ],
)
def test_a_damaged_header_is_refused_with_its_file(raw: bytes, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        reading(raw)
    assert says in caught.value.what
    assert "w.safetensors" in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize("offsets", ['[0, "a"]', '["", 2]', "[null, 2]", "[0, Infinity]", "[[], 2]"])
def test_offsets_that_are_no_numbers_are_refused(offsets: str) -> None:
    header = f'{{"a": {{"dtype": "F16", "shape": [1], "data_offsets": {offsets}}}}}'.encode()

    with pytest.raises(ModelError) as caught:
        reading(len(header).to_bytes(8, "little") + header + b"00")

    assert "has no shape, dtype or offsets" in caught.value.what


def test_negative_sizes_are_refused() -> None:
    header = json.dumps({"a": {"dtype": "F16", "shape": [-1], "data_offsets": [0, 2]}}).encode()
    with pytest.raises(ModelError):
        reading(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    ("dtype", "end", "whole"),
    [
        ("BF16", 12, True),
        ("BF16", 6, False),
        ("F8_E4M3", 6, True),
        ("F4", 3, True),
        ("F4", 6, False),
        ("X9", 5, True),
    ],
)
def test_a_tensor_takes_the_bytes_of_its_shape(dtype: str, end: int, whole: bool) -> None:
    described = {"a": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, end]}}
    raw = json.dumps(described).encode()
    raw = len(raw).to_bytes(8, "little") + raw
    if whole:
        assert reading(raw) == 1
    else:
        with pytest.raises(ModelError) as caught:
            reading(raw)
        assert f"of [2, 3] in {dtype} does not take {end} bytes" in caught.value.what


def test_a_file_shorter_than_its_tensors_is_refused() -> None:
    raw = safetensors({"a": (64,)})
    with pytest.raises(ModelError) as caught:
        reading(raw, size=len(raw) - 1)
    assert "holds" in caught.value.what


def test_a_file_longer_than_its_tensors_is_refused() -> None:
    raw = safetensors({"a": (64,)})
    with pytest.raises(ModelError) as caught:
        reading(raw, size=len(raw) + 1)
    assert "holds" in caught.value.what


@pytest.mark.parametrize("offsets", [([0, 4], [2, 6]), ([0, 4], [6, 10])], ids=["overlap", "gap"])
def test_tensors_that_overlap_or_leave_gaps_are_refused(offsets: tuple[list[int], list[int]]) -> None:
    # the reference implementation answers InvalidOffset to both (safetensors, tensor.rs)
    described = {
        name: {"dtype": "F16", "shape": [2], "data_offsets": at}
        for name, at in zip("ab", offsets, strict=True)
    }
    header = json.dumps(described).encode()
    raw = len(header).to_bytes(8, "little") + header
    with pytest.raises(ModelError) as caught:
        reading(raw, size=len(raw) + offsets[1][1])
    assert "overlap or leave gaps" in caught.value.what


SOUND = safetensors({"a": (2, 3), "b": (4,)})


@settings(max_examples=200)
@given(st.integers(min_value=0, max_value=len(SOUND) - 1), st.binary(max_size=4))
def test_a_garbled_header_is_read_whole_or_refused(at: int, junk: bytes) -> None:
    raw = (SOUND[:at] + junk + SOUND[at + len(junk) :])[: len(SOUND)]
    with suppress(ModelError):
        assert reading(raw, size=len(raw)) == 2


@given(st.integers(min_value=0, max_value=len(SOUND) - 1))
def test_a_file_that_is_cut_off_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(ModelError):
        reading(SOUND[:cut], size=cut)


def test_an_index_names_files_and_bytes() -> None:
    files, total = read_index(index({"a": "x.safetensors", "b": "y.safetensors"}, 10), "index")
    assert (files, total) == (frozenset({"x.safetensors", "y.safetensors"}), 10)


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": "../../etc/passwd"}}']
)
def test_a_damaged_index_is_refused(raw: bytes) -> None:
    with pytest.raises(ModelError):
        read_index(raw, "model.safetensors.index.json")
