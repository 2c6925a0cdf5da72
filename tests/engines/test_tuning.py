"""Trainers: what the plan says is what their commands and files say."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.engines import EngineLaunch, Source, trainer, trainers
from orchestrator.engines.flags import load
from orchestrator.engines.node_entry import command as node_command
from orchestrator.engines.trl import SCRIPTS
from orchestrator.engines.tuning import Dataset, Method, Sharding, Tuned, TuningJob
from tests.engines.jobs import DEEPSEEK, H100, LLAMA_8B, MI300X, T4, TPU
from tests.engines.test_parsers import ask, interpreter

METHODS: tuple[Method, ...] = ("sft", "pretrain", "dpo", "kto", "reward", "grpo", "rloo", "orpo", "ppo")
REWARDS: Mapping[str, Mapping[str, Any]] = {
    "trl": {"reward_funcs": ["think_format_reward"]},
    "axolotl": {"trl": {"reward_funcs": ["rewards.length"], "num_generations": 8}},
}
MASTER = {"MODELYARD_MASTER_NODE_IP": "10.0.0.1", "MODELYARD_NODE_RANK": "1", "MODELYARD_NODE_IP": "10.0.0.2"}


def tuning(model: ModelFacts = LLAMA_8B, accelerator: Accelerator | None = H100, **changes: Any) -> TuningJob:
    """Return a job on one device that tunes on a data set of the hub."""
    job = TuningJob(model, Source(model.id), Dataset("org/data"), "/output", accelerator=accelerator)
    return replace(job, **changes)


def every_tuning(name: str) -> Iterator[TuningJob]:
    """Yield method × adapter × {1, 8, 2×8, 6×8 devices} × {NVIDIA, AMD, CPU} × sharding."""
    shapes = ((1, 1), (8, 1), (8, 2), (8, 6))
    shards: tuple[Sharding, ...] = ("none", "zero1", "zero2", "zero3", "fsdp")
    kinds = (Tuned(), Tuned("lora", rank=8, targets=("q_proj", "v_proj")), Tuned("qlora"))
    for method, tuned, (count, nodes) in itertools.product(METHODS, kinds, shapes):
        for device, sharding in itertools.product((H100, MI300X, None), shards):
            job = tuning(accelerator=device, method=method, tuned=tuned, count=count, nodes=nodes)
            args = (
                REWARDS[name] if method in ("grpo", "rloo") else {"warmup_steps": 10, "learning_rate": 1e-4}
            )
            job = replace(job, sharding=sharding, args=args, accumulation=8)
            yield job
            rows = Dataset("./rows.jsonl", path="/data/rows.jsonl")
            yield replace(job, dataset=rows, packing=True, loss_kernel=True, offload=True, micro_batch=4)
            yield replace(job, precision="fp16", resume=True, merge=tuned.type != "none", rollout_share=0.3)


def words_of(launch: EngineLaunch) -> tuple[str, ...]:
    """Return the trainer's whole command in a launch."""
    words = (*(launch.entrypoint or ()), *launch.command)
    entry = max(n for n, word in enumerate(words) if word.endswith("tuning_entry.py"))
    return words[words.index("--", entry) + 1 :]


def files_of(launch: EngineLaunch) -> dict[str, Any]:
    """Return the JSON files of a launch by name."""
    left_out = ("tuning.json",)
    found = {
        Path(f.target).name: f.content for f in launch.files if not f.target.endswith((".py", *left_out))
    }
    return {name: json.loads(content) for name, content in found.items()}


def test_whole_command_of_trl() -> None:
    job = tuning(
        tuned=Tuned("lora", rank=16), micro_batch=4, accumulation=8, packing=True, sequence_tokens=4096
    )
    assert " ".join(words_of(trainer("trl").launch(job))) == (
        "python3 -m trl.scripts.sft --model_name_or_path meta-llama/Llama-3.1-8B-Instruct "
        "--dataset_name org/data --dataset_train_split train --output_dir /output --dtype bfloat16 "
        "--bf16 True --fp16 False --per_device_train_batch_size 4 --gradient_accumulation_steps 8 "
        "--num_train_epochs 1.0 --optim adamw_torch_fused --gradient_checkpointing True "
        "--use_liger_kernel False --max_length 4096 --packing True --use_peft True --lora_r 16 "
        "--lora_alpha 32 --lora_dropout 0.0 --lora_target_modules all-linear --save_strategy steps "
        "--save_steps 500 --save_total_limit 2 --enable_jit_checkpoint True --logging_steps 10 "
        "--report_to none"
    )


def test_whole_configuration_of_axolotl() -> None:
    launch = trainer("axolotl").launch(tuning(tuned=Tuned("qlora", rank=16), micro_batch=4, accumulation=8))
    assert words_of(launch) == ("python3", "-m", "axolotl.cli.train", "/modelyard/axolotl.yaml")
    values = files_of(launch)["axolotl.yaml"]
    assert values["datasets"] == [{"path": "org/data", "split": "train", "type": "chat_template"}]
    assert (values["adapter"], values["load_in_4bit"], values["lora_target_linear"]) == ("qlora", True, True)
    assert values["micro_batch_size"] * values["gradient_accumulation_steps"] == 32
    assert dict(launch.env)["AXOLOTL_DO_NOT_TRACK"] == "1"


@pytest.mark.parametrize("name", trainers())
def test_nodes_meet_by_our_variables(name: str) -> None:
    launch = trainer(name).launch(tuning(count=8, nodes=2, sharding="fsdp"))
    words = node_command(["--", *words_of(launch)], MASTER)
    assert launch.command[0] == "/modelyard/node_entry.py"
    assert words[:11] == [
        "torchrun",
        "--nproc-per-node",
        "8",
        "--nnodes",
        "2",
        "--node-rank",
        "1",
        "--master-addr",
        "10.0.0.1",
        "--master-port",
        "29400",
    ]


@pytest.mark.parametrize("name", trainers())
def test_launcher_that_swallows_the_signal_is_never_used(name: str) -> None:
    for job in every_tuning(name):
        if trainer(name).refuses(job) is None:
            words = words_of(trainer(name).launch(job))
            assert not {"trl", "accelerate", "sh", "axolotl"} & {words[0], *words[2:4]}


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("trl", {"method": "ppo"}, "trl does not train by ppo"),
        ("trl", {"method": "orpo"}, "trl does not train by orpo"),
        ("axolotl", {"method": "ppo"}, "axolotl does not train by ppo"),
        ("trl", {"accelerator": T4}, "T4-16GB has no bf16, train in fp16"),
        ("trl", {"accelerator": TPU}, "there is no image of trl for tpu"),
        ("axolotl", {"accelerator": MI300X}, "there is no image of axolotl for rocm"),
        ("trl", {"accelerator": None, "tuned": Tuned("qlora")}, "qlora needs bitsandbytes"),
        ("trl", {"model": DEEPSEEK}, "published in fp8 cannot be trained themselves"),
        ("trl", {"sequence_tokens": 200_000}, "beyond the model's 131072"),
        ("trl", {"sharding": "zero3"}, "zero3 spreads over devices, and there is one"),
        ("trl", {"method": "grpo"}, "grpo needs reward_funcs"),
        ("trl", {"method": "grpo", "args": REWARDS["trl"]}, "a batch of 1 is not made of whole groups"),
        ("trl", {"version": "1.14.0", "resume": True, "image": "x"}, "cannot resume"),
        ("trl", {"args": {"learning_rat": 1}}, "args.learning_rat: trl 1.16.0 has no learning_rat"),
        ("trl", {"args": {"num_generations": 4}}, "has no num_generations"),
        ("trl", {"args": {"output_dir": "/x"}}, "output_dir is not for args"),
        ("trl", {"args": {"learning_rate": "fast"}}, "takes a number, got 'fast'"),
        ("trl", {"args": {"max_length": 200_000}}, "args.max_length: sequences of 200000 are beyond"),
        ("trl", {"args": {"optim": "adamx"}}, "optim takes one of"),
        ("trl", {"method": "rloo"}, "rloo needs reward_funcs"),
        ("trl", {"tuned": Tuned("lora", targets=("q_prj",))}, "LlamaForCausalLM has no 'q_prj'"),
        ("axolotl", {"args": {"micro_batch_sizes": 4}}, "axolotl 0.19.0 has no micro_batch_sizes"),
        ("axolotl", {"args": {"deepspeed": "x"}}, "deepspeed is not for args"),
        ("axolotl", {"args": {"learning_rate": "fast"}}, "takes a number, got 'fast'"),
        ("axolotl", {"bucket": "s3://b/o", "nodes": 2}, "needs a folder or a volume for output"),
        ("axolotl", {"method": "rloo"}, "axolotl does not train by rloo"),
        ("axolotl", {"method": "grpo"}, "grpo needs trl with its reward_funcs"),
        ("trl", {"source": Source("s3://bucket/model")}, "does not load from s3://"),
        ("trl", {"model": replace(LLAMA_8B, gated_access=True)}, "needs HF_TOKEN"),
    ],
)
def test_refusal_names_its_reason(name: str, changes: dict[str, Any], reason: str) -> None:
    assert reason in (trainer(name).refuses(tuning(**changes)) or "accepted")


@pytest.mark.parametrize(
    ("name", "option"), [("trl", "per_device_train_batch_size"), ("axolotl", "micro_batch_size")]
)
def test_users_value_replaces_ours_and_is_told(name: str, option: str) -> None:
    launch = trainer(name).launch(tuning(micro_batch=4, args={option: 2}))
    assert launch.warnings == (f"args: {option} 2 replaces 4 of the plan",)
    given = files_of(launch).get("axolotl.yaml") or dict(itertools.pairwise(words_of(launch)))
    assert str(given.get(option, given.get(f"--{option}"))) == "2"


def test_file_of_rows_goes_by_configuration() -> None:
    launch = trainer("trl").launch(tuning(dataset=Dataset("./rows.jsonl", path="/data/rows.jsonl")))
    assert "--dataset_name" not in launch.command
    assert files_of(launch)["data.yaml"]["datasets"][0]["data_files"] == "/data/rows.jsonl"


def test_fsdp_recomputes_by_itself() -> None:
    launch = trainer("trl").launch(tuning(count=8, sharding="fsdp"))
    given = dict(itertools.pairwise(launch.command))
    assert given["--gradient_checkpointing"] == "False"
    assert files_of(launch)["fsdp.json"]["activation_checkpointing"] is True


def test_what_the_image_lacks_is_installed_first() -> None:
    launch = trainer("trl").launch(tuning(count=8, sharding="zero3", tuned=Tuned("qlora")))
    assert launch.setup == "pip install -q bitsandbytes deepspeed"
    assert trainer("trl").launch(tuning(image="local/trl:1", tuned=Tuned("qlora"))).setup == ""


def test_larger_checkpoint_gets_a_longer_grace() -> None:
    small, large = (
        trainer("trl").launch(tuning(checkpoint_bytes=size)).stop_grace_s for size in (10**9, 10**12)
    )
    assert 60 < small < large


@pytest.mark.parametrize("name", trainers())
def test_options_exist_in_the_recorded_version(name: str) -> None:
    """Both ignore what they do not know: only the record shows an option that does nothing."""
    made = trainer(name)
    for job in every_tuning(name):
        if made.refuses(job) is not None:
            continue
        launch = made.launch(job)
        if name == "trl":
            known = load(name, made.versions[0], SCRIPTS[job.method])
            begin = launch.command.index("--model_name_or_path")
            given = [w for w in launch.command[begin:] if w.startswith("--")]
        else:
            known = load(name, made.versions[0])
            given = list(files_of(launch)["axolotl.yaml"])
        assert not [option for option in given if known.find(option) is None]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", trainers())
def test_every_configuration_is_accepted(name: str, tmp_path: Path) -> None:
    """Method × adapter × devices × sharding, asked of the trainer's own parser or schema."""
    interpreter(name)
    questions: dict[str, tuple[tuple[str, ...], str]] = {}
    for number, job in enumerate(every_tuning(name)):
        if trainer(name).refuses(job) is not None:
            continue
        launch = trainer(name).launch(job)
        folder = tmp_path / str(number)
        folder.mkdir()
        for file, content in files_of(launch).items():
            (folder / file).write_text(json.dumps(content))
        words = words_of(launch)
        begin = words.index("--model_name_or_path") if name == "trl" else 0
        argv = (SCRIPTS[job.method], *words[begin:]) if name == "trl" else (str(folder / "axolotl.yaml"),)
        questions[f"{argv if name == 'trl' else ''}{files_of(launch)}"] = (argv, str(folder))
    verdicts = ask(name, questions.values())
    refused = [(q, v["error"]) for q, v in zip(questions, verdicts, strict=True) if not v["ok"]]
    print(f"{name}: {len(questions)} configurations, {len(refused)} refused", file=sys.stderr)
    assert not refused, refused[:3]
