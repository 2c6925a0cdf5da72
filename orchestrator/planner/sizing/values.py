"""What is asked of the sizing, and what it answers."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

from orchestrator.frozen import frozen


@frozen
class Measured:
    """Values that were measured, in bytes per device; each overrides its formula.

    ``kv_cache_bytes`` is the pool an engine took, ``kv_cache_tokens`` what it printed for it.
    """

    weights_bytes: int | None = None
    activations_bytes: int | None = None
    non_torch_bytes: int | None = None
    graphs_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_tokens: int | None = None
    visible_bytes: int | None = None

    def over(self, other: Measured) -> Measured:
        """Return these values, and those of ``other`` where nothing was measured here."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return Measured(**{n: getattr(other, n) if v is None else v for n, v in mine.items()})


@frozen
class ServingJob:
    """One replica of a served model: how it is cut, what it must hold, how the engine is set.

    ``tensor`` × ``pipeline`` devices hold one copy of the attention; ``data`` copies of it share
    the requests. ``expert`` ranks share the routed experts (1: tensor parallelism cuts them).
    ``context`` tokens × ``concurrency`` requests is what must be held at once. None leaves a
    setting to the engine.
    """

    engine: str = "vllm"
    engine_version: str | None = None
    precision: str = "auto"
    kv_cache: str = "auto"
    context: int | None = None
    concurrency: int = 1
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    adapters: int = 0
    adapter_rank: int = 16
    measured: Measured = Measured()

    @property
    def devices(self) -> int:
        """How many devices one replica takes."""
        return self.tensor * self.pipeline * self.data


Method = Literal["sft", "pretrain", "dpo", "kto", "orpo", "reward", "ppo", "grpo", "rloo"]
GENERATES: frozenset[Method] = frozenset({"grpo", "rloo"})
"""Methods whose trainer has an engine beside it that answers prompts."""
Tuning = Literal["full", "lora", "qlora"]
Checkpointing = Literal["none", "selective", "full"]
LossKernel = Literal["full", "chunked", "fused"]
Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp"]
Offload = Literal["none", "optimizer", "activations", "all"]


def kept_by_trainers(tuning: Tuning, method: Method) -> tuple[Literal["bf16", "fp32"], LossKernel]:
    """Return the type of states, and the kernel of the loss, of the trainers that plans run.

    They train all of a model in 32 bits under autocast, and take SFT's loss in chunks (TRL 1.16, SFTConfig).

    >>> kept_by_trainers("full", "sft"), kept_by_trainers("lora", "dpo")
    (('fp32', 'chunked'), ('bf16', 'full'))
    """
    return "fp32" if tuning == "full" else "bf16", "chunked" if method == "sft" else "full"


ROLLOUT_SHARE = 0.3
"""Share of a device for the engine that generates beside a GRPO run: what TRL 1.16 gives vLLM
(GRPOConfig, ``vllm_gpu_memory_utilization`` in its default mode ``colocate``)."""


def compares(method: Method, reference: bool | None = None) -> bool:
    """Return whether ``method`` asks a frozen reference what it would have said.

    None is the method's own way: DPO, KTO, PPO and RLOO do, and GRPO does only with a ``beta``
    above TRL's 0 (TRL 1.16: GRPOConfig, and 0.05 in RLOOConfig). Methods without a reference have
    none whatever is said.

    >>> compares("dpo"), compares("grpo"), compares("grpo", True), compares("sft", True)
    (True, False, True, False)
    """
    if method not in ("dpo", "kto", "ppo", "grpo", "rloo"):
        return False
    return method != "grpo" if reference is None else reference


@frozen
class TrainingJob:
    """One training run as its framework will hold it.

    ``devices`` share the batch; ``tensor`` × ``pipeline`` of them hold one copy of the model.
    ``micro_batch`` sequences of ``sequence_length`` tokens go through a device at once. Unpacked
    batches are padded to their longest sample, ``longest_sample`` tokens where the data set is
    known. ``state_dtype`` is what optimizer states and adapters are kept in: with ``fp32``,
    16-bit weights that are trained have a master copy. ``base_format`` is what a frozen base is
    kept in (None: 16 bits, or nf4 with ``qlora``); ``quantizes_experts`` says that a base which
    is quantized while it loads has its experts converted too. ``accumulates`` says that gradients stay
    between micro batches. ``reference`` says whether a frozen model is asked (None: the
    method's own way, ``compares``). ``rollout_share`` is the share of the device that the engine
    which generates takes (None: ``ROLLOUT_SHARE`` for GRPO and RLOO, else nothing).
    """

    engine: str = "trl"
    tuning: Tuning = "full"
    method: Method = "sft"
    precision: str = "bf16"
    sequence_length: int = 2048
    micro_batch: int = 1
    packing: bool = False
    longest_sample: int | None = None
    optimizer: str = "adamw"
    state_dtype: Literal["bf16", "fp32"] = "bf16"
    checkpointing: Checkpointing = "full"
    loss_kernel: LossKernel = "full"
    compiled: bool = False
    optimizer_in_backward: bool = False
    accumulates: bool = True
    sharding: Sharding = "none"
    offload: Offload = "none"
    devices: int = 1
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    rank: int = 16
    targets: tuple[str, ...] = ("all-linear",)
    base_format: str | None = None
    quantizes_experts: bool = False
    reference: bool | None = None
    rollout_share: float | None = None
    measured: Measured = Measured()

    @property
    def rollout(self) -> float:
        """Share of each device that the engine which generates takes."""
        if self.rollout_share is not None:
            return self.rollout_share
        return ROLLOUT_SHARE if self.method in GENERATES else 0.0

    @property
    def tokens(self) -> int:
        """Tokens that pass through one device at once."""
        length = self.sequence_length
        if not self.packing and self.longest_sample is not None:
            length = min(length, self.longest_sample)
        pairs = 2 if self.method in ("dpo", "orpo", "reward") else 1
        return length * self.micro_batch * pairs


@frozen
class DeviceMemory:
    """Bytes on one device, the fullest of the replica, at the moment it is fullest.

    ``kv_cache_bytes`` is the whole pool an engine reserves. In training ``activations_bytes``
    are those that live at the peak; ``logits_bytes`` are the head's output and its gradients.
    """

    weights_bytes: int = 0
    activations_bytes: int = 0
    non_torch_bytes: int = 0
    graphs_bytes: int = 0
    kv_cache_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    adapter_bytes: int = 0
    logits_bytes: int = 0
    peak_bytes: int = 0
    visible_bytes: int = 0

    @property
    def non_kv_bytes(self) -> int:
        """What an engine charges to its budget before the KV cache: weights, activations, the rest."""
        return self.weights_bytes + self.activations_bytes + self.non_torch_bytes + self.adapter_bytes


@frozen
class Size:
    """The memory of one job on one kind of device, and whether it fits.

    ``margin`` is the share by which a figure may be short; ``fits`` holds with it added.
    ``wanted_bytes`` of the KV cache are what the asked requests take.
    ``kv_cache_tokens`` is what the engine admits over one replica, ``longest_request_tokens``
    what one request alone could have, ``max_concurrency`` how many requests of the asked
    context are held at once. ``headroom_bytes`` is left outside the engine's budget, after
    graphs. ``reason`` says why it does not fit, and is empty when it does.
    """

    device: DeviceMemory
    fits: bool
    margin: float
    reason: str = ""
    short_bytes: int = 0
    kv_cache_tokens: int = 0
    longest_request_tokens: int = 0
    wanted_bytes: int = 0
    max_concurrency: float = 0.0
    headroom_bytes: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    memory_utilization: float = 0.0
    source: str = ""
