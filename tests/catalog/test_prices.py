"""Prices: dated, never 0, and other tools' lists read without believing them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from orchestrator.catalog import PriceRow, accelerators, age_days, as_of, is_stale, price_line, prices
from orchestrator.catalog.pricelists import read_gpuhunt, read_price_list, read_skypilot
from orchestrator.errors import ConfigError

TODAY = date(2026, 11, 25)
SKYPILOT = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,"
    "Price,SpotPrice,Region,AvailabilityZone\n"
)
GPUHUNT = "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size\n"


def test_no_price_is_zero_and_every_row_has_one() -> None:
    for row in prices():
        said = [price for price in (row.on_demand_usd_hour, row.spot_usd_hour) if price is not None]
        assert said, row.name
        assert min(said) > 0, row.name


def test_every_row_is_of_a_known_accelerator() -> None:
    assert {row.accelerator for row in prices()} <= accelerators().keys()
    assert all(row.count >= 1 for row in prices())


def test_spot_is_no_dearer_than_on_demand() -> None:
    for row in prices():
        if row.on_demand_usd_hour and row.spot_usd_hour:
            assert row.spot_usd_hour <= row.on_demand_usd_hour, row.name


def test_the_large_providers_are_there() -> None:
    providers = {row.provider for row in prices()}
    assert {"aws", "gcp", "azure", "lambda", "runpod", "oci", "nebius", "coreweave"} <= providers


def test_an_old_or_undated_price_is_stale() -> None:
    row = PriceRow("p", "r", "i", "list", as_of=date(2026, 8, 1))
    assert age_days(row, TODAY) == 116
    assert is_stale(row, TODAY)
    assert not is_stale(row, date(2026, 8, 31))
    assert is_stale(PriceRow("p", "r", "i", "list"), TODAY)


def test_a_table_is_as_old_as_its_oldest_row() -> None:
    rows = [PriceRow("p", "r", "a", "s", as_of=date(2026, 1, 1)), PriceRow("p", "r", "b", "s", as_of=TODAY)]
    assert as_of(rows) == date(2026, 1, 1)
    assert as_of([PriceRow("p", "r", "c", "s")]) is None


def test_a_written_line_reads_back_the_same(tmp_path: Path) -> None:
    row = PriceRow(
        "acme",
        "eu",
        "gpu-8",
        "my list",
        "H100-80GB",
        8,
        96.0,
        2**40,
        10**12,
        "x86",
        20.5,
        9.25,
        TODAY,
        "high",
        "ours",
    )
    (tmp_path / "prices.yaml").write_text(price_line(row) + "\n")
    assert row in prices(overlay=tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a/b/c: {source: s, on_demand_usd_hour: 0}", "is 0"),
        ("a/b/c: {source: s, on_demand_usd_hour: .nan}", "nan"),
        ("a/b/c: {source: s, on_demand_usd_hour: -2}", "-2"),
        ("a/b/c: {source: s, on_demand_usd_hour: cheap}", "cheap"),
        ("a/b/c: {source: s}", "no price"),
        ("a/b/c: {on_demand_usd_hour: 2}", "source"),
        ("abc: {source: s, on_demand_usd_hour: 2}", "no name"),
        ("a/b/c: {source: s, on_demand_usd_hour: 2, prize: 3}", "prize"),
    ],
)
def test_an_overlay_price_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        prices(overlay=tmp_path)
    assert says in caught.value.what


def test_gpuhunt_rows_become_one_per_instance() -> None:
    found = read_gpuhunt(
        GPUHUNT
        + "p5.48xlarge,us-east-1,55.04,192,2048,8,H100,80,False,0\n"
        + "p5.48xlarge,us-east-1,20.5,192,2048,8,H100,80,True,0\n"
        + "m7i.large,us-east-1,0.1,2,8,0,,,False,0\n",
        provider="aws",
        as_of=TODAY,
    )
    (row,) = found.rows
    assert (row.accelerator, row.count, row.on_demand_usd_hour, row.spot_usd_hour) == (
        "H100-80GB",
        8,
        55.04,
        20.5,
    )
    assert (row.memory_bytes, row.as_of) == (2048 * 2**30, TODAY)
    assert found.refused == ()


def test_gpuhunt_memory_tells_a100s_apart() -> None:
    found = read_gpuhunt(GPUHUNT + "x,r,3,8,64,1,A100,80,False,0\n", provider="p", as_of=None)
    assert found.rows[0].accelerator == "A100-80GB"


def test_bad_lines_are_refused_by_number() -> None:
    found = read_gpuhunt(
        GPUHUNT
        + "good,r,3,8,64,1,L4,24,False,0\n"
        + "free,r,0,8,64,1,L4,24,False,0\n"
        + "nothing,r,NaN,8,64,1,L4,24,False,0\n"
        + "odd,r,3,8,64,1,XYZ123,24,False,0\n",
        provider="p",
        as_of=None,
        file="gpus.csv",
    )
    assert [row.instance_type for row in found.rows] == ["good"]
    assert [(problem.at.file, problem.at.line) for problem in found.refused] == [
        ("gpus.csv", 3),
        ("gpus.csv", 4),
        ("gpus.csv", 5),
    ]
    assert "XYZ123" in found.refused[2].what


def test_googles_machines_and_gpus_are_joined_by_region() -> None:
    found = read_skypilot(
        SKYPILOT
        + "a2-highgpu-1g,,,12,85,,0.74,0.22,us-central1,us-central1-a\n"
        + "a2-highgpu-1g,,,12,85,,0.99,0.32,europe-west4,europe-west4-a\n"
        + ",A100,1,,,,2.93,0.88,us-central1,us-central1-a\n"
        + ",A100,1,,,,3.20,1.00,europe-west4,europe-west4-a\n"
        + ",A100,1,,,,3.20,1.00,asia-east1,asia-east1-a\n",
        provider="gcp",
        as_of=TODAY,
    )
    assert [(row.region, row.instance_type) for row in found.rows] == [
        ("europe-west4", "a2-highgpu-1g"),
        ("us-central1", "a2-highgpu-1g"),
    ]
    cheap = found.rows[1]
    assert cheap.on_demand_usd_hour == pytest.approx(3.67)
    assert cheap.spot_usd_hour == pytest.approx(1.10)
    assert (cheap.accelerator, cheap.cpu) == ("A100-40GB", 12)
    assert [problem.at.line for problem in found.refused] == [6]


def test_a_gpu_without_a_machine_price_has_none() -> None:
    found = read_skypilot(
        SKYPILOT + "a2-highgpu-1g,,,12,85,,,0.22,r,r-a\n,A100,1,,,,2.93,,r,r-a\n", provider="gcp", as_of=None
    )
    assert found.rows == ()
    assert len(found.refused) == 1


def test_tpu_names_count_chips() -> None:
    found = read_skypilot(
        SKYPILOT
        + ",tpu-v5litepod-8,1,,,,9.6,4.8,us-west4,us-west4-a\n,tpu-v3-32,1,,,,32,9.6,us-east1,us-east1-d\n",
        provider="gcp",
        as_of=None,
    )
    assert [(row.accelerator, row.count) for row in found.rows] == [("TPU-V3", 16), ("TPU-V5E", 8)]


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("{'Gpus': [{'MemoryInfo': {'SizeInMiB': 81920}}]}", "A100-80GB"),
        ("{'Gpus': [{'MemoryInfo': {'SizeInMiB': 80}}]}", "A100-80GB"),
        ("", "A100-40GB"),
    ],
)
def test_skypilots_memory_is_read_in_both_its_units(info: str, expected: str) -> None:
    found = read_skypilot(SKYPILOT + f'x,A100,1,8,64,"{info}",3,,r,\n', provider="lambda", as_of=None)
    assert found.rows[0].accelerator == expected


def test_the_cheapest_zone_of_a_region_is_kept() -> None:
    found = read_skypilot(
        SKYPILOT + "g6.xlarge,L4,1,4,16,,0.8,0.5,us,us-a\ng6.xlarge,L4,1,4,16,,0.8,0.3,us,us-b\n",
        provider="aws",
        as_of=None,
    )
    assert [(row.on_demand_usd_hour, row.spot_usd_hour) for row in found.rows] == [(0.8, 0.3)]


@pytest.mark.parametrize(
    "text", [SKYPILOT + "g6,L4,1,4,16,,0.8,0.5,us,us-a\n", GPUHUNT + "g6,us,0.8,4,16,1,L4,24,False,0\n"]
)
def test_a_list_is_told_by_its_columns(text: str) -> None:
    (row,) = read_price_list(text, provider="aws", as_of=TODAY, file="x.csv").rows
    assert (row.name, row.on_demand_usd_hour) == ("aws/us/g6", 0.8)


def test_a_list_of_neither_tool_is_refused() -> None:
    with pytest.raises(ConfigError):
        read_price_list("a,b\n1,2\n", provider="x", as_of=None, file="odd.csv")


def test_a_list_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        read_skypilot("a,b\n1,2\n", provider="x", as_of=None, file="odd.csv")
    assert "InstanceType" in caught.value.what
