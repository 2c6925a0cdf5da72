"""One server over HTTP: requests that are tried again, its refusals as our errors, its pages and streams."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.errors import ModelyardError, StoreBusy, StoreError, Unreachable, UsageError
from orchestrator.wire import PROBLEM, error_of

TIMEOUT_S = 60.0
TRIES = 4
AGAIN_S = 0.5
"""The first pause before a request is tried again; each is twice the one before."""

Value = TypeVar("Value")
Params = Mapping[str, Any]


class Page(Protocol[Value]):
    """A part of a list; ``next`` says after what it goes on, None at the end."""

    items: list[Value]
    next: str | None


class Connection:
    """Requests to one server, about one project.

    Requests that read are repeated when the server does not answer; those that change carry an
    idempotency key, so that one that was repeated is carried out once.

    Args:
        url: Where the server is: ``https://HOST``.
        token: What it knows us by.
        project: Whose things paths mean.
        transport: How requests travel; None is the network.

    Raises:
        UsageError: ``url`` is no address. Every request raises what the server refuses with, and
            Unreachable where it does not answer.
    """

    def __init__(
        self, url: str, token: str, *, project: str, transport: httpx.BaseTransport | None = None
    ) -> None:
        wrong = UsageError(f"MODELYARD_URL is no address of a server: {url!r}", fix="https://HOST")
        if not url.startswith(("http://", "https://")):
            raise wrong
        self.token = token
        self.project = quoted(project)
        try:
            self._http = httpx.Client(
                base_url=url.rstrip("/"),
                headers={"Authorization": f"Bearer {token}"},
                timeout=httpx.Timeout(TIMEOUT_S, connect=10.0),
                transport=transport,
            )
        except httpx.InvalidURL:  # a line break of a shell's, a bracket that is left open
            raise wrong from None

    @property
    def url(self) -> str:
        """Where the server is."""
        return str(self._http.base_url)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(
        self, method: str, path: str, body: BaseModel | None = None, *, params: Params | None = None
    ) -> httpx.Response:
        """Return what a route of the project answers."""
        return self._send(method, f"/v1/projects/{self.project}/{path}", body, params)

    def call(self, method: str, path: str, kind: type[Value], body: BaseModel | None = None) -> Value:
        """Return what a route under ``/v1/`` answers, of whatever project."""
        answer = self._send(method, f"/v1/{path}", body, None)
        return cast(Value, None if answer.status_code == 204 else _parsed(kind, answer.content))

    def one(
        self,
        kind: type[Value],
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        params: Params | None = None,
    ) -> Value:
        """Return what a route of the project answers, as a value of ``kind``."""
        return cast(Value, _parsed(kind, self.ask(method, path, body, params=params).content))

    def every(self, kind: type[Value], path: str, *, params: Params | None = None) -> list[Value]:
        """Return the list that a route of the project answers with."""
        made: Any = list[kind]  # type: ignore[valid-type]  # a type made here
        return cast(list[Value], _parsed(made, self.ask("GET", path, params=params).content))

    def paged(self, kind: type[Page[Value]], path: str, params: Params) -> Iterator[Value]:
        """Yield the items of all pages behind ``params["after"]``."""
        after = params["after"]
        while True:
            page = self.one(kind, "GET", path, params={**params, "after": after})
            yield from page.items
            if page.next is None:
                return
            after = page.next

    def stream(self, path: str, params: Params, *, read_s: float | None = None) -> Iterator[tuple[str, str]]:
        """Yield the kind and data of server-sent events.

        Raises:
            Unreachable: the server does not answer, or went away in the middle.
            httpx.TimeoutException: nothing came for ``read_s``.
        """
        at = f"/v1/projects/{self.project}/{path}"
        timeout = httpx.Timeout(TIMEOUT_S, connect=10.0, read=read_s or TIMEOUT_S)
        try:
            with self._http.stream("GET", at, params=params, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refusal(answer)
                yield from _frames(answer.iter_lines())
        except httpx.TimeoutException:
            if read_s is None:
                raise Unreachable("the server fell silent", backend="server") from None
            raise
        except httpx.HTTPError as error:
            raise self._silent(error) from None

    def _send(
        self, method: str, path: str, body: BaseModel | None, params: Mapping[str, Any] | None
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if method == "POST":
            headers["Idempotency-Key"] = uuid.uuid4().hex
        content = body.model_dump_json() if body is not None else None
        for attempt in range(TRIES):
            try:
                answer = self._http.request(method, path, content=content, params=params, headers=headers)
            except httpx.HTTPError as error:
                if attempt + 1 < TRIES:
                    time.sleep(AGAIN_S * 2**attempt)
                    continue
                raise self._silent(error) from None
            if answer.status_code < 400:
                return answer
            refused = _refusal(answer)
            if attempt + 1 < TRIES and isinstance(refused, StoreBusy):
                time.sleep(refused.retry_after_s or AGAIN_S * 2**attempt)
                continue
            raise refused
        raise AssertionError("the last try returns or raises")

    def _silent(self, error: httpx.HTTPError) -> Unreachable:
        what = f"the server at {self._http.base_url} does not answer: {error or type(error).__name__}"
        return Unreachable(what, backend="server", fix="check MODELYARD_URL, and that the server runs")


def _refusal(answer: httpx.Response) -> ModelyardError:
    if answer.headers.get("content-type", "").startswith(PROBLEM):
        return problem(answer.text)
    what = f"the server answered {answer.status_code} {answer.reason_phrase}"
    return StoreError(what, fix="is MODELYARD_URL the address of a Modelyard server?")


def problem(text: str) -> ModelyardError:
    """Return the error that a server's words are."""
    body = json.loads(text)
    return error_of(body if isinstance(body, dict) else {})


def _parsed(kind: Any, content: bytes) -> Any:
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise StoreError(
            f"the server answers in another form: {error.errors()[0]['msg']}",
            fix="use the same version of modelyard here and there",
        ) from None


def _frames(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Yield the kind and data of each server-sent event; a comment is one of the kind ``comment``."""
    kind, data = "message", list[str]()
    for line in lines:
        if line.startswith(": "):
            yield "comment", line[2:]
        elif not line:
            if data:
                yield kind, "\n".join(data)
            kind, data = "message", []
        elif line.startswith("data: "):
            data.append(line[6:])
        elif line.startswith("event: "):
            kind = line[7:]


def quoted(text: str) -> str:
    """Return a name as one part of a path."""
    return quote(text, safe="")
