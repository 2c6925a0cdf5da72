from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from orchestrator.errors import ModelyardError, StateMoved, StoreBusy, StoreError
from orchestrator.store.group import Group, _wait


def _submit_all(group: Group[int, int], asks: Sequence[int]) -> dict[int, int | ModelyardError]:
    """Submit each ask from a thread of its own."""
    answers: dict[int, int | ModelyardError] = {}

    def submit(ask: int) -> None:
        try:
            answers[ask] = group.submit(ask)
        except ModelyardError as error:
            answers[ask] = error

    threads = [threading.Thread(target=submit, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _after(count: int, write: Callable[[Sequence[int]], Sequence[int | ModelyardError]]) -> Group[int, int]:
    """A group whose first write waits until ``count`` others stand in line, so that they share the next."""
    group: Group[int, int]
    first = threading.Lock()

    def held(asks: Sequence[int]) -> Sequence[int | ModelyardError]:
        if first.acquire(blocking=False):
            while len(group._waiting) < count:
                os.sched_yield()
        return write(asks)

    group = Group(held)
    return group


def test_everyone_gets_the_answer_to_their_own() -> None:
    group = Group[int, int](lambda asks: [ask * 10 for ask in asks])

    assert _submit_all(group, range(50)) == {ask: ask * 10 for ask in range(50)}


def test_those_who_wait_share_one_write() -> None:
    sizes: list[int] = []

    def write(asks: Sequence[int]) -> Sequence[int]:
        sizes.append(len(asks))
        return asks

    _submit_all(_after(9, write), range(10))

    assert sizes == [1, 9]


def test_never_two_write_at_once() -> None:
    spans: list[tuple[int, int]] = []
    ticks = iter(range(1_000_000))

    def write(asks: Sequence[int]) -> Sequence[int]:
        begun = next(ticks)
        os.sched_yield()
        spans.append((begun, next(ticks)))
        return asks

    _submit_all(Group(write), range(50))

    assert all(ended < begun for (_, ended), (begun, _) in pairwise(sorted(spans)))


def test_one_that_is_refused_is_refused_alone() -> None:
    refused = StateMoved("run 3 changed")

    answers = _submit_all(_after(4, lambda asks: [refused if ask == 3 else ask for ask in asks]), range(5))

    assert answers == {0: 0, 1: 1, 2: 2, 3: refused, 4: 4}


def test_one_that_cannot_be_written_does_not_cost_the_others_theirs() -> None:
    broken = StoreError("cannot hold a value")

    def write(asks: Sequence[int]) -> Sequence[int]:
        if 3 in asks:
            raise broken
        return asks

    assert _submit_all(_after(4, write), range(5)) == {0: 0, 1: 1, 2: 2, 3: broken, 4: 4}


def test_a_busy_store_is_asked_once_for_all() -> None:
    asked: list[Sequence[int]] = []

    def write(asks: Sequence[int]) -> Sequence[int]:
        asked.append(asks)
        raise StoreBusy("held")

    answers = _submit_all(_after(4, write), range(5))

    assert (len(asked), {type(answer) for answer in answers.values()}) == (2, {StoreBusy})


def test_an_interrupt_in_a_write_reaches_its_thread_and_frees_the_rest() -> None:
    def write(asks: Sequence[int]) -> Sequence[int]:
        if asks[0] == 1:
            raise KeyboardInterrupt
        return asks

    group = Group(write)

    with pytest.raises(KeyboardInterrupt):
        group.submit(1)

    assert group.submit(2) == 2


def test_an_interrupt_while_waiting_is_kept_until_the_turn_comes() -> None:
    class Turn:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1
            if self.asked == 1:
                raise KeyboardInterrupt

    turn = Turn()

    kept = _wait(turn)  # type: ignore[arg-type]  # a lock whose wait is interrupted once

    assert isinstance(kept, KeyboardInterrupt)
    assert turn.asked == 2
