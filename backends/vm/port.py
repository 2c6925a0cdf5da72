"""The port of a cloud: what a provider's file implements, and the values that cross it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

from orchestrator.backend import LABEL, Check, Offer, Rent
from orchestrator.frozen import frozen

DEPLOYMENT = LABEL + "deployment"
NAMESPACE = LABEL + "namespace"
LAUNCH = LABEL + "launch"
KEY = LABEL + "key"
EXPIRES = LABEL + "expires"
DISK = LABEL + "disk"
"""Tag of a machine whose disk's size was chosen: how large it is, in bytes."""
GANG = LABEL + "gang"
"""Tag on the machines of several nodes, and on what is made for them: what they are close together as."""
TAGS = LABEL + "tags"
"""Tag of a machine that bears tags of the user's own: a digest of them, which clouds may spell otherwise."""


SYSTEM_BYTES = 100 * 10**9
"""What images with a driver, CUDA and Docker take of a disk, at most: EC2's console recommends as much for
AWS's own (aws/deep-learning-containers PR 2425, November 2022)."""


class KeySpent(Exception):
    """The machine that was created under a key has ended: another one needs another key."""


@frozen
class Order:
    """A machine to be created.

    ``key`` makes it once: ordered twice under one key, it is there once. ``user_data`` is what
    cloud-init is given; it holds no secret. ``public_key`` is in it too, for clouds that want to
    know it. Machines of one ``gang`` are to be close together, and to reach each other on every port.
    """

    key: str
    rent: Rent
    tags: Mapping[str, str]
    user_data: str
    public_key: str = ""
    gang: str = ""


@frozen
class Vm:
    """A machine as its provider sees it.

    ``address`` is where we reach it, ``internal_ip`` its address among the others; both may be
    missing while it is pending. ``preempted`` says that its provider took it away, ``lingers`` that
    it has ended and is still held, and paid for, until it is terminated.
    """

    id: str
    state: Literal["pending", "running", "ending", "ended"]
    instance_type: str
    region: str
    zone: str = ""
    spot: bool = False
    address: str | None = None
    internal_ip: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    preempted: bool = False
    lingers: bool = False

    @property
    def is_alive(self) -> bool:
        """Say whether it is there, or about to be."""
        return self.state in ("pending", "running")


@frozen
class Belonging:
    """What was made for machines beside themselves, such as a placement group or an address.

    ``key`` is that of the machine whose it is, "" where it is a gang's.
    """

    id: str
    kind: str
    region: str
    gang: str
    run: str = ""
    key: str = ""


@runtime_checkable
class Furnishing(Protocol):
    """A provider that makes more for machines than goes with them."""

    def belongings(self, tags: Mapping[str, str]) -> Sequence[Belonging]:
        """Return what was made besides machines and carries these tags, in every region."""

    def discard(self, belonging: Belonging) -> bool:
        """Remove it; False while a machine holds it; gone is no error."""


class Provider(Protocol):
    """A cloud that rents machines; every call may raise what ``Backend``'s may, and is one attempt.

    A machine that powers itself off ends as if it was terminated, with its disks; where a cloud
    cannot do that it ``lingers``, and whoever looks next terminates it.
    """

    def offers(self) -> Sequence[Offer]:
        """Return every kind of machine in every zone, with its price or ``price_list``."""

    def create(self, order: Order) -> Vm:
        """Create a machine, or return the one that was created under the same key.

        Raises:
            KeySpent: that one has ended.
            NoCapacity: there is none of this kind there now.
            Quota: a limit of the account.
        """

    def get(self, vm: Vm) -> Vm | None:
        """Return a machine as it is now; None for one that nobody knows any more."""

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return all machines with these tags, in every region, ended ones as long as they are known."""

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        """Set tags of a machine."""

    def terminate(self, vm: Vm) -> None:
        """End a machine with its disks and addresses; gone is no error."""

    def check(self) -> Sequence[Check]:
        """Look whether credentials, regions and images are well; never raises."""
