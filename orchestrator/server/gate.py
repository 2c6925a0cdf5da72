"""Every call passes here: who asks, whether they may, once only, and what is written down of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import Any, cast

from cryptography.fernet import Fernet, InvalidToken
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp

from orchestrator.errors import (
    Denied,
    ModelyardError,
    NotFound,
    StateMoved,
    StoreBusy,
    StoreError,
    UsageError,
)
from orchestrator.frozen import frozen
from orchestrator.server.site import Site
from orchestrator.server.users import NOBODY, Caller, Role, caller_of
from orchestrator.store.values import Answer
from orchestrator.wire import PROBLEM, outcome_of, problem_of

MAX_BODY_BYTES = 64 * 2**20
MAX_OPEN_BYTES = 64 * 2**10
"""What is taken from who has no token: an issuer's word has 20,000 characters at most."""
REMEMBER = timedelta(days=1)
"""How long an idempotency key is known."""
CLAIM = timedelta(minutes=2)
"""After how long a call that its server never answered may be tried again."""
LOOK_AGAIN_S = 15.0
"""How soon a stream or a terminal ends whose token was revoked."""
WAIT_S, _LOOK_S = 10.0, 0.1
"""How long one that comes twice at once waits for the answer to the first, and how often it looks."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_SHOWN = 20
"""Projects that an error lists at most."""


def problem(error: ModelyardError, *, status: int | None = None) -> JSONResponse:
    """Return an error as an answer after RFC 9457."""
    body = problem_of(error, status=status)
    headers = {}
    if body["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if (after := body.get("retry_after_s")) is not None or body["status"] == 503:
        headers["Retry-After"] = str(max(1, round(after or 1)))
    return JSONResponse(body, status_code=body["status"], media_type=PROBLEM, headers=headers)


class Gated(APIRoute):
    """A route with a role; its answers are kept by key, and what it changes is written down.

    ``role`` and ``scope`` are read from ``openapi_extra``, so that the document, the gate and the
    tests see one and the same table.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler behind the gate."""
        inner = super().get_route_handler()
        extra = self.openapi_extra or {}
        role = Role.named(extra["x-role"])
        action = self.name

        async def handle(request: Request) -> Response:
            site: Site = request.app.state.site
            caller = await authenticate(site, request, role, action)
            request.state.caller = caller
            if request.method in _SAFE:
                answer = await inner(request)
                if isinstance(answer, StreamingResponse):
                    answer.body_iterator = _until_revoked(site, caller, answer.body_iterator)
                return answer
            await read_body(request)
            return await _changing(site, request, caller, action, inner)

        return handle


class Open(APIRoute):
    """A route for who has no token yet: nothing large is taken from them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler behind the limit."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            await read_body(request, most=MAX_OPEN_BYTES)
            return await inner(request)

        return handle


async def authenticate(site: Site, request: HTTPConnection, role: Role, action: str) -> Caller:
    """Return who asks; who may not is written down.

    Raises:
        Denied: nobody we know, or somebody who may not.
        NotFound: there is no such project.
    """
    who = NOBODY
    try:
        caller = await run_in_threadpool(
            caller_of, request.headers.get("authorization"), site.store.access, now=site.clock()
        )
        who = caller.shown
        await run_in_threadpool(permit, site, caller, role, request.path_params.get("project"))
    except Denied as error:
        await refuse(site, request, action, error, who=who)
        raise
    return caller


async def _until_revoked(site: Site, caller: Caller, stream: AsyncIterable[Any]) -> AsyncIterator[Any]:
    """Yield what streams, until the token that opened it is revoked."""
    looked = time.monotonic()
    async with aclosing(aiter(stream)) as pieces:  # type: ignore[type-var]  # ours are generators
        async for piece in pieces:
            if time.monotonic() - looked >= LOOK_AGAIN_S:
                looked = time.monotonic()
                if await run_in_threadpool(is_revoked, site, caller):
                    return
            yield piece


def is_revoked(site: Site, caller: Caller) -> bool:
    """Return whether a token that opened something was revoked since, or went with its project.

    One that has only expired goes on: a terminal would be cut off an hour after a login.
    """
    try:
        token = site.store.access.token(caller.id)
    except StoreError:
        return False  # nothing is known
    return token is None or token.revoked_at is not None


async def refuse(
    site: Site,
    request: HTTPConnection,
    action: str,
    error: ModelyardError,
    *,
    who: str = NOBODY,
    subject: str = "",
) -> None:
    """Write down who was refused what."""
    refuse = partial(site.audit.refuse, action, error, who=who, **origin_of(request))
    await run_in_threadpool(refuse, subject=subject or _subject(request))


def permit(site: Site, caller: Caller, role: Role, project: str | None) -> None:
    """Have a caller go on.

    Raises:
        Denied: they may not do what takes this role there.
        NotFound: there is no such project.
    """
    if not caller.may(role, project):
        where = f"in project {project!r}" if project else "on this server"
        fix = f"it takes a token with the role {role.name.lower()} {where}"
        if project is not None and caller.may(role, caller.project):
            fix = f"MODELYARD_PROJECT={caller.project}, the project of this token; else {fix}"
        raise Denied(
            f"{caller.name!r} ({caller.role.name.lower()} of {caller.project!r}) may not do this {where}",
            fix=fix,
        )
    if project is not None:
        _require_project(site, caller, project)


def _require_project(site: Site, caller: Caller, project: str) -> None:
    """Say which projects there are where one is named that is not there, to who may know."""
    try:
        site.store.access.project(project)
    except NotFound as error:
        if not caller.may(Role.ADMIN, None):
            raise
        names = ", ".join(each.name for each in site.store.access.projects()[:_SHOWN])
        fix = f"set MODELYARD_PROJECT to one that is there: {names}; modelyard project set {project} makes it"
        raise NotFound(error.what, fix=fix) from None


async def pieces(request: Request, *, most: int = MAX_BODY_BYTES) -> AsyncIterator[bytes]:
    """Yield the body as it comes.

    Raises:
        HTTPException: it is larger than ``most``, or its sender left before its end.
    """
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise HTTPException(413, f"a body of more than {most} bytes")
            yield chunk
    except ClientDisconnect:
        raise HTTPException(400, "the sender left before the end of the body") from None


async def read_body(request: Request, *, most: int = MAX_BODY_BYTES) -> None:
    """Read the body, which may have as much as a plan with its files, to where Starlette looks for it.

    Raises:
        HTTPException: it is larger than ``most``, its sender left halfway, or it holds half a character.
    """
    body = b"".join([chunk async for chunk in pieces(request, most=most)])
    if b"\\ud" in body or b"\\uD" in body:
        await run_in_threadpool(_require_whole, body)
    request._body = body


def _require_whole(body: bytes) -> None:
    """Refuse JSON with half of a UTF-16 pair in it: no database and no answer can hold one."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HTTPException(400, "a body with half of a UTF-16 pair in it") from None
    except (ValueError, RecursionError):
        return  # no JSON, or not a body of ours: the route says so


async def _changing(
    site: Site,
    request: Request,
    caller: Caller,
    action: str,
    inner: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Response:
    once = _Once.of(request, caller, await request.body())
    if once is not None and (known := await once.claim(site)) is not None:
        return known
    outcome = "failed"
    try:
        response = await inner(request)
        outcome = str(response.status_code)
    except ModelyardError as error:
        outcome = outcome_of(error)
        raise
    except (HTTPException, RequestValidationError) as error:
        outcome = str(getattr(error, "status_code", 422))
        raise
    finally:
        spec_hash = getattr(request.state, "spec_hash", "")
        note = partial(site.audit.note, caller.shown, action, outcome, **origin_of(request))
        await run_in_threadpool(note, subject=_subject(request), spec_hash=spec_hash)
        site.wrote()
        if once is not None and not outcome.startswith("2"):
            await run_in_threadpool(site.store.access.drop_claim, once.name)  # it may be tried again
    if once is not None:
        await once.keep(site, response)
    return response


@frozen
class _Once:
    """A call that is carried out once, however often it comes with its key.

    ``name`` is what the record knows the key as, ``digest`` what was asked for. Answers are kept sealed with
    what only the caller has: the answer to who makes a token is that token.
    """

    name: str
    digest: str
    seal: Fernet

    @classmethod
    def of(cls, request: Request, caller: Caller, body: bytes) -> _Once | None:
        """Return what a call is known by, None where it has no key.

        Raises:
            UsageError: the key is too long.
        """
        key = request.headers.get("idempotency-key")
        if not key:
            return None
        if len(key) > 200:
            raise UsageError("an Idempotency-Key of more than 200 characters", fix="a UUID does")
        name = hashlib.sha256(f"{caller.id}\0{request.method}\0{key}".encode()).hexdigest()
        secret = hashlib.sha256(f"answer\0{request.headers['authorization']}\0{key}".encode()).digest()
        asked = hashlib.sha256(f"{request.url.path}\0".encode() + body).hexdigest()
        return cls(name, asked, Fernet(urlsafe_b64encode(secret)))

    async def claim(self, site: Site) -> Response | None:
        """Return what was answered before; None where the call is to be carried out now.

        One that is under way elsewhere is waited for.

        Raises:
            UsageError: the key was used for something else.
            StoreBusy: the other one takes long.
        """
        for _ in range(round(WAIT_S / _LOOK_S)):
            now = site.clock()
            known = await run_in_threadpool(
                site.store.access.claim, self.name, self.digest,
                owner=site.owner, now=now, stale_before=now - CLAIM,
            )  # fmt: skip
            if known is None:
                return None
            if known.digest != self.digest:
                raise UsageError("this Idempotency-Key was used for something else", fix="make a new one")
            if known.status:
                return Response(self._opened(known.body), known.status, media_type="application/json")
            await asyncio.sleep(_LOOK_S)
        raise StoreBusy("a call with this Idempotency-Key is still under way", fix="ask again in a second")

    def _opened(self, body: str) -> bytes:
        try:
            return self.seal.decrypt(body.encode())
        except InvalidToken:  # an earlier version kept it as it was
            return body.encode()

    async def keep(self, site: Site, response: Response) -> None:
        """Keep an answer for whoever comes again."""
        sealed = self.seal.encrypt(bytes(response.body)).decode()
        answer = Answer(self.digest, response.status_code, sealed)
        now = site.clock()
        keep = site.store.access.keep_answer
        await run_in_threadpool(keep, self.name, answer, now=now, forget_before=now - REMEMBER)


def origin_of(request: HTTPConnection) -> dict[str, str]:
    """Return what the audit log says of every call: from where it came, and for which project."""
    address = request.client.host if request.client else ""
    return {"address": address, "project": str(request.path_params.get("project") or "")}


def _subject(request: HTTPConnection) -> str:
    named = getattr(request.state, "subject", None)
    return str(named or " ".join(v for k, v in request.path_params.items() if k != "project"))


class Gate(APIRouter):
    """A table of routes, each with the role it takes.

    Args:
        prefix: What their paths begin with.
        tags: What they are listed under.
    """

    def __init__(self, prefix: str, tags: list[str]) -> None:
        super().__init__(prefix=prefix, tags=list(tags), route_class=Gated)

    def route_for(
        self, method: str, path: str, role: Role, *, status: int = 200, **kwargs: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that puts a function behind ``method path``, for ``role`` and above."""
        extra = {"x-role": role.name.lower(), "security": [{"token": []}]}
        return cast(
            Callable[[Callable[..., Any]], Callable[..., Any]],
            self.api_route(
                path, methods=[method], status_code=status, openapi_extra=extra, responses=PROBLEMS, **kwargs
            ),
        )

    def socket_for(self, path: str, answer: ASGIApp) -> None:
        """Put a WebSocket behind ``path``; it holds its own role."""
        self.routes.append(WebSocketRoute(self.prefix + path, answer))


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "What was wrong with the call", "content": {PROBLEM: {}}},
    "5XX": {"description": "The record or a place did not answer", "content": {PROBLEM: {}}},
}


def site_of(request: Request) -> Site:
    """Return the server's site, for a route."""
    site: Site = request.app.state.site
    return site


def caller(request: Request) -> Caller:
    """Return who asks, for a route."""
    found: Caller = request.state.caller
    return found


def require_serial(request: Request, serial: int) -> None:
    """Hold an If-Match header to a run's serial.

    Raises:
        StateMoved: the run is at another one.
    """
    wanted = request.headers.get("if-match")
    if wanted not in (None, "*", f'"{serial}"'):
        raise StateMoved(f"the run is at serial {serial}, not {wanted}", fix="read it again, then decide")
