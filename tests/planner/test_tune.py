"""A training task: the batch comes out as asked, local data is mounted, and refusals say what would help."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.apply import RunPlan, plan_documents
from orchestrator.backend import Offer
from orchestrator.catalog import accelerator
from orchestrator.errors import NothingFits, SpecError
from orchestrator.planner.plan import SHOWN
from orchestrator.render.plans import plan_json, plan_text
from orchestrator.spec.load import read
from orchestrator.units import GIB
from tests.places import ABLE, plan_everywhere, world

SFT = """\
type: task
name: sft
train:
  model: Qwen/Qwen2.5-7B
  dataset: {dataset}
  adapter: {adapter}
  sequence_length: 4096
  batch_size: {batch}
{more}
"""


def planned(
    *, dataset: str = "trl-lib/Capybara", adapter: str = "lora", batch: int = 16, more: str = ""
) -> RunPlan:
    """Return the plan of a training task."""
    text = SFT.format(dataset=dataset, adapter=adapter, batch=batch, more=more)
    (plan,) = plan_everywhere(text, file="/specs/sft.yaml")
    assert isinstance(plan, RunPlan)
    return plan


@pytest.mark.parametrize("adapter", ["none", "lora", "qlora"])
@pytest.mark.parametrize("batch", [1, 16, 48])
def test_the_batch_is_the_one_that_was_asked_for(adapter: str, batch: int) -> None:
    trained = planned(adapter=adapter, batch=batch, more="nodes: auto").trained
    assert trained
    devices = trained.candidate.count * trained.candidate.nodes
    assert trained.candidate.job.micro_batch * trained.candidate.accumulation * devices == batch
    assert trained.size.fits


def test_training_goes_where_its_owner_counts_least() -> None:
    def rack(name: str, usd: float) -> Offer:
        return Offer(
            name, name, 64, 512 * GIB, accelerator="H100-80GB", vendor="nvidia", count=8,
            vram_bytes=85_028_634_624, divisible=True, own_usd_hour=usd,
        )  # fmt: skip

    racks = [*(rack(f"dear{at}", 5.0) for at in range(SHOWN)), rack("cheap", 2.0)]
    there = replace(world(), offers=lambda: racks, places={each.backend: ABLE for each in racks})
    text = SFT.format(dataset="trl-lib/Capybara", adapter="lora", batch=16, more="")
    (plan,) = plan_documents(read(text), there)
    assert isinstance(plan, RunPlan)
    assert plan.placed
    assert plan.template
    assert plan.placed.choices[0].offer.backend == "cheap"
    assert plan.template.backends[0] == "cheap"


def test_a_smaller_adapter_needs_no_more_memory() -> None:
    peaks = [
        t.size.device.weights_bytes
        for a in ("none", "lora", "qlora")
        if (t := planned(adapter=a, batch=1).trained)
    ]
    assert peaks == sorted(peaks, reverse=True)


def test_the_command_is_the_trainers_with_the_plans_numbers() -> None:
    plan = planned()
    assert plan.template
    assert plan.trained
    command = plan.template.launch.command
    at = command.index("--per_device_train_batch_size")
    assert command[at + 1] == str(plan.trained.candidate.job.micro_batch)
    assert command[command.index("--max_length") + 1] == "4096"


def test_local_data_is_mounted_where_the_command_reads_it() -> None:
    plan = planned(dataset="/data/rows.jsonl")
    assert plan.template
    mounts = {m.target: m.source for m in plan.template.launch.mounts}
    assert mounts["/modelyard/data/rows.jsonl"] == "/data/rows.jsonl"
    assert any("/modelyard/data" in word for word in plan.template.launch.command)


def test_what_comes_out_is_kept_without_being_asked_for() -> None:
    plan = planned()
    assert plan.template
    kept = {m.source: m.kind for m in plan.template.launch.mounts}
    assert kept["sft-output"] == "cache"


def test_a_run_that_fits_nowhere_says_what_the_nearest_set_lacks() -> None:
    with pytest.raises(NothingFits) as caught:
        planned(adapter="none", more="resources: {gpu: 24GB..26GB:1}")
    assert str(caught.value.fix).endswith(" GiB a device, would do with adapter: qlora")
    assert "sft of Qwen/Qwen2.5-7B, every weight" in caught.value.needs


def test_a_method_the_trainer_has_not_is_refused_by_name() -> None:
    text = SFT.format(dataset="d", adapter="lora", batch=16, more="")
    with pytest.raises(SpecError) as caught:
        plan_everywhere(text.replace("train:", "train:\n  method: orpo"))
    [problem] = caught.value.problems
    assert problem.what == "train.method: trl does not train by orpo"
    assert problem.fix == "axolotl does: write engine: axolotl"


def test_a_reader_sees_model_batch_memory_and_speed() -> None:
    plan = planned(adapter="qlora")
    text = plan_text([plan])
    assert "Qwen/Qwen2.5-7B · 7.62 B · sft, qlora · 4,096 tokens a sequence" in text
    assert "batch 16 = " in text
    assert "(margin 35%)" in text
    assert '"micro_batch"' in plan_json([plan])


def preferring(method: str, *args: str) -> RunPlan:
    """Return the plan of a full tuning by ``method`` with the trainer's own ``args``."""
    text = SFT.format(dataset="d", adapter="none", batch=16, more="  args: {" + ", ".join(args) + "}")
    (plan,) = plan_everywhere(text.replace("train:", f"train:\n  method: {method}"))
    assert isinstance(plan, RunPlan)
    return plan


def test_a_beta_above_0_has_grpo_ask_a_reference() -> None:
    rewards = "reward_funcs: [think_format_reward]"
    asked, alone = (preferring("grpo", rewards, f"beta: {beta}").trained for beta in (0.04, 0.0))
    assert asked
    assert alone
    assert (asked.candidate.job.reference, alone.candidate.job.reference) == (True, False)


def test_a_plan_says_what_nobody_measured() -> None:
    assert "caution  no measured row stands behind the speed of dpo" in plan_text([preferring("dpo")])


def test_the_share_that_is_sized_is_the_one_the_trainer_is_told() -> None:
    plan = preferring("grpo", "reward_funcs: [think_format_reward]")
    assert plan.template
    assert plan.trained
    command = plan.template.launch.command
    told = command[command.index("--vllm_gpu_memory_utilization") + 1]
    device = plan.trained.size.device
    assert device.kv_cache_bytes == pytest.approx(float(told) * device.visible_bytes, rel=0.001)


@pytest.mark.parametrize(("nodes", "gpu"), [(6, "H100:8"), (6, "H200:8"), (12, "H200:8")])
def test_405b_is_planned_or_told_what_it_lacks(nodes: int, gpu: str) -> None:
    """Six nodes of eight 80 GB devices are said to do, at 8 bytes a parameter; 32-bit states take 16."""
    text = (Path(__file__).parents[2] / "configs" / "tasks" / "llama-405b-full.yaml").read_text()
    asked = text.replace("nodes: 12", f"nodes: {nodes}").replace("H200:8", gpu)
    if nodes == 12:
        [plan] = plan_everywhere(asked)
        assert isinstance(plan, RunPlan)
        assert plan.trained is not None
        assert plan.trained.candidate.nodes == 12
        return
    with pytest.raises(NothingFits) as caught:
        plan_everywhere(asked)
    assert "GiB a device" in (caught.value.fix or "")


def test_a_run_of_every_weight_is_told_how_many_machines_hold_it() -> None:
    text = (Path(__file__).parents[2] / "configs" / "tasks" / "llama-405b-full.yaml").read_text()
    with pytest.raises(NothingFits) as caught:
        plan_everywhere(text.replace("nodes: 12", "nodes: 1"))
    found = re.search(r"would do with nodes: (\d+)(?: and batch_size: (\d+))?", caught.value.fix or "")
    assert found
    more = text.replace("nodes: 12", f"nodes: {found[1]}")
    if found[2]:
        more = re.sub("batch_size: .*", f"batch_size: {found[2]}", more)
    [plan] = plan_everywhere(more)
    assert isinstance(plan, RunPlan)


def test_a_run_that_only_max_price_keeps_out_is_told_the_price() -> None:
    def machine(name: str, accelerator: str, vram_bytes: int, usd: float) -> Offer:
        return Offer(
            "lab", name, 64, 512 * GIB, accelerator=accelerator, vendor="nvidia", count=1,
            vram_bytes=vram_bytes, compute_capability=(8, 9), price_usd_hour=usd,
        )  # fmt: skip

    small, large = (
        machine("small", "T4-16GB", 15_843_721_216, 3.0),
        machine("large", "H100-80GB", 85_028_634_624, 12.5),
    )
    text = SFT.format(dataset="trl-lib/Capybara", adapter="lora", batch=16, more="max_price: 2")
    there = replace(world(), offers=lambda: [small, large], places={"lab": ABLE})
    with pytest.raises(NothingFits) as caught:
        plan_documents(read(text), there)
    assert caught.value.fix == "1 × H100-80GB would hold it with max_price 12.5"
    assert [each.change for each in caught.value.why_not] == ["max_price 12.5"]
    (plan,) = plan_documents(read(text.replace("max_price: 2", "max_price: 12.5")), there)
    assert isinstance(plan, RunPlan)

    there = replace(there, offers=lambda: [small])
    with pytest.raises(NothingFits) as caught:
        plan_documents(read(text), there)
    assert "does not hold it either" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("model", "adapter", "said"),
    [
        ("Qwen2.5-14B", "lora", "would do with adapter: qlora"),
        ("Qwen2.5-72B-Instruct", "lora", "no smaller run that was tried does: allow larger accelerators"),
        ("Qwen2.5-72B-Instruct", "qlora", "no smaller run that was tried does: allow larger accelerators"),
    ],
)
def test_what_is_advised_would_do(model: str, adapter: str, said: str) -> None:
    small = Offer(
        "lab", "small", 64, 512 * GIB, accelerator="L4-24GB", vendor="nvidia", count=1,
        vram_bytes=23_580_639_232, compute_capability=(8, 9), price_usd_hour=1.0,
    )  # fmt: skip
    text = SFT.format(dataset="trl-lib/Capybara", adapter=adapter, batch=16, more="")
    there = replace(world(), offers=lambda: [small], places={"lab": ABLE})
    with pytest.raises(NothingFits) as caught:
        plan_documents(read(text.replace("Qwen2.5-7B", model)), there)
    assert (caught.value.fix or "").endswith(said)


@pytest.mark.parametrize(
    ("accelerators", "said"),
    [
        (["V100-32GB"], "trl: trl needs compute capability 7.5, V100-32GB has 7.0"),
        (["TRAINIUM2-96GB"], "trl: there is no image of trl for neuron, name one"),
        (["TRAINIUM2-96GB", "L4-24GB"], "1 × L4-24GB lacks "),  # which lacks more, and could train
    ],
)
def test_no_smaller_run_is_advised_where_the_trainer_runs_none(accelerators: list[str], said: str) -> None:
    offers = [
        Offer(
            "lab", name, 64, 512 * GIB, accelerator=name, vendor=device.vendor, count=1,
            vram_bytes=device.visible_bytes, compute_capability=device.capability, price_usd_hour=1.0,
        )
        for name in accelerators
        for device in [accelerator(name)]
    ]  # fmt: skip
    text = SFT.format(dataset="trl-lib/Capybara", adapter="lora", batch=16, more="")
    there = replace(world(), offers=lambda: offers, places={"lab": ABLE})
    with pytest.raises(NothingFits) as caught:
        plan_documents(read(text.replace("Qwen2.5-7B", "Qwen2.5-72B-Instruct")), there)
    assert (caught.value.fix or "").startswith(said)


@pytest.mark.parametrize(("name", "precision"), [("T4-16GB", "fp16"), ("L4-24GB", "bf16")])
def test_a_run_computes_in_what_the_device_has(name: str, precision: str) -> None:
    device = accelerator(name)
    assert device
    offers = [
        Offer(
            "lab", name, 64, 512 * GIB, accelerator=name, vendor=device.vendor, count=1,
            vram_bytes=device.visible_bytes, compute_capability=device.capability, price_usd_hour=1.0,
        )
    ]  # fmt: skip
    text = SFT.format(dataset="trl-lib/Capybara", adapter="qlora", batch=4, more="")
    there = replace(world(), offers=lambda: offers, places={"lab": ABLE})
    [plan] = plan_documents(read(text.replace("Qwen2.5-7B", "Qwen2.5-1.5B")), there)
    assert isinstance(plan, RunPlan)
    assert plan.template
    command = plan.template.launch.command
    told = {each: command[command.index(f"--{each}") + 1] for each in ("bf16", "fp16")}
    assert told == {each: str(each == precision) for each in told}


def test_an_encoder_is_not_tuned_as_what_generates() -> None:
    text = SFT.format(dataset="trl-lib/Capybara", adapter="lora", batch=16, more="")
    text = text.replace("Qwen/Qwen2.5-7B", "BAAI/bge-base-en-v1.5").replace("4096", "512")
    with pytest.raises(SpecError) as caught:
        plan_documents(read(text), world())
    (problem,) = caught.value.problems
    assert problem.what == "train.model: BertModel is an encoder, and sft tunes what generates"
