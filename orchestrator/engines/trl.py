"""TRL: supervised tuning and learning from preferences and rewards, on CUDA, ROCm and CPU.

Options are those of TRL 1.16.0's scripts on transformers 5.23.0. The scripts ignore options they do
not know, so every one of ours and of the user's is checked against what they were seen to take.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from orchestrator.backend import File
from orchestrator.engines import arguments, images, tuning
from orchestrator.engines.flags import load
from orchestrator.engines.job import EngineLaunch, Profile
from orchestrator.engines.tuning import Columns, Method, SpelledTraining, TuningJob, Value
from orchestrator.spec.rules import Finding

SCRIPTS: Mapping[str, str] = {
    "sft": "sft",
    "pretrain": "sft",
    "dpo": "dpo",
    "grpo": "grpo",
    "rloo": "rloo",
    "kto": "kto",
    "reward": "reward",
}
"""Script by method. PPO and ORPO are experimental trainers without one (TRL 1.16 docs, paper index)."""

GENERATES = frozenset({"grpo", "rloo"})
"""Methods that answer prompts themselves, in groups, and are told how good the answers are."""

DATA, FSDP, DEEPSPEED = "data.yaml", "fsdp.json", "deepspeed.json"
RANKS = "tuning_ranks.py"
"""Our files, in ``TuningJob.home``."""

_RESUMED = "the last checkpoint in output is found by itself"
OWNED: Mapping[str, str] = {
    "model_name_or_path": "say model: in the spec",
    "model_revision": "say model: in the spec",
    "dataset_name": "say dataset: in the spec",
    "output_dir": "say output: in the spec",
    "resume_from_checkpoint": _RESUMED,
    "config": "options in a file cannot be checked, write them here",
    "report_to": "say report: in the spec",
    "push_to_hub": "the output is pushed after the run, not by it",
    "hub_token": "put HF_TOKEN in env",
    "fsdp": "the plan chose how to shard",
    "fsdp_config": "the plan chose how to shard",
    "deepspeed": "the plan chose how to shard",
}


_STARTS = tuple(
    (name, words)
    for name in dict.fromkeys(SCRIPTS.values())
    for words in (("trl", name), (f"trl/scripts/{name}.py",), ("-m", f"trl.scripts.{name}"))
)
SPELLED = SpelledTraining(
    by_method=_STARTS,
    model="model_name_or_path",
    says={
        "model_name_or_path": "train.model.id",
        "model_revision": "train.model.revision",
        "dataset_name": "train.dataset",
        "output_dir": "train.output",
        "max_length": "train.sequence_length",
        "max_completion_length": "train.sequence_length",
        "per_device_train_batch_size": "micro_batch",
        "gradient_accumulation_steps": "accumulation",
        "num_train_epochs": "train.epochs",
        "use_peft": "peft",
        "load_in_4bit": "four_bit",
        "lora_r": "train.adapter.rank",
        "lora_alpha": "train.adapter.alpha",
        "lora_dropout": "train.adapter.dropout",
        "lora_target_modules": "train.adapter.targets",
        "report_to": "train.report",
        "dtype": "",
        "bf16": "",
        "fp16": "",
        "gradient_checkpointing": "",
        "packing": "",
        "use_liger_kernel": "",
    },
    launcher=tuning.LAUNCHER,
    renamed={"max_seq_length": "max_length", "torch_dtype": "dtype"},
    file_option="config",
)
"""How people start its scripts (TRL docs, clis). max_seq_length is gone since 0.16 (dspy pull 8836), and
torch_dtype is dtype since transformers' pull 39782."""


class Trl:
    """TRL's scripts, one process per device."""

    name = "trl"
    versions = ("1.16.0",)
    methods = tuple(SCRIPTS)
    spelled = SPELLED
    owned = OWNED

    def script(self, method: str) -> str | None:
        """Return the script of ``method``, by which its options are recorded."""
        return SCRIPTS.get(method, "sft")

    def method_of(self, values: Mapping[str, object]) -> str | None:  # noqa: ARG002  # Axolotl's say it
        """Return None: the script says it."""
        return None

    def columns(self, method: Method, args: Mapping[str, object]) -> tuple[Columns, ...]:
        """Return what columns a row may have for ``method`` (TRL 1.16 docs, dataset formats).

        >>> sorted(TRAINER.columns("dpo", {})[0])
        ['chosen', 'rejected']
        """
        text = frozenset({str(args.get("dataset_text_field", "text"))})
        pair = frozenset({"chosen", "rejected"})
        match method:
            case "pretrain":
                return (text,)
            case "sft":  # it renames conversations (``maybe_convert_to_chatml``)
                turns, asked = frozenset({"messages"}), frozenset({"prompt", "completion"})
                return (turns, asked, text, frozenset({"conversations"}))
            case "kto":
                return (frozenset({"prompt", "completion", "label"}), pair)
            case "grpo" | "rloo" | "ppo":
                return (frozenset({"prompt"}),)
        return (pair,)

    def findings(self, job: TuningJob) -> Iterator[Finding]:
        """Yield what is wrong with ``job`` on every device."""
        if job.method not in SCRIPTS:
            yield tuning.unknown_method(self.name, job.method)
            return
        known = load(self.name, self.versions[0], SCRIPTS[job.method])
        yield from tuning.args_findings(job.args, known, OWNED, "--")
        yield from tuning.findings(job, self.name, ("max_length", "max_completion_length"))
        if job.method in GENERATES and not {"reward_funcs", "reward_model_name_or_path"} & job.args.keys():
            what = f"{job.method} needs reward_funcs or reward_model_name_or_path"
            yield Finding("train.args", what, "for example reward_funcs: [think_format_reward]")

    def refuses(self, job: TuningJob) -> str | None:
        """Say in one phrase why TRL cannot run ``job``, or None when it can."""
        return (
            images.refuses(job, self.name)
            or tuning.device(job)
            or _resumable(job)
            or tuning.first(self.findings(job))
            or _grouped(job)
        )

    def launch(self, job: TuningJob) -> EngineLaunch:
        """Return the container that every node of ``job`` runs.

        Raises:
            ValueError: TRL refuses ``job``; the message is the reason.
        """
        if why := self.refuses(job):
            raise ValueError(why)
        plan = options(job)
        module = f"trl.scripts.{SCRIPTS[job.method]}"
        program = ("-m", module) if job.world == 1 else (f"{job.home}/{RANKS}", module)
        words = tuning.starter(job, program)
        values = {**plan, **job.args}
        command = tuning.kept(job, (*words, *render(values)))
        return EngineLaunch(
            image=images.reference(job, self.name),
            entrypoint=command[:1],
            command=command[1:],
            setup=_setup(job),
            env=arguments.overlay(tuning.environment(job), job.env),
            secrets=job.secrets,
            caches=tuning.caches(job),
            files=_files(job, values),
            shm_bytes=tuning.shm_bytes(job),
            stop_grace_s=tuning.stop_grace_s(job),
            profile=Profile(writable=("/root/.cache", "/tmp", "/dev/shm", job.output)),
            warnings=(*tuning.replaced(plan, job.args), *_cautions(job)),
        )


def _resumable(job: TuningJob) -> str | None:
    version = tuple(int(n) for n in (job.version or Trl.versions[0]).split(".")[:2])
    if job.resume and version < (1, 15):  # the scripts before it take the option and ignore it
        return f"trl {job.version} cannot resume, its scripts begin anew"
    return None


def _grouped(job: TuningJob) -> str | None:
    if job.method not in GENERATES:
        return None
    batch, group = _batch(job), job.args.get("num_generations", _generations(job))
    if not isinstance(group, int) or group < 2 or batch % group:
        return f"a batch of {batch} is not made of whole groups of generations ({group}, at least 2)"
    return None


def _batch(job: TuningJob) -> int:
    return job.micro_batch * job.accumulation * job.world


def _generations(job: TuningJob) -> int:
    """Return how many answers to a prompt are compared: TRL's default, or what divides the batch."""
    most = 2 if job.method == "rloo" else 8  # RLOOConfig, GRPOConfig
    return next((n for n in range(most, 1, -1) if _batch(job) % n == 0), 1)


def options(job: TuningJob) -> dict[str, Value]:
    """Return the options that the plan decides, by name."""
    values: dict[str, Value] = {
        "model_name_or_path": job.source.reference,
        "model_revision": job.source.revision if job.source.scheme == "hub" else None,
        **_data(job),
        "output_dir": job.output,
        **_precision(job),
        "per_device_train_batch_size": job.micro_batch,
        "gradient_accumulation_steps": job.accumulation,
        "num_train_epochs": job.epochs,
        "optim": job.optimizer if job.accelerator else "adamw_torch",
        # FSDP recomputes by itself, and gathers once more when the trainer does it
        "gradient_checkpointing": job.checkpointing and job.sharding != "fsdp",
        "use_liger_kernel": job.loss_kernel,
        **_lengths(job),
        **_adapter(job),
        **_sharding(job),
        **_rollout(job),
        "save_strategy": "steps",
        "save_steps": job.save_steps,
        "save_total_limit": 2,
        "enable_jit_checkpoint": True,
        # each node sends what its own processes wrote
        "save_on_each_node": True if job.bucket and job.nodes > 1 else None,
        "ddp_backend": "gloo" if job.accelerator is None and job.world > 1 else None,
        "logging_steps": tuning.LOGGING_STEPS,
        "report_to": list(job.report) or "none",
    }
    return {name: value for name, value in values.items() if value is not None}


def _data(job: TuningJob) -> dict[str, Value]:
    if job.dataset.is_file:  # its scripts take a file through their configuration only
        return {"config": f"{job.home}/{DATA}"}
    return {"dataset_name": job.dataset.path or job.dataset.id, "dataset_train_split": job.dataset.split}


def _precision(job: TuningJob) -> dict[str, Value]:
    # its default loads 32 bits; a frozen base, or weights with sharded masters, need 16
    frozen = job.tuned.type != "none"
    loaded = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[job.precision]
    return {
        "dtype": loaded if frozen else "float32",
        "bf16": job.precision == "bf16",
        "fp16": job.precision == "fp16",
        "use_cpu": True if job.accelerator is None else None,
    }


def _lengths(job: TuningJob) -> dict[str, Value]:
    if job.method in GENERATES:
        return {"max_completion_length": job.sequence_tokens, "num_generations": _generations(job)}
    packs = job.packing if job.method in ("sft", "pretrain") else None
    return {"max_length": job.sequence_tokens, "packing": packs}


def _adapter(job: TuningJob) -> dict[str, Value]:
    if job.tuned.type == "none":
        return {}
    four_bit: dict[str, Value] = {}
    if job.tuned.type == "qlora":
        stored = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[job.precision]
        # shards must be of one format with the rest of the model
        storage = stored if job.sharding in ("fsdp", "zero3") else None
        four_bit = {"load_in_4bit": True, "bnb_4bit_quant_storage": storage}
    return {
        "use_peft": True,
        "lora_r": job.tuned.rank,
        "lora_alpha": round(job.tuned.scale),
        "lora_dropout": job.tuned.dropout,
        "lora_target_modules": list(job.tuned.targets),
        "lora_task_type": "SEQ_CLS" if job.method == "reward" else None,
        **four_bit,
    }


def _sharding(job: TuningJob) -> dict[str, Value]:
    if job.sharding == "none":
        return {}
    if job.sharding == "fsdp":
        return {
            "fsdp": (),
            "fsdp_config": f"{job.home}/{FSDP}",
        }  # alone: "True" is no sharding strategy to it
    return {"deepspeed": f"{job.home}/{DEEPSPEED}"}


def _rollout(job: TuningJob) -> dict[str, Value]:
    if job.method not in GENERATES or not job.rollout_share:
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": job.rollout_share,
    }


def render(values: Mapping[str, Value]) -> tuple[str, ...]:
    """Return the words of options: lists are several words, mappings are JSON.

    >>> render({"bf16": True, "lora_target_modules": ["q_proj", "v_proj"], "fsdp": ()})
    ('--bf16', 'True', '--lora_target_modules', 'q_proj', 'v_proj', '--fsdp')
    """
    words: list[str] = []
    for name, value in values.items():
        words.append(f"--{name}")
        if isinstance(value, Mapping):
            words.append(json.dumps(value, sort_keys=True))
        elif isinstance(value, str | int | float):
            words.append(str(value))
        elif value is not None:
            words += map(str, value)
    return tuple(words)


def _files(job: TuningJob, values: Mapping[str, Value]) -> tuple[File, ...]:
    found = [*tuning.entry_files(job, values)]
    if job.world > 1:
        found.append(tuning.program(job, RANKS))
    if job.dataset.is_file:
        rows = {"path": "json", "data_files": job.dataset.path, "split": job.dataset.split}
        found.append(_json(f"{job.home}/{DATA}", {"datasets": [rows]}))  # JSON is YAML
    if job.sharding == "fsdp":
        found.append(_json(f"{job.home}/{FSDP}", fsdp_config(job)))
    elif job.sharding != "none":
        found.append(_json(f"{job.home}/{DEEPSPEED}", deepspeed_config(job)))
    return tuple(found)


def _json(target: str, content: Mapping[str, object]) -> File:
    return File(target, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def fsdp_config(job: TuningJob) -> dict[str, object]:
    """Return FSDP2's settings in the keys of transformers' ``fsdp_config``."""
    return {
        "version": 2,
        "reshard_after_forward": True,
        "cpu_offload": job.offload,
        "activation_checkpointing": job.checkpointing,
        "cpu_ram_efficient_loading": job.tuned.type != "qlora",  # 4 bits on rank 0 alone deadlock
        "state_dict_type": "FULL_STATE_DICT",
    }


def deepspeed_config(job: TuningJob) -> dict[str, object]:
    """Return DeepSpeed's settings; ``auto`` is filled in from the trainer's own options."""
    stage: dict[str, object] = {"stage": int(job.sharding.removeprefix("zero"))}
    if job.offload:
        stage["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if job.sharding == "zero3":
        stage["stage3_gather_16bit_weights_on_model_save"] = True
        if job.offload:
            stage["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": stage,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


_TORCH = "2.13.0"


def _setup(job: TuningJob) -> str:
    """Return what the image lacks: its Dockerfile has liger and peft, and neither of these."""
    if job.image:
        return ""
    if job.accelerator is None:
        index = "--extra-index-url https://download.pytorch.org/whl/cpu"
        ours = f"'torch=={_TORCH}+cpu' 'trl=={job.version or Trl.versions[0]}' peft"
        packages = " ".join([ours, *tuning.bucket_packages(job), *job.report])
        return f"pip install -q {index} {packages}"
    lacks = [
        *(["bitsandbytes"] if job.tuned.type == "qlora" or "8bit" in job.optimizer else []),
        *(["deepspeed"] if job.sharding.startswith("zero") else []),
        *(["'vllm>=0.22,<=0.31'"] if _rollout(job) else []),  # what TRL 1.16 works with
        *tuning.bucket_packages(job),
        *job.report,
    ]
    return f"pip install -q {' '.join(lacks)}" if lacks else ""


def _cautions(job: TuningJob) -> tuple[str, ...]:
    told = []
    if job.nodes > 1 and not job.bucket:
        told.append("every node has to see the same output folder, or it cannot resume")
    if job.method == "pretrain":
        told.append("pretrain is sft on plain text: rows need a column text")
    return tuple(told)


TRAINER = Trl()
