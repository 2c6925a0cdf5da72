"""Values of the record that no other room has; light, for those who only pass them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from datetime import datetime

from orchestrator.backend import Leave
from orchestrator.frozen import frozen

MAIN = "main"
"""The project of whoever has named none."""


@frozen
class Volume:
    """A volume that a spec asked for: its name, where it is kept, and the spec as canonical JSON."""

    name: str
    backend: str
    spec: str
    spec_hash: str
    created_at: datetime
    set_name: str = ""
    """The set it was applied under, "" where none was named."""
    project: str = MAIN


@frozen
class Fleet:
    """A fleet that a spec asked for: its name, and the spec as canonical JSON."""

    name: str
    spec: str
    spec_hash: str
    created_at: datetime
    set_name: str = ""
    project: str = MAIN


@frozen
class Cordon:
    """A host of a place on which nothing new starts, since when and why; ``leave`` empties it, too."""

    place: str
    host: str
    since: datetime
    reason: str = ""
    leave: Leave = ""


@frozen
class Uncordoned:
    """A host of a place on which launches start again."""

    place: str
    host: str


def of_hosts(fleet: str) -> str:
    """Return what goes with a fleet of one's own hosts, which no run of its name is.

    >>> of_hosts("rack")
    'fleet:rack'
    """
    return f"fleet:{fleet}"


@frozen
class SecretName:
    """A secret without its value; ``given_to`` as in :class:`Sealed`."""

    name: str
    set_at: datetime
    given_to: str = ""


@frozen
class Sealed:
    """A secret that is to be kept: encrypted under the write lock, with its name sealed in.

    Sealed any sooner, it could be written behind a rotation of the keys, with a key that is gone.
    ``given_to`` is the run, or the fleet as ``of_hosts`` has it, whose apply brought the value,
    which goes with it; "" for one that was set by hand.
    """

    name: str
    seal: Callable[[], bytes] = field(repr=False)
    updated_at: datetime
    given_to: str = ""


Kept = Volume | Fleet | Uncordoned | Sealed
"""What is written down beside runs, in one transaction with them."""


@frozen
class Limits:
    """What a project may hold at once; None is no limit, ``backends`` None is every one."""

    gpus: int | None = None
    usd_hour: float | None = None
    backends: tuple[str, ...] | None = None


@frozen
class Project:
    """A name space with limits: its runs, volumes, secrets and tokens."""

    name: str
    created_at: datetime
    limits: Limits = Limits()


@frozen
class Token:
    """Who may ask, as it is kept: ``digest`` is the SHA-256 of the secret part, in hex.

    ``project`` ``*`` is every project.
    """

    id: str
    name: str
    project: str
    role: str
    digest: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@frozen
class Deed:
    """One call that changed something: who, from where, what, and how it ended."""

    at: datetime
    who: str
    address: str
    project: str
    action: str
    subject: str
    outcome: str
    spec_hash: str = ""


@frozen
class Answer:
    """What was answered to a call with an idempotency key; ``digest`` is that of what was asked."""

    digest: str
    status: int
    body: str


@frozen
class Artifact:
    """What a run of training left, and what it was made from.

    ``location`` is the run's output (a folder, a volume or a URL) and ``path`` the place in it;
    ``sha256`` is the digest of the lines that sha256sum prints for its files in order. Revisions
    are commits where a hub has them, ``sha256:`` and a digest for local data, "" where nobody knows.
    """

    run_id: str
    kind: str
    """``adapter``, ``model``, ``merged``, or ``state``: the trainer's, at its last step."""
    path: str
    size_bytes: int
    sha256: str
    location: str
    base_id: str
    base_revision: str
    dataset: str
    dataset_revision: str
    image: str
    spec_hash: str
    launch: str
    recorded_at: datetime
    metrics: tuple[tuple[str, float], ...] = ()
