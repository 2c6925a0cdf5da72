"""Hosts on which nothing may start now, and accelerators that are handed to nobody: told, with the fix."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.ssh import Ssh
from orchestrator.backend import Instance, Launch, Resources
from orchestrator.errors import ConfigError, NoCapacity, Unreachable
from tests.backends.ssh.books import BLOCKS, CPUS, GPUS, Books, fleet

pytestmark = pytest.mark.usefixtures("folders")


def start(backend: Ssh, number: int = 0, **resources: object) -> Instance:
    """Start a launch."""
    launch = Launch(f"job-{number}-0-0", "job", image="x", replica=number, resources=Resources(**resources))  # type: ignore[arg-type]  # fields of it
    return backend.start(launch, secrets={}, progress=lambda _: None)


def test_ill_accelerator_is_handed_to_nobody_and_the_offer_says_why() -> None:
    backend = fleet([Books()])
    host = backend._hosts["host-0"]
    assert host._survey is not None
    host._survey = replace(host._survey, ill=(("gpu-0-0", "XID 79 in the kernel's log"),))

    whole, ill = backend.offers()
    assert (whole.count, whole.unfit) == (GPUS - 1, "")
    assert (ill.count, ill.unfit) == (1, "gpu-0-0: XID 79 in the kernel's log")
    held = {
        device
        for n in range(GPUS - 1)
        for device in start(backend, n, cpu=1.0, accelerators=1, accelerator="Test One").devices
    }
    assert held == {f"gpu-0-{n}" for n in range(1, GPUS)}
    with pytest.raises(NoCapacity):
        start(backend, 9, accelerators=1, accelerator="Test One")
    (told,) = backend.hosts()
    assert (told.state, told.why) == ("ready", "gpu-0-0: XID 79 in the kernel's log")
    assert [device.key for device in told.devices if device.ill] == ["gpu-0-0"]
    assert sum(device.held for device in told.devices) == GPUS - 1


def test_host_whose_disk_is_full_takes_no_launch_and_says_so() -> None:
    backend = fleet([Books()])
    host = backend._hosts["host-0"]
    assert host._survey is not None
    host._survey = replace(host._survey, machine=replace(host._survey.machine, disk_bytes=100 * 2**20))
    with pytest.raises(NoCapacity) as refused:
        start(backend)
    assert refused.value.what == "host 'host-0' takes no launches: its disk is full: 100 MiB free"
    assert refused.value.fix == "make room there: docker system prune"
    assert {offer.unfit for offer in backend.offers()} == {"its disk is full: 100 MiB free"}
    assert backend.hosts()[0].state == "unwell"


def test_launches_go_round_a_host_that_is_held_back() -> None:
    held = {"host-0": {"reason": "a loud fan", "leave": ""}}
    backend = fleet([Books(), Books()], held=held)
    assert {start(backend, n, cpu=1.0).machine for n in range(4)} == {"host-1"}
    with pytest.raises(NoCapacity) as refused:
        start(fleet([Books()], held=held))
    assert refused.value.what == "host 'host-0' takes no launches: cordoned: a loud fan"
    assert refused.value.fix == "modelyard fleet uncordon rack host-0"


def test_what_is_on_a_host_that_is_emptied_is_told_to_leave() -> None:
    books = [Books()]
    start(fleet(books), cpu=1.0)
    emptied = fleet(books, held={"host-0": {"reason": "", "leave": "evict"}})
    assert [one.leave for one in emptied.instances()] == ["evict"]
    assert emptied.hosts()[0].state == "draining"


def test_blocks_of_a_host_are_told_and_taken_whole() -> None:
    backend = fleet([Books()])
    start(backend, cpu=CPUS / BLOCKS * 2.5)
    (host,) = backend.hosts()
    assert (host.blocks, host.blocks_held) == (BLOCKS, 3)


def test_host_that_answered_once_keeps_no_fleet_from_being_used_when_it_falls_silent() -> None:
    books = [Books(), Books()]
    backend = fleet(books)
    backend.hosts()
    other = fleet(books)  # another command, later
    other._hosts["host-0"]._engine.get = _dead  # type: ignore[method-assign]  # its machine is off
    assert [host.state for host in other.hosts()] == ["silent", "ready"]
    assert "never answered" not in other.hosts()[0].why
    assert start(other, cpu=1.0).machine == "host-1"


def _dead(path: str, **_: object) -> None:
    raise Unreachable(f"no answer to {path}", backend="rack")


def test_wrong_hold_is_named() -> None:
    with pytest.raises(ConfigError, match=r"held\.host-0\.leave: expected drain or evict, got 'burn'"):
        fleet([Books()], held={"host-0": {"leave": "burn"}})
