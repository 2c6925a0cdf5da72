"""Start a trainer whose processes save the same step when they are told to stop: ``MODULE ARGUMENT ...``.

Put into the container as it stands and started by torchrun there, once per process, in place of the
trainer's module, which it becomes. transformers 5.23 lets every process look by itself whether the
signal has come, at three places of a step. Two of them that look at different places leave the loop
apart: one waits for gradients while the other gathers losses, and what is logged then is nonsense, or
both wait until they are killed. Here they ask each other, once a step and at its end.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

# torch and transformers are imported in the functions: our own environment has neither

SENTINEL = "checkpoint-is-incomplete.txt"
"""In a checkpoint that is being written, as transformers calls it."""


def is_asked(asked: bool, device: Any) -> bool:
    """Return whether any of the processes is asked to stop; all of them have to call it."""
    import torch  # type: ignore[import-not-found,unused-ignore] # of the trainer's environment

    flag = torch.tensor([int(asked)], device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def save(trainer: Any) -> None:
    """Write a checkpoint of the step that all processes are at."""
    import torch

    folder = Path(trainer._get_output_dir(trial=None), f"checkpoint-{trainer.state.global_step}")
    sentinel = folder / SENTINEL
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        sentinel.write_text("")
    trainer._save_checkpoint(trainer.model, trial=None)
    torch.distributed.barrier()
    if trainer.is_world_process_zero():
        sentinel.unlink(missing_ok=True)


def agree() -> None:
    """Let processes stop together; nothing where this version of transformers saves nothing when stopped."""
    try:
        from transformers import (  # type: ignore[import-not-found,unused-ignore] # as above
            trainer_jit_checkpoint as jit,
        )
    except ImportError:
        return
    base: Any = jit.JITCheckpointCallback

    class Together(base):  # type: ignore[misc] # Any: of the trainer's environment
        """Looks at the end of a step, and for all of them."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Do nothing: others may be elsewhere in the step."""

        on_step_begin = on_epoch_end = on_pre_optimizer_step

        def on_step_end(self, args: Any, _state: Any, control: Any, **_: Any) -> None:
            """Save and stop where any process was asked to."""
            manager = self.jit_manager
            if manager is not None and is_asked(manager.is_checkpoint_requested, args.device):
                control.should_save, control.should_training_stop = False, True
                save(manager.trainer)

    jit.JITCheckpointCallback = Together


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = os.getcwd()  # noqa: PTH109 - as python -m has it: modules of the user's are there
    agree()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
