"""A model hub on loopback that answers as the public one does: commits, redirects, gates, limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the hub holds, how it behaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    id: str = "acme/tiny"
    gated: bool = False
    token: str | None = None
    status: int | None = None
    retry_after: str | None = None
    cut_off: str | None = None
    ignores_ranges: bool = False
    card: dict[str, Any] = field(default_factory=lambda: {"license": "mit", "language": ["en", "de"]})
    large: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is said besides of files that are kept elsewhere: their hashes."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    store_url: str = ""
    """Where redirects lead; the hub itself when empty."""

    def paths(self) -> list[str]:
        """Return the paths asked for, in order."""
        return [path for path, _ in self.asked]


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve ``hub`` on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((path, {key.lower(): value for key, value in self.headers.items()}))
            if hub.status is not None:
                extra = {"Retry-After": hub.retry_after} if hub.retry_after else {}
                self.answer(hub.status, b"{}", extra)
            elif path.startswith("/stored/"):
                self.stored(path.removeprefix("/stored/"))
            elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
            elif path.startswith(("/api/models/", "/api/datasets/")):
                self.about(path.split("/", 3)[3])
            elif "/resolve/" in path:
                self.resolve(*path.lstrip("/").split("/resolve/", 1))
            else:
                self.answer(404, b"{}")

        def about(self, path: str) -> None:
            id, _, revision = path.partition("/revision/")
            if id != hub.id:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", "v1", SHA):
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif self.headers.get("If-None-Match") == '"etag-1"':
                self.answer(304, b"")
            else:
                siblings = [
                    {"rfilename": name, "size": len(raw), **hub.large.get(name, {})}
                    for name, raw in hub.files.items()
                ]
                said = {
                    "sha": SHA,
                    "gated": "manual" if hub.gated else False,
                    "cardData": hub.card,
                    "siblings": siblings,
                }
                self.answer(200, json.dumps(said).encode(), {"ETag": '"etag-1"'})

        def resolve(self, id: str, rest: str) -> None:
            sha, _, name = rest.partition("/")
            if id == hub.id and sha == SHA and name in hub.files:
                self.answer(302, b"", {"Location": f"{hub.store_url or hub.url}/stored/{name}"})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def stored(self, name: str) -> None:
            raw = hub.files[name]
            wanted = self.headers.get("Range")
            if wanted and not hub.ignores_ranges:
                start, _, end = wanted.removeprefix("bytes=").partition("-")
                self.answer(206, raw[int(start) : int(end) + 1])
            elif hub.cut_off == name:
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw) + 100))
                self.end_headers()
                self.wfile.write(raw)
                self.close_connection = True
            else:
                self.answer(200, raw)

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if status != 304:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
