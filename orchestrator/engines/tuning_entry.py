"""Keep one node of a tuning run: claim its output, go on from its last checkpoint, end truthfully.

Put into the container as it stands and run by the Python there; standard library only, and where
they are needed ``tuning_bucket.py`` and ``tuning_meeting.py`` beside it::

    python3 tuning_entry.py ORDER.json -- COMMAND ...

The order says where the output is and what the run leaves there (``tuning.order``). The command is
the trainer's: SIGTERM is passed on to it, and ``--resume_from_checkpoint PATH`` is added to it
where the output holds a whole checkpoint. It ends with 0 when the training is done and its results
are described, with 143 when a signal ended it before, with 78 when the output is not this run's to
write, and as the trainer did otherwise. What it has to tell goes to stdout, one line each:
``modelyard: `` and a JSON object.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

MARK = "modelyard: "
"""What lines of ours begin with."""
CLAIM = "modelyard-output.json"
"""Says whose output a folder is, and once it is finished what of."""
REFUSED, INTERRUPTED, UNSENT = 78, 143, 74
DONE = -1
"""The step that stands for a run whose training is done."""
UNFINISHED = "checkpoint-is-incomplete.txt"
"""In a checkpoint that is being written (transformers 5.23, trainer_jit_checkpoint)."""
TOLD_EVERY_S = 1.0
PR_SET_PDEATHSIG = 1

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_BAR = re.compile(rb"\s*\d+%\|[^|]*\|\s*(\d+)/(\d+) \[")
_LEFT_OUT = re.compile(r"modelyard-output\.json|training_args\.bin|README\.md|\..*|events\.out\.tfevents.*")


def tell(**fact: Any) -> None:
    """Print a line of ours."""
    print(MARK + json.dumps(fact), flush=True)


def say(chunk: bytes) -> None:
    """Pass output on as it comes."""
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


# --- the output


class Refused(Exception):
    """The output cannot be this run's."""


def checkpoints(output: Path) -> list[tuple[int, Path]]:
    """Return the checkpoint folders in ``output`` with their steps, the latest first."""
    found = [
        (int(name[1]), p) for p in output.glob("checkpoint-*") if (name := _CHECKPOINT.fullmatch(p.name))
    ]
    return sorted(found, reverse=True)


def claim(output: Path, *, run: str, since: str, resume: bool, kept: Any = None, leads: bool = True) -> None:
    """Make ``output`` this run's, or find that it is.

    Args:
        output: The folder.
        run: The run's name.
        since: When this life of the run began; "" where nobody knows, and then any life is this one.
        resume: Whether checkpoints of an earlier life are to be gone on from.
        kept: The bucket that the folder is kept in, where there is one (``tuning_bucket.Keeper``).
        leads: Whether this is the node that writes the claim to a bucket.

    Raises:
        Refused: it cannot be written, or holds what another run or an earlier life left.
    """
    mine = {"run": run, "since": since}
    here = read_json(output / CLAIM)
    if kept is not None and here and not mine.items() <= here.items():
        shutil.rmtree(output, ignore_errors=True)  # of an earlier attempt: the bucket has what counts
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".modelyard-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise Refused(f"output {output} cannot be written: {error.strerror}") from None
    held = here if kept is None else kept.read(CLAIM)
    if held.get("run", run) != run:
        raise Refused(f"output holds what run {held['run']} left, give this run a folder of its own")
    same_life = not since or (held and held.get("since") in ("", since))
    saved = checkpoints(output) if kept is None else kept.steps()
    if (saved or held.get("finished")) and not same_life and not resume:
        whose = "an earlier life of this run" if held else "an unknown run"
        raise Refused(
            f"output holds checkpoints of {whose}: apply --resume goes on from them, "
            "another output begins anew"
        )
    write_json(output / CLAIM, {**held, **mine})
    if kept is not None and leads:
        kept.write(CLAIM, {**held, **mine})


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file, an empty one where there is none or it is torn."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object so that a reader sees the old one or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=1, sort_keys=True))
    draft.replace(path)


def flaw(checkpoint: Path) -> str | None:
    """Say what is torn in a checkpoint, or None when it is whole.

    The trainer writes its state last, so that one without it was cut off; that a file was cut
    off later, by a machine that fell, shows in the lengths that the formats state themselves.
    """
    step = _CHECKPOINT.fullmatch(checkpoint.name)
    if (checkpoint / UNFINISHED).exists():
        return "it was still being written"
    state = read_json(checkpoint / "trainer_state.json")
    if step is None or state.get("global_step") != int(step[1]):
        return "its trainer_state.json is missing or torn"
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
    for path in files:
        if path.suffix == ".safetensors" and not is_whole(path):
            return f"{path.name} is cut off"
        if path.suffix in (".pt", ".pth", ".bin", ".distcp") and path.stat().st_size == 0:
            return f"{path.name} is empty"
        if path.suffix in (".pt", ".pth") and is_torn_zip(path):
            return f"{path.name} is cut off"
    names = {path.name for path in files}
    for index in (path for path in files if path.name.endswith(".index.json")):
        missing = set(read_json(index).get("weight_map", {}).values()) - names
        if missing:
            return f"{min(missing)} is missing"
    return None


def is_whole(path: Path) -> bool:
    """Tell whether a safetensors file is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= size - 8:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(size == 8 + length + max(ends, default=0))


def is_torn_zip(path: Path) -> bool:
    """Tell whether a file of torch began as an archive and does not end as one."""
    with path.open("rb") as file:
        begins = file.read(2) == b"PK"
    return begins and not zipfile.is_zipfile(path)


def last_checkpoint(output: Path, skipped: Callable[[str, str], None]) -> Path | None:
    """Return the latest whole checkpoint in ``output``; ``skipped`` is told of every torn one before it."""
    for _, path in checkpoints(output):
        why = flaw(path)
        if why is None:
            return path
        skipped(path.name, why)
    return None


def beginning(output: Path, skipped: Callable[[str, str], None]) -> Path | None:
    """Return the checkpoint to go on from: the last whole one that has steps left to make.

    From one of the last step a trainer makes another, and its weights are not those of the run
    (transformers 5.23); it is taken where there is none before it.
    """
    last = last_checkpoint(output, skipped)
    step, steps = progress_of(last)
    if last is None or step < steps:
        return last
    before = [p for at, p in checkpoints(output) if at < step and flaw(p) is None]
    return before[0] if before else last


def progress_of(checkpoint: Path | None) -> tuple[int, int]:
    """Return the step of a checkpoint and the steps there are to make; zeros where there is none."""
    state = read_json(checkpoint / "trainer_state.json") if checkpoint else {}
    return int(state.get("global_step", 0)), int(state.get("max_steps", 0))


# --- the trainer


class Watch:
    """Passes the trainer's output on, and tells its progress from it."""

    def __init__(self, *, start: int, every: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._start = self.step = start
        self.steps = 0
        self._every = every
        self._logs = 0
        self._clock = clock
        self._began: tuple[float, int] | None = None
        self._tokens: tuple[float, float] | None = None
        self._told = float("-inf")
        self._rest = b""

    def take(self, chunk: bytes, write: Callable[[bytes], object]) -> None:
        """Pass whole lines on; of a bar that moves in place only its numbers are taken."""
        *lines, self._rest = re.split(rb"(?<=[\r\n])", self._rest + chunk)
        for line in lines:
            self._line(line, write)

    def finish(self, write: Callable[[bytes], object]) -> None:
        """Pass on what came without a line's end."""
        if self._rest:
            self._line(self._rest + b"\n", write)

    def _line(self, line: bytes, write: Callable[[bytes], object]) -> None:
        if bar := _BAR.match(line):
            self.step, self.steps = max(self.step, int(bar[1])), int(bar[2])
            self._begin()
            return
        if line.strip():
            write(line.rstrip(b"\r\n") + b"\n")
        if line.startswith(b"{'"):
            self._logged(line)

    def _begin(self) -> None:
        if self._began is None and self.step > self._start:
            self._began = self._clock(), self.step

    def _logged(self, line: bytes) -> None:
        try:
            found = {k: float(v) for k, v in ast.literal_eval(line.decode().strip()).items()}
        except (ValueError, SyntaxError, TypeError, AttributeError):
            return  # some other dictionary
        if "loss" not in found:
            return
        self._logs += 1
        counted = (self._start // self._every + self._logs) * self._every
        self.step = max(self.step, min(counted, self.steps or counted))
        self._begin()
        self._tell(found)

    def _tell(self, found: Mapping[str, float]) -> None:
        now = self._clock()
        if now - self._told < TOLD_EVERY_S and self.step < self.steps:
            return
        self._told = now
        fact: dict[str, Any] = {"step": self.step, "loss": found["loss"]}
        fact |= {"steps": self.steps} if self.steps else {}
        fact |= {"learning_rate": found["learning_rate"]} if "learning_rate" in found else {}
        if (tokens := found.get("num_tokens")) is not None:
            if self._tokens and now > self._tokens[0]:
                fact["tokens_s"] = round((tokens - self._tokens[1]) / (now - self._tokens[0]), 1)
            self._tokens = now, tokens
        if self._began and self.step > self._began[1] and self.steps:
            each = (now - self._began[0]) / (self.step - self._began[1])
            fact["left_s"] = round((self.steps - self.step) * each, 1)
        tell(**fact)


class Child:
    """The process that trains, and the signal that ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._told = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def _end(self, *_: int | FrameType | None) -> None:
        self._told.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def is_told(self) -> bool:
        """Tell whether a signal asked for the end."""
        return self._told.is_set()

    def run(self, command: Sequence[str], take: Callable[[bytes], None]) -> int:
        """Run a command to its end and return its exit code, 128 and the signal where one ended it.

        It has a session of its own, so that a signal to our group reaches it once: twice asked, the
        trainer saves twice. It dies with us.
        """
        libc = ctypes.CDLL(None)

        def fall_with_us() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        if self.is_told():
            return INTERRUPTED
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=fall_with_us,
            )  # fmt: skip
        except FileNotFoundError as error:
            print(f"{error.filename}: not found", file=sys.stderr, flush=True)
            return 127
        self._process = process
        if self.is_told():  # between the look and the start
            process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 2**16):
            take(chunk)
        process.stdout.close()
        code = process.wait()
        return code if code >= 0 else 128 - code


# --- what it leaves


def artifacts(output: Path, checkpoint: Path | None) -> list[dict[str, Any]]:
    """Describe what the run left: kind, path in the output, bytes, and a digest of all its files."""
    names = {p.name for p in output.iterdir()}
    found = []
    if "adapter_config.json" in names:
        found.append(described("adapter", output, output))
    elif "config.json" in names:
        found.append(described("model", output, output))
    if (output / "merged" / "config.json").exists():
        found.append(described("merged", output, output / "merged"))
    if checkpoint is not None:
        state = checkpoint / "trainer_state.json"
        found.append({
            "kind": "state", "path": checkpoint.name, "sha256": sha256_of([state], checkpoint),
            "bytes": sum(p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()),
            "metrics": metrics(checkpoint),
        })  # fmt: skip
    return found


def described(kind: str, output: Path, folder: Path) -> dict[str, Any]:
    """Describe the files of one folder, and let everybody read them: safetensors writes 0600."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not _LEFT_OUT.fullmatch(p.name))
    for path in files:
        path.chmod(path.stat().st_mode | 0o044)
    return {
        "kind": kind,
        "path": folder.relative_to(output).as_posix(),
        "bytes": sum(p.stat().st_size for p in files),
        "sha256": sha256_of(files, folder),
    }  # fmt: skip


def sha256_of(files: Sequence[Path], folder: Path) -> str:
    """Return one digest of files: that of the lines ``sha256sum`` prints for them in order."""
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metrics(checkpoint: Path) -> dict[str, float]:
    """Return the last figures the trainer logged, by name."""
    last: dict[str, float] = {}
    for entry in read_json(checkpoint / "trainer_state.json").get("log_history", []):
        last |= {k: v for k, v in entry.items() if isinstance(v, int | float)}
    return last


def revision_of(kind: str, name: str, asked: str | None) -> str | None:
    """Return the commit of a hub's ``models`` or ``datasets`` repository that the cache got.

    The hub's client writes it to ``refs`` when it fetches (huggingface_hub docs, cache layout).
    """
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")  # noqa: PTH111 - unset HOME
    ref = Path(home, "hub", f"{kind}--{name.replace('/', '--')}", "refs", asked or "main")
    try:
        return ref.read_text().strip()
    except OSError:
        return asked


def provenance(order: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the result was made from: base model and data, with their revisions."""
    base, data = dict(order["base"]), dict(order["dataset"])
    if not base.get("path"):
        base["revision"] = revision_of("models", base["id"], base.get("revision"))
    if path := data.get("path"):
        rows = (
            sorted(p for p in Path(path).rglob("*") if p.is_file()) if Path(path).is_dir() else [Path(path)]
        )
        data["revision"] = "sha256:" + sha256_of(
            rows, Path(path) if Path(path).is_dir() else Path(path).parent
        )
    else:
        data["revision"] = revision_of("datasets", data["id"], None)
    return {"base": base, "dataset": data}


# --- the whole


def resumed(command: Sequence[str], checkpoint: Path | None) -> list[str]:
    """Return the trainer's command with the checkpoint it goes on from.

    A path and not ``True``: both trainers take that for a path too (TRL 1.16, Axolotl 0.19).

    >>> resumed(["python3", "-m", "trl.scripts.sft"], Path("/out/checkpoint-7"))[-1]
    '/out/checkpoint-7'
    """
    more = [] if checkpoint is None else ["--resume_from_checkpoint", str(checkpoint)]
    return [*command, *more]


@dataclass(frozen=True)
class Node:
    """Which node of which run this is."""

    run: str
    since: str
    rank: int
    nodes: int
    master: str

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Node:
        """Return the node that the environment tells of.

        >>> Node.of({"MODELYARD_NODE_RANK": "1", "MODELYARD_NODES_NUM": "2"}).leads
        False
        """
        text = {name: environ.get(f"MODELYARD_{name}", "") for name in _VARIABLES}
        rank, nodes = int(text["NODE_RANK"] or 0), int(text["NODES_NUM"] or 1)
        return cls(text["RUN_NAME"], text["RUN_SINCE"], rank, nodes, text["MASTER_NODE_IP"])

    @property
    def leads(self) -> bool:
        """Whether this is the node that describes what the run leaves."""
        return self.rank == 0


_VARIABLES = ("RUN_NAME", "RUN_SINCE", "NODE_RANK", "NODES_NUM", "MASTER_NODE_IP")


def beside(name: str) -> Any:
    """Return a program of ours that lies beside this one, in the container as in our own package."""
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


def keep(order: Mapping[str, Any], command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a node of the training to its end; return the exit code."""
    output, child, node = Path(order["output"]), Child(), Node.of(environ)
    try:
        kept = in_bucket(order, output, node)
        claim(
            output,
            run=node.run,
            since=node.since,
            resume=bool(order.get("resume")),
            kept=kept,
            leads=node.leads,
        )
        fetch(order.get("fetch", {}))
        if kept is not None:
            kept.bring()
        found = beginning(output, lambda name, why: tell(note=f"{name} is skipped: {why}"))
        is_done = read_json(output / CLAIM).get("finished") == order["digest"]
        if node.nodes > 1 and "port" in order:
            found = met(order, node, child, DONE if is_done else progress_of(found)[0])
            is_done = found is None and is_done
    except Refused as refused:
        tell(refused=str(refused))
        return REFUSED
    except Interrupted:
        tell(interrupted=progress_of(last_checkpoint(output, lambda *_: None))[0])
        return INTERRUPTED
    if not is_done and (code := train(child, command, found, order, node, kept)):
        return code
    try:
        return finish(order, child, kept) if node.leads else 0
    except Refused as refused:
        tell(refused=str(refused))
        return REFUSED


class Interrupted(Exception):
    """A signal asked for the end before the trainer began."""


def met(order: Mapping[str, Any], node: Node, child: Child, step: int) -> Path | None:
    """Meet the other nodes; return the checkpoint that all of them go on from, None for none.

    Raises:
        Refused: they cannot meet, or do not see the same output.
        Interrupted: a signal came meanwhile.
    """
    meeting, output = beside("tuning_meeting"), Path(order["output"])
    way = {"is_told": child.is_told, "note": lambda text: tell(note=text)}
    try:
        if node.leads:
            meeting.lead(node.run, node.nodes, order["port"], step, **way)
        else:
            step = meeting.follow(node.run, node.rank, node.master, order["port"], sees=sees(output), **way)
    except meeting.Apart as apart:
        raise Refused(str(apart)) from None
    except meeting.Told:
        raise Interrupted from None
    return output / f"checkpoint-{step}" if step > 0 else None


SEEN_WITHIN_S = 30.0
"""How long a checkpoint may take to show on another machine: network folders keep what they listed."""


def sees(output: Path) -> Callable[[int], bool]:
    """Return what says whether the checkpoint of a step is whole here, at last."""

    def look(step: int) -> bool:
        until = time.monotonic() + SEEN_WITHIN_S
        while flaw(output / f"checkpoint-{step}") is not None:
            if time.monotonic() > until:
                return False
            time.sleep(1.0)
        return True

    return look


def in_bucket(order: Mapping[str, Any], output: Path, node: Node) -> Any:
    """Return what keeps the output in its bucket, None where it is in none.

    Raises:
        Refused: the bucket cannot be reached.
    """
    if not order.get("bucket"):
        return None
    bucket = beside("tuning_bucket")
    try:
        return bucket.Keeper(
            bucket.Bucket(order["bucket"]), output, flaw=flaw, tell=lambda text: tell(note=text),
            refused=Refused, rank=node.rank, nodes=node.nodes,
        )  # fmt: skip
    except bucket.Unreachable as error:
        raise Refused(str(error)) from None


def fetch(wanted: Mapping[str, str]) -> None:
    """Bring models and data out of buckets, to the paths that the trainer is told.

    Raises:
        Refused: one is not there, or may not be read.
    """
    for path, url in wanted.items():
        bucket = beside("tuning_bucket")
        tell(note=f"fetches {url}")
        try:
            bucket.Bucket(url).bring_all(Path(path))
        except bucket.Unreachable as error:
            raise Refused(str(error)) from None


def train(
    child: Child, command: Sequence[str], found: Path | None, order: Mapping[str, Any], node: Node, kept: Any
) -> int:
    """Train from a checkpoint on, or from the start; return 0 when it is done."""
    output, may_end_early = Path(order["output"]), bool(order.get("may_end_early"))
    step, _ = progress_of(found)
    if found is not None:
        tell(note=f"goes on at step {step} from {found.name}", resumed=step)
    watch = Watch(start=step, every=int(order.get("logging_steps", 1)))
    if kept is not None:
        kept.begin()
    code = child.run(resumed(command, found), lambda chunk: watch.take(chunk, say))
    watch.finish(say)
    unsent = kept.finish() if kept is not None else ""
    if unsent:
        tell(note=unsent)
    reached, wanted = progress_of(last_checkpoint(output, lambda *_: None))
    # where only the first node's checkpoints have a state, the others cannot tell how far it came
    short = node.leads and (not wanted or reached < wanted)
    # a trainer that others asked to stop saves and ends with 0 as well
    if (child.is_told() and (code or short)) or (code == 0 and short and not may_end_early):
        tell(interrupted=reached)
        return INTERRUPTED
    return code or (UNSENT if unsent else 0)


def finish(order: Mapping[str, Any], child: Child, kept: Any) -> int:
    """Merge where that is asked for, then describe what the run leaves; return the exit code."""
    output = Path(order["output"])
    if kept is not None:
        kept.bring_results()
    if order.get("merge") and (output / "adapter_config.json").exists():
        shutil.rmtree(output / "merged.new", ignore_errors=True)
        words = [sys.executable, order["merge"], str(output), str(output / "merged.new")]
        if code := child.run(words, say):
            return INTERRUPTED if child.is_told() else code
        shutil.rmtree(output / "merged", ignore_errors=True)
        (output / "merged.new").rename(output / "merged")
    last = last_checkpoint(output, lambda *_: None)
    left = artifacts(output, last)
    made_from = provenance(order)
    done = {**read_json(output / CLAIM), "finished": order["digest"], "artifacts": left, **made_from}
    if kept is not None and (unsent := kept.send_results({CLAIM: done})):
        tell(note=unsent)
        return UNSENT
    write_json(output / CLAIM, done)
    tell(artifacts=left, **made_from)
    return 0


def words(argv: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the order's file and the trainer's command.

    >>> words(["order.json", "--", "python3", "train.py"])[1]
    ['python3', 'train.py']
    """
    split = list(argv).index("--")
    return Path(argv[0]), list(argv[split + 1 :])


def lines(text: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield what an entry told, from the lines of its output.

    >>> list(lines(iter(["hello", 'modelyard: {"step": 1}'])))
    [{'step': 1}]
    """
    for line in text:
        if line.startswith(MARK + "{"):
            try:
                yield json.loads(line.removeprefix(MARK))
            except ValueError:
                continue  # cut off in the middle


if __name__ == "__main__":
    at, trainer = words(sys.argv[1:])
    sys.exit(keep(json.loads(at.read_text()), trainer, os.environ))
