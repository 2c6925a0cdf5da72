"""A cloud's REST API: one call, one answer, and what a refusal means as an error with place and fix.

What a provider's file brings is where its API answers, how it is signed, and ``read``, which finds
the meaning in an error's body. Calls that look are repeated where the answer was "later"; calls that
make something are sent once, and whoever sent them looks for what was made.
"""

from __future__ import annotations

import enum
import functools
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import (
    AuthFailed,
    BackendError,
    Busy,
    NoCapacity,
    Quota,
    Rejected,
    Unreachable,
)
from orchestrator.frozen import frozen

TRIES = 4
"""How often a call that only looks is sent while the answer is "later"."""

LONGEST_PAUSE_S = 5.0
"""A cloud that asks for more patience than this is asked again by whoever called, later."""


class Meaning(enum.Enum):
    """What a refusal means for whoever asked; each is one kind of error."""

    SOLD_OUT = "none to be had now"
    LIMIT = "the account's limit is reached"
    DENIED = "refused"
    EXPIRED = "the credentials have expired"
    LATER = "asked to come back later"
    GONE = "there is no such thing"
    TAKEN = "there is one of that name"
    INVALID = "not possible as it was asked for"


class Gone(Rejected):
    """What was asked for is not there, or not any more."""


class Taken(Rejected):
    """What was to be made is there already."""


@frozen
class Refusal:
    """An error of a cloud, read: its meaning, its code there, and what it says."""

    meaning: Meaning
    code: str
    message: str = ""

    def error(self, *, backend: str, where: str, fixes: Mapping[Meaning, str]) -> BackendError:
        """Return it as the error that a caller knows; ``where`` is the region, or the machine and zone.

        >>> error = Refusal(Meaning.LIMIT, "QUOTA_EXCEEDED").error(
        ...     backend="gcp", where="g2-standard-4 in us-central1-a", fixes={})
        >>> type(error).__name__, error.what
        ('Quota', "g2-standard-4 in us-central1-a: the account's limit is reached (QUOTA_EXCEEDED)")
        """
        told = self.message.strip().rstrip(".") if self.meaning in _SAYING else ""
        what = f"{where}: {told or self.meaning.value} ({self.code})"
        fix = fixes.get(self.meaning, _FIXES.get(self.meaning))
        return _KINDS[self.meaning](what, backend=backend, fix=fix)


_SAYING = frozenset({Meaning.INVALID, Meaning.GONE, Meaning.TAKEN})
"""What only the cloud's own sentence explains."""

_KINDS: Mapping[Meaning, type[BackendError]] = {
    Meaning.SOLD_OUT: NoCapacity,
    Meaning.LIMIT: Quota,
    Meaning.DENIED: AuthFailed,
    Meaning.EXPIRED: AuthFailed,
    Meaning.LATER: Busy,
    Meaning.GONE: Gone,
    Meaning.TAKEN: Taken,
    Meaning.INVALID: Rejected,
}

_FIXES: Mapping[Meaning, str] = {
    Meaning.SOLD_OUT: "allow another zone, region or instance type",
    Meaning.LIMIT: "ask the provider for a higher limit in that region, or allow another region",
    Meaning.DENIED: "check the credentials and their rights",
    Meaning.EXPIRED: "sign in again, or give a key that is valid",
    Meaning.GONE: "plan again: what the region offers has changed",
    Meaning.INVALID: "correct what it names",
}


def by_status(status: int) -> Meaning:
    """Return what an HTTP status means where the body does not say more.

    A conflict is not taken for one of names: whoever makes a machine would look for it in vain.

    >>> [by_status(status).name for status in (401, 404, 409, 429, 503, 422)]
    ['DENIED', 'GONE', 'INVALID', 'LATER', 'LATER', 'INVALID']
    """
    if status in (401, 403):
        return Meaning.DENIED
    if status == 429 or status >= 500:
        return Meaning.LATER
    return Meaning.GONE if status == 404 else Meaning.INVALID


Read = Callable[[int, Any], Refusal]
"""Finds the meaning of an error: its HTTP status and its body, as JSON where it is JSON, else as text."""


class Rest:
    """The API of one cloud.

    Args:
        url: Where it answers, without a slash at the end.
        backend: The backend's name, for errors.
        sign: Returns the headers that say who asks; may raise ``AuthFailed``.
        read: Reads its errors.
        fixes: What to do about a meaning, where the provider has better advice than "check".
        timeout_s: How long one answer may take.
    """

    def __init__(
        self,
        url: str,
        *,
        backend: str,
        sign: Callable[[], Mapping[str, str]],
        read: Read,
        fixes: Mapping[Meaning, str],
        timeout_s: float = 60.0,
    ) -> None:
        self._url = url.rstrip("/")
        self._backend = backend
        self._sign = sign
        self._read = read
        self._fixes = fixes
        self._timeout_s = timeout_s

    def get(self, path: str, *, where: str, **query: str) -> Any:
        """Return what is at ``path``; sent again where the answer is "later"."""
        pause = threading.Event()
        for attempt in range(TRIES):
            status, body, wait_s = self._send("GET", path, query, None, where)
            if status < 400:
                return body
            refusal = self._read(status, body)
            last = attempt == TRIES - 1 or (wait_s or 0) > LONGEST_PAUSE_S
            if refusal.meaning is not Meaning.LATER or last:
                break
            pause.wait(wait_s if wait_s is not None else 0.25 * 2**attempt)
        raise self.refused(refusal, where)

    def send(self, method: str, path: str, body: Any = None, *, where: str, **query: str) -> Any:
        """Send what makes or changes something, once, and return the answer.

        Raises:
            Unreachable: nobody knows whether it was done.
        """
        status, found, _ = self._send(method, path, query, body, where)
        if status >= 400:
            raise self.refused(self._read(status, found), where)
        return found

    def post_form(self, path: str, form: Mapping[str, str], *, where: str) -> Any:
        """Send a form, as those who sign in do, and return the answer."""
        status, found, _ = self._send("POST", path, {}, None, where, form=form)
        if status >= 400:
            raise self.refused(self._read(status, found), where)
        return found

    def refused(self, refusal: Refusal, where: str) -> BackendError:
        """Return a refusal as an error of this cloud's."""
        return refusal.error(backend=self._backend, where=where, fixes=self._fixes)

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        where: str,
        *,
        form: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, float | None]:
        import httpx  # heavy: only where a call is made

        try:
            # a connection of its own for each call: none is left open for nobody to close
            with httpx.Client(verify=trusted(), timeout=self._timeout_s) as client:
                answer = client.request(
                    # even no parameters would take the place of those that are in the path
                    method, self._url + path, params=dict(query) or None, json=body, data=form,
                    headers=dict(self._sign()),
                )  # fmt: skip
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(
                f"{where}: {self._url} does not answer ({type(error).__name__})", backend=self._backend,
                fix="check the network, and endpoint_url of this backend where it is set",
            ) from None  # fmt: skip
        try:
            found = answer.json() if answer.content else None
        except ValueError:
            found = answer.text
        return answer.status_code, found, _seconds(answer.headers.get("Retry-After"))


@functools.cache
def trusted() -> ssl.SSLContext:
    """Return whom we trust, once for all of a process: reading it costs 20 ms of CPU."""
    import certifi  # comes with httpx

    return ssl.create_default_context(cafile=certifi.where())


def _seconds(text: str | None) -> float | None:
    """Return the seconds of a ``Retry-After``; the form with a date is not used by any cloud here.

    >>> _seconds("12"), _seconds("Fri, 27 Nov 2026 10:00:00 GMT"), _seconds(None)
    (12.0, None, None)
    """
    return float(text) if text and text.isdigit() else None
