"""Token mixers that keep a fixed state instead of keys and values: their parameters and state bytes.

The state of a sequence is what engines keep per layer: the recurrent state in the config's state
dtype, else in the model's, and the last inputs of the short convolution in 16 bits.
"""

from __future__ import annotations

from orchestrator.catalog.layout import Differences
from orchestrator.catalog.text import Text

_BYTES_BY_DTYPE = {"float32": 4, "float64": 8}


def _state_element(text: Text) -> int:
    """Return the bytes of one state value: engines keep it in the model's dtype unless told."""
    named = str(text.get("mamba_ssm_cache_dtype", "mamba_ssm_dtype", "dtype", "torch_dtype") or "")
    return _BYTES_BY_DTYPE.get(named.removeprefix("torch."), 2)


def gated_delta(text: Text) -> Differences:
    """Gated delta net of Qwen3-Next and Qwen3.5: projections, a short convolution, gates."""
    hidden = text.number("hidden_size")
    key_heads, value_heads = text.number("linear_num_key_heads"), text.number("linear_num_value_heads")
    key_dim, value_dim = text.number("linear_key_head_dim"), text.number("linear_value_head_dim")
    keys, values, kernel = key_heads * key_dim, value_heads * value_dim, text.number("linear_conv_kernel_dim")
    channels = 2 * keys + values
    projections = hidden * (channels + values + 2 * value_heads) + values * hidden
    state = value_heads * key_dim * value_dim * _state_element(text)
    return {
        "linear_parameters": projections + channels * kernel + 2 * value_heads + value_dim,
        "linear_state_bytes": state + channels * (kernel - 1) * 2,
    }


def mamba2(text: Text) -> Differences:
    """Mamba-2 of Nemotron-H, Granite 4, Bamba and Falcon-H1."""
    hidden = text.number("hidden_size")
    heads = text.number("mamba_num_heads", "mamba_n_heads")
    inner = text.get("mamba_d_ssm") or heads * _mamba_head(text, heads)
    groups, state = text.number("n_groups", "mamba_n_groups"), text.number("ssm_state_size", "mamba_d_state")
    kernel = text.number("conv_kernel", "mamba_d_conv", default=4)
    channels = inner + 2 * groups * state
    projected = inner + channels + heads
    bias = (projected + hidden) if text.flag("mamba_proj_bias", "use_bias") else 0
    convolution = channels * kernel + (
        channels if text.flag("use_conv_bias", "mamba_conv_bias", default=True) else 0
    )
    norm = inner if text.flag("mamba_rms_norm", default=True) else 0
    return {
        "linear_parameters": hidden * (projected + inner) + bias + convolution + norm + 3 * heads,
        "linear_state_bytes": inner * state * _state_element(text) + channels * (kernel - 1) * 2,
    }


def _mamba_head(text: Text, heads: int) -> int:
    named = text.get("mamba_head_dim", "mamba_d_head")
    if isinstance(named, int):
        return named
    expanded = int(text.get("mamba_expand", "expand") or 2) * text.number("hidden_size")
    return expanded // heads


def mamba1(text: Text) -> Differences:
    """Mamba of Jamba: a low-rank time step and three inner norms."""
    hidden, state = text.number("hidden_size"), text.number("mamba_d_state", default=16)
    inner, kernel = text.number("mamba_expand", default=2) * hidden, text.number("mamba_d_conv", default=4)
    rank = text.get("mamba_dt_rank")
    rank = rank if isinstance(rank, int) else -(-hidden // 16)
    bias = (2 * inner + hidden) if text.flag("mamba_proj_bias") else 0
    convolution = inner * kernel + (inner if text.flag("mamba_conv_bias", default=True) else 0)
    scan = inner * (rank + 2 * state) + rank * inner + inner + inner * state + inner
    return {
        "linear_parameters": 3 * hidden * inner + bias + convolution + scan + rank + 2 * state,
        "linear_state_bytes": inner * state * _state_element(text) + inner * (kernel - 1) * 2,
    }


def short_convolution(text: Text) -> Differences:
    """LFM2: a gated convolution of a few taps."""
    hidden, kernel = text.number("hidden_size"), text.number("conv_L_cache", default=3)
    bias = 5 * hidden if text.flag("conv_bias") else 0
    return {
        "linear_parameters": 4 * hidden * hidden + hidden * kernel + bias,
        "linear_state_bytes": hidden * (kernel - 1) * 2,
    }


def kimi_delta(text: Text) -> Differences:
    """Kimi delta attention: three short convolutions, low-rank decay and output gate."""
    hidden = text.number("hidden_size")
    linear = text.get("linear_attn_config") or {}
    heads = int(linear.get("num_heads") or text.number("linear_num_heads"))
    head = int(linear.get("head_dim") or text.number("linear_head_dim"))
    kernel = int(linear.get("short_conv_kernel_size") or text.number("linear_conv_kernel_dim", default=4))
    width = heads * head
    gate = hidden * width if linear.get("use_full_rank_gate") else head * (hidden + width)
    low_rank = head * (hidden + width) + gate + hidden * heads
    return {
        "linear_parameters": 4 * hidden * width + 3 * width * kernel + low_rank + heads + width + head,
        "linear_state_bytes": heads * head * head * 4 + 3 * width * (kernel - 1) * 2,
    }
