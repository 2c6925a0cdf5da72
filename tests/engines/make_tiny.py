"""Write a Llama of some 60,000 random weights with a byte tokenizer; run by an interpreter with torch.

Usage: ``python make_tiny.py FOLDER [HEAD]``. It answers nonsense, but it loads, streams and stops as any
model. ``HEAD`` is the width of an attention head: vLLM's kernels for CPUs have none of 12.
"""

from __future__ import annotations

import sys
from typing import Any

# torch and transformers are imported in the functions: our own environment has neither

TURN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def tokenizer() -> Any:
    """Return a tokenizer of the 256 bytes and three marks, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<s>", "</s>", "<pad>"]
    bare = Tokenizer(models.BPE({token: i for i, token in enumerate([*marks, *alphabet])}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.chat_template = TURN
    return made


def main(folder: str, head: int = 12) -> None:
    """Write model and tokenizer to ``folder``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
