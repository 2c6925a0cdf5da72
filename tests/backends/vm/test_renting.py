"""Renting ends: a cloud whose machines all end at once is not asked for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import cast

import pytest

from backends.vm import RentedMachines
from backends.vm.fleet import KEYS
from backends.vm.port import KeySpent, Order, Provider, Vm
from orchestrator.backend import Launch, Rent
from orchestrator.errors import NoCapacity
from tests.backends.vm.machines import loopback

LAUNCH = Launch("chat-0-0-1", "chat", image="x", rent=Rent("g6.xlarge", "us-east-1"))


class Doomed:
    """A cloud whose machines end as soon as they are made."""

    def __init__(self, *, remembers: bool) -> None:
        self.remembers = remembers
        self.keys: list[str] = []

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return none: what has ended is gone."""
        del tags
        return ()

    def create(self, order: Order) -> Vm:
        """Make one that has ended, or say that it has."""
        self.keys.append(order.key)
        if len(self.keys) > 20:
            raise AssertionError("it is asked for ever")
        if self.remembers:
            raise KeySpent
        return Vm("i-1", "ended", order.rent.instance_type, "us-east-1", tags=order.tags)


@pytest.mark.parametrize("remembers", [True, False], ids=["key is spent", "machine has ended"])
def test_a_cloud_whose_machines_all_end_is_asked_a_few_times(remembers: bool) -> None:
    cloud = Doomed(remembers=remembers)
    backend = RentedMachines(
        "cloud", cast(Provider, cloud), user="ubuntu", port=22, identity_file=None, deployment="d",
        namespace="n", abandoned_after="1h", boot_timeout="1m", timeout_s=1.0,
    )  # fmt: skip
    with pytest.raises(NoCapacity, match="ended before it ran") as refused:
        backend.start(LAUNCH, secrets={}, progress=print)
    assert len(set(cloud.keys)) == len(cloud.keys) == KEYS
    assert refused.value.fix


def test_machines_of_tests_are_reached_however_many_there_were() -> None:
    made = {loopback(number) for number in range(1, 1001)}
    assert len(made) == 1000
    assert all(ip_address(one).is_loopback for one in made)
