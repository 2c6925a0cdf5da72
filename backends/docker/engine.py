"""The connection to a Docker engine, and its failures in our words.

docker-py is imported on the first call that changes something: the import costs more CPU than
a whole ``plan``. What only reads goes over the standard library where the engine is reached by
a plain socket.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import math
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from orchestrator.errors import AuthFailed, BackendError, Busy, NotFound, Unreachable

if TYPE_CHECKING:
    import ssl

    from docker import APIClient
    from docker.tls import TLSConfig
    from docker.types.daemon import CancellableStream

DEFAULT_SOCKET = "/var/run/docker.sock"
LIFE_EVENTS = ["start", "die", "oom", "pause", "unpause", "rename", "health_status", "destroy"]
Json = Mapping[str, Any]


class EngineError(BackendError):
    """The engine answered, with an error; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str, *, backend: str) -> None:
        super().__init__(f"the Docker engine answered {status}: {message}", backend=backend)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens; ``certificates`` holds ca.pem, cert.pem and key.pem, for TLS."""

    url: str
    certificates: Path | None = None

    @property
    def is_local(self) -> bool:
        """Say whether the engine is reached by a socket file of this machine."""
        return self.url.startswith("unix://")

    @property
    def client_address(self) -> str:
        """Return the address by which clients on this machine reach ports it publishes."""
        return "127.0.0.1" if self.is_local else urlsplit(self.url).hostname or "127.0.0.1"


def find_endpoint(host: str | None, *, environ: Mapping[str, str], home: Path) -> Endpoint:
    """Return the engine that ``docker`` on the command line would talk to.

    In the order of the Docker CLI: ``host`` (ours), ``DOCKER_HOST``, ``DOCKER_CONTEXT``, the
    current context of ``~/.docker/config.json``, the default socket; then the socket of a
    rootless engine.

    >>> find_endpoint(None, environ={"DOCKER_HOST": "tcp://10.0.0.5:2375"}, home=Path("/nobody")).url
    'tcp://10.0.0.5:2375'
    """
    folder = Path(environ.get("DOCKER_CONFIG") or home / ".docker")
    if host or (host := environ.get("DOCKER_HOST")):
        with_tls = environ.get("DOCKER_TLS_VERIFY") and not host.startswith("unix://")
        return Endpoint(host, Path(environ.get("DOCKER_CERT_PATH") or folder) if with_tls else None)
    context = environ.get("DOCKER_CONTEXT") or _read_json(folder / "config.json").get("currentContext")
    if context and context != "default":
        digest = hashlib.sha256(context.encode()).hexdigest()
        meta = _read_json(folder / "contexts" / "meta" / digest / "meta.json")
        certificates = folder / "contexts" / "tls" / digest / "docker"
        if url := meta.get("Endpoints", {}).get("docker", {}).get("Host"):
            return Endpoint(url, certificates if certificates.is_dir() else None)
    rootless = Path(environ.get("XDG_RUNTIME_DIR") or "/nonexistent") / "docker.sock"
    if not Path(DEFAULT_SOCKET).exists() and rootless.exists():
        return Endpoint(f"unix://{rootless}")
    return Endpoint(f"unix://{DEFAULT_SOCKET}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Engine:
    """One Docker engine; safe to use from several threads.

    Args:
        endpoint: Where it listens.
        backend: The backend's name, for errors.
        timeout_s: How long one answer may take.
    """

    def __init__(self, endpoint: Endpoint, *, backend: str, timeout_s: float) -> None:
        self.endpoint = endpoint
        self._backend = backend
        self._timeout_s = timeout_s
        self._client: APIClient | None = None
        self._lock = threading.Lock()

    def get(self, path: str, **params: object) -> Any:
        """Return the JSON at ``path``, or None when there is nothing of that name.

        Raises:
            Unreachable: the engine did not answer.
            EngineError: it answered with an error.
        """
        return self.get_all([_with_params(path, params)])[0]

    def get_all(self, paths: Sequence[str]) -> list[Any]:
        """Return the JSON at each of ``paths`` over one connection; None where nothing is."""
        connection = self._connection()
        try:
            return [self._get_over(connection, path) for path in paths]
        except (OSError, http.client.HTTPException) as error:
            raise self._not_reached(error) from error
        finally:
            connection.close()

    @contextlib.contextmanager
    def client(self) -> Iterator[APIClient]:
        """Lend the pooled client; what its libraries raise inside leaves as our errors."""
        import docker.errors
        import requests.exceptions
        import urllib3.exceptions

        try:
            yield self._pooled()
        except docker.errors.APIError as error:
            status = error.response.status_code if error.response is not None else 500
            raise self._refused(status, str(error.explanation or error)) from error
        except (
            docker.errors.DockerException,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
        ) as error:
            raise self._not_reached(error) from error

    @contextlib.contextmanager
    def stream(self, path: str, params: Mapping[str, str | int]) -> Iterator[Iterator[bytes]]:
        """Lend the bytes at ``path`` as they come, for as long as they come.

        Raises:
            NotFound: there is nothing of that name.
        """
        with self.client() as client:
            url = f"{client.base_url}/v{client.api_version}{path}"
            with client.get(url, params=params, stream=True, timeout=(self._timeout_s, None)) as answer:
                if answer.status_code == 404:
                    raise NotFound("it has been removed")
                if answer.status_code >= 400:
                    self._answered(answer.status_code, answer.content)
                yield answer.iter_content(chunk_size=None)

    @contextlib.contextmanager
    def events(self, label: str, *, closed: threading.Event) -> Iterator[Iterator[Json]]:
        """Lend what happens to containers with ``label``; it ends when ``closed`` is set."""
        with self.client() as client:
            only = {"type": "container", "label": label, "event": LIFE_EVENTS}
            events = client.events(decode=True, filters=only)
            over = threading.Event()
            closer = threading.Thread(target=_close_when, args=(events, closed, over), daemon=True)
            closer.start()
            try:
                yield events
            finally:
                over.set()
                closer.join()

    def hijack(self, path: str, body: Json) -> tuple[socket.socket, bytes]:
        """Turn a POST into a two-way stream; return its socket and the bytes that came early.

        Not by docker-py: it reads the head through a buffer and drops what follows in the same
        segment.
        """
        connection = self._connection()
        try:
            connection.connect()
            return _upgraded(connection.sock, path, json.dumps(body).encode())
        except OSError as error:
            connection.close()
            raise self._not_reached(error) from error

    def _pooled(self) -> APIClient:
        import docker

        self._require_spoken()
        with self._lock:
            if self._client is None:
                self._client = docker.APIClient(
                    base_url=self.endpoint.url,
                    version="auto",  # the library's own default is newer than Debian 12's engine
                    timeout=math.ceil(self._timeout_s),
                    tls=_tls(self.endpoint.certificates) if self.endpoint.certificates else False,
                )
            return self._client

    def _connection(self) -> http.client.HTTPConnection:
        self._require_spoken()
        where = urlsplit(self.endpoint.url)
        if self.endpoint.is_local:
            return _UnixConnection(where.path, timeout_s=self._timeout_s)
        host = where.hostname or ""
        if self.endpoint.certificates is None:
            return http.client.HTTPConnection(host, where.port or 2375, timeout=self._timeout_s)
        trust = _ssl_context(self.endpoint.certificates)
        return http.client.HTTPSConnection(host, where.port or 2376, timeout=self._timeout_s, context=trust)

    def _require_spoken(self) -> None:
        if self.endpoint.url.startswith(("unix://", "tcp://", "http://", "https://")):
            return
        raise Unreachable(
            f"the Docker engine at {self.endpoint.url} cannot be reached that way",
            backend=self._backend,
            fix="forward its socket (ssh -N -L /tmp/docker.sock:/var/run/docker.sock HOST)"
            " and set host: unix:///tmp/docker.sock",
        )

    def _get_over(self, connection: http.client.HTTPConnection, path: str) -> Any:
        connection.request("GET", path, headers={"Host": "docker"})
        answer = connection.getresponse()
        return self._answered(answer.status, answer.read())

    def _answered(self, status: int, body: bytes) -> Any:
        if status == 404:
            return None
        if status >= 400:
            try:
                message = json.loads(body).get("message", "")
            except (ValueError, AttributeError):
                message = body.decode(errors="replace").strip()
            raise self._refused(status, message)
        return json.loads(body)

    def _refused(self, status: int, message: str) -> BackendError:
        if status in (401, 403):
            return AuthFailed(f"the Docker engine refused us: {message}", backend=self._backend)
        if status in (429, 503):
            return Busy(f"the Docker engine is busy: {message}", backend=self._backend)
        return EngineError(status, message, backend=self._backend)

    def _not_reached(self, error: BaseException) -> BackendError:
        url = self.endpoint.url
        if _has_permission_error(error):
            return AuthFailed(
                f"not allowed to use the Docker engine at {url}",
                backend=self._backend,
                fix="add your user to the group 'docker' and log in again",
            )
        return Unreachable(
            f"the Docker engine at {url} did not answer ({_innermost(error)})",
            backend=self._backend,
            fix="start Docker, or set DOCKER_HOST to where it listens",
        )


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: str, *, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _tls(folder: Path) -> TLSConfig:
    from docker.tls import TLSConfig

    pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
    return TLSConfig(client_cert=pair, ca_cert=str(folder / "ca.pem"), verify=True)


def _ssl_context(folder: Path) -> ssl.SSLContext:
    import ssl  # a few milliseconds that a local engine does not cost

    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def _close_when(events: CancellableStream[Json], closed: threading.Event, over: threading.Event) -> None:
    """End a blocked read of ``events`` once ``closed`` is set; stop caring once ``over`` is."""
    while not over.is_set():
        if closed.wait(0.1):
            break
    with contextlib.suppress(OSError):
        events.close()


def _upgraded(connection: socket.socket, path: str, body: bytes) -> tuple[socket.socket, bytes]:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
        f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    answer = bytearray()
    while b"\r\n\r\n" not in answer:
        chunk = connection.recv(4096)
        if not chunk:
            raise ConnectionResetError("the engine closed the connection")
        answer += chunk
    status, _, early = bytes(answer).partition(b"\r\n\r\n")
    if status.split(b" ", 2)[1] not in (b"101", b"200"):
        raise ConnectionRefusedError(early.decode(errors="replace"))
    connection.settimeout(None)
    return connection, early


def local_endpoint(host: str | None) -> Endpoint:
    """Return the engine for ``host`` in this process's environment."""
    return find_endpoint(host, environ=os.environ, home=Path.home())


def filters(**values: str) -> str:
    """Return the engine's spelling of a filter.

    >>> filters(label="a=b")
    '{"label": ["a=b"]}'
    """
    return json.dumps({key: [value] for key, value in values.items()})


def _with_params(path: str, params: Mapping[str, object]) -> str:
    return f"{path}?{urlencode(params)}" if params else path


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and all it was raised from or wraps: requests hides the socket's error."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inside = [one.__cause__, one.__context__, *one.args]
        waiting += [other for other in inside if isinstance(other, BaseException)]


def _has_permission_error(error: BaseException) -> bool:
    return any(isinstance(one, PermissionError) for one in _causes(error))


def _innermost(error: BaseException) -> str:
    """Return the socket's own words where there are some."""
    for one in _causes(error):
        if isinstance(one, OSError) and one.strerror:
            return one.strerror.lower()
    return str(error) or type(error).__name__
