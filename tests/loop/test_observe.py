"""What is known of places, of which each may fail in its own way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends.kubernetes import Kubernetes
from backends.sim import Sim
from orchestrator.errors import BackendError
from orchestrator.loop.observe import RESYNC_S, Observer


class Site:
    """A place that answers, and one whose kubeconfig is gone."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.woken = threading.Semaphore(0)
        self.told: dict[str, BackendError] = {}
        lab = Kubernetes("lab", kubeconfig=str(folder / "gone"))
        self.observer = Observer(
            {"lab": lab, "sim": Sim(state=str(folder / "sim"))},
            pool, time.monotonic, self.woken.release, self.told.__setitem__,
        )  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ThreadPoolExecutor(2) as pool:
        made = Site(tmp_path, pool)
        yield made
        made.observer.close()


def test_a_place_without_its_configuration_is_unknown_and_the_others_are_read(site: Site) -> None:
    """It ended the whole pass: runs of every other place were left to themselves."""
    site.observer.read(["lab", "sim"])
    assert site.observer.of_run("chat", ["lab", "sim"]) == {"lab": None, "sim": ()}
    assert "no kubeconfig at" in site.told["lab"].what
    assert site.told.keys() == {"lab"}


def test_a_place_without_its_configuration_is_listened_to_again(site: Site) -> None:
    site.observer.watch(["lab"])
    for _ in range(2):
        assert site.woken.acquire(timeout=30)


def test_a_place_where_nothing_runs_any_more_is_not_due_for_ever(site: Site) -> None:
    """An idle server made 70 passes a second, a fifth of a core, from the end of its last run on."""
    site.observer.read(["sim"])
    site.observer.changed("sim")
    assert site.observer.next_read_s() == 0.0

    site.observer.read([])

    assert site.observer.next_read_s() == RESYNC_S
