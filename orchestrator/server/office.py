"""Routes of users: who asks, projects, tokens, the audit log, and logging in."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query, Request
from fastapi.responses import PlainTextResponse

from orchestrator.errors import Denied, NotFound
from orchestrator.server.desk import Desk, view_of
from orchestrator.server.gate import Gate, caller, site_of
from orchestrator.server.metrics import CONTENT_TYPE, text
from orchestrator.server.users import EVERYWHERE, Caller, Role
from orchestrator.store.values import Token
from orchestrator.wire import (
    MAX_PAGE,
    DeedPage,
    Me,
    NewToken,
    NotedDeed,
    ProjectBody,
    TokenRequest,
    TokenView,
)

gate = Gate("/v1", ["users"])


def _desk(request: Request) -> Desk:
    site = site_of(request)
    return Desk(site.store.access, site.clock)


@gate.route_for("GET", "/projects/{project}/me", Role.VIEWER)
def me(project: str, request: Request) -> Me:  # noqa: ARG001  # the gate reads the project
    """Say who asks."""
    who = caller(request)
    return Me(name=who.name, project=who.project, role=who.role.name.lower())


@gate.route_for("GET", "/projects", Role.ADMIN)
def projects(request: Request) -> list[ProjectBody]:
    """List every project and its limits."""
    return _desk(request).projects()


@gate.route_for("PUT", "/projects", Role.ADMIN)
def put_project(body: ProjectBody, request: Request) -> ProjectBody:
    """Make a project, or give it other limits."""
    request.state.subject = body.name
    _desk(request).put_project(body)
    return body


@gate.route_for("DELETE", "/projects/{name}", Role.ADMIN, status=204)
def delete_project(name: Annotated[str, Path(max_length=63)], request: Request) -> None:
    """Forget a project that holds nothing, its tokens and its secrets."""
    _desk(request).delete_project(name)


@gate.route_for("GET", "/projects/{project}/tokens", Role.ADMIN)
def tokens(project: str, request: Request) -> list[TokenView]:
    """List the tokens of a project; an admin of all also sees those of all."""
    own = caller(request)
    access = site_of(request).store.access
    found = access.tokens(None if own.project == EVERYWHERE else project)
    return [view_of(token) for token in found]


@gate.route_for("POST", "/projects/{project}/tokens", Role.ADMIN, status=201)
def create_token(project: str, asked: TokenRequest, request: Request) -> NewToken:  # noqa: ARG001  # as above
    """Make a token; it is shown this once."""
    request.state.subject = asked.name
    own = caller(request)
    if own.project not in (EVERYWHERE, asked.project):
        raise Denied(f"an admin of {own.project!r} makes no tokens for {asked.project!r}")
    return _desk(request).new_token(asked)


@gate.route_for("DELETE", "/projects/{project}/tokens/{id}", Role.ADMIN, status=204)
def revoke(project: str, id: Annotated[str, Path(max_length=64)], request: Request) -> None:  # noqa: ARG001  # as above
    """Let a token open nothing from now on."""
    site = site_of(request)
    token = site.store.access.token(id)
    if token is None or not _rules(caller(request), token):
        raise NotFound(f"no token {id!r}", fix="modelyard token list")
    site.store.access.revoke(id, now=site.clock())


def _rules(own: Caller, token: Token) -> bool:
    return own.project in (EVERYWHERE, token.project)


@gate.route_for("GET", "/projects/{project}/audit", Role.ADMIN)
def audit(
    project: str,
    request: Request,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
) -> DeedPage:
    """List who changed what, oldest first."""
    everywhere = caller(request).project == EVERYWHERE
    found = site_of(request).store.access.deeds(None if everywhere else project, after=after, limit=limit)
    items = [NotedDeed(serial=serial, deed=deed) for serial, deed in found]
    return DeedPage(items=items, next=str(items[-1].serial) if len(items) == limit else None)


@gate.route_for("GET", "/metrics", Role.ADMIN, response_class=PlainTextResponse)
def metrics(request: Request) -> PlainTextResponse:
    """Return the server's figures in Prometheus' text form, of every project."""
    return PlainTextResponse(text(site_of(request)), media_type=CONTENT_TYPE)
