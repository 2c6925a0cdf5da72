"""API keys: kept as digests, each with the services it opens."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Protocol

from orchestrator.errors import StoreError
from orchestrator.frozen import frozen
from orchestrator.store.values import SecretName

PREFIX = "@gateway/"
"""Begins the names of the secrets that keys are kept under; no run is called so, whose variables are
secrets as ``<run>/<variable>``."""
START = "my-"
"""What every key begins with, so that scanners for leaked secrets can find it."""


@frozen
class Key:
    """Who asks: a name for the accounts, the SHA-256 of the key, and the services it opens.

    ``services`` None opens all of them.
    """

    name: str
    digest: bytes
    services: frozenset[str] | None = None

    def opens(self, service: str) -> bool:
        """Return whether requests to ``service`` are allowed."""
        return self.services is None or service in self.services

    def text(self) -> str:
        """Return the key as it is kept: without the key itself.

        >>> key = Key("ci", digest_of("my-secret"), frozenset({"chat"}))
        >>> parse_key("ci", key.text()) == key
        True
        """
        services = sorted(self.services) if self.services is not None else None
        return json.dumps({"sha256": self.digest.hex(), "services": services})


def digest_of(secret: str | bytes) -> bytes:
    """Return what a key is known by; keys are random, so that one round is enough."""
    return hashlib.sha256(secret.encode() if isinstance(secret, str) else secret).digest()


def new_key(name: str, services: Iterable[str] | None) -> tuple[Key, str]:
    """Return a new key and its secret, which is nowhere else."""
    secret = START + secrets.token_urlsafe(32)
    return Key(name, digest_of(secret), None if services is None else frozenset(services)), secret


def parse_key(name: str, text: str) -> Key:
    """Return the key that ``Key.text`` wrote.

    Raises:
        ValueError: somebody else wrote it.
    """
    found = json.loads(text)
    if not isinstance(found, dict) or not isinstance(found.get("sha256"), str):
        raise ValueError(f"{name!r} is no key")
    services = found.get("services")
    return Key(name, bytes.fromhex(found["sha256"]), None if services is None else frozenset(services))


class KeyShelf(Protocol):
    """Where keys are kept: the secrets of a store."""

    def list(self) -> Iterable[SecretName]:
        """Return the names of all secrets."""

    def get(self, name: str) -> str:
        """Return one of them."""


@frozen
class Keys:
    """Every key by its digest."""

    by_digest: Mapping[bytes, Key]

    @classmethod
    def of(cls, keys: Iterable[Key]) -> Keys:
        """Return the keys, ready to be looked up."""
        return cls({key.digest: key for key in keys})

    @classmethod
    def read(cls, shelf: KeyShelf) -> Keys:
        """Return the keys kept in ``shelf``.

        Raises:
            StoreError: one of them cannot be read.
        """
        found = []
        for name in (each.name for each in shelf.list()):
            if name.startswith(PREFIX):
                try:
                    found.append(parse_key(name.removeprefix(PREFIX), shelf.get(name)))
                except ValueError as error:
                    fix = f"modelyard secret delete {name}"
                    raise StoreError(f"secret {name!r} is no key of the gateway", fix=fix) from error
        return cls.of(found)

    def find(self, secret: bytes) -> Key | None:
        """Return the key whose secret this is.

        Looked up by digest: what a clock can tell about a comparison of digests says nothing
        about the secret.
        """
        return self.by_digest.get(hashlib.sha256(secret).digest())
