"""Who asks, and what they may: roles, and tokens that are kept as digests."""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta

from orchestrator.errors import Denied
from orchestrator.frozen import frozen
from orchestrator.store.access import Access
from orchestrator.store.values import Token

EVERYWHERE = "*"
"""The project of a token that opens every project, and what belongs to none."""
_TOKEN = re.compile(r"my-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")


class Role(enum.IntEnum):
    """What a token may do; each role may do what those before it may."""

    VIEWER = 1
    """See runs, events, logs and the names of secrets."""
    OPERATOR = 2
    """Apply, stop, delete and set secrets."""
    ADMIN = 3
    """Make tokens, and read the audit log; with every project, also make projects and their limits."""

    @classmethod
    def named(cls, name: str) -> Role:
        """Return the role of a name as tokens keep it."""
        return cls[name.upper()]


@frozen
class Caller:
    """Who asks: the token's id and name, its project and role."""

    id: str
    name: str
    project: str
    role: Role

    def may(self, role: Role, project: str | None) -> bool:
        """Return whether this caller has ``role`` in ``project``; None is what belongs to no project.

        >>> Caller("1", "ci", "prod", Role.OPERATOR).may(Role.VIEWER, "prod")
        True
        """
        return self.role >= role and self.project in (EVERYWHERE, project)


class Lapsed(Denied):
    """A token that opens nothing any more; ``caller`` is whose it was."""

    def __init__(self, what: str, caller: Caller) -> None:
        super().__init__(what, fix="ask an admin for another, or modelyard login")
        self.caller = caller


def new_token(
    name: str, *, project: str, role: str, now: datetime, lasts_s: int | None = None
) -> tuple[Token, str]:
    """Return a new token as it is kept, and as its user has it: that text is nowhere else."""
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    expires = None if lasts_s is None else now + timedelta(seconds=lasts_s)
    return Token(id, name, project, role, _digest(secret), now, expires), f"my-{id}-{secret}"


def caller_of(header: str | None, access: Access, *, now: datetime) -> Caller | None:
    """Return who sent an Authorization header, None where it is not there or no token.

    Raises:
        Lapsed: it was a token once; says why it no longer is.
    """
    found = _TOKEN.fullmatch((header or "").removeprefix("Bearer ").strip())
    token = access.token(found[1]) if found else None
    if found is None or token is None or not hmac.compare_digest(token.digest, _digest(found[2])):
        return None
    caller = Caller(token.id, token.name, token.project, Role.named(token.role))
    if token.revoked_at is not None:
        raise Lapsed(f"token {token.name!r} was revoked", caller)
    if token.expires_at is not None and token.expires_at <= now:
        at = token.expires_at.isoformat(timespec="seconds")
        raise Lapsed(f"token {token.name!r} expired at {at}", caller)
    return caller


def _digest(secret: str) -> str:
    # The secret is 256 random bits: one round of SHA-256 is enough, and costs a call nothing.
    return hashlib.sha256(secret.encode()).hexdigest()
