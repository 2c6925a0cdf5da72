"""A trainer that only counts: it writes checkpoints as transformers does, and saves one on SIGTERM.

Run as ``fake_trainer.py OUTPUT STEPS [--until N] [--pause S] [--resume_from_checkpoint PATH]``; it ends by
itself, with 0, at step ``--until``, as one that somebody else asked to stop does.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path


def save(output: Path, step: int, steps: int) -> None:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    state = {"global_step": step, "max_steps": steps, "log_history": [{"step": step, "loss": 1 / step}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--until", type=int, default=-1)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--resume_from_checkpoint", type=Path)
    asked = parser.parse_args()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    last = asked.resume_from_checkpoint
    step = json.loads((last / "trainer_state.json").read_text())["global_step"] if last else 0
    while step < asked.steps and not told and step != asked.until:
        step += 1
        print({"loss": f"{1 / step:.4g}", "learning_rate": "0.1", "num_tokens": f"{step * 8}"}, flush=True)
        sys.stderr.write(f"\r{step / asked.steps:4.0%}|##  | {step}/{asked.steps} [00:00<00:01,  9.9it/s]")
        sys.stderr.flush()
        time.sleep(asked.pause)
    save(asked.output, step, asked.steps)
    (asked.output / "adapter_config.json").write_text("{}")


if __name__ == "__main__":
    main()
