"""Log in with somebody else's signed word: people by the device flow, pipelines by their own identity.

An issuer (OpenID Connect) signs who asks; what a rule finds in the claims is exchanged for a token
of ours that lasts an hour at most. Nothing is stored on the side of whoever asks.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import httpx
import jwt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import ConfigError, Denied, Unreachable
from orchestrator.server.desk import Desk
from orchestrator.server.site import Site
from orchestrator.units import plain
from orchestrator.wire import Issuer, LoginPage, NewToken, TokenRequest

ALGORITHMS = ("RS256", "ES256", "RS384", "RS512", "PS256", "EdDSA")
LASTS_S = 3_600
LEEWAY_S = 30
KEYS_S = 600.0
"""How long an issuer's keys are kept, twice that while it is silent; an unknown one is asked for sooner."""
AGAIN_S = 10.0
WAITING = 4
"""Callers that wait for an issuer's answer at a time."""
TIMEOUT_S = 10.0


class Rule(BaseModel):
    """Who gets which role where: every claim has to match, ``*`` stands for anything in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claims: dict[str, str] = Field(min_length=1)
    role: Literal["viewer", "operator", "admin"]
    project: str = "main"

    def holds(self, claims: Mapping[str, Any]) -> bool:
        """Return whether the claims are what the rule asks for; a list needs one that matches."""
        return all(_matches(claims.get(name), pattern) for name, pattern in self.claims.items())


class Believed(BaseModel):
    """An issuer, for whom its tokens have to be, and what they are worth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str = Field(pattern=r"^(https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/])")
    audience: str = Field(min_length=1)
    client_id: str = ""
    rules: tuple[Rule, ...] = Field(min_length=1)


def read_believed(path: Path) -> tuple[Believed, ...]:
    """Return the issuers of a YAML file.

    Raises:
        ConfigError: it cannot be read, or says something we do not know.
    """
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
        return tuple(Believed.model_validate(each) for each in found)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise ConfigError(f"{path}: {where}: {wrong['msg']}", fix="see docs/server.md") from None
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{path} is no list of issuers: {error}", fix="see docs/server.md") from None


class Doorman:
    """Exchanges an issuer's word for a token of ours.

    Args:
        site: The server's share of the world.
        believed: The issuers and what their tokens are worth.
        monotonic: Seconds that only grow.
    """

    def __init__(
        self, site: Site, believed: tuple[Believed, ...], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._site = site
        self._believed = {each.issuer: each for each in believed}
        self._keys = {each.issuer: _Keys(each.issuer, monotonic) for each in believed}

    def page(self) -> LoginPage:
        """Return how people can log in."""
        found = [each for each in self._believed.values() if each.client_id]
        return LoginPage(issuers=[Issuer(issuer=each.issuer, client_id=each.client_id) for each in found])

    def exchange(self, id_token: str) -> NewToken:
        """Return a token of ours for a word that is signed, meant for us, and worth something here.

        Raises:
            Denied: it is not; the reason is told, the word is not repeated.
            Unreachable: the issuer does not tell its keys.
        """
        claims = self._checked(id_token)
        believed = self._believed[claims["iss"]]
        rule = next((rule for rule in believed.rules if rule.holds(claims)), None)
        if rule is None:
            raise Denied(f"no rule of this server is for {claims['sub']!r}", fix="ask its admin for one")
        lasts_s = max(1, min(LASTS_S, int(claims["exp"] - self._site.clock().timestamp())))
        asked = TokenRequest(
            name=plain(str(claims.get("email") or claims["sub"]))[:100] or "-", role=rule.role,
            project=rule.project, lasts_s=lasts_s,
        )  # fmt: skip
        return Desk(self._site.store.access, self._site.clock).new_token(asked)

    def _checked(self, id_token: str) -> dict[str, Any]:
        try:
            head = jwt.get_unverified_header(id_token)
            said = jwt.decode(id_token, options={"verify_signature": False})
            believed = self._believed.get(str(said.get("iss")))
            if believed is None:
                raise Denied("its issuer is none that this server believes")
            if head.get("alg") not in ALGORITHMS:
                raise Denied(f"signed with {head.get('alg')!r}, which proves nothing")
            key = self._key(believed.issuer, str(head.get("kid", "")))
            claims: dict[str, Any] = jwt.decode(
                id_token, key, algorithms=list(ALGORITHMS), audience=believed.audience,
                issuer=believed.issuer, leeway=LEEWAY_S, options={"require": ["exp", "iat", "sub"]},
            )  # fmt: skip
        except jwt.PyJWTError as error:
            raise Denied(f"not a word we believe: {error}") from None
        if str(claims.get("email_verified", True)).lower() == "false":
            claims.pop(
                "email", None
            )  # whoever it is has said so themselves: it opens nothing, and is no name
        return claims

    def _key(self, issuer: str, kid: str) -> jwt.PyJWK:
        keys = self._keys[issuer].known(kid)
        if kid not in keys:
            raise Denied("signed with a key that its issuer does not have")
        return keys[kid]


class _Keys:
    """The keys of one issuer, asked for again when they are old or one is missing.

    Anybody may have a server ask, and all calls share few threads: a few callers wait for the answer, and an
    issuer that was just asked is left alone for a while.
    """

    def __init__(self, issuer: str, monotonic: Callable[[], float]) -> None:
        self._issuer = issuer
        self._monotonic = monotonic
        self._room = threading.BoundedSemaphore(WAITING)
        self._asking = threading.Lock()
        self._asked_at = self._read_at = -math.inf
        self._keys: dict[str, jwt.PyJWK] = {}

    def known(self, kid: str) -> Mapping[str, jwt.PyJWK]:
        """Return the keys by their ids, ``kid`` among them where the issuer has it.

        Raises:
            Unreachable: the issuer has not told its keys for too long.
        """
        if self._is_due(kid) and self._room.acquire(blocking=False):
            try:
                with self._asking:
                    if self._is_due(kid):  # who asked before us may have been told
                        self._ask()
            finally:
                self._room.release()
        if self._monotonic() - self._read_at > 2 * KEYS_S:
            what = f"the issuer {self._issuer} has not told its keys"
            raise Unreachable(what, backend="login", fix="try again in a few seconds")
        return self._keys

    def _is_due(self, kid: str) -> bool:
        now = self._monotonic()
        is_wanted = kid not in self._keys or now - self._read_at > KEYS_S
        return is_wanted and now - self._asked_at > AGAIN_S

    def _ask(self) -> None:
        try:
            self._keys = _keys_of(self._issuer)
            self._read_at = self._monotonic()
        except Unreachable:
            if self._monotonic() - self._read_at > 2 * KEYS_S:
                raise
        finally:
            self._asked_at = self._monotonic()


def claimed(id_token: str) -> str:
    """Return who a word that was refused says it is of, for the audit log; nothing of it is proven.

    >>> claimed(jwt.encode({"iss": "https://i.example", "sub": "eve"}, "k" * 32)), claimed("x.y.z")
    ("; says it is 'eve' of 'https://i.example'", '')
    """
    try:
        said = jwt.decode(id_token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return ""
    return f"; says it is {str(said.get('sub'))[:100]!r} of {str(said.get('iss'))[:100]!r}"


def _keys_of(issuer: str) -> dict[str, jwt.PyJWK]:
    """Return the keys that an issuer publishes, by their ids."""
    try:
        with httpx.Client(timeout=TIMEOUT_S) as http:
            found = http.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration").raise_for_status()
            about = found.json()
            if about["issuer"] != issuer:
                raise Denied(f"{issuer} calls itself by another name")
            keys = http.get(about["jwks_uri"]).raise_for_status().json()
        return {str(key.key_id): key for key in jwt.PyJWKSet.from_dict(keys).keys}
    except (httpx.HTTPError, json.JSONDecodeError, KeyError, jwt.PyJWTError) as error:
        what = f"the issuer {issuer} does not tell its keys: {type(error).__name__}"
        raise Unreachable(what, backend="login") from None


def _matches(claim: object, pattern: str) -> bool:
    if isinstance(claim, list):
        return any(_matches(each, pattern) for each in claim)
    if isinstance(claim, bool):
        return pattern == str(claim).lower()
    return isinstance(claim, str | int) and fnmatchcase(str(claim), pattern)
