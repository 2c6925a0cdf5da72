"""Fold an adapter into its base: ``python3 tuning_merge.py ADAPTER OUT``.

Put into the container as it stands and run by the trainer's own Python, which has peft and
transformers; the base is loaded in 16 bits even where it was trained in 4.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# peft and transformers are imported in the function: our own environment has neither


def merge(adapter: Path, out: Path) -> None:
    """Write the whole model that ``adapter`` makes of its base to ``out``, with its tokenizer."""
    import peft  # type: ignore[import-not-found,unused-ignore] # of the trainer's environment
    import transformers  # type: ignore[import-not-found,unused-ignore] # of the trainer's environment

    kind = json.loads((adapter / "adapter_config.json").read_text()).get("task_type")
    loader: Any = (
        peft.AutoPeftModelForSequenceClassification if kind == "SEQ_CLS" else peft.AutoPeftModelForCausalLM
    )
    model = loader.from_pretrained(str(adapter), dtype="auto")
    model.merge_and_unload().save_pretrained(str(out))
    transformers.AutoTokenizer.from_pretrained(str(adapter)).save_pretrained(str(out))


if __name__ == "__main__":
    merge(Path(sys.argv[1]), Path(sys.argv[2]))
