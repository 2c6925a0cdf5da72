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
NOBODY = "nobody"
"""Who asks without a token, or with none that we gave out."""
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

    @property
    def shown(self) -> str:
        """How the audit log names them: by the token's name and id."""
        return shown(self.name, self.id)


class Barred(Denied):
    """Somebody whose token opens nothing; ``who`` and ``outcome`` are for the audit log alone."""

    def __init__(self, what: str, *, fix: str, who: str, outcome: str) -> None:
        super().__init__(what, fix=fix)
        self.who = who
        self.outcome = outcome


class Unknown(Barred):
    """Nobody we know asks; answered with 401 rather than 403, and with the same words whatever was wrong."""

    def __init__(self, why: str, who: str = NOBODY) -> None:
        fix = "set MODELYARD_TOKEN, or modelyard login"
        super().__init__("no token, or one that nobody gave out", fix=fix, who=who, outcome=f"401 {why}")


class Lapsed(Barred):
    """A token that opens nothing any more."""

    def __init__(self, what: str, why: str, caller: Caller) -> None:
        fix = "ask an admin for another, or modelyard login"
        super().__init__(what, fix=fix, who=caller.shown, outcome=f"403 {why}")


def new_token(
    name: str, *, project: str, role: str, now: datetime, lasts_s: int | None = None
) -> tuple[Token, str]:
    """Return a new token as it is kept, and as its user has it: that text is nowhere else."""
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    expires = None if lasts_s is None else now + timedelta(seconds=lasts_s)
    return Token(id, name, project, role, _digest(secret), now, expires), f"my-{id}-{secret}"


def caller_of(header: str | None, access: Access, *, now: datetime) -> Caller:
    """Return who sent an Authorization header.

    Raises:
        Unknown: there is none, or it holds no token that we gave out.
        Lapsed: it was a token once; says why it no longer is.
    """
    if not header:
        raise Unknown("no token")
    found = _TOKEN.fullmatch(header.removeprefix("Bearer ").strip())
    if found is None:
        raise Unknown("no token of ours")
    token = access.token(found[1])
    if token is None:
        raise Unknown("unknown token")
    if not hmac.compare_digest(token.digest, _digest(found[2])):
        raise Unknown("wrong secret", f"not {shown(token.name, token.id)}")
    caller = Caller(token.id, token.name, token.project, Role.named(token.role))
    if token.revoked_at is not None:
        raise Lapsed(f"token {token.name!r} was revoked", "revoked", caller)
    if token.expires_at is not None and token.expires_at <= now:
        at = token.expires_at.isoformat(timespec="seconds")
        raise Lapsed(f"token {token.name!r} expired at {at}", "expired", caller)
    return caller


def shown(name: str, id: str) -> str:
    """Return how the audit log names a token.

    >>> shown("ci", "0a1b2c3d4e5f")
    'ci (0a1b2c3d4e5f)'
    """
    return f"{name} ({id})"


def _digest(secret: str) -> str:
    # The secret is 256 random bits: one round of SHA-256 is enough, and costs a call nothing.
    return hashlib.sha256(secret.encode()).hexdigest()
