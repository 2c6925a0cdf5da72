"""How a training run goes: its steps and what they take, and what a smaller set would need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.apply import RunPlan
from orchestrator.errors import NothingFits, SpecError
from orchestrator.planner.course import course_of
from orchestrator.planner.tune import Trained
from orchestrator.render.plans import plan_json, plan_text
from orchestrator.spec.models import Model, Train
from tests.places import plan_everywhere

SPEC = """\
type: task
name: sft
train:
  model: meta-llama/Llama-3.1-8B
  dataset: org/rows
  adapter: {adapter}
  sequence_length: 2048
  batch_size: 32
  epochs: 3
  args: {args}
resources: {{gpu: "{gpu}"}}
nodes: {nodes}
env: {{HF_TOKEN: "x"}}
"""


def planned(adapter: str = "lora", gpu: str = "A100,H100", args: str = "{}", nodes: str = "1") -> Trained:
    [plan] = plan_everywhere(SPEC.format(adapter=adapter, gpu=gpu, args=args, nodes=nodes))
    assert isinstance(plan, RunPlan)
    assert plan.trained
    return plan.trained


def train(**fields: Any) -> Train:
    return Train(model=Model(id="m"), dataset="d", batch_size=16, sequence_length=1024, **fields)


def test_the_last_batch_of_an_epoch_is_a_step() -> None:
    assert course_of(train(epochs=2.0), rows=33, speed=None).steps == 6
    assert course_of(train(args={"max_steps": 4}), rows=33, speed=None).steps == 4
    assert course_of(train(), rows=None, speed=None).steps is None


def test_a_checkpoint_costs_ten_minutes_of_work_at_most() -> None:
    trained = planned()
    step_s = trained.course.step_s
    assert step_s
    assert trained.course.save_steps * step_s <= 600 + step_s
    words = trained.launch.command
    assert words[words.index("--save_steps") + 1] == str(trained.course.save_steps)


def test_an_interval_that_is_asked_for_is_kept() -> None:
    assert planned(args="{save_steps: 7}").course.save_steps == 7


def test_the_batch_is_what_its_parts_make() -> None:
    trained = planned("none", "H100:8", nodes="2")
    where, job = trained.candidate, trained.candidate.job
    assert job.micro_batch * where.accumulation * where.nodes * where.count == 32 == trained.batch_size
    [plan] = plan_everywhere(SPEC.format(adapter="none", gpu="H100:8", args="{}", nodes="2"))
    cut = f"{job.micro_batch} micro batch × {where.accumulation} accumulation × 2 nodes × 8 devices"
    assert f"batch 32 = {cut}" in plan_text([plan])


def test_what_would_make_a_cheaper_set_do_does_so() -> None:
    near = planned("none", "A100-80GB,H100,L4:1..8").smaller
    assert near
    assert near.change
    assert near.short_bytes > 0
    changed = dict(part.split(": ") for part in near.change.split(" and "))
    text = SPEC.format(
        adapter=changed.get("adapter", "none"), gpu=f"{near.accelerator}:{near.count}", args="{}", nodes="1"
    )
    text = text.replace("2048", changed.get("sequence_length", "2048"))
    [plan] = plan_everywhere(text)
    assert isinstance(plan, RunPlan)
    assert plan.trained


def test_a_run_is_told_in_rows_steps_time_and_money(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    text = SPEC.format(adapter="lora", gpu="H100", args="{}", nodes="1").replace(
        "org/rows", f"{tmp_path}/rows.jsonl"
    )
    plans = plan_everywhere(text)
    assert "course   3 steps (1 rows × 3 epochs) · at most 1m · $" in plan_text(plans)
    course = json.loads(plan_json(plans))["runs"][0]["training"]
    assert course
    assert json.loads(plan_json(plans))["runs"][0]["course"]["steps"] == 3


def test_every_weight_of_405b_on_six_nodes_is_refused_for_its_reason() -> None:
    """Six machines of eight 80 GB devices hold the weights and their states, and not the margin."""
    text = (Path("configs/tasks/llama-405b-full.yaml")).read_text()
    six = text.replace("nodes: 12", "nodes: 6").replace("H200:8", "H100-80GB:8")
    with pytest.raises(NothingFits) as caught:
        plan_everywhere(six)
    assert caught.value.refused[0].reason or caught.value.fix
    assert "lacks" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("targets", "said"),
    [("[q_prj]", "did you mean 'q_proj'?"), ("[query_key_value]", "it has down_proj, ")],
)
def test_an_adapter_on_what_is_not_there_is_refused(targets: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        planned(f"{{type: lora, targets: {targets}}}")
    assert "train.adapter.targets[0]: " in str(caught.value)
    assert said in str(caught.value)
