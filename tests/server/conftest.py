"""A server on loopback in this process, on a record and places of the test's own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import uvicorn

from orchestrator.client import Remote
from orchestrator.server.app import application
from orchestrator.server.desk import Desk
from orchestrator.server.login import Doorman
from orchestrator.server.run import listener
from orchestrator.server.site import Site
from orchestrator.server.sync import Syncer
from orchestrator.wire import TokenRequest
from tests.cli.conftest import CONFIG, Cli, cli
from tests.store.conftest import postgres, postgres_store_url, url

__all__ = ["cli", "postgres", "postgres_store_url", "url"]

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="


@dataclass
class Served:
    """A server that runs, and tokens for it."""

    site: Site
    url: str
    syncer: Syncer | None = None
    complaints: list[str] = field(default_factory=list)
    http: httpx.Client = field(default_factory=httpx.Client)
    clients: list[Remote] = field(default_factory=list)

    def token(self, role: str = "admin", project: str = "*", **how: int) -> str:
        """Make a token."""
        return (
            Desk(self.site.store.access, self.site.clock)
            .new_token(TokenRequest(name=role, role=role, project=project, **how))
            .token
        )  # type: ignore[arg-type]  # a word

    def client(self, role: str = "admin", project: str = "main", *, of: str = "*") -> Remote:
        """Return a client with a token of its own."""
        token = self.token(role, of)
        made = Remote(self.url, token, project=project, environ={"HF_TOKEN": "hf_planted"})
        self.clients.append(made)
        return made

    def close(self) -> None:
        """Close every connection to it."""
        self.http.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start servers, which end with the test."""
    running: list[tuple[Served, uvicorn.Server, threading.Thread]] = []
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(state=tmp_path / "sim.jsonl"))

    def start(
        where: str | None = None,
        *,
        config: Path = config,
        owner: str | None = None,
        syncer: Callable[[Site], Syncer] | None = None,
        doorman: Callable[[Site], Doorman] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        **environ: str,
    ) -> Served:
        complaints: list[str] = []
        site = Site(
            where or f"sqlite:///{tmp_path}/state.db", config=config, owner=owner,
            environ={"HF_HUB_OFFLINE": "1", "MODELYARD_SECRET_KEY": KEY, **environ},
            complain=complaints.append, clock=clock,
        )  # fmt: skip
        site.start()
        pulls = syncer(site) if syncer else None
        opened = listener("127.0.0.1", 0)
        app = application(site, syncer=pulls, doorman=doorman(site) if doorman else None)
        options = uvicorn.Config(
            app,
            log_level="critical",
            lifespan="off",
            ws="websockets-sansio",
        )
        server = uvicorn.Server(options)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[opened])))
        thread.start()
        served = Served(site, f"http://127.0.0.1:{opened.getsockname()[1]}", pulls, complaints)
        running.append((served, server, thread))
        return served

    yield start
    for served, server, thread in running:
        served.close()
        server.should_exit = True
        served.site.feed.end()
        thread.join()
        served.site.close()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """One server on a SQLite record."""
    return serve()


@pytest.fixture
def afar(served: Served, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The prompt of the command line's tests, with a server behind it."""
    monkeypatch.delenv("MODELYARD_CONFIG")
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{os.devnull}/none")  # nobody looks there
    monkeypatch.setenv("MODELYARD_URL", served.url)
    monkeypatch.setenv("MODELYARD_TOKEN", served.token())
    return cli
