"""Models and devices the sizing's tests speak of, with the shapes of their config.json."""

from __future__ import annotations

from orchestrator.catalog.values import Accelerator, ModelFacts
from orchestrator.units import GIB


def device(name: str, visible_gib: float) -> Accelerator:
    """Return a device that shows ``visible_gib`` to a program."""
    return Accelerator(name, "nvidia", "", visible_gib, round(visible_gib * GIB), "stated by the test")


H100 = device("H100-80GB", 79.19)
A100 = device("A100-80GB", 79.15)
L4 = device("L4", 22.03)
RTX_3090 = device("RTX3090", 23.58)


def llama(
    id_: str, layers: int, hidden: int, intermediate: int, heads: int, *, tied: bool = False
) -> ModelFacts:
    """Return a Llama 3 of the given shapes: 8 key-value heads of 128, 128,256 tokens."""
    return ModelFacts(
        id_,
        "LlamaForCausalLM",
        layers,
        hidden,
        intermediate,
        heads,
        8,
        128,
        128256,
        tied=tied,
        context=131072,
    )


LLAMA_8B = llama("meta-llama/Llama-3.1-8B-Instruct", 32, 4096, 14336, 32)
LLAMA_70B = llama("meta-llama/Llama-3.1-70B-Instruct", 80, 8192, 28672, 64)
LLAMA_405B = llama("meta-llama/Llama-3.1-405B-Instruct", 126, 16384, 53248, 128)
QWEN3_32B = ModelFacts(
    "Qwen/Qwen3-32B", "Qwen3ForCausalLM", 64, 5120, 25600, 64, 8, 128, 151936, context=40960
)
GEMMA3_27B = ModelFacts(
    "google/gemma-3-27b-it",
    "Gemma3ForConditionalGeneration",
    62,
    5376,
    21504,
    32,
    16,
    128,
    262144,
    tied=True,
    layer_kinds=(("sliding",) * 5 + ("full",)) * 10 + ("sliding",) * 2,
    sliding_window=1024,
    context=131072,
)
DEEPSEEK_V3 = ModelFacts(
    "deepseek-ai/DeepSeek-V3",
    "DeepseekV3ForCausalLM",
    61,
    7168,
    18432,
    128,
    128,
    128,
    129280,
    attention="mla",
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    experts=256,
    experts_per_token=8,
    expert_intermediate=2048,
    shared_experts=1,
    shared_intermediate=2048,
    dense_layers=3,
    quantization="fp8",
    context=163840,
)
GPT_OSS_120B = ModelFacts(
    "openai/gpt-oss-120b",
    "GptOssForCausalLM",
    36,
    2880,
    2880,
    64,
    8,
    64,
    201088,
    experts=128,
    experts_per_token=4,
    expert_intermediate=2880,
    layer_kinds=("sliding", "full") * 18,
    sliding_window=128,
    quantization="mxfp4",
    context=131072,
    parameters=116_829_156_672,
)
QWEN35_27B = ModelFacts(
    "Qwen/Qwen3.5-27B",
    "Qwen3_5ForConditionalGeneration",
    64,
    5120,
    17408,
    24,
    4,
    256,
    248320,
    layer_kinds=("linear", "linear", "linear", "full") * 16,
    linear_state_bytes=3_211_264,
    parameters=27_356_700_000,
    context=262144,
)
ALL = (LLAMA_8B, LLAMA_70B, LLAMA_405B, QWEN3_32B, GEMMA3_27B, DEEPSEEK_V3, GPT_OSS_120B, QWEN35_27B)
