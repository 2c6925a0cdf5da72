"""The skeleton of a fake cloud: an HTTP server with routes, faults in front of them, and machines behind.

A provider's fake is a class with methods for its routes, written from the provider's public API
reference, and a table of the errors that it documents.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from tests.backends.vm.machines import Machines, end_containers

Reply = tuple[int, Any]
"""A status, and a body that is sent as JSON; an iterator of bytes is sent as they come."""


@dataclass(frozen=True)
class Asked:
    """One request as a route sees it: the groups of its pattern, query, headers and body."""

    method: str
    path: str
    groups: tuple[str, ...]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass
class Fault:
    """What is answered in place of a route, to the next ``times`` calls that match.

    With ``after`` the route does its work first, and its answer is what is lost; a ``status`` of 0
    ends the connection without one.
    """

    method: str
    path: str
    status: int = 0
    body: Any = None
    times: int = 1
    after: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


def route(method: str, path: str) -> Callable[[Any], Any]:
    """Mark a method of a fake as what answers ``method`` on paths that match ``path`` whole."""

    def mark(function: Any) -> Any:
        function.route = (method, re.compile(path))
        return function

    return mark


@dataclass
class Made:
    """A machine that was made: what the fake knows of it."""

    id: str
    user_data: str
    data: dict[str, Any]
    address: str = ""


class FakeCloud:
    """An account at a cloud; subclasses have its routes.

    ``calls`` are (method, path) of all that came in, ``made`` how often a machine was made.
    """

    not_found: ClassVar[Reply] = (404, {})

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.port = 0
        self.reset()

    def reset(self) -> None:
        """Put right what a test put wrong, and end all machines."""
        for one in list(getattr(self, "there", {}).values()):
            end_containers(self.tags_of(one))
        self.there: dict[str, Made] = {}
        self.faults: list[Fault] = []
        self.calls: list[tuple[str, str]] = []
        self.heard: list[Asked] = []
        self.made = 0
        self.machines.boots = True
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        """Return where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def tags_of(self, made: Made) -> Mapping[str, str]:
        """Return the tags of a machine, under their names here."""
        raise NotImplementedError

    def allows(self, asked: Asked) -> Reply | None:
        """Return what is said to one who may not ask, None to all others."""
        raise NotImplementedError

    def refuse(self, method: str, path: str, status: int, body: Any, **more: Any) -> Fault:
        """Answer the next calls that match with an error."""
        fault = Fault(method, path, status, body, **more)
        self.faults.append(fault)
        return fault

    def count(self, method: str, path: str) -> int:
        """Return how often a path that matches was called."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.calls)

    def start(self, made: Made) -> Made:
        """Boot a machine that was made."""
        self.made += 1
        made.address = self.machines.boot(made.user_data)
        self.there[made.id] = made
        return made

    def end(self, machine: str) -> Made:
        """End a machine with what runs on it."""
        made = self.there[machine]
        end_containers(self.tags_of(made))
        return made

    def answer(self, asked: Asked) -> tuple[int, Any, Mapping[str, str]]:
        """Return status, body and headers, after what is wrong at the moment."""
        with self.lock:
            self.calls.append((asked.method, asked.path))
            self.heard.append(asked)
            fault = next((f for f in self.faults if self._matches(f, asked)), None)
            if fault is not None:
                fault.times -= 1
            if fault is not None and not fault.after:
                return fault.status, fault.body, fault.headers
            found = (*(self.allows(asked) or self._route(asked)), {})
            return found if fault is None else (fault.status, fault.body, fault.headers)

    def _matches(self, fault: Fault, asked: Asked) -> bool:
        called = fault.method == asked.method and re.search(fault.path, asked.path) is not None
        return fault.times > 0 and called

    def _route(self, asked: Asked) -> Reply:
        for name in dir(type(self)):
            marked = getattr(getattr(type(self), name), "route", None)
            if marked and marked[0] == asked.method and (found := marked[1].fullmatch(asked.path)):
                reply: Reply = getattr(self, name)(
                    Asked(asked.method, asked.path, found.groups(), asked.query, asked.headers, asked.body)
                )
                return reply
        return self.not_found


@contextmanager
def serving(cloud: FakeCloud) -> Iterator[FakeCloud]:
    """Let a fake answer over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            size = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(size).decode()
            parts = urlsplit(self.path)
            form = "form" in (self.headers.get("Content-Type") or "")
            body = dict(parse_qsl(text)) if form else json.loads(text) if text else None
            asked = Asked(
                self.command, parts.path, (), dict(parse_qsl(parts.query)), dict(self.headers.items()), body
            )
            status, found, headers = cloud.answer(asked)
            self.close_connection = True
            if not status:
                return
            if isinstance(found, Iterator):
                self._stream(status, found)
                return
            content = b"" if found is None else json.dumps(found).encode()
            if isinstance(found, str):
                content = found.encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content)), "Connection": "close"}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, status: int, parts: Iterator[bytes]) -> None:
            """Send what comes as it comes, until the other side has had enough."""
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            with contextlib.suppress(OSError):
                for part in parts:
                    self.wfile.write(part)
                    self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cloud.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
