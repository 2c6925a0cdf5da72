"""An output that is kept in a bucket: what is sent, what is brought back, and what is not trusted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines import tuning_entry
from orchestrator.engines.tuning_bucket import Bucket, Keeper, Unreachable
from orchestrator.engines.tuning_entry import CLAIM, INTERRUPTED, REFUSED, Refused, flaw
from tests.engines.fake_trainer import save
from tests.engines.test_tuning_entry import MERGE, TRAINER, ended

pytest.importorskip("fsspec")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Return where the bucket lies: fsspec's own kind, which is a folder."""
    return tmp_path / "bucket" / "runs"


def started(
    folder: Path, there: Path, attempt: int, *words: str, steps: int = 3, node: int = 0, **order: Any
) -> subprocess.Popen[str]:
    """Start an entry in a container of its own, as far as its files are concerned."""
    home = folder / f"attempt-{attempt}-{node}"
    home.mkdir()
    told = {
        "output": str(home / "output"), "bucket": f"file://{there}", "logging_steps": 1, "digest": "d",
        "base": {"id": "org/model"}, "dataset": {"id": "org/rows"}, **order,
    }  # fmt: skip
    (home / "order.json").write_text(json.dumps(told))
    life = {"MODELYARD_RUN_NAME": "sft", "MODELYARD_RUN_SINCE": order.get("since", "monday")}
    command = [sys.executable, str(TRAINER), str(home / "output"), str(steps), *words]
    return subprocess.Popen(
        [sys.executable, tuning_entry.__file__, str(home / "order.json"), "--", *command],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **life, "HF_HOME": str(folder)},
    )  # fmt: skip


def keeper(there: Path, output: Path, said: list[str] | None = None, **node: int) -> Keeper:
    tell = [].append if said is None else said.append
    return Keeper(Bucket(f"file://{there}"), output, flaw=flaw, tell=tell, refused=Refused, **node)


def test_results_are_in_the_bucket_when_the_run_is_done(tmp_path: Path, there: Path) -> None:
    code, told = ended(started(tmp_path, there, 1))
    assert code == 0, told
    assert (there / "adapter_config.json").read_text() == "{}"
    claimed = json.loads((there / CLAIM).read_text())
    assert claimed["finished"] == "d"
    assert [each["kind"] for each in claimed["artifacts"]] == ["adapter", "state"]


def test_another_machine_goes_on_at_the_step_that_was_saved(tmp_path: Path, there: Path) -> None:
    first = started(tmp_path, there, 1, "--pause", "0.05", steps=1000)
    assert first.stdout
    next(line for line in first.stdout if "'loss'" in line)
    first.send_signal(signal.SIGTERM)
    code, told = ended(first)
    assert code == INTERRUPTED
    [step] = [fact["interrupted"] for fact in told if "interrupted" in fact]
    code, told = ended(started(tmp_path, there, 2, steps=step + 2))
    assert (code, [fact["resumed"] for fact in told if "resumed" in fact]) == (0, [step])


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"since": "friday"}, "an earlier life of this run"),
        ({"since": "friday", "resume": True}, ""),
    ],
)
def test_checkpoints_of_an_earlier_life_are_gone_on_from_when_asked(
    tmp_path: Path, there: Path, order: dict[str, Any], said: str
) -> None:
    assert ended(started(tmp_path, there, 1, "--until", "2", steps=5))[0] == INTERRUPTED
    code, told = ended(started(tmp_path, there, 2, steps=5, **order))
    assert code == (REFUSED if said else 0)
    assert said in str(told[0].get("refused"))


def test_bucket_of_another_run_is_refused(tmp_path: Path, there: Path) -> None:
    there.mkdir(parents=True)
    (there / CLAIM).write_text(json.dumps({"run": "dpo"}))
    code, told = ended(started(tmp_path, there, 1))
    assert (code, "what run dpo left" in told[0]["refused"]) == (REFUSED, True)


def test_bucket_that_cannot_be_written_is_refused_before_anything_is_trained(
    tmp_path: Path, there: Path
) -> None:
    there.parent.write_text("a file where the bucket should be")
    code, told = ended(started(tmp_path, there, 1))
    assert (code, "cannot be" in told[0]["refused"]) == (REFUSED, True), told


def test_finished_run_is_merged_elsewhere_without_training_again(tmp_path: Path, there: Path) -> None:
    assert ended(started(tmp_path, there, 1))[0] == 0
    (tmp_path / "merge.py").write_text(MERGE)
    order = {"resume": True, "since": "friday", "merge": str(tmp_path / "merge.py")}
    code, told = ended(started(tmp_path, there, 2, **order))
    assert code == 0
    assert not [fact for fact in told if "step" in fact]
    assert (there / "merged" / "config.json").exists()


def test_data_in_a_bucket_is_fetched_first(tmp_path: Path, there: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("{}\n")
    wanted = {str(tmp_path / "data" / "rows"): f"file://{tmp_path}/rows"}
    assert ended(started(tmp_path, there, 1, fetch=wanted))[0] == 0
    assert (tmp_path / "data" / "rows" / "a.jsonl").read_text() == "{}\n"


def test_data_that_is_not_there_is_refused(tmp_path: Path, there: Path) -> None:
    code, told = ended(started(tmp_path, there, 1, fetch={str(tmp_path / "data"): f"file://{tmp_path}/no"}))
    assert (code, f"file://{tmp_path}/no holds nothing" in told[-1]["refused"]) == (REFUSED, True)


def test_checkpoint_that_was_not_sent_to_its_end_is_skipped_and_said(tmp_path: Path, there: Path) -> None:
    for step in (5, 10):
        save(there, step, 20)
    (there / "checkpoint-10" / "trainer_state.json").unlink()
    said: list[str] = []
    keeper(there, tmp_path / "output", said).bring()
    assert [p.name for p in (tmp_path / "output").iterdir()] == ["checkpoint-5"]
    assert "checkpoint-10" in said[0]


def test_checkpoint_that_is_torn_there_is_skipped_and_said(tmp_path: Path, there: Path) -> None:
    for step in (5, 10):
        save(there, step, 20)
    weights = there / "checkpoint-10" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said: list[str] = []
    keeper(there, tmp_path / "output", said).bring()
    assert [p.name for p in (tmp_path / "output").iterdir()] == ["checkpoint-5"]
    assert "adapter_model.safetensors is cut off" in said[0]


def test_only_the_latest_checkpoints_are_kept(tmp_path: Path, there: Path) -> None:
    output = tmp_path / "output"
    sender = keeper(there, output)
    for step in (5, 10, 15):
        save(output, step, 20)
        sender.send_checkpoints()
        # of one that the trainer removed while it was sent, a part is left
        (there / "checkpoint-7").mkdir(parents=True, exist_ok=True)
        (there / "checkpoint-7" / "optimizer.pt").write_bytes(b"x")
    save(output, 20, 20)
    sender.send_checkpoints()
    assert sorted(p.name for p in there.glob("checkpoint-*") if any(p.iterdir())) == [
        "checkpoint-15",
        "checkpoint-20",
    ]


def test_checkpoint_of_two_nodes_is_whole_when_both_have_sent_their_part(tmp_path: Path, there: Path) -> None:
    first, second = tmp_path / "node-0", tmp_path / "node-1"
    for rank, output in enumerate((first, second)):
        save(output, 5, 20)
        (output / "checkpoint-5" / f"rng_state_{rank}.pth").write_bytes(b"x")
    leader, follower = keeper(there, first, nodes=2), keeper(there, second, rank=1, nodes=2)
    leader.send_checkpoints()
    assert leader.steps() == []
    follower.send_checkpoints()
    assert leader.steps() == [(5, "checkpoint-5")]
    keeper(there, tmp_path / "elsewhere", nodes=2).bring()
    brought = {p.name for p in (tmp_path / "elsewhere" / "checkpoint-5").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} <= brought


def test_kind_of_bucket_without_its_package_is_said() -> None:
    with pytest.raises(Unreachable, match="adl://x needs a package that is not installed here"):
        Bucket("adl://x")
