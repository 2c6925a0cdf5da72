"""A terminal and ports of a run's job, carried by the server over WebSockets."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlencode

import httpx

# websockets costs 60 ms of CPU: this module is imported where a terminal or a port is asked for
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from orchestrator import terminal
from orchestrator.errors import ModelyardError, StoreError, Unreachable
from orchestrator.wire import PROBLEM, STDERR, Command, Keys, Said, error_of

_READ = 32_768
OPEN_S = 10.0


class Channels:
    """Opens WebSockets to one project of a server.

    Args:
        url: Where the server is.
        token: What it knows us by.
        project: Whose runs are meant.
    """

    def __init__(self, url: str, token: str, project: str) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._project = project

    @contextlib.contextmanager
    def open(self, path: str, query: Mapping[str, object]) -> Iterator[ClientConnection]:
        """Open one, until left.

        Raises:
            ModelyardError: the server refused, for the reason that it says.
            Unreachable: it does not answer.
        """
        at = f"{self._url.replace('http', 'ws', 1)}/v1/projects/{self._project}/{path}?{urlencode(query)}"
        headers = {"Authorization": f"Bearer {self._token}"}
        trusted = _trusted() if at.startswith("wss://") else None
        with (
            self._answered(),
            connect(
                at, additional_headers=headers, compression=None, ssl=trusted, open_timeout=OPEN_S,
                user_agent_header=None,
            ) as opened,
        ):  # fmt: skip
            yield opened

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """Turn what the library raises into errors of ours."""
        try:
            yield
        except InvalidStatus as error:
            raise _refusal(error) from None
        except ConnectionClosed as error:
            said = error.rcvd.reason if error.rcvd and error.rcvd.reason else "it ended"
            raise Unreachable(f"the connection to the server was lost: {said}", backend="server") from None
        except (InvalidHandshake, TimeoutError, ConnectionError, socket.gaierror, ssl.SSLError) as error:
            raise Unreachable(
                f"the server at {self._url} does not answer: {error or type(error).__name__}",
                backend="server", fix="check MODELYARD_URL, and that a proxy in front passes WebSockets",
            ) from None  # fmt: skip

    def execute(self, path: str, query: Mapping[str, object], command: Sequence[str], *, tty: bool) -> int:
        """Run a command inside a job on this terminal; return its exit code."""
        rows, columns = _window() if tty else (None, None)
        asked = Command(command=list(command), tty=tty, rows=rows, columns=columns)
        with self.open(path, query) as opened:
            opened.send(asked.model_dump_json())
            with terminal.raw_terminal(lambda *size: _tell_size(opened, *size)) if tty else _plain():
                said = _carry(opened)
        if said.problem is not None:
            raise error_of(said.problem)
        return said.code or 0

    @contextlib.contextmanager
    def forwarded(self, path: str, query: Mapping[str, object]) -> Iterator[tuple[str, int]]:
        """Give an address of this machine that leads to a port of a job, until left.

        Raises:
            ModelyardError: the server does not lead there.
        """
        with self.open(path, query):
            pass  # a refusal is told here, and not to whoever connects
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serve = threading.Thread(target=self._serve, args=(listener, path, query), daemon=True)
            serve.start()
            try:
                yield "127.0.0.1", listener.getsockname()[1]
            finally:
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which close() does not
                serve.join()

    def _serve(self, listener: socket.socket, path: str, query: Mapping[str, object]) -> None:
        passing: list[tuple[socket.socket, threading.Thread]] = []
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                break
            thread = threading.Thread(target=self._pass_on, args=(client, path, query), daemon=True)
            thread.start()
            passing = [each for each in passing if each[1].is_alive()] + [(client, thread)]
        for client, thread in passing:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _pass_on(self, client: socket.socket, path: str, query: Mapping[str, object]) -> None:
        """Carry one connection; a port that cannot be reached is one that hangs up."""
        with client, contextlib.suppress(ModelyardError, OSError), self.open(path, query) as opened:
            up = threading.Thread(target=_send_all, args=(client, opened), daemon=True)
            up.start()
            try:
                for data in opened:
                    if isinstance(data, bytes):
                        client.sendall(data)
            finally:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
                up.join()


def _send_all(client: socket.socket, opened: ClientConnection) -> None:
    with contextlib.suppress(OSError, ConnectionClosed):
        while data := client.recv(_READ):
            opened.send(data)
        opened.send(Keys(end=True).model_dump_json(exclude_none=True))


def _trusted() -> ssl.SSLContext:
    """Return whom to trust, as the calls over HTTP do: SSL_CERT_FILE and SSL_CERT_DIR are read."""
    return httpx.create_ssl_context()


def _window() -> tuple[int, int]:
    descriptor = terminal.keyboard()
    try:
        size = os.get_terminal_size(descriptor if descriptor is not None else 1)
    except OSError:
        return 24, 80
    return size.lines, size.columns


def _tell_size(opened: ClientConnection, rows: int, columns: int) -> None:
    with contextlib.suppress(ConnectionClosed):
        opened.send(Keys(rows=rows, columns=columns).model_dump_json(exclude_none=True))


def _plain() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _carry(opened: ClientConnection) -> Said:
    """Carry bytes between this process and the command until its end; return what became of it."""
    keyboard = terminal.keyboard()
    ours, theirs = os.pipe()
    typing = threading.Thread(target=_type, args=(opened, keyboard, ours), daemon=True)
    if keyboard is not None:
        typing.start()
    else:
        opened.send(Keys(end=True).model_dump_json(exclude_none=True))
    try:
        for message in opened:
            if isinstance(message, str):
                return Said.model_validate_json(message)
            out = sys.stderr if message[:1] == STDERR else sys.stdout
            terminal.write(out.buffer, message[1:])
        raise Unreachable("the connection ended before the command did", backend="server")
    finally:
        os.close(theirs)  # has the thread see that nothing more is to be typed
        if keyboard is not None:
            typing.join()
        os.close(ours)


def _type(opened: ClientConnection, keyboard: int, over: int) -> None:
    """Send what is typed until its end, or until the other side of ``over`` is closed."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            ready, _, _ = select.select([keyboard, over], [], [])
            if over in ready:
                return
            typed = os.read(keyboard, _READ)
            if not typed:
                opened.send(Keys(end=True).model_dump_json(exclude_none=True))
                return
            opened.send(typed)


def _refusal(error: InvalidStatus) -> ModelyardError:
    answer = error.response
    body = bytes(answer.body or b"")
    if answer.headers.get("Content-Type", "").startswith(PROBLEM):
        found = json.loads(body)
        return error_of(found if isinstance(found, dict) else {})
    what = f"the server answered {answer.status_code} {answer.reason_phrase}"
    return StoreError(what, fix="a proxy in front of it has to pass WebSockets")
