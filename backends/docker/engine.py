"""The connection to a Docker engine, and its failures in our words.

docker-py is imported on the first call that changes something: the import costs more CPU than
a whole ``plan``, and so does ``http.client``'s. What only reads is a GET over a socket.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from orchestrator.errors import AuthFailed, BackendError, Busy, NotFound, Unreachable
from orchestrator.frozen import frozen

if TYPE_CHECKING:
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


class EngineAuthError(EngineError, AuthFailed):
    """It answered that we may not: 401 or 403, its own or a registry's handed on."""


@frozen
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
        import hashlib  # only who uses contexts pays for it

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
        """Return the JSON at each of ``paths``; None where nothing is."""
        return [self._answered(*self._exchange(path)) for path in paths]

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
        except docker.errors.DockerException as error:
            raise self._not_spoken(error) from error
        except (
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
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
            f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        try:
            connection = self._connected()
            connection.sendall(head.encode() + content)
            status, early = _read_head(connection)
        except OSError as error:
            raise self._not_reached(error) from error
        if status not in (101, 200):
            connection.close()
            raise self._refused(status, early.decode(errors="replace").strip())
        connection.settimeout(None)
        return connection, early

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

    def _connected(self) -> socket.socket:
        self._require_spoken()
        where = urlsplit(self.endpoint.url)
        if self.endpoint.is_local:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(where.path)
            except OSError:
                connection.close()
                raise
            return connection
        host, certificates = where.hostname or "", self.endpoint.certificates
        port = where.port or (2376 if certificates else 2375)
        connection = socket.create_connection((host, port), timeout=self._timeout_s)
        return _with_tls(connection, host, certificates) if certificates else connection

    def _require_spoken(self) -> None:
        if self.endpoint.url.startswith(("unix://", "tcp://", "http://", "https://")):
            return
        raise Unreachable(
            f"the Docker engine at {self.endpoint.url} cannot be reached that way",
            backend=self._backend,
            fix="forward its socket (ssh -N -L /tmp/docker.sock:/var/run/docker.sock HOST)"
            " and set host: unix:///tmp/docker.sock",
        )

    def _exchange(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a GET; by HTTP/1.0 the engine ends the body by closing."""
        try:
            with self._connected() as connection:
                connection.sendall(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
                status, body = _read_head(connection)
                while chunk := connection.recv(262_144):
                    body += chunk
        except OSError as error:
            raise self._not_reached(error) from error
        return status, body

    def _answered(self, status: int, body: bytes) -> Any:
        if status == 404:
            return None
        try:
            found = json.loads(body)
        except ValueError as error:  # cut off in the middle, or no engine at all
            raise self._not_reached(error) from error
        if status >= 400:
            raise self._refused(status, found.get("message", ""))
        return found

    def _refused(self, status: int, message: str) -> BackendError:
        if status in (401, 403):
            return EngineAuthError(status, message, backend=self._backend)
        if status in (429, 503):
            return Busy(f"the Docker engine is busy: {message}", backend=self._backend)
        return EngineError(status, message, backend=self._backend)

    def _not_spoken(self, error: Exception) -> BackendError:
        """Return what docker-py itself complains of: the credentials it looks up, or no contact."""
        if "Credentials store" not in str(error):
            return self._not_reached(error)
        return AuthFailed(
            f"the credential store of docker login failed ({error})",
            backend=self._backend,
            fix="check credsStore and credHelpers in Docker's config.json",
        )

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


def _tls(folder: Path) -> TLSConfig:
    from docker.tls import TLSConfig

    pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
    return TLSConfig(client_cert=pair, ca_cert=str(folder / "ca.pem"), verify=True)


def _with_tls(connection: socket.socket, host: str, folder: Path) -> socket.socket:
    import ssl  # a local engine has no use for it

    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context.wrap_socket(connection, server_hostname=host)


def _close_when(events: CancellableStream[Json], closed: threading.Event, over: threading.Event) -> None:
    """End a blocked read of ``events`` once ``closed`` is set; stop caring once ``over`` is."""
    while not over.is_set():
        if closed.wait(0.1):
            break
    with contextlib.suppress(OSError):
        events.close()


def _read_head(connection: socket.socket) -> tuple[int, bytes]:
    """Return the status of an HTTP answer, and what came of its body with the head."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65_536)
        if not chunk:
            raise ConnectionResetError("the engine closed the connection")
        received += chunk
    head, _, rest = received.partition(b"\r\n\r\n")
    status = head[9:12]  # after "HTTP/1.1 "
    if not head.startswith(b"HTTP/") or not status.isdigit():
        raise ConnectionError("what answers is no Docker engine")
    return int(status), rest


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
