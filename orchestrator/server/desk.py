"""What is done about users, on the record itself: the routes and this machine's command line ask here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from getpass import getuser
from socket import gethostname
from typing import Protocol

from orchestrator.server.audit import Audit
from orchestrator.server.users import EVERYWHERE, new_token
from orchestrator.store.access import Access
from orchestrator.store.values import Project, Token
from orchestrator.wire import NewToken, NotedDeed, ProjectBody, TokenRequest, TokenView


class Office(Protocol):
    """What can be asked about users; answered by a record here, or by a server."""

    def tokens(self) -> Sequence[TokenView]:
        """Return the tokens that this caller may see."""

    def new_token(self, request: TokenRequest) -> NewToken:
        """Make a token; its text is shown this once."""

    def revoke(self, id: str) -> None:
        """Let a token open nothing from now on."""

    def projects(self) -> Sequence[ProjectBody]:
        """Return every project."""

    def put_project(self, body: ProjectBody) -> None:
        """Make a project, or give it other limits."""

    def delete_project(self, name: str) -> None:
        """Forget a project that holds nothing, its tokens and its secrets."""

    def audit(self, *, after: int) -> Sequence[NotedDeed]:
        """Return the audit log from behind a serial."""


class Desk:
    """Answers from a record's own tables.

    Args:
        access: The tables.
        clock: The time, in UTC.
    """

    def __init__(self, access: Access, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._access = access
        self._clock = clock

    def tokens(self) -> list[TokenView]:
        """Return every token."""
        return [view_of(token) for token in self._access.tokens()]

    def new_token(self, request: TokenRequest) -> NewToken:
        """Make a token and write it down.

        Raises:
            NotFound: there is no such project.
        """
        if request.project != EVERYWHERE:
            self._access.project(request.project)
        token, text = new_token(
            request.name, project=request.project, role=request.role, now=self._clock(),
            lasts_s=request.lasts_s,
        )  # fmt: skip
        self._access.add_token(token)
        return NewToken(token=text, view=view_of(token))

    def revoke(self, id: str) -> None:
        """Let a token open nothing from now on."""
        self._access.revoke(id, now=self._clock())

    def projects(self) -> list[ProjectBody]:
        """Return every project."""
        return [ProjectBody(name=each.name, limits=each.limits) for each in self._access.projects()]

    def put_project(self, body: ProjectBody) -> None:
        """Make a project, or give it other limits."""
        self._access.put_project(Project(body.name, self._clock(), body.limits))

    def delete_project(self, name: str) -> None:
        """Forget a project that holds nothing, its tokens and its secrets."""
        self._access.delete_project(name)

    def audit(self, *, after: int = 0) -> list[NotedDeed]:
        """Return the audit log from behind a serial."""
        found: list[NotedDeed] = []
        while page := self._access.deeds(after=found[-1].serial if found else after):
            found += [NotedDeed(serial=serial, deed=deed) for serial, deed in page]
        return found


class DeskHere(Desk):
    """The desk at the prompt of the machine that has the record: what is done there is written down too.

    Args:
        access: The tables.
        clock: The time, in UTC.
    """

    def __init__(self, access: Access, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(access, clock)
        self._audit = Audit(access, clock, lambda _: None)  # nobody is refused here

    def note(self, action: str, outcome: str, subject: str, project: str = "") -> None:
        """Write down what the user of this machine did."""
        self._audit.note(_user(), action, outcome, address=gethostname(), project=project, subject=subject)

    def new_token(self, request: TokenRequest) -> NewToken:
        """Make a token and write it down."""
        made = super().new_token(request)
        self.note("create_token", "201", request.name, request.project)
        return made

    def revoke(self, id: str) -> None:
        """Let a token open nothing from now on."""
        super().revoke(id)
        self.note("revoke", "204", id)

    def put_project(self, body: ProjectBody) -> None:
        """Make a project, or give it other limits."""
        super().put_project(body)
        self.note("put_project", "200", body.name)

    def delete_project(self, name: str) -> None:
        """Forget a project that holds nothing, its tokens and its secrets."""
        super().delete_project(name)
        self.note("delete_project", "204", name)


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return str(os.getuid())


def view_of(token: Token) -> TokenView:
    """Return a token as it is listed."""
    return TokenView(
        id=token.id, name=token.name, project=token.project, role=token.role, created_at=token.created_at,
        expires_at=token.expires_at, revoked_at=token.revoked_at,
    )  # fmt: skip
