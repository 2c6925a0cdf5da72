"""Accelerators by every name: whole names only, memory decides between equals, a slice is no device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.catalog import Accelerator, accelerator, accelerators, candidates, known_names
from orchestrator.errors import ConfigError
from orchestrator.units import GIB

SPELLINGS = {
    "H100": "H100-80GB",
    "h100-80gb": "H100-80GB",
    "H100 80GB": "H100-80GB",
    "NVIDIA H100 80GB HBM3": "H100-80GB",
    "NVIDIA-H100-80GB-HBM3-SHARED": "H100-80GB",
    "nvidia-h100-mega-80gb": "H100-80GB",
    "NVIDIA H100 PCIe": "H100-80GB-PCIE",
    "NVIDIA H100 NVL": "H100-94GB-NVL",
    "H20": "H20-96GB",
    "NVIDIA H200": "H200-141GB",
    "H200-141GB-SXM": "H200-141GB",
    "NVIDIA A100 80GB PCIe": "A100-80GB-PCIE",
    "NVIDIA-A100-PCIE-40GB": "A100-40GB-PCIE",
    "nvidia-tesla-a100": "A100-40GB",
    "nvidia-a100-80gb": "A100-80GB",
    "Tesla T4": "T4-16GB",
    "NVIDIA L4": "L4-24GB",
    "NVIDIA L40": "L40-48GB",
    "NVIDIA-L40S": "L40S-48GB",
    "NVIDIA GH200 480GB": "GH200-96GB",
    "NVIDIA GB200": "GB200-186GB",
    "NVIDIA GB10": "GB10-128GB",
    "NVIDIA B300 SXM6 AC": "B300-288GB",
    "NVIDIA GeForce RTX 4090": "RTX4090-24GB",
    "RTX6000": "QUADRO-RTX-6000-24GB",
    "NVIDIA RTX 6000 Ada Generation": "RTX-6000-ADA-48GB",
    "AMD_Instinct_MI300X_OAM": "MI300X-192GB",
    "Instinct_MI210": "MI210-64GB",
    "tpu-v6e-slice": "TPU-V6E",
    "v5litepod": "TPU-V5E",
    "tpu-v5-lite-podslice": "TPU-V5E",
    "trainium2": "TRAINIUM2-96GB",
    "Gaudi3": "GAUDI3-128GB",
    "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb": "A100-40GB-MIG-1g.5gb",
    "V100-32GB": "V100-32GB",
}


def test_the_catalog_is_wide() -> None:
    whole = [device for device in accelerators().values() if device.parent is None]
    assert len(whole) >= 120
    assert {device.family for device in whole} >= {"cuda", "rocm", "tpu", "gaudi", "tenstorrent", "neuron"}


@pytest.mark.parametrize(("spelled", "name"), SPELLINGS.items())
def test_every_tools_spelling_is_known(spelled: str, name: str) -> None:
    found = accelerator(spelled)
    assert found is not None
    assert found.name == name


def mistaken(find: Callable[[str], Accelerator | None]) -> list[str]:
    """Names that ``find`` takes for another device."""
    wrong = []
    for spelled, name in SPELLINGS.items():
        found = find(spelled)
        if found is not None and found.name != name:
            wrong.append(spelled)
    return wrong


def test_no_name_is_taken_for_another() -> None:
    assert mistaken(accelerator) == []


def test_a_substring_rule_would_be_caught() -> None:
    def by_substring(spelled: str) -> Accelerator | None:
        return next((d for d in accelerators().values() if d.name.split("-")[0] in spelled), None)

    assert {"NVIDIA L40", "NVIDIA-L40S"} <= set(mistaken(by_substring))


@pytest.mark.parametrize(
    "name", ["", "RTX 9999", "L4S", "H1000", "A100-MIG-9g.99gb", "NVIDIA", "80GB", "H100-13GB"]
)
def test_an_unknown_name_is_none(name: str) -> None:
    assert accelerator(name) is None
    assert candidates(name) == ()


@pytest.mark.parametrize(
    ("name", "memory_gib", "expected"),
    [
        ("A100", 80, "A100-80GB"),
        ("A100", 40, "A100-40GB"),
        ("V100", 32, "V100-32GB"),
        ("GH200", 144, "GH200-144GB"),
        ("H100", 94, "H100-94GB-NVL"),
        ("RTX-PRO-5000", 72, "RTX-PRO-5000-72GB"),
    ],
)
def test_memory_decides_between_devices_of_one_name(name: str, memory_gib: int, expected: str) -> None:
    found = accelerator(name, memory_bytes=memory_gib * GIB)
    assert found is not None
    assert found.name == expected


def test_a_size_behind_the_name_chooses() -> None:
    assert [device.name for device in candidates("MI50 32GB")] == ["MI50-32GB"]


@settings(max_examples=60)
@given(st.sampled_from(sorted(known_names())), st.sampled_from(["", "-SHARED"]), st.booleans(), st.booleans())
def test_case_and_separators_do_not_count(name: str, suffix: str, upper: bool, blanks: bool) -> None:
    plain = accelerator(name)
    spelled = (name.upper() if upper else name.lower()).replace("-", " " if blanks else "_") + suffix
    assert plain is not None
    assert accelerator(spelled) == plain


def test_every_line_is_sourced_and_sane() -> None:
    for device in accelerators().values():
        assert len(device.source) > 10, device.name
        assert 0 < device.visible_bytes <= device.nominal_gb * GIB, device.name
        assert device.visible_bytes > 0.6 * device.nominal_gb * 10**9, device.name
        assert device.native, device.name
        assert not device.native & device.weight_only, device.name
        assert all(value > 0 for value in device.tflops.values()), device.name
        assert device.parent is None or device.parent in accelerators(), device.name


def test_a_slice_is_smaller_than_its_device() -> None:
    for device in accelerators().values():
        if device.parent:
            whole = accelerators()[device.parent]
            assert device.visible_bytes <= whole.visible_bytes
            assert device.max_per_node == 1


@pytest.mark.parametrize(
    ("name", "gib"), [("H100-80GB", 79.19), ("A100-80GB", 79.15), ("L40S-48GB", 44.4), ("RTX4090-24GB", 23.6)]
)
def test_visible_memory_is_what_torch_reports(name: str, gib: float) -> None:
    assert accelerators()[name].visible_bytes / GIB == pytest.approx(gib, abs=0.01)


def test_formats_follow_the_generation() -> None:
    devices = accelerators()
    assert "fp8" not in devices["A100-80GB"].native
    assert "fp8" in devices["A100-80GB"].weight_only
    assert "bf16" not in devices["T4-16GB"].native
    assert {"fp8", "nvfp4"} <= devices["B200-180GB"].native
    assert "fp8" in devices["MI300X-192GB"].native
    assert devices["V100-16GB"].weight_only == frozenset()


def test_tpu_slices_have_topologies() -> None:
    assert accelerators()["TPU-V6E"].topologies[8] == "2x4"
    assert accelerators()["TPU-V5P"].topologies[8] == "2x2x2"


def test_an_overlay_adds_and_replaces(tmp_path: Path) -> None:
    (tmp_path / "accelerators.yaml").write_text(
        "MYCARD-10GB:\n"
        "  vendor: nvidia\n"
        "  architecture: Turing\n"
        "  nominal_gb: 10\n"
        "  visible_bytes: 10000000000\n"
        "  source: measured here\n"
    )
    assert accelerator("mycard 10gb", overlay=tmp_path) is not None
    assert accelerator("H100", overlay=tmp_path) is not None
    assert accelerator("mycard 10gb") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("X: {vendor: nvidia}", "lacks"),
        ("X: {vendor: nvidia, colour: red}", "colour"),
        ("- one\n- two\n", "no mapping"),
        ("X: [", "not YAML"),
        ("\udcff", "cannot be read"),
        (
            "X: {vendor: v, architecture: a, nominal_gb: 1, visible_bytes: -1, source: s}",
            "visible_bytes",
        ),
    ],
)
def test_a_wrong_overlay_is_refused_with_its_file(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "accelerators.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        accelerators(overlay=tmp_path)
    assert says in caught.value.what
    assert caught.value.where is not None
    assert caught.value.where.file == str(tmp_path / "accelerators.yaml")
