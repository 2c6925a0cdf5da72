"""A machine made once, at clouds that know no key for it: looked for by tag before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backends.vm.port import KeySpent, Vm


def made_once(*, find: Callable[[], Sequence[Vm]], make: Callable[[], Vm], end: Callable[[Vm], None]) -> Vm:
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
