from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import StateMoved
from orchestrator.reconcile.steps import Forget, ForgetJob, Write
from orchestrator.reconcile.values import Run, RunState
from orchestrator.store.settle import Batch, DropRun, PutRun, Settled, batch_of, settle
from tests.store.values import a_job, a_run, an_event, recorded, turned

Settle = Callable[..., Settled]


@dataclass
class Tables:
    """A database as plain dictionaries, and what became of each batch."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    answers: list[object] = field(default_factory=list)

    def take(self, group: Sequence[Batch], by: Settle) -> None:
        settled = by(
            group,
            serials={id: row["serial"] for id, row in self.runs.items()},
            names={row["name"]: id for id, row in self.runs.items()},
            last_event=len(self.events),
        )
        for id in settled.dropped:
            self.runs.pop(id, None)
            self.jobs = {key: row for key, row in self.jobs.items() if key[0] != id}
        self.runs.update(settled.runs)
        for run_id, rows in settled.jobs.items():
            assert run_id in self.runs, "a job without its run breaks the foreign key"
            self.jobs.update({(run_id, name): dict(row) for name, row in rows.items()})
        for run_id, names in settled.forgotten.items():
            for name in names:
                self.jobs.pop((run_id, name), None)
        self.events += settled.events
        for place in range(len(group)):
            moved = settled.refused.get(place)
            self.answers.append(moved.what if moved else settled.serials[place])


# Two names, two lives of each: few enough that batches meet.
_RUNS = [replace(a_run(name), id=f"{name}-{life}") for name in ("chat", "embed") for life in (1, 2)]


def _turn(run: Run, state: RunState, was: int) -> Write:
    return turned(replace(run, serial=was), state)


_write: st.SearchStrategy[Write] = st.one_of(
    st.builds(
        _turn, st.sampled_from(_RUNS), st.sampled_from([RunState.RUNNING, RunState.READY]), st.integers(0, 1)
    ),
    st.builds(
        lambda run, attempt: recorded(a_job(run, attempt=attempt), run),
        st.sampled_from(_RUNS),
        st.integers(0, 1),
    ),
    st.builds(
        lambda run, attempt: ForgetJob(a_job(run, attempt=attempt)),
        st.sampled_from(_RUNS),
        st.integers(0, 1),
    ),
    st.builds(lambda run: Forget(run, an_event(run, "deleted")), st.sampled_from(_RUNS)),
)
_expected = st.dictionaries(st.sampled_from([run.id for run in _RUNS]), st.integers(0, 3), max_size=1)
batches = st.lists(st.builds(batch_of, st.lists(_write, max_size=4), _expected), max_size=8)


def check_a_group_does_what_its_batches_do_one_by_one(settle: Settle, group: Sequence[Batch]) -> None:
    together, apart = Tables(), Tables()
    together.take(group, settle)
    for batch in group:
        apart.take([batch], settle)

    assert together == apart


def check_a_refused_batch_leaves_nothing(settle: Settle, group: Sequence[Batch]) -> None:
    tables = Tables()
    tables.take(group, settle)
    accepted = [
        batch for batch, answer in zip(group, tables.answers, strict=True) if not isinstance(answer, str)
    ]
    without = Tables()
    without.take(accepted, settle)

    assert (tables.runs, tables.jobs, tables.events) == (without.runs, without.jobs, without.events)


def check_a_serial_counts_the_turns_of_a_life(settle: Settle, group: Sequence[Batch]) -> None:
    tables = Tables()
    tables.take(group, settle)
    turns: dict[str, int] = {}
    for batch, answer in zip(group, tables.answers, strict=True):
        for put in () if isinstance(answer, str) else batch.puts:
            if isinstance(put, PutRun):
                turns[put.id] = turns.get(put.id, 0) + 1
            elif isinstance(put, DropRun):
                del turns[put.id]

    assert {id: row["serial"] for id, row in tables.runs.items()} == turns


@settings(max_examples=300)
@given(batches)
def test_a_serial_counts_the_turns_of_a_life(group: Sequence[Batch]) -> None:
    check_a_serial_counts_the_turns_of_a_life(settle, group)


@settings(max_examples=300)
@given(batches)
def test_a_group_does_what_its_batches_do_one_by_one(group: Sequence[Batch]) -> None:
    check_a_group_does_what_its_batches_do_one_by_one(settle, group)


@settings(max_examples=300)
@given(batches)
def test_a_refused_batch_leaves_nothing(group: Sequence[Batch]) -> None:
    check_a_refused_batch_leaves_nothing(settle, group)


def test_a_batch_that_fails_halfway_does_not_count_for_the_next() -> None:
    run = a_run("chat")
    lost = recorded(a_job(a_run("gone")), run)
    group = [batch_of([turned(run, RunState.READY), lost], {}), batch_of([], {run.id: 0})]

    settled = settle(group, serials={}, names={}, last_event=0)

    assert isinstance(settled.refused[0], StateMoved)
    assert (list(settled.refused), settled.runs, settled.events) == ([0], {}, [])
