"""Weights by part: what formats touch, what published configs leave, what a file index says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.catalog import model
from orchestrator.errors import ModelError
from orchestrator.planner.sizing.formats import FORMATS, weight_format
from orchestrator.planner.sizing.parameters import count_parts
from orchestrator.planner.sizing.stages import split_layers
from orchestrator.planner.sizing.weights import (
    device_weight_bytes,
    published_format,
    weight_bytes,
)
from orchestrator.units import GIB
from tests.planner.sizing.shapes import DEEPSEEK_V3, LLAMA_8B, LLAMA_405B


def test_bytes_on_the_index_win_over_the_formula() -> None:
    known = replace(LLAMA_8B, weights_bytes=20 * GIB)

    assert weight_bytes(known, "bf16").total == pytest.approx(20 * GIB)
    assert weight_bytes(known, "int4").total < 6 * GIB


def test_a_known_total_is_kept_by_the_parts() -> None:
    stated = replace(DEEPSEEK_V3, parameters=671_026_404_352)

    parts = count_parts(stated)

    assert parts.total == pytest.approx(671_026_404_352, rel=1e-6)
    assert parts.embedding == 129280 * 7168


def test_an_unknown_expert_width_takes_what_is_left() -> None:
    open_width = replace(
        DEEPSEEK_V3, expert_intermediate=0, shared_intermediate=0, parameters=671_026_404_352
    )

    parts = count_parts(open_width)

    assert parts.total == 671_026_404_352
    assert parts.experts > 0.95 * parts.total


def test_layers_a_config_names_stay_in_16_bits() -> None:
    # Meta's FP8 checkpoint of 405B lists attention of every layer, and the first and last whole
    names = tuple(f"model.layers.{n}.self_attn.q_proj" for n in range(126))
    mixed = replace(LLAMA_405B, quantization="fp8", quantization_skips=names)

    more = weight_bytes(mixed, "fp8").attention / weight_bytes(LLAMA_405B, "fp8").attention

    assert more == pytest.approx(2.0)


def test_a_checkpoint_states_its_own_bits() -> None:
    # groups of 32: 4 bits and half a bit of scale
    own = replace(LLAMA_8B, quantization="compressed-tensors", quantization_bits=4.5)

    assert weight_bytes(own, "int4").dense == pytest.approx(
        weight_bytes(LLAMA_8B, "int4").dense * 4.5 / 4.15625
    )


def test_speculative_layers_are_on_disk_and_not_loaded() -> None:
    speaks_ahead = replace(DEEPSEEK_V3, extra={"num_nextn_predict_layers": 1})

    disk = weight_bytes(speaks_ahead, "fp8", loaded=False).total
    loaded = weight_bytes(speaks_ahead, "fp8").total

    # 689.5e9 bytes of DeepSeek-V3 on the hub against 671 B parameters served
    assert disk - loaded == pytest.approx(11.5e9, rel=0.1)


def test_stages_hold_the_model_between_them() -> None:
    for stages in range(1, 13):
        assert sum(split_layers(61, stages)) == 61


def test_the_last_stage_of_a_tied_model_repeats_its_embedding() -> None:
    tied = replace(LLAMA_8B, tied=True)
    sized = weight_bytes(tied, "bf16")

    two = device_weight_bytes(tied, sized, tensor=1, pipeline=2, expert_ranks=1)

    assert two == pytest.approx(sized.layers / 2 + sized.embedding, rel=0.001)


def test_expert_ranks_spread_experts_beyond_the_tensor_group() -> None:
    sized = weight_bytes(DEEPSEEK_V3, "fp8")

    eight = device_weight_bytes(DEEPSEEK_V3, sized, tensor=8, pipeline=1, expert_ranks=8)
    sixteen = device_weight_bytes(DEEPSEEK_V3, sized, tensor=8, pipeline=1, expert_ranks=16)

    assert eight - sixteen == pytest.approx(sized.experts / 16, rel=0.001)


def test_every_format_has_a_source_and_keeps_its_name() -> None:
    for name, fmt in FORMATS.items():
        assert fmt.source
        assert weight_format(name) is fmt


@pytest.mark.parametrize(
    ("quantization", "bits", "expected"),
    [
        (None, None, "bf16"),
        ("awq", 4.15625, "awq"),
        ("compressed-tensors", 8.0, "int8"),
        ("gptq", 8.0, "gptq_int8"),
        ("compressed-tensors", 4.5, "compressed-tensors"),
        ("exl2", 3.5, "exl2-3.5bpw"),
    ],
)
def test_the_published_format_follows_method_and_bits(
    quantization: str | None, bits: float | None, expected: str
) -> None:
    facts = replace(LLAMA_8B, quantization=quantization, quantization_bits=bits)

    assert published_format(facts) == expected


@pytest.mark.parametrize("bits", [None, 3.0, 8.0])
def test_a_quantization_nobody_knows_is_given_no_format(bits: float | None) -> None:
    facts = replace(LLAMA_8B, quantization="zorgq", quantization_bits=bits)

    with pytest.raises(ModelError) as caught:
        published_format(facts)

    assert "'zorgq'" in caught.value.what


@pytest.mark.parametrize(
    ("name", "gib"), [("deepseek-ai/DeepSeek-V4-Flash", 155.43), ("deepseek-ai/DeepSeek-V4-Pro", 805.34)]
)
def test_experts_in_fp4_beside_fp8_are_counted_so(name: str, gib: float) -> None:
    # on disk as KAITO's model_catalog.yaml lists them
    facts = model(name)
    assert facts is not None

    total = weight_bytes(replace(facts, weights_bytes=None), published_format(facts), loaded=False).total

    assert total / GIB == pytest.approx(gib, rel=0.10)
