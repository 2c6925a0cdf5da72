"""An adapter as Axolotl leaves it becomes a whole model that says the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.engines import tuning_merge
from orchestrator.engines.tuning_entry import artifacts
from tests.training.conftest import User

pytestmark = [pytest.mark.training, pytest.mark.slow, pytest.mark.timeout(300)]

LEFT = """
import sys, peft, torch, transformers
model, out = sys.argv[1:]
torch.manual_seed(1)
base = transformers.AutoModelForCausalLM.from_pretrained(model)
kind = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
tuned = peft.get_peft_model(base, kind)
tuned.save_pretrained(out)
tuned.config.save_pretrained(out)  # beside the adapter: Axolotl 0.19, train.py
transformers.AutoTokenizer.from_pretrained(model).save_pretrained(out)
"""
SAYS = """
import sys, peft, torch, transformers
adapter, merged = sys.argv[1:]
words = torch.tensor([[5, 80, 90, 100]])
with torch.no_grad():
    tuned = peft.AutoPeftModelForCausalLM.from_pretrained(adapter)
    said, base = tuned(words).logits, None
    with tuned.disable_adapter():
        base = tuned(words).logits
    whole = transformers.AutoModelForCausalLM.from_pretrained(merged)(words).logits
assert torch.allclose(said, whole, atol=1e-4), (said - whole).abs().max()
assert not torch.allclose(base, whole, atol=1e-2), "nothing was folded in"
"""


def test_adapter_of_axolotl_is_folded_into_its_base(user: User, tmp_path: Path) -> None:
    def run(*words: str | Path) -> None:
        done = subprocess.run([user.python, *words], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]

    out = tmp_path / "out"
    run("-c", LEFT, user.folder / "model", out)
    assert [each["kind"] for each in artifacts(out, None)] == ["adapter"]
    # where it lies in a container: beside our own modules it would take them for others
    program = Path(shutil.copy(tuning_merge.__file__, tmp_path))
    run(program, out, out / "merged")
    run("-c", SAYS, out, out / "merged")
    assert [each["kind"] for each in artifacts(out, None)] == ["adapter", "merged"]
