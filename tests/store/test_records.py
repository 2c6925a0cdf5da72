from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from orchestrator.errors import NotFound, StateMoved
from orchestrator.reconcile.steps import Forget, ForgetJob, Turn
from orchestrator.reconcile.values import JobState, RunState, Wanted
from orchestrator.store import current_runs, open_store
from orchestrator.store.records import Store
from orchestrator.store.values import Volume
from tests.store.values import KEY, T0, a_job, a_run, an_event, made, recorded, turned


def test_what_is_committed_is_read_back_as_it_was(store: Store) -> None:
    run = a_run("chat")
    job = replace(
        a_job(run, state=JobState.READY),
        exit_code=0,
        started_at=T0,
        finished_at=T0 + timedelta(microseconds=1),
        ports={8000: ("127.0.0.1", 31000)},
        devices=("0", "GPU-1"),
        message="ünï\ncode",
    )

    store.commit([made(run), recorded(job, run)])

    assert store.run("chat") == replace(run, serial=1, created_at=T0, updated_at=T0)
    assert store.jobs(run.id) == store.jobs() == [job]
    assert store.jobs_of([run.id, "none"]) == {run.id: [job], "none": []}
    assert store.events() == [(1, an_event(run, "queued")), (2, an_event(run, "ready"))]


def test_a_store_that_is_opened_again_holds_the_same(url: str) -> None:
    with open_store(url) as store:
        deployment = store.deployment
        store.commit([made(a_run("chat"))])
        runs = store.runs()

    with open_store(url) as store:
        assert (store.deployment, store.runs()) == (deployment, runs)


def test_current_runs_are_those_of_the_store(store: Store, url: str) -> None:
    store.commit([made(a_run(name)) for name in ("b", "a", "ä", "a-1", "a0")])
    store.commit([turned(a_run("a"), RunState.READY)])

    assert current_runs(url) == store.runs()
    assert [run.name for run in store.runs()] == ["a", "a-1", "a0", "b", "ä"]


def test_every_turn_raises_the_serial_and_a_record_does_not(store: Store) -> None:
    run = a_run("chat")

    first = store.commit([made(run)])
    second = store.commit([turned(run, RunState.STARTING), turned(run, RunState.RUNNING)])
    third = store.commit([recorded(a_job(run), run)])

    assert (first, second, third) == ({run.id: 1}, {run.id: 3}, {})
    assert (store.run("chat").serial, store.run("chat").state) == (3, RunState.RUNNING)


def test_a_turn_keeps_when_the_run_was_made_and_says_when_it_changed(store: Store) -> None:
    run = a_run("chat")
    store.commit([made(run)])

    store.commit([turned(replace(run, since=T0 + timedelta(hours=1)), RunState.READY, seconds=7200)])

    read = store.run("chat")
    assert (read.created_at, read.updated_at) == (T0, T0 + timedelta(seconds=7200))
    assert read.since == T0 + timedelta(hours=1)


def test_a_run_that_moved_is_refused_and_nothing_is_written(store: Store) -> None:
    run = a_run("chat")
    store.commit([made(run)])
    store.commit([Turn(replace(run, wanted=Wanted.STOP), an_event(run, "stop"))])

    with pytest.raises(StateMoved):
        store.commit([recorded(a_job(run), run), turned(run, RunState.READY)], expected={run.id: 1})

    assert (store.run("chat").wanted, store.jobs(), len(store.events())) == (Wanted.STOP, [], 2)


def test_an_expected_serial_that_holds_is_accepted(store: Store) -> None:
    run = a_run("chat")
    store.commit([made(run)], expected={run.id: 0})

    store.commit([turned(run, RunState.READY)], expected={run.id: 1})

    assert store.run("chat").serial == 2


def test_two_runs_cannot_have_one_name(store: Store) -> None:
    store.commit([made(a_run("chat"))])

    with pytest.raises(StateMoved, match="another run called 'chat'"):
        store.commit([made(replace(a_run("chat"), id="other"))])

    assert [run.id for run in store.runs()] == ["id-chat"]


def test_a_forgotten_run_leaves_its_events_and_frees_its_name(store: Store) -> None:
    run = a_run("chat")
    store.commit([made(run), recorded(a_job(run), run)])

    store.commit([Forget(run, an_event(run, "deleted")), made(replace(run, id="second"))])

    assert ([r.id for r in store.runs()], store.jobs()) == (["second"], [])
    assert [event.after for _, event in store.events("chat")] == [
        "queued",
        "provisioning",
        "deleted",
        "queued",
    ]


def test_a_forgotten_job_leaves_the_others_and_its_events(store: Store) -> None:
    chat, embed = a_run("chat"), a_run("embed")
    jobs = [a_job(chat), a_job(chat, attempt=1), a_job(embed)]
    store.commit(
        [made(chat), made(embed), *(recorded(job, chat) for job in jobs[:2]), recorded(jobs[2], embed)]
    )

    store.commit([ForgetJob(jobs[0]), ForgetJob(jobs[0])])

    assert [job.name for job in store.jobs()] == ["chat-0-0-1", "embed-0-0-0"]
    assert len(store.events()) == 5


@pytest.mark.parametrize("late", ["turn", "record", "forget"])
def test_a_forgotten_run_does_not_come_back(store: Store, late: str) -> None:
    run = a_run("chat")
    store.commit([made(run)])
    read = store.run("chat")
    store.commit([Forget(read, an_event(run, "deleted"))])
    writes = {
        "turn": turned(read, RunState.READY),
        "record": recorded(a_job(read), read),
        "forget": Forget(read, an_event(read, "deleted")),
    }

    with pytest.raises(StateMoved):
        store.commit([writes[late]])

    assert (store.runs(), store.jobs(), len(store.events())) == ([], [], 2)


def test_a_job_is_one_row_however_often_it_is_recorded(store: Store) -> None:
    run, job = a_run("chat"), a_job(a_run("chat"))
    store.commit([made(run), recorded(job, run)])

    store.commit([recorded(replace(job, state=state), run) for state in (JobState.STARTING, JobState.READY)])

    assert [j.state for j in store.jobs(run.id)] == [JobState.READY]


def test_jobs_come_by_run_replica_and_attempt(store: Store) -> None:
    chat, embed = a_run("chat"), a_run("embed")
    places = [(embed, 0, 0), (chat, 10, 0), (chat, 2, 1), (chat, 2, 0)]

    store.commit(
        [made(chat), made(embed), *(recorded(a_job(r, replica=n, attempt=a), r) for r, n, a in places)]
    )

    assert [j.name for j in store.jobs()] == ["chat-2-0-0", "chat-2-0-1", "chat-10-0-0", "embed-0-0-0"]
    assert [j.name for j in store.jobs(embed.id)] == ["embed-0-0-0"]


def test_events_are_read_in_pieces_without_a_gap(store: Store) -> None:
    chat, embed = a_run("chat"), a_run("embed")
    store.commit([made(chat), made(embed), turned(chat, RunState.STARTING), turned(chat, RunState.READY)])

    first = store.events("chat", limit=2)
    rest = store.events("chat", after=first[-1][0])

    assert [event.after for _, event in first + rest] == ["queued", "starting", "ready"]
    assert (store.events("embed")[0][0], store.last_serial()) == (2, 4)


def test_an_unknown_run_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="no run 'chat'"):
        store.run("chat")


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    run = replace(a_run("chat"), since=datetime(2026, 1, 1))

    with pytest.raises(ValueError, match="without a zone"):
        store.commit([Turn(run, None)])

    assert store.runs() == []


def test_an_empty_commit_is_silent(store: Store) -> None:
    assert store.commit([]) == {}


def test_threads_that_commit_together_lose_nothing(store: Store) -> None:
    threads, each = 8, 20
    run = a_run("shared")
    store.commit([made(run)])

    def work(number: int) -> None:
        own = a_run(f"own-{number}")
        store.commit([made(own)])
        for _ in range(each):
            store.commit([turned(own, RunState.READY), recorded(a_job(own), own)])
            store.commit([turned(run, RunState.READY)])

    _together(work, threads)

    assert store.run("shared").serial == 1 + threads * each
    assert {store.run(f"own-{n}").serial for n in range(threads)} == {1 + each}
    serials = [serial for serial, _ in store.events(limit=10_000)]
    assert serials == list(range(1, 2 + threads * (1 + 3 * each)))


def test_of_threads_that_expect_one_serial_one_wins(store: Store) -> None:
    run = a_run("chat")
    store.commit([made(run)])
    moved: list[int] = []

    def work(number: int) -> None:
        try:
            store.commit([turned(run, RunState.READY)], expected={run.id: 1})
        except StateMoved:
            moved.append(number)

    _together(work, 8)

    assert (len(moved), store.run("chat").serial) == (7, 2)


def test_two_stores_of_one_database_see_each_other(url: str) -> None:
    with open_store(url) as one, open_store(url) as other:
        run = a_run("chat")
        one.commit([made(run)])
        with pytest.raises(StateMoved):
            other.commit([turned(run, RunState.READY)], expected={run.id: 7})
        other.commit([turned(run, RunState.READY)], expected={run.id: 1})

        assert one.runs() == other.runs()
        assert one.run("chat").state is RunState.READY


def test_volumes_are_kept_replaced_and_forgotten(store: Store) -> None:
    cache = Volume("cache", "docker", "{}", "5pec", T0)
    store.commit([], kept=[cache, replace(cache, spec='{"size":1}')])
    store.commit([], kept=[Volume("a", "docker", "{}", "5pec", T0)])

    store.forget_volume("a")
    store.forget_volume("a")

    assert store.volumes() == [replace(cache, spec='{"size":1}')]


def test_a_store_opens_from_many_threads_at_once(url: str) -> None:
    found: list[str] = []

    def work(number: int) -> None:
        with open_store(url, secret_key=KEY, busy_s=30) as store:
            found.append(store.deployment)

    _together(work, 8)

    assert (len(found), len(set(found))) == (8, 1)


def _together(work: Callable[[int], None], count: int) -> None:
    start, failed = threading.Barrier(count), list[BaseException]()

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
