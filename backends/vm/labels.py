"""Tags as labels: small letters, digits, ``-`` and ``_``, which is all that some clouds take; pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from backends.vm.port import EXPIRES
from orchestrator.backend import LABEL

_OWNED = ("modelyard", "goog")
"""How no name of the user's own may begin: what is Modelyard's, and Google's
(cloud.google.com/compute/docs/labeling-resources)."""


def plain_name(key: str, most: int = 63) -> str:
    """Return the name of a tag of the user's own in small letters, digits and dashes, at most ``most``.

    >>> plain_name("example.com/Cost_Centre"), plain_name("1st"), len(plain_name("a" * 90, 55))
    ('example-com-cost-centre', 'x-1st', 55)
    """
    name = re.sub(r"[^a-z0-9]", "-", key.lower())
    name = name if name[0].isalpha() and not name.startswith(_OWNED) else f"x-{name}"
    return name if len(name) <= most else f"{name[: most - 7]}-{hashlib.sha256(key.encode()).hexdigest()[:6]}"


def labels_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags as labels, of which a value has 63 characters at most.

    Times become seconds, a hash is two labels, and of what is the user's own only its characters change.

    >>> labels_of({LABEL + "run": "chat", EXPIRES: "2026-11-29T12:00:00+00:00", "ex.org/team": "A.b"})
    {'modelyard-run': 'chat', 'modelyard-expires': '1795953600', 'ex-org-team': 'a-b'}
    """
    found: dict[str, str] = {}
    for key, value in tags.items():
        name = "modelyard-" + key.removeprefix(LABEL)
        if not key.startswith(LABEL):
            found[plain_name(key)] = re.sub(r"[^a-z0-9_-]", "-", value.lower())
        elif key == EXPIRES and value:
            found[name] = str(int(datetime.fromisoformat(value).timestamp()))
        elif key == LABEL + "spec-hash":
            found[name], found[name + "-2"] = value[:32], value[32:]
        else:
            found[name] = value
    return found


def tags_of(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of ours that labels hold.

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
