"""Tags as labels: small letters, digits, ``-`` and ``_``, which is all that some clouds take; pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from backends.vm.port import EXPIRES
from orchestrator.backend import LABEL


def labels_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags as labels, of which a value has 63 characters at most.

    Times become seconds, and a hash is two labels.

    >>> labels_of({LABEL + "run": "chat", EXPIRES: "2026-11-29T12:00:00+00:00"})
    {'modelyard-run': 'chat', 'modelyard-expires': '1795953600'}
    """
    found: dict[str, str] = {}
    for key, value in tags.items():
        name = "modelyard-" + key.removeprefix(LABEL)
        if key == EXPIRES and value:
            found[name] = str(int(datetime.fromisoformat(value).timestamp()))
        elif key == LABEL + "spec-hash":
            found[name], found[name + "-2"] = value[:32], value[32:]
        else:
            found[name] = value
    return found


def tags_of(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that labels hold.

    >>> tags_of(labels_of({EXPIRES: "2026-11-29T12:00:00+00:00", LABEL + "spec-hash": "ab" * 32})) == {
    ...     EXPIRES: "2026-11-29T12:00:00+00:00", LABEL + "spec-hash": "ab" * 32}
    True
    """
    found = {
        LABEL + key.removeprefix("modelyard-"): value
        for key, value in labels.items()
        if key.startswith("modelyard-")
    }
    second = found.pop(LABEL + "spec-hash-2", "")
    if LABEL + "spec-hash" in found:
        found[LABEL + "spec-hash"] += second
    if found.get(EXPIRES, "").isdigit():
        found[EXPIRES] = datetime.fromtimestamp(int(found[EXPIRES]), UTC).isoformat(timespec="seconds")
    return found
