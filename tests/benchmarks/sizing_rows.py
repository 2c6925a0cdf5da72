"""Read a row of measured memory into what the sizing is asked; the answers are never looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from orchestrator.catalog import accelerator, model, models
from orchestrator.catalog.parameters import parameters
from orchestrator.catalog.values import Accelerator, Heads, LayerKind, ModelFacts, Trim, VisionFacts
from orchestrator.planner.sizing.formats import weight_format
from orchestrator.planner.sizing.values import (
    Checkpointing,
    LossKernel,
    Offload,
    Sharding,
    TrainingJob,
    Tuning,
)
from orchestrator.planner.sizing.weights import published_format
from orchestrator.units import GIB

ANSWERS = frozenset({"measured_gib", "measured_tokens", "notes"})

LONGEST_SAMPLE = 1304
"""Tokens of the longest sample of an instruction set: Alpaca's, as litgpt's
tutorials/resource-tables.md lists it for Llama 2. An unpacked batch is padded to its longest."""

Row = Mapping[str, str]


def question(row: Row) -> Row:
    """Return the row without its answers, so that nothing can read them by mistake.

    The pool of an end-to-end row is an answer too: one whose device and share are stated.
    """
    kept = {k: (v or "").strip() for k, v in row.items() if k not in ANSWERS}
    if kept.get("gpu_mem_gib") and kept.get("gpu_mem_util"):
        kept["kv_pool_gib"] = ""
    return MappingProxyType(kept)


def number(row: Row, name: str, default: float = 0.0) -> float:
    """Return a column's number, ``default`` where it is blank."""
    try:
        return float(row.get(name) or default)
    except ValueError:
        return default


def whole(row: Row, name: str, default: int = 0) -> int:
    """Return a column's whole number, ``default`` where it is blank or 0."""
    return int(number(row, name)) or default


def named_parameters(model_id: str) -> float | None:
    """Return the billions of parameters that a model's name states, where it states the total.

    >>> [named_parameters(name) for name in ("org/Nano-4B-BF16", "org/gemma-4-E4B-it", "org/A3B-8x7B")]
    [4.0, None, None]
    """
    found = re.findall(r"(?<![A-Za-z\d.x_])(\d+(?:[._]\d+)?)[Bb](?![a-z\d])", model_id.rsplit("/", 1)[-1])
    return float(found[0].replace("_", ".")) if found else None


def renamed(rows: Iterable[Row]) -> list[Row]:
    """Return the rows under names of models that nobody knows and that state nothing.

    >>> [row["model_id"] for row in renamed([{"model_id": "a/b-7b"}, {"model_id": "a/b-7b"}])]
    ['unknown/model-a', 'unknown/model-a']
    """
    names: dict[str, str] = {}
    found: list[Row] = []
    for row in rows:
        fresh = "unknown/model-" + "".join(chr(ord("a") + int(digit)) for digit in str(len(names)))
        found.append({**row, "model_id": names.setdefault(row["model_id"], fresh)})
    return found


def device_of(row: Row) -> Accelerator:
    """Return the device of a row with the memory that the row, its name or the catalog states.

    80 GB where all are silent.
    """
    name = row.get("gpu") or "80GB"
    visible = number(row, "gpu_mem_gib")
    if not visible:
        found, known = re.search(r"(\d+)\s*GB", name), accelerator(name)
        listed = known.visible_bytes / GIB if known else 78.8
        visible = float(found[1]) * 0.985 if found else listed
    return Accelerator(name, "nvidia", "", visible, round(visible * GIB), row.get("source", ""))


def format_of(row: Row) -> str:
    """Return the name of the row's weight format, bf16 where it names none that is known."""
    name = row.get("weight_quant") or "bf16"
    if row.get("arch", "").startswith("DeepseekV4") and "fp8" in name:
        return "fp8_fp4"  # its config.json: experts in fp4
    try:
        return weight_format(name).name
    except ValueError:
        words = (("mxfp4", "mxfp4"), ("fp4", "nvfp4"), ("fp8", "fp8"), ("8", "int8"), ("4", "int4"))
        return next((fmt for word, fmt in words if word in name), "bf16")


def facts_of(row: Row) -> ModelFacts:
    """Return the facts of a row's model: the catalog's, else from the row's columns."""
    facts = _published(row) or _from_columns(row)
    made_so = facts.quantization is not None and weight_format(published_format(facts)).name == format_of(row)
    plain = replace(facts, quantization=None, quantization_bits=None, dtype="bf16")
    if skips := _skips(facts.architecture, format_of(row)):
        plain = replace(plain, quantization_skips=skips)
    speculative = int(facts.architecture.startswith(_SPECULATIVE))
    return replace(
        facts if made_so else plain,
        weights_bytes=None,
        extra={**facts.extra, "num_nextn_predict_layers": speculative},
    )


def _skips(architecture: str, fmt: str) -> tuple[str, ...]:
    """Return the modules that checkpoints of an architecture leave in 16 bits.

    NVIDIA's NVFP4 checkpoints of Gemma leave attention (their hf_quant_config), and the 4-bit
    ones of Qwen3.5 all but the routed experts (their quantization_config).

    >>> _skips("Gemma3ForCausalLM", "nvfp4"), _skips("LlamaForCausalLM", "nvfp4")
    (('self_attn',), ())
    """
    if architecture.startswith("Gemma") and "fp4" in fmt:
        return ("self_attn",)
    if architecture.startswith(("Qwen3_5Moe", "Qwen3Next")) and weight_format(fmt).bits < 6:
        return ("self_attn", "linear_attn", "shared_expert")
    return ()


_SPECULATIVE = ("DeepseekV3", "DeepseekV4", "Qwen3_5", "Qwen3Next", "Glm4Moe", "MiMo")
"""Architectures whose config.json states one multi-token-prediction layer."""


def _published(row: Row) -> ModelFacts | None:
    """Return the catalog's facts of the row's model, or of the one it was made from by its name."""
    name = row["model_id"]
    known = model(name)
    if known is None:
        bases = [m for m in models() if name.lower().startswith(m.lower() + "-")]
        known = model(max(bases, key=len)) if bases else None
    if known is None or any(whole(row, c) not in (0, v) for c, v in _checked(known)):
        return None
    return known


def _checked(known: ModelFacts) -> tuple[tuple[str, int], ...]:
    return ("layers", known.layers), ("hidden", known.hidden)


def _from_columns(row: Row) -> ModelFacts:
    facts = _of_family(_shapes(row)) if whole(row, "layers") else _typical(row)
    stated, named = number(row, "params_b"), named_parameters(row["model_id"])
    counted = parameters(facts).total / 1e9 if facts.intermediate and not facts.experts else None
    total = _settled(stated or None, counted, named)
    if total is None and not whole(row, "layers"):
        total = USUAL_BILLIONS
    tower = facts.vision.parameters if facts.vision and facts.vision.parameters else 0
    if total is not None and counted is not None and abs(total - (counted - tower / 1e9)) < 0.01 * counted:
        total += tower / 1e9  # the column counted the text model alone
    facts = replace(facts, parameters=round(total * 1e9) if total else None)
    return _with_tower(_widths(facts), stated, counted)


def _with_tower(facts: ModelFacts, stated: float, counted: float | None) -> ModelFacts:
    """Return the facts with a tower where the stated count leaves one over a text model's shapes.

    Qwen2-VL's and 2.5-VL's towers have 0.66 to 0.69 billion parameters, and no other published
    one comes near; rows of their finetunes name no architecture.
    """
    if counted is None or facts.vision is not None or not 0.6 < stated - counted < 0.75:
        return facts
    tower = VisionFacts(32, 1280, 3420, 16, 14, 224, round((stated - counted) * 1e9))
    return replace(facts, vision=tower, architecture="Qwen2_5_VLForConditionalGeneration")


def _settled(stated: float | None, counted: float | None, named: float | None) -> float | None:
    """Return the count to believe, in billions, where a list and the shapes disagree."""
    candidates = [c for c in (stated, counted) if c]
    if not candidates:
        return named
    if named is None or (len(candidates) == 2 and abs(candidates[0] / candidates[1] - 1) < 0.03):
        return candidates[0]
    best = min(candidates, key=lambda c: abs(c / named - 1))
    return named if abs(best / named - 1) > 0.30 else best


def _typical(row: Row) -> ModelFacts:
    """Return a dense model of usual proportions for a row that gives no shapes: h = 128 L."""
    total = (number(row, "params_b") or named_parameters(row["model_id"]) or USUAL_BILLIONS) * 1e9
    hidden = max(256, round((total * 128 / 12) ** (1 / 3) / 128) * 128)
    vocab, layers = whole(row, "vocab", 128_000), max(1, hidden // 128)
    # a table of 128k entries is too much for a small model to hold twice
    return ModelFacts(
        id=row["model_id"],
        architecture=row.get("arch", ""),
        layers=layers,
        hidden=hidden,
        intermediate=0,
        heads=hidden // 128,
        kv_heads=max(1, hidden // 512),
        head_dim=128,
        vocab=vocab,
        tied=total < 5e9,
        source=row.get("source", ""),
    )


def _shapes(row: Row) -> ModelFacts:
    layers, (hidden, heads) = whole(row, "layers", 1), _breadth(row)
    arch = row.get("arch", "")
    experts = whole(row, "experts")
    stated = row.get("tie", "")
    latent = whole(row, "kv_lora_rank")
    facts = ModelFacts(
        id=row["model_id"],
        architecture=arch,
        layers=layers,
        hidden=hidden,
        intermediate=whole(row, "intermediate"),
        heads=heads,
        kv_heads=whole(row, "kv_heads", heads),
        head_dim=whole(row, "head_dim", max(1, hidden // heads)),
        vocab=whole(row, "vocab", 128_000),
        tied=stated == "True",
        attention="mla" if latent else "mha",
        kv_lora_rank=latent or None,
        qk_rope_head_dim=64 if latent else None,  # every published MLA config has 64
        qk_nope_head_dim=whole(row, "head_dim") or None if latent else None,
        v_head_dim=whole(row, "head_dim") or None if latent else None,
        experts=experts,
        experts_per_token=whole(row, "top_k"),
        layer_kinds=_kinds(row, layers),
        sliding_window=whole(row, "sliding_window") or None,
        gated=not arch.startswith(_UNGATED),
        vision=_TOWERS.get(arch),
        source=row.get("source", ""),
    )
    return _ungated(facts, number(row, "params_b") * 1e9)


def _breadth(row: Row) -> tuple[int, int]:
    """Return the hidden size and the heads, each from the other where a column is blank.

    Latent attention has more heads than the hidden size holds, so the layers bound it: no
    published decoder is much wider than 144 times their number.

    >>> _breadth({"layers": "32", "heads": "32"}), _breadth({"layers": "32", "hidden": "4096"})
    ((4096, 32), (4096, 32))
    """
    wide, layers = whole(row, "head_dim", 128), whole(row, "layers", 1)
    hidden = whole(row, "hidden") or min(whole(row, "heads", layers) * wide, 144 * layers)
    return hidden, whole(row, "heads") or max(1, hidden // wide)


_UNGATED = ("PhiForCausal", "Falcon", "GPTNeoX", "Starcoder2", "NemotronH", "OPT", "Bloom", "GPT2", "MPT")
_TOWERS = {
    "Gemma3ForConditionalGeneration": VisionFacts(27, 1152, 4304, 16, 14, 896, 416_866_032),
    "Mistral3ForConditionalGeneration": VisionFacts(24, 1024, 4096, 16, 14, 1540, 438_960_128),
}


def _ungated(facts: ModelFacts, stated: float) -> ModelFacts:
    """Return the facts with two matrices a block where the count says that a third does not fit."""
    if not facts.gated or not facts.intermediate or facts.experts or not stated:
        return facts
    two = replace(facts, gated=False)
    off = {f.gated: abs(parameters(f).total / stated - 1) for f in (facts, two)}
    return two if off[False] < 0.05 < off[True] else facts


def _kinds(row: Row, layers: int) -> tuple[LayerKind, ...]:
    if not row.get("n_full_attn"):
        return ()
    full = whole(row, "n_full_attn")
    other: LayerKind = "sliding" if row.get("sliding_window") else "linear"
    if full >= layers:
        return ()
    kinds: list[LayerKind] = [other] * layers
    for i in range(full):
        kinds[(i + 1) * layers // full - 1] = "full"
    return tuple(kinds)


_MIXTURES = re.compile(r"Moe|MoE|Mixtral|DeepseekV|GptOss|Llama4|Kimi|MiniMaxM|MistralLarge3|MiMoV2")
"""Architectures whose feed-forwards are routed experts, whatever their columns leave out."""

WIDEST_BLOCK = 10
"""Times the hidden size that no dense feed-forward is wide: Gemma's, the widest published, has 8."""

USUAL_BLOCK = 3.5
"""Times the hidden size that a gated feed-forward usually is wide (Llama 3)."""

USUAL_BILLIONS = 3.0
"""Parameters of a model of which a row says nothing: the middle of the reference's such rows."""

USUAL_MIXTURE = 200
"""Parameters of a mixture by layer and hidden size squared: DeepSeek-V3 has 214, Kimi-K2 328,
Mistral Small 4 197, GLM-4.7-Flash 155, DeepSeek-V2-Lite 139 (their config.json)."""

USUAL_MIXER = 8
"""Parameters of a linear-attention layer by hidden size squared: Qwen3.5 has 7 to 9.3."""


def _of_family(facts: ModelFacts) -> ModelFacts:
    """Return the facts with what the architecture has and no column tells.

    Gemma 4's full layers have a quarter of the heads, each twice as wide, whose keys are their
    values, and its small models an embedding of 256 a layer and token, as Gemma 3n's. Gemma 3 is
    known by its vocabulary and window too, and by a tower from 4B on (all: their config.json).
    """
    family, full = facts.architecture, facts.kinds().count("full")
    small = facts.hidden <= 2560 and not facts.experts
    if family.startswith(("Gemma4", "Gemma3n")) and small:
        return replace(facts, trim=Trim(model_other=facts.vocab * facts.layers * 256))
    if family.startswith("Gemma4") and 0 < full < facts.layers:
        return replace(
            facts,
            kv_heads=max(1, facts.kv_heads // 4),
            head_dim=2 * facts.head_dim,
            sliding_heads=Heads(facts.heads, facts.kv_heads, facts.head_dim),
            trim=Trim(keys_are_values=("full",)),
            vision=VisionFacts(27, 1152, 4304, 16, 16, 224, 573_000_000),
        )
    gemma3 = facts.vocab in (262_144, 262_208) and facts.sliding_window == 1024
    if not family and gemma3 and facts.hidden >= 2560 and not facts.experts:
        name = "Gemma3ForConditionalGeneration"
        return replace(facts, architecture=name, vision=_TOWERS[name])
    if facts.experts and "linear" in facts.kinds() and not facts.linear_parameters:
        return replace(facts, linear_parameters=USUAL_MIXER * facts.hidden**2)
    return facts


def _widths(facts: ModelFacts) -> ModelFacts:
    """Solve the feed-forward's width from the parameter count where the columns leave it out.

    Without a count either, take the usual one. A rest that no dense block is wide enough for
    is experts.
    """
    if facts.parameters is None:
        return _usual(facts)
    rest = facts.parameters - parameters(facts).total
    each = facts.layers * facts.hidden * (3 if facts.gated else 2)
    if not facts.experts and _is_mixture(facts, rest // each):
        facts = replace(facts, experts=128, experts_per_token=8)
    if facts.experts and not facts.expert_intermediate:
        return replace(facts, expert_intermediate=max(1, rest // (each * facts.experts)))
    if not facts.experts and not facts.intermediate and rest > 0:
        return replace(facts, intermediate=rest // each)
    return facts


def _is_mixture(facts: ModelFacts, width: int) -> bool:
    if _MIXTURES.search(facts.architecture):
        return True
    return width > WIDEST_BLOCK * facts.hidden and not facts.architecture.startswith("Gemma")


def _usual(facts: ModelFacts) -> ModelFacts:
    """Return the facts with usual widths, for columns that give neither a width nor a count.

    Latent attention means a mixture: no dense model of today has it.
    """
    if facts.intermediate and not facts.experts:
        return facts
    if facts.experts or facts.attention == "mla" or _is_mixture(facts, 0):
        return _widths(replace(facts, parameters=USUAL_MIXTURE * facts.layers * facts.hidden**2))
    return replace(facts, intermediate=round(USUAL_BLOCK * facts.hidden))


def certainty(row: Row) -> float:
    """Return the factor by which the weights of a row may be off for what it leaves unsaid.

    1 where the count is known or follows from the shapes; else 1.5 for a dense model of known
    layers, 2.5 for a mixture and 4 for a model of which nothing is known.

    >>> shapes = {"layers": "32", "hidden": "4096", "heads": "32"}
    >>> [certainty({"model_id": "x/y", **more}) for more in ({"params_b": "8"}, shapes, {})]
    [1.0, 1.5, 4.0]
    """
    if number(row, "params_b") or named_parameters(row["model_id"]) or _published(row):
        return 1.0
    if not whole(row, "layers"):
        return 4.0
    facts = _from_columns(row)
    if facts.experts:
        return 2.5
    return 1.0 if whole(row, "intermediate") else 1.5


def training_job(row: Row) -> TrainingJob:
    """Return the run a row describes, from its columns and the words of ``train_details``."""
    text = row["train_details"].lower()
    engine = _ENGINES.get(row["engine"], "trl")
    devices = whole(row, "n_gpus", 1)
    tensor = whole(row, "tp", 1)
    devices = max(devices, tensor * whole(row, "pp", 1))
    master = "fp32" in text or "zero" in text or "megatron" in text or row["method"] == "full_fp32master"
    packed = re.search(r"\bpacked|packing true", text) is not None
    padded = engine in ("litgpt", "hf-trainer", "torchtune", "peft", "torchtitan")
    if "megatron" in text:
        engine = "megatron"
    plain = format_of(row) in ("bf16", "fp16", "fp32")
    return TrainingJob(
        engine=engine,
        tuning=_tuning(row["method"]),
        precision="fp32" if "fp32 params" in text or row["method"] == "full_fp32master" else "bf16",
        sequence_length=whole(row, "context", 2048),
        micro_batch=whole(row, "batch", 1),
        packing=packed,
        longest_sample=None if padded else LONGEST_SAMPLE,
        optimizer=_optimizer(text),
        state_dtype="fp32" if master else "bf16",
        checkpointing=_checkpointing(text, engine),
        loss_kernel=_loss(text, engine),
        compiled="compile" in text and "no compile" not in text,
        optimizer_in_backward=re.search(r"optimizer[-_]in[-_]b", text) is not None,
        accumulates=engine not in ("torchtune", "litgpt", "torchtitan"),
        sharding=_sharding(text, devices, tensor),
        offload=_offload(text),
        devices=devices,
        tensor=tensor,
        pipeline=whole(row, "pp", 1),
        expert=2 if "ep2" in text else 1,
        rank=_rank(text),
        targets=_targets(text),
        base_format=None if plain else format_of(row),
        quantizes_experts="quantize_moe_experts" in text,
    )


_ENGINES = {
    "axolotl": "axolotl",
    "litgpt": "litgpt",
    "torchtune": "torchtune",
    "torchtitan": "torchtitan",
    "ms-swift": "ms-swift",
    "LLaMA-Factory": "llama-factory",
    "peft/transformers": "peft",
    "Qwen finetune.py": "hf-trainer",
}


def _tuning(method: str) -> Tuning:
    if "qlora" in method:
        return "qlora"
    return "full" if method in ("full", "full_fp32master", "pretrain") else "lora"


def _optimizer(text: str) -> str:
    if "adafactor" in text:
        return "adafactor"
    paged = "paged_" if "paged" in text else ""
    return f"{paged}adamw_8bit" if re.search(r"8[-_ ]?bit", text) else f"{paged}adamw"


def _checkpointing(text: str, engine: str) -> Checkpointing:
    if engine == "peft":
        return "full" if re.search(r"(?<!no )grad ckpt", text) else "none"  # its benchmark has it off
    if re.search(r"no grad|grad_ckpt false", text):
        return "none"
    if re.search(r"selective", text):
        return "selective"
    if "grad_ckpt none" in text:
        return "full" if "fsdp" in text else "none"  # FSDP recipes checkpoint in their own section
    return "full" if re.search(r"ckpt|checkpoint|recompute|lora|adamw_|zero", text) else "none"


def _loss(text: str, engine: str) -> LossKernel:
    if "no liger" in text:
        return "full"
    if re.search(r"liger|cutcrossentropy|kernelsplugin", text):
        return "fused"
    # torchtune's recipes have its chunked loss since 0.3
    recipe = engine == "torchtune" and "recipe" in text
    return "chunked" if "chunked" in text or recipe else "full"


def _sharding(text: str, devices: int, tensor: int) -> Sharding:
    if devices <= tensor:
        return "none"
    stages: dict[str, Sharding] = {"1": "zero1", "2": "zero2", "3": "zero3"}
    stage = re.search(r"zero[-_ ]?(?:stage[-_ ]?)?([123])", text)
    if stage:
        return stages[stage[1]]
    if "fsdp" in text:
        return "fsdp"
    return "zero1" if "megatron" in text else "none"


def _offload(text: str) -> Offload:
    if "cpu offload" in text:
        return "optimizer"
    return "activations" if re.search(r"act(ivation)? offload", text) else "none"


def _rank(text: str) -> int:
    found = re.search(r"\blora_r (\d+)|\br ?= ?(\d+)|\br(\d+)\b", text)
    return int(next(g for g in found.groups() if g)) if found else 8


def _targets(text: str) -> tuple[str, ...]:
    if "all-linear" in text:
        return ("all-linear",)
    words = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    found = [w for w in words if w in text]
    found += [w for w in ("query", "key", "value", "projection", "mlp", "self_attn", "output") if w in text]
    if re.search(r"\bq,\s*v\b", text):
        found += ["q", "v"]
    return tuple(found) or ("all-linear",)
