"""What training tells while it runs and leaves when it is done, read from its output."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.backend import Backend
from orchestrator.engines.tuning_entry import lines
from orchestrator.errors import BackendError, NotFound
from orchestrator.reconcile import Job, Run, RunEvent
from orchestrator.reconcile.steps import Told
from orchestrator.store.values import Artifact
from orchestrator.units import format_duration

if TYPE_CHECKING:  # it imports SQLAlchemy
    from orchestrator.store.records import Store

EVENT_EVERY_S = 60.0
"""How often progress becomes an event; whoever watches sees every step that is told."""
LAST_LINES = 200
"""How far from its end the output of a run is searched for what it left."""


def phrase(fact: Mapping[str, Any]) -> str:
    """Return a line of ``tuning_entry`` in words, "" for one that is not for people.

    >>> phrase({"step": 12, "steps": 100, "loss": 2.31, "tokens_s": 1234.5, "left_s": 60})
    'step 12/100 · loss 2.31 · 1,234 tokens/s · 1m left'
    """
    if "step" in fact:
        of = f"/{fact['steps']}" if "steps" in fact else ""
        parts = [f"step {fact['step']}{of} · loss {fact['loss']:.4g}"]
        parts += [f"lr {fact['learning_rate']:.3g}"] if "learning_rate" in fact else []
        parts += [f"{fact['tokens_s']:,.0f} tokens/s"] if "tokens_s" in fact else []
        parts += [f"{format_duration(fact['left_s'])} left"] if "left_s" in fact else []
        return " · ".join(parts)
    if "interrupted" in fact:
        return f"interrupted at step {fact['interrupted']}"
    if "artifacts" in fact:
        return "left " + ", ".join(f"{a['kind']} ({a['sha256'][:12]})" for a in fact["artifacts"])
    return str(fact.get("note") or fact.get("refused") or "")


class Follower:
    """Follows the output of training, each launch in a thread of its own.

    Args:
        backends: Every configured place by name.
        clock: The time, in UTC.
        write: Writes an event down.
        show: Told of every line in words, by launch.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        clock: Callable[[], datetime],
        write: Callable[[Told], None],
        show: Callable[[str, str], None],
    ) -> None:
        self._backends = backends
        self._clock = clock
        self._write = write
        self._show = show
        self._followed: set[str] = set()

    def follow(self, run: Run, job: Job, *, since: datetime | None) -> None:
        """Follow one launch to its end; asked twice, it is followed once."""
        if job.name not in self._followed:
            self._followed.add(job.name)
            threading.Thread(
                target=self._read, args=(run, job, since), daemon=True, name=f"training-{job.name}"
            ).start()

    def _read(self, run: Run, job: Job, since: datetime | None) -> None:
        last = float("-inf")
        try:
            output = self._backends[job.backend].logs(job.name, follow=True, since=since)
            for fact in lines(line.text for line in output):
                text = phrase(fact)
                self._show(job.name, text)
                is_step = "step" in fact
                if is_step and time.monotonic() - last < EVENT_EVERY_S:
                    continue
                last = time.monotonic() if is_step else last
                self._write(Told(told(run, job, text, self._clock())))
        except (NotFound, BackendError):
            return  # removed or out of reach: the events say why


def told(run: Run, job: Job, text: str, at: datetime) -> RunEvent:
    """Return the event of what a launch told."""
    state = job.state.value
    return RunEvent(run.id, run.name, at, job.name, state, state, text, action=f"{job.name}:told")


def keep_artifacts(store: Store, backend: Backend, run: Run, job: Job, *, now: datetime) -> None:
    """Write down what a finished launch said it left; nothing where its output cannot be had."""
    try:
        output = [line.text for line in backend.logs(job.name, tail=LAST_LINES)]
        images = [each.image for each in backend.instances() if each.name == job.name]
    except (NotFound, BackendError):
        return  # asked again whenever somebody wants to know
    found = list(left_by(run, job, output, image=next(iter(images), ""), at=now))
    if found:
        store.put_artifacts(run.id, found)


def pinned(image: str | None, digest: str) -> str:
    """Return an image's name with the digest of what was run, where that is known.

    >>> pinned("registry/trl:1", "sha256:0a"), pinned("trl@sha256:1b", "sha256:0a"), pinned(None, "")
    ('registry/trl:1@sha256:0a', 'trl@sha256:1b', '')
    """
    return f"{image}@{digest}" if image and digest and "@" not in image else image or ""


def left_by(
    run: Run, job: Job, output: Iterable[str], *, image: str = "", at: datetime
) -> Iterator[Artifact]:
    """Yield what a finished launch said it left.

    Args:
        run: The run.
        job: The launch of its first node.
        output: The lines of its output, or the last of them.
        image: The digest of the image it ran, "" where nobody knows.
        at: When this is written down.
    """
    found = [fact for fact in lines(iter(output)) if "artifacts" in fact]
    location = output_of(json.loads(run.spec), run.name)
    for fact in found[-1:]:
        base, data = fact["base"], fact["dataset"]
        for each in fact["artifacts"]:
            yield Artifact(
                run_id=run.id,
                kind=each["kind"],
                path=each["path"],
                size_bytes=each["bytes"],
                sha256=each["sha256"],
                location=location,
                base_id=base["id"],
                base_revision=base.get("revision") or "",
                dataset=data["id"],
                dataset_revision=data.get("revision") or "",
                image=pinned(run.template.launch.image, image),
                spec_hash=job.spec_hash,
                launch=job.name,
                metrics=tuple(sorted((k, float(v)) for k, v in each.get("metrics", {}).items())),
                recorded_at=at,
            )


def output_of(spec: Mapping[str, Any], run: str) -> str:
    """Return where a training spec writes: what it says, else a volume of the run's own.

    >>> output_of({"train": {"output": "/runs/a"}}, "a"), output_of({"train": {}}, "a")
    ('/runs/a', 'a-output')
    """
    return str(spec["train"].get("output") or f"{run}-output")
