"""A machine made once, at clouds that know no key for it: looked for by tag before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from backends.vm.port import KeySpent


class Made(Protocol):
    """A machine, or what is rented like one."""

    @property
    def id(self) -> str:
        """Return what its cloud calls it."""

    @property
    def is_alive(self) -> bool:
        """Say whether it is there, or about to be."""


One = TypeVar("One", bound=Made)


def made_once(
    *, find: Callable[[], Sequence[One]], make: Callable[[], One], end: Callable[[One], None]
) -> One:
    """Return the machine of a key, made unless it is there.

    Two that ask at the same moment may both find none. Each looks again after it has made one, and
    of all that are there the first by id stays: whoever looks last ends the others, and whoever was
    killed before is followed by one that looks.

    Args:
        find: Returns every machine that carries the key, also those that have ended.
        make: Makes one; what it returns counts where the cloud does not list it yet.
        end: Ends one.

    Raises:
        KeySpent: the one that was made has ended.
    """
    found = find()
    if not any(vm.is_alive for vm in found):
        if found:
            raise KeySpent
        made = make()
        found = [*{vm.id: vm for vm in (made, *find())}.values()]
        if not any(vm.is_alive for vm in found):
            raise KeySpent
    first, *others = sorted((vm for vm in found if vm.is_alive), key=lambda vm: vm.id)
    for vm in others:
        end(vm)
    return first
