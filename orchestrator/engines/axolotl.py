"""Axolotl: tuning from one YAML file, on CUDA.

Keys are those of Axolotl 0.19.0's own schema, which ignores what it does not know, so ours and the
user's are checked here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from orchestrator.backend import File
from orchestrator.engines import arguments, images, tuning
from orchestrator.engines.flags import load
from orchestrator.engines.job import EngineLaunch, Profile
from orchestrator.engines.trl import deepspeed_config
from orchestrator.engines.tuning import Columns, Method, SpelledTraining, TuningJob, Value
from orchestrator.spec.rules import Finding

CONFIG, DEEPSPEED = "axolotl.yaml", "deepspeed.json"
"""Our files, in ``TuningJob.home``."""

METHODS: Mapping[str, str | None] = {
    "sft": None,
    "pretrain": None,
    "dpo": "dpo",
    "grpo": "grpo",
    "kto": "kto",
    "orpo": "orpo",
    "reward": None,
}
"""Its ``rl`` by method; a reward model is a switch of its own, and PPO is not there."""

COLUMNS: Mapping[Method, Columns] = {
    "sft": frozenset({"messages"}),
    "pretrain": frozenset({"text"}),
    "dpo": frozenset({"chosen", "rejected"}),
    "orpo": frozenset({"chosen", "rejected"}),
    "kto": frozenset({"prompt", "completion", "label"}),
    "reward": frozenset({"system", "input", "chosen", "rejected"}),
    "grpo": frozenset({"prompt"}),
}
"""What its prompt strategies take out of a row (0.19.0, ``prompt_strategies``)."""

OWNED: Mapping[str, str] = {
    "base_model": "say model: in the spec",
    "revision_of_model": "say model: in the spec",
    "datasets": "say dataset: in the spec",
    "output_dir": "say output: in the spec",
    "resume_from_checkpoint": "the last checkpoint in output is found by itself",
    "auto_resume_from_checkpoints": "the last checkpoint in output is found by itself",
    "deepspeed": "the plan chose how to shard",
    "fsdp_config": "the plan chose how to shard",
    "fsdp_version": "the plan chose how to shard",
}


SPELLED = SpelledTraining(
    by_method=(("", ("axolotl", "train")), ("", ("-m", "axolotl.cli.train"))),
    model="base_model",
    says={
        "base_model": "train.model.id",
        "revision_of_model": "train.model.revision",
        "datasets": "train.dataset",
        "output_dir": "train.output",
        "sequence_len": "train.sequence_length",
        "micro_batch_size": "micro_batch",
        "gradient_accumulation_steps": "accumulation",
        "num_epochs": "train.epochs",
        "adapter": "train.adapter.type",
        "load_in_4bit": "",
        "load_in_8bit": "",
        "lora_r": "train.adapter.rank",
        "lora_alpha": "train.adapter.alpha",
        "lora_dropout": "train.adapter.dropout",
        "lora_target_modules": "train.adapter.targets",
        "lora_target_linear": "linear",
        "rl": "",
        "reward_model": "",
        "bf16": "",
        "fp16": "",
        "gradient_checkpointing": "",
        "sample_packing": "",
    },
    launcher=tuning.LAUNCHER,
    file_first=True,
)
"""How people start it (Axolotl docs, cli)."""


class Axolotl:
    """Axolotl's trainer, one process per device."""

    name = "axolotl"
    versions = ("0.19.0",)
    methods = tuple(METHODS)
    spelled = SPELLED
    owned = OWNED

    def script(self, method: str) -> str | None:  # noqa: ARG002  # TRL has one for each
        """Return None: its settings are the same for every method."""
        return None

    def method_of(self, values: Mapping[str, object]) -> str | None:
        """Return how its settings say that it learns.

        >>> TRAINER.method_of({"rl": "dpo"}), TRAINER.method_of({"base_model": "a/b"})
        ('dpo', 'sft')
        """
        if values.get("reward_model"):
            return "reward"
        rl = values.get("rl")
        return next((method for method, name in METHODS.items() if name and name == rl), "sft")

    def columns(
        self,
        method: Method,
        args: Mapping[str, object],  # noqa: ARG002 - TRL's say where its text is
    ) -> tuple[Columns, ...]:
        """Return what columns a row may have for ``method``, as ``_READ`` has it read."""
        return (COLUMNS[method],) if method in COLUMNS else ()

    def findings(self, job: TuningJob) -> Iterator[Finding]:
        """Yield what is wrong with ``job`` on every device."""
        if job.method not in METHODS:
            yield tuning.unknown_method(self.name, job.method)
            return
        yield from tuning.args_findings(job.args, load(self.name, self.versions[0]), OWNED, "")
        yield from tuning.findings(job, self.name, ("sequence_len",))
        if job.method == "grpo" and "trl" not in job.args:
            yield Finding("train.args", "grpo needs trl with its reward_funcs", "see Axolotl's docs on GRPO")

    def refuses(self, job: TuningJob) -> str | None:
        """Say in one phrase why Axolotl cannot run ``job``, or None when it can."""
        return (
            images.refuses(job, self.name)
            or tuning.device(job)
            or tuning.first(self.findings(job))
            or _four_bits(job)
            or _spread_out(job)
        )

    def launch(self, job: TuningJob) -> EngineLaunch:
        """Return the container that every node of ``job`` runs.

        Raises:
            ValueError: Axolotl refuses ``job``; the message is the reason.
        """
        if why := self.refuses(job):
            raise ValueError(why)
        plan = config(job)
        words = tuning.starter(job, ("-m", "axolotl.cli.train"))
        command = tuning.kept(job, (*words, f"{job.home}/{CONFIG}"))
        telemetry = (("DO_NOT_TRACK", "1"), ("AXOLOTL_DO_NOT_TRACK", "1"))
        return EngineLaunch(
            image=images.reference(job, self.name),
            entrypoint=command[:1],
            command=command[1:],
            env=arguments.overlay((*tuning.environment(job), *telemetry), job.env),
            secrets=job.secrets,
            caches=tuning.caches(job),
            files=_files(job, {**plan, **job.args}),
            shm_bytes=tuning.shm_bytes(job),
            stop_grace_s=tuning.stop_grace_s(job),
            profile=Profile(writable=("/root/.cache", "/workspace/data", "/tmp", "/dev/shm", job.output)),
            warnings=tuning.replaced(plan, job.args),
        )


def _four_bits(job: TuningJob) -> str | None:
    if job.tuned.type == "qlora" and job.sharding == "fsdp" and METHODS[job.method] in ("dpo", "orpo", "kto"):
        return f"axolotl does not shard qlora by fsdp for {job.method}, use zero3"
    return None


def _spread_out(job: TuningJob) -> str | None:
    if job.bucket and job.nodes > 1:  # it has no ``save_on_each_node``
        return "axolotl on several nodes needs a folder or a volume for output, not a bucket"
    return None


def config(job: TuningJob) -> dict[str, Value]:
    """Return the configuration that the plan decides, by key."""
    values: dict[str, Value] = {
        "base_model": job.source.reference,
        "revision_of_model": job.source.revision if job.source.scheme == "hub" else None,
        **_data(job),
        "rl": METHODS[job.method],
        "reward_model": True if job.method == "reward" else None,
        "output_dir": job.output,
        "sequence_len": job.sequence_tokens,
        "sample_packing": job.packing if METHODS[job.method] is None else None,
        "micro_batch_size": job.micro_batch,
        "gradient_accumulation_steps": job.accumulation,
        "num_epochs": job.epochs,
        "learning_rate": 2e-4 if job.tuned.type != "none" else 2e-5,
        "optimizer": job.optimizer,
        "bf16": job.precision == "bf16",
        "fp16": job.precision == "fp16",
        "gradient_checkpointing": job.checkpointing,
        "remove_unused_columns": False if job.method == "kto" else None,
        "plugins": ["axolotl.integrations.liger.LigerPlugin"] if job.loss_kernel else None,
        "liger_fused_linear_cross_entropy": True if job.loss_kernel else None,
        **_adapter(job),
        **_sharding(job),
        "save_steps": job.save_steps,
        "save_total_limit": 2,
        "logging_steps": tuning.LOGGING_STEPS,
        **_reports(job),
    }
    return {name: value for name, value in values.items() if value is not None}


_READ: Mapping[str, object] = {
    "sft": "chat_template",
    "pretrain": "completion",
    "dpo": "chat_template.argilla_chat",
    "orpo": "chat_template.argilla",
    "reward": "bradley_terry.chat_template",
    "kto": {"field_prompt": "prompt", "field_completion": "completion", "field_label": "label"},
}
"""How rows are read by method: conversations, plain text, or the columns that TRL has for KTO too."""


def _data(job: TuningJob) -> dict[str, Value]:
    rows = {"path": job.dataset.path or job.dataset.id, "split": job.dataset.split}
    read = _READ.get(job.method)
    return {"datasets": [{**rows, "type": read} if read else rows]}


def _adapter(job: TuningJob) -> dict[str, Value]:
    if job.tuned.type == "none":
        return {}
    everything = job.tuned.targets == ("all-linear",)
    return {
        "adapter": job.tuned.type,
        "load_in_4bit": True if job.tuned.type == "qlora" else None,
        "lora_r": job.tuned.rank,
        "lora_alpha": round(job.tuned.scale),
        "lora_dropout": job.tuned.dropout,
        "lora_target_linear": True if everything else None,
        "lora_target_modules": None if everything else list(job.tuned.targets),
    }


def _reports(job: TuningJob) -> dict[str, Value]:
    return {
        "use_tensorboard": True if "tensorboard" in job.report else None,
        "use_mlflow": True if "mlflow" in job.report else None,
        "use_wandb": True if "wandb" in job.report else None,
    }


def _sharding(job: TuningJob) -> dict[str, Value]:
    if job.sharding == "none":
        return {}
    if job.sharding != "fsdp":
        return {"deepspeed": f"{job.home}/{DEEPSPEED}"}
    return {
        "fsdp_version": 2,
        "fsdp_config": {
            "reshard_after_forward": True,
            "offload_params": job.offload,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "FULL_STATE_DICT",
            "cpu_ram_efficient_loading": job.tuned.type != "qlora",  # 4 bits on rank 0 alone deadlock
        },
    }


def _files(job: TuningJob, values: Mapping[str, Value]) -> tuple[File, ...]:
    found = [*tuning.entry_files(job, values)]
    found.append(File(f"{job.home}/{CONFIG}", (json.dumps(values, indent=1) + "\n").encode()))  # JSON is YAML
    if job.sharding.startswith("zero"):
        found.append(
            File(f"{job.home}/{DEEPSPEED}", (json.dumps(deepspeed_config(job), indent=1) + "\n").encode())
        )
    return tuple(found)


TRAINER = Axolotl()
