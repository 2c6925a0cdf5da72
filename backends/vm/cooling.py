"""Kinds of machine that were sold out a moment ago: not asked for again before they had time to come back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from backends.vm.port import Belonging, Furnishing, Order, Provider, Vm
from orchestrator.backend import Check, Offer, Rent
from orchestrator.errors import NoCapacity

COOL_DOWN_S = 120
"""Capacity comes back in minutes: AWS advises to wait a few before asking again for the same kind and
zone (docs.aws.amazon.com/AWSEC2/latest/UserGuide/troubleshooting-launch.html)."""


class Cooling:
    """When each kind may be asked for again, shared by the commands of one user.

    Args:
        path: The file it is kept in.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def left_s(self, kind: str) -> float:
        """Return the seconds until ``kind`` may be asked for again, 0 when it may."""
        return max(0.0, self._read().get(kind, 0.0) - time.time())

    def sold_out(self, kind: str) -> None:
        """Remember that ``kind`` was not to be had just now."""
        now = time.time()
        kinds = {each: until for each, until in self._read().items() if until > now}
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_suffix(f".{time.time_ns()}")
        draft.write_text(json.dumps(kinds | {kind: now + COOL_DOWN_S}))
        draft.replace(self._path)

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return {str(kind): float(until) for kind, until in found.items()}


class Cooled:
    """A provider that leaves kinds alone for a while which it did not have.

    Args:
        inner: The provider.
        backend: The backend's name, for errors.
        path: Where what was sold out is kept.
    """

    def __init__(self, inner: Provider, *, backend: str, path: Path) -> None:
        self.inner = inner
        self._backend = backend
        self._cooling = Cooling(path)

    def offers(self) -> Sequence[Offer]:
        """Return the provider's offers; of a kind that cools down there are none."""
        found = []
        for offer in self.inner.offers():
            kind = _kind(offer)
            found.append(replace(offer, available=0) if self._cooling.left_s(kind) else offer)
        return found

    def create(self, order: Order) -> Vm:
        """Create a machine as the provider does, unless its kind was sold out a moment ago."""
        rent = order.rent
        kind = _kind(rent)
        if left_s := self._cooling.left_s(kind):
            raise NoCapacity(
                f"{where_of(rent)}: was sold out, is asked for in {left_s:.0f} s", backend=self._backend
            )
        try:
            return self.inner.create(order)
        except NoCapacity:
            self._cooling.sold_out(kind)
            raise

    def get(self, vm: Vm) -> Vm | None:
        """Return a machine as it is now."""
        return self.inner.get(vm)

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return all machines with these tags."""
        return self.inner.list(tags)

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        """Set tags of a machine."""
        self.inner.tag(vm, tags)

    def terminate(self, vm: Vm) -> None:
        """End a machine."""
        self.inner.terminate(vm)

    def belongings(self, tags: Mapping[str, str]) -> Sequence[Belonging]:
        """Return what the provider made besides machines; none where it makes nothing."""
        return self.inner.belongings(tags) if isinstance(self.inner, Furnishing) else ()

    def discard(self, belonging: Belonging) -> bool:
        """Remove what the provider made; False while a machine holds it."""
        return self.inner.discard(belonging) if isinstance(self.inner, Furnishing) else True

    def check(self) -> Sequence[Check]:
        """Look at the provider."""
        return self.inner.check()


def where_of(rent: Rent) -> str:
    """Return the kind of machine and its place, for errors."""
    return f"{rent.instance_type} in {rent.zone or rent.region}"


def _kind(of: Offer | Rent) -> str:
    words = [of.instance_type, of.zone or of.region, "spot" if of.spot else "", of.reservation or ""]
    return " ".join(filter(None, words))
