"""The program around a trainer: whose output it is, what is gone on from, and how it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines import tuning_entry
from orchestrator.engines.tuning_entry import CLAIM, INTERRUPTED, REFUSED, Refused, Watch, claim, flaw
from tests.engines.fake_trainer import save

TRAINER = Path(__file__).with_name("fake_trainer.py")
MERGE = "import pathlib, sys; p = pathlib.Path(sys.argv[2]); p.mkdir(); (p / 'config.json').write_text('{}')"


def started(folder: Path, *words: str, steps: int = 3, **order: Any) -> subprocess.Popen[str]:
    """Start an entry around the counting trainer in ``folder``."""
    output = folder / "output"
    told = {
        "output": str(output), "logging_steps": 1, "digest": "d", "base": {"id": "org/model"},
        "dataset": {"id": "org/rows"}, **order,
    }  # fmt: skip
    (folder / "order.json").write_text(json.dumps(told))
    life = {"MODELYARD_RUN_NAME": "sft", "MODELYARD_RUN_SINCE": order.get("since", "monday")}
    command = [sys.executable, str(TRAINER), str(output), str(steps), *words]
    return subprocess.Popen(
        [sys.executable, tuning_entry.__file__, str(folder / "order.json"), "--", *command],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **life, "HF_HOME": str(folder)},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code and what was told."""
    out, _ = process.communicate(timeout=60)
    return process.returncode, list(tuning_entry.lines(iter(out.splitlines())))


def test_finished_training_describes_what_it_leaves(tmp_path: Path) -> None:
    refs = tmp_path / "hub" / "datasets--org--rows" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("c0ffee\n")
    code, told = ended(started(tmp_path))
    assert code == 0
    last = told[-1]
    assert [each["kind"] for each in last["artifacts"]] == ["adapter", "state"]
    assert last["dataset"] == {"id": "org/rows", "revision": "c0ffee"}
    assert last["artifacts"][1]["metrics"]["loss"] == pytest.approx(1 / 3)
    done = subprocess.run(
        "sha256sum adapter_config.json | sha256sum", shell=True, cwd=tmp_path / "output", capture_output=True
    )
    assert done.stdout.decode().split()[0] == last["artifacts"][0]["sha256"]


def test_stopped_training_is_interrupted_and_goes_on_at_its_step(tmp_path: Path) -> None:
    first = started(tmp_path, "--pause", "0.05", steps=1000)
    assert first.stdout
    next(line for line in first.stdout if "'loss'" in line)
    first.send_signal(signal.SIGTERM)
    code, told = ended(first)
    assert code == INTERRUPTED
    [step] = [fact["interrupted"] for fact in told if "interrupted" in fact]
    code, told = ended(started(tmp_path, steps=step + 2))
    assert (code, told[0]["resumed"]) == (0, step)


def test_training_that_somebody_else_stopped_is_not_done(tmp_path: Path) -> None:
    """A trainer that got the signal itself saves, and ends with 0."""
    code, told = ended(started(tmp_path, "--until", "2", steps=5))
    assert (code, told[-1]) == (INTERRUPTED, {"interrupted": 2})


def test_training_that_may_end_early_is_done(tmp_path: Path) -> None:
    assert ended(started(tmp_path, "--until", "2", steps=5, may_end_early=True))[0] == 0


def test_trainer_falls_with_its_entry(tmp_path: Path) -> None:
    process = started(tmp_path, "--pause", "0.05", steps=10_000)
    assert process.stdout
    next(line for line in process.stdout if "'loss'" in line)
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    trainer = os.pidfd_open(int(child))
    process.kill()
    process.communicate(timeout=60)
    ended_in_time, _, _ = select.select([trainer], [], [], 60)
    os.close(trainer)
    assert ended_in_time


def test_finished_training_is_not_trained_again_but_merged(tmp_path: Path) -> None:
    assert ended(started(tmp_path))[0] == 0
    (tmp_path / "merge.py").write_text(MERGE)
    code, told = ended(started(tmp_path, resume=True, since="friday", merge=str(tmp_path / "merge.py")))
    assert code == 0
    assert not [fact for fact in told if "step" in fact or "resumed" in fact]
    assert [each["kind"] for each in told[-1]["artifacts"]] == ["adapter", "merged", "state"]


def test_output_of_another_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / CLAIM).write_text(json.dumps({"run": "dpo", "since": "monday"}))
    code, told = ended(started(tmp_path))
    assert (code, [*told[0]]) == (REFUSED, ["refused"])
    assert "what run dpo left" in told[0]["refused"]


@pytest.mark.parametrize(
    ("held", "resume", "said"),
    [
        ({"run": "sft", "since": "monday"}, False, None),
        ({"run": "sft", "since": "sunday"}, False, "an earlier life of this run"),
        ({"run": "sft", "since": "sunday"}, True, None),
        ({"run": "dpo", "since": "monday"}, True, "what run dpo left"),
        (None, False, "an unknown run"),
        (None, True, None),
    ],
)
def test_output_is_claimed_or_refused(
    tmp_path: Path, held: dict[str, str] | None, resume: bool, said: str | None
) -> None:
    save(tmp_path, 4, 8)
    if held:
        (tmp_path / CLAIM).write_text(json.dumps(held))
    if said is None:
        claim(tmp_path, run="sft", since="monday", resume=resume)
        assert json.loads((tmp_path / CLAIM).read_text())["since"] == "monday"
    else:
        with pytest.raises(Refused, match=said):
            claim(tmp_path, run="sft", since="monday", resume=resume)


def test_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be written: Not a directory"):
        claim(tmp_path / "file" / "output", run="sft", since="", resume=False)


def cut(name: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-1])


def torn_archive(checkpoint: Path) -> None:
    with zipfile.ZipFile(checkpoint / "optimizer.pt", "w") as archive:
        archive.writestr("data.pkl", "state")
    cut("optimizer.pt")(checkpoint)


def torn_index(checkpoint: Path) -> None:
    index = {"weight_map": {"w": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("tear", "said"),
    [
        (cut("adapter_model.safetensors"), "adapter_model.safetensors is cut off"),
        (cut("trainer_state.json"), "trainer_state.json is missing or torn"),
        (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing or torn"),
        (lambda c: (c / "checkpoint-is-incomplete.txt").write_text(""), "still being written"),
        (lambda c: (c / "scheduler.pt").write_bytes(b""), "scheduler.pt is empty"),
        (torn_archive, "optimizer.pt is cut off"),
        (torn_index, "model-00002-of-00002.safetensors is missing"),
    ],
)
def test_torn_checkpoint_is_skipped_and_said(
    tmp_path: Path, tear: Callable[[Path], object], said: str
) -> None:
    for step in (5, 10):
        save(tmp_path, step, 20)
    assert flaw(tmp_path / "checkpoint-10") is None
    tear(tmp_path / "checkpoint-10")
    skipped: list[tuple[str, str]] = []
    found = tuning_entry.last_checkpoint(tmp_path, lambda name, why: skipped.append((name, why)))
    assert found == tmp_path / "checkpoint-5"
    assert [name for name, _ in skipped] == ["checkpoint-10"]
    assert said in skipped[0][1]


def test_checkpoint_with_steps_left_is_gone_on_from(tmp_path: Path) -> None:
    """From the last step's a trainer would make one more."""
    save(tmp_path, 20, 20)
    assert tuning_entry.beginning(tmp_path, lambda *_: None) == tmp_path / "checkpoint-20"
    for step in (10, 15):
        save(tmp_path, step, 20)
    assert tuning_entry.beginning(tmp_path, lambda *_: None) == tmp_path / "checkpoint-15"


def test_progress_is_told_from_the_trainers_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter(range(0, 1000, 10))
    watch = Watch(start=100, every=10, clock=lambda: next(seconds))
    passed: list[bytes] = []
    for step in (110, 120):
        watch.take(b"%3d%%|##   | %d/200 [00:01<00:01, 9it/s]\r" % (step // 2, step), passed.append)
        tokens = b"'num_tokens': '%d'}\n" % (step * 50)
        watch.take(b"{'loss': '2.5', 'learning_rate': '0.1', " + tokens, passed.append)
    watch.take(b"{'loss': 'none'}\n{'train_runtime': '3'}\nMap: 100%|##| 6", passed.append)
    watch.take(b"4/64 [00:00<00:00]\n", passed.append)
    told = list(tuning_entry.lines(iter(capsys.readouterr().out.splitlines())))
    assert [fact["step"] for fact in told] == [110, 120]
    assert told[-1]["steps"] == 200
    assert told[-1]["tokens_s"] > 0
    assert told[-1]["left_s"] > 0
    assert not [line for line in passed if b"/200" in line]
    assert b"Map: 100%|##| 64/64 [00:00<00:00]\n" in passed
