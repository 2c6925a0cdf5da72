"""The values that a launch is given, read at the moment it starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.backend import Launch
from orchestrator.errors import NotFound, Rejected

if TYPE_CHECKING:  # it imports SQLAlchemy, which a plan on a fresh machine does without
    from orchestrator.store.records import Store
    from orchestrator.store.secrets import Secrets

_REFERENCE = re.compile(r"\$\{\{\s*secrets\.([A-Za-z0-9_./-]+)\s*\}\}")


def secrets_of(store: Store, backend: str, launch: Launch) -> dict[str, str]:
    """Return the values of a launch's secrets by variable.

    Raises:
        Rejected: one is not set, or the run is not on record.
    """
    wanted = [*launch.secrets, *([launch.registry_secret] if launch.registry_secret else [])]
    if not wanted:
        return {}
    try:
        kept = store.secrets.of(store.run(launch.run).project)
    except NotFound as error:
        raise Rejected(error.what, backend=backend) from error
    return {variable: _filled(kept, backend, launch.run, text) for variable, text in wanted}


def _filled(kept: Secrets, backend: str, run: str, text: str) -> str:
    """Return ``text`` with its references replaced: a run's own secret, else the shared one."""

    def value(found: re.Match[str]) -> str:
        for name in (f"{run}/{found[1]}", found[1]):
            try:
                return kept.get(name)
            except NotFound:
                continue
        fix = f"modelyard secret set {found[1]}"
        raise Rejected(f"secret {found[1]} is not set", backend=backend, fix=fix)

    return _REFERENCE.sub(value, text)


def with_variables(launch: Launch, env: Mapping[str, str]) -> Launch:
    """Return a launch with the variables of the place it goes to, below its own.

    >>> launch = Launch("a-0-0-0", "a", env=(("A", "1"),))
    >>> with_variables(launch, {"A": "2", "B": "${{ secrets.b }}"}).secrets
    (('B', '${{ secrets.b }}'),)
    """
    own = {name for name, _ in (*launch.env, *launch.secrets)}
    more = [(name, value) for name, value in env.items() if name not in own]
    plain = tuple(each for each in more if not _REFERENCE.search(each[1]))
    secret = tuple(each for each in more if _REFERENCE.search(each[1]))
    return replace(launch, env=(*plain, *launch.env), secrets=(*launch.secrets, *secret))
