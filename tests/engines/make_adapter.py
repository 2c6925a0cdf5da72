"""Write a LoRA of random weights for a model of ``make_tiny.py``; run by an interpreter with torch.

Usage: ``python make_adapter.py MODEL FOLDER SEED RANK``. The form is PEFT's: ``adapter_config.json`` and
one file of weights. It moves what the model says far enough to be told from the base and from others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# torch and safetensors are imported in the function: our own environment has neither


def main(model: str, folder: str, seed: int, rank: int) -> None:
    """Write the adapter for ``model`` to ``folder``."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    config = json.loads((Path(model) / "config.json").read_text())
    width, head = config["hidden_size"], config["head_dim"]
    out = {"q_proj": config["num_attention_heads"] * head, "v_proj": config["num_key_value_heads"] * head}
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, rows in out.items():
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{at}.lora_A.weight"] = torch.randn(rank, width)
            weights[f"{at}.lora_B.weight"] = torch.randn(rows, rank)
    Path(folder).mkdir(parents=True)
    save_file(weights, Path(folder) / "adapter_model.safetensors")
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": model, "r": rank,
        "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(out),
        "inference_mode": True,
    }  # fmt: skip
    (Path(folder) / "adapter_config.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
