"""The application: every route behind its gate, errors as problem documents, and the open doors."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from orchestrator.errors import Denied, ModelyardError, NotFound, UsageError
from orchestrator.server import office, runs, sockets
from orchestrator.server.gate import Open, origin_of, pieces, problem, refuse
from orchestrator.server.login import Doorman, claimed
from orchestrator.server.site import Site
from orchestrator.server.sync import Syncer
from orchestrator.server.users import Unknown, shown
from orchestrator.wire import Exchange, LoginPage, NewToken

OPEN = frozenset({"/healthz", "/readyz", "/openapi.json", "/hooks/sync", "/v1/login"})
"""Paths that need no token: they tell nothing of what runs; a hook is signed."""


def application(site: Site, *, syncer: Syncer | None = None, doorman: Doorman | None = None) -> FastAPI:
    """Return the application of one server, which may sync a repository and let people log in."""
    app = FastAPI(
        title="Modelyard", version=version("modelyard"), docs_url=None, redoc_url=None,
        description="Plans, runs and users; errors are problem documents after RFC 9457.",
    )  # fmt: skip
    app.state.site = site
    app.include_router(runs.gate)
    app.include_router(office.gate)
    app.include_router(sockets.gate)
    app.state.syncer = syncer
    app.state.doorman = doorman
    if doorman is not None:
        app.add_api_route("/v1/login", _issuers, methods=["GET"], tags=["login"])
        app.router.add_api_route(
            "/v1/login", _login, methods=["POST"], status_code=201, tags=["login"], route_class_override=Open
        )
    if syncer is not None:
        app.add_api_route("/hooks/sync", _hook, methods=["POST"], status_code=202, tags=["health"])
    app.add_api_route("/healthz", _alive, methods=["GET"], tags=["health"])
    app.add_api_route("/readyz", _ready, methods=["GET"], tags=["health"], responses={503: {}})
    app.add_exception_handler(ModelyardError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]  # FastAPI's way to add to it
    return app


async def _hook(request: Request) -> dict[str, str]:
    """Sync now: a push was told by the repository's host, which signs it.

    Raises:
        Denied: it is not signed with our secret.
    """
    syncer: Syncer = request.app.state.syncer
    seal = syncer.seal()
    async for piece in pieces(request):  # none is kept: anybody may send them
        seal.update(piece)
    if not syncer.is_from_the_host(request.headers, seal.hexdigest()):
        error = Denied("this webhook is not signed with our secret", fix="MODELYARD_SYNC_WEBHOOK_SECRET")
        await refuse(request.app.state.site, request, "sync", error)
        raise error
    syncer.poke()
    return {"status": "syncing"}


def _issuers(request: Request) -> LoginPage:
    """Say with whom people can log in."""
    doorman: Doorman = request.app.state.doorman
    return doorman.page()


def _login(word: Exchange, request: Request) -> NewToken:
    """Exchange an issuer's signed word for a token of ours; who got one is written down, and who did not."""
    doorman: Doorman = request.app.state.doorman
    site: Site = request.app.state.site
    try:
        made = doorman.exchange(word.id_token)
    except Denied as error:
        said = f"{error.what}{claimed(word.id_token)}"
        site.audit.refuse("login", error, subject=said, **origin_of(request))
        raise
    view = made.view
    origin = {**origin_of(request), "project": view.project}
    site.audit.note(shown(view.name, view.id), "login", "201", subject=view.role, **origin)
    return made


def _alive() -> dict[str, str]:
    """Say that this process answers."""
    return {"status": "ok"}


def _ready(request: Request) -> Response:
    """Say whether calls can be answered: the record is read, and the loop is driven."""
    site: Site = request.app.state.site
    try:
        site.store.last_serial()
    except ModelyardError as error:
        return problem(error)
    if site.is_closed:
        return JSONResponse({"status": "ending"}, status_code=503)
    return JSONResponse({"status": "ok", "servers": len(site.peers)})


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ModelyardError)
    return problem(error, status=401 if isinstance(error, Unknown) else None)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:10])
    return problem(UsageError(said or "the call cannot be read", fix="see /openapi.json"), status=422)


async def _on_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    wrong: ModelyardError = UsageError(str(error.detail), fix="see /openapi.json")
    if error.status_code == 403:
        wrong = Denied(str(error.detail))
    elif error.status_code == 404:  # a newer client asks for what it knows
        wrong = NotFound("no such address", fix="see /openapi.json, or use one version here and there")
    answer = problem(wrong, status=error.status_code)
    answer.headers.update(error.headers or {})
    return answer


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        schema.setdefault("components", {})["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer", "description": "modelyard token create"}
        }
        app.openapi_schema = schema
    return app.openapi_schema
