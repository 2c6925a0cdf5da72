"""Talking to an API server: JSON in and out over the official client's connection and credentials."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Event as Flag
from typing import Any
from urllib.parse import urlencode

from backends.kubernetes.names import MANAGER
from backends.kubernetes.refusals import Refused, explained
from orchestrator.errors import AuthFailed, BackendError, Misconfigured, Unreachable

Json = dict[str, Any]

PAGE = 500
"""Objects in one answer, as kubectl asks for them."""

_LACKS = re.compile(r"Expected object with name (\S+) in (.*)/(context|cluster|user)s list")
"""How the official client says that a kubeconfig has no such part."""

PLURALS = {
    "ConfigMap": "configmaps",
    "ControllerRevision": "controllerrevisions",
    "Deployment": "deployments",
    "Event": "events",
    "HTTPRoute": "httproutes",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "InferencePool": "inferencepools",
    "Job": "jobs",
    "JobSet": "jobsets",
    "LeaderWorkerSet": "leaderworkersets",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "ReplicaSet": "replicasets",
    "ScaledObject": "scaledobjects",
    "Secret": "secrets",
    "Service": "services",
    "StatefulSet": "statefulsets",
}


def path_of(version: str, kind: str, namespace: str, name: str = "") -> str:
    """Return the path of a kind of objects in a namespace, or of one of them.

    >>> path_of("apps/v1", "Deployment", "ml", "chat")
    '/apis/apps/v1/namespaces/ml/deployments/chat'
    >>> path_of("v1", "Pod", "ml")
    '/api/v1/namespaces/ml/pods'
    """
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    path = f"{root}/namespaces/{namespace}/{PLURALS[kind]}"
    return f"{path}/{name}" if name else path


def path_of_object(one: Json) -> str:
    """Return the path of an object."""
    meta = one["metadata"]
    return path_of(one["apiVersion"], one["kind"], meta["namespace"], meta["name"])


class Cluster:
    """One API server, connected to when first asked.

    Args:
        backend: The backend's name, for errors.
        kubeconfig: The file with address and credentials; None for ``KUBECONFIG``, the user's
            own, or the service account of the pod we run in.
        context: The context of that file; None for its current one.
        timeout_s: How long one answer may take.
    """

    def __init__(
        self, backend: str, *, kubeconfig: str | None, context: str | None, timeout_s: float
    ) -> None:
        self.backend = backend
        self._kubeconfig = kubeconfig
        self._context = context
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._made: tuple[Any, Any] | None = None

    # -- requests --------------------------------------------------------------------------------

    def get(self, path: str, **query: str) -> Json | None:
        """Return what is at ``path``, None where there is nothing."""
        try:
            return self.call("GET", path, query=query)
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise explained(refusal, self.backend) from refusal

    def list(self, path: str, **query: str) -> tuple[list[Json], str]:
        """Return every object at ``path``, page by page, and the version they are of.

        A kind that the cluster does not know has none.
        """
        found: list[Json] = []
        more: dict[str, str] = {}
        while True:
            page = self.get(path, limit=str(PAGE), **query, **more)
            if page is None:
                return [], ""
            found += page["items"]
            meta = page["metadata"]
            if not meta.get("continue"):
                return found, meta.get("resourceVersion", "")
            more = {"continue": meta["continue"]}

    def apply(self, one: Json, *, force: bool = False) -> Json:
        """Make the cluster's object say ``one``, by server-side apply; return it as it is now.

        Raises:
            Rejected: the object is wrong, or another manager holds one of its fields.
        """
        return self.send("PATCH", path_of_object(one), one, _APPLY, **_asked(force=force))

    def rehearse(self, one: Json, *, force: bool = False) -> tuple[Json, BackendError | None]:
        """Return the object as an apply would have it, and the error where others hold its fields.

        Raises:
            Rejected: the object is wrong.
        """
        query = {**_asked(force=force), "dryRun": "All"}
        try:
            return self.call("PATCH", path_of_object(one), query=query, body=one, kind=_APPLY), None
        except Refused as refusal:
            error = explained(refusal, self.backend)
            if force or refusal.status != 409 or not refusal.causes:
                raise error from refusal
            error.__cause__ = refusal
            return self.rehearse(one, force=True)[0], error

    def send(self, method: str, path: str, body: Json | None, kind: str = "", **query: str) -> Json:
        """Send ``body`` and return the answer.

        Raises:
            BackendError: what the server's refusal means.
        """
        try:
            return self.call(method, path, query=query, body=body, kind=kind or "application/json")
        except Refused as refusal:
            raise explained(refusal, self.backend) from refusal

    def delete(self, path: str, *, grace_s: float | None = None, **query: str) -> bool:
        """Delete what is at ``path`` and all it owns; return whether it was there."""
        body: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace_s is not None:
            body["gracePeriodSeconds"] = max(0, round(grace_s))
        try:
            self.call("DELETE", path, query=query, body=body, kind="application/json")
        except Refused as refusal:
            if refusal.status == 404:
                return False
            raise explained(refusal, self.backend) from refusal
        return True

    def call(
        self, method: str, path: str, *, query: Mapping[str, str], body: Json | None = None, kind: str = ""
    ) -> Json:
        """Return the server's answer.

        Raises:
            Refused: the server answered with an error.
            Unreachable: it did not answer.
            BackendError: what answered is no API server.
        """
        response = self._request(method, path, query, body, kind, stream=False)
        try:
            answer: Json = json.loads(response.data)
        except ValueError:  # a sign-in page, or a site that leads elsewhere
            began = response.data[:60].decode("utf-8", "replace").strip()
            raise BackendError(
                f"{self.configuration().host} is no API server: it answered {began!r}",
                backend=self.backend,
                fix="check the address in the kubeconfig, VPN and proxy",
            ) from None
        return answer

    @contextlib.contextmanager
    def lines(
        self, path: str, query: Mapping[str, str], *, closed: Flag | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Give the lines of an answer that goes on, until it ends or ``closed`` is set.

        Raises:
            Refused: there is nothing to give, yet or any more.
        """
        try:
            response = self._request("GET", path, query, None, "", stream=True)
        except Refused as refusal:
            if refusal.status in {400, 404, 410}:  # not begun, gone, too old: the caller's to judge
                raise
            raise explained(refusal, self.backend) from refusal
        over = threading.Event()
        if closed is not None:
            threading.Thread(target=_hang_up, args=(response, closed, over), daemon=True).start()
        try:
            yield self._lines(response, closed)
        finally:
            over.set()
            response.close()

    # -- the connection --------------------------------------------------------------------------

    def configuration(self) -> Any:
        """Return the official client's configuration, with credentials that are fresh."""
        return self._connection()[0]

    def headers(self) -> dict[str, str]:
        """Return the headers that say who we are."""
        settings = self.configuration().auth_settings()
        return {one["key"]: one["value"] for one in settings.values() if one.get("value")}

    def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Json | None, kind: str, *, stream: bool
    ) -> Any:
        import urllib3  # with the official client: only where a cluster is asked

        configuration, pool = self._connection()
        # a stream may be silent for long: only its beginning has a limit
        read_s = None if stream else self._timeout_s
        headers = {"Accept": "application/json", **self.headers()}
        if kind:
            headers["Content-Type"] = kind
        try:
            response = pool.request(
                method,
                f"{configuration.host}{path}" + (f"?{urlencode(query)}" if query else ""),
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=urllib3.Timeout(connect=min(10.0, self._timeout_s), read=read_s),
                preload_content=not stream,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise self._silent(error) from error
        if response.status >= 400:
            if response.status == 401:
                self._forget()  # the next call reads the credentials anew
            raise Refused.of(response.status, response.data)
        return response

    def _lines(self, response: Any, closed: Flag | None) -> Iterator[bytes]:
        import urllib3

        waiting = b""
        try:
            for chunk in response.stream(65_536, decode_content=True):
                *whole, waiting = (waiting + chunk).split(b"\n")
                yield from whole
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if closed is not None and closed.is_set():
                return
            raise self._silent(error) from error
        if waiting:
            yield waiting

    def _silent(self, error: Exception) -> Unreachable:
        host = self.configuration().host
        cause = str(error).splitlines()[0][:200] or type(error).__name__
        return Unreachable(
            f"the API server {host} does not answer: {cause}",
            backend=self.backend,
            fix="check the address in the kubeconfig, VPN and proxy",
        )

    def _forget(self) -> None:
        with self._lock:
            self._made = None

    def _connection(self) -> tuple[Any, Any]:
        with self._lock:
            if self._made is None:
                configuration = self._configure()
                self._made = configuration, self._pool(configuration)
            return self._made

    def _pool(self, configuration: Any) -> Any:
        import urllib3
        from kubernetes.client.rest import RESTClientObject

        try:
            return RESTClientObject(configuration).pool_manager
        except urllib3.exceptions.HTTPError as error:  # a proxy that is none
            raise self._misconfigured(error) from error

    def _misconfigured(self, error: Exception) -> Misconfigured:
        where = self._file() or "the pod's service account"
        is_other = isinstance(error, AttributeError | KeyError | TypeError)  # whose words are Python's own
        what = "is no kubeconfig" if is_other else " ".join(str(error).split())
        return self._wrong(f"{where}: {what}")

    def _wrong(self, what: str, fix: str = "check kubeconfig and context of this backend") -> Misconfigured:
        return Misconfigured(f"backend {self.backend!r}: {what}", backend=self.backend, fix=fix)

    def _configure(self) -> Any:
        # 0.3 CPU-seconds of models that are not used: imported when a cluster is asked
        from kubernetes import config
        from kubernetes.client import Configuration
        from kubernetes.config.config_exception import ConfigException
        from yaml import YAMLError

        configuration = Configuration()
        path = self._file()
        try:
            with _heard() as words:
                self._load(config, path, configuration)
        except ConfigException as error:
            if lacks := _LACKS.search(str(error)):
                name, file, kind = lacks.groups()
                fix = "kubectl config get-contexts lists what there is"
                raise self._wrong(f"{file} has no {kind} {name!r}", fix) from error
            raise self._wrong(str(error)) from error
        except (AttributeError, KeyError, TypeError, ValueError, YAMLError) as error:
            # the client reads a file as if it were a kubeconfig, whatever it holds
            raise self._misconfigured(error) from error
        if words and not configuration.api_key and not configuration.cert_file:
            # the client goes on as nobody, and the server would say what nobody may not
            what = words[-1].removeprefix("exec: ")
            raise AuthFailed(
                f"the credential plugin failed: {what}", backend=self.backend, fix="log in again"
            )
        return configuration

    def _load(self, config: Any, path: str | None, configuration: Any) -> None:
        if path is None:
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(
                config_file=path,
                context=self._context,
                client_configuration=configuration,
                persist_config=False,
            )

    def _file(self) -> str | None:
        """Return the kubeconfig to read, None for the service account of the pod we run in."""
        named = self._kubeconfig or os.environ.get("KUBECONFIG")
        if named:
            files = [str(Path(one).expanduser()) for one in named.split(os.pathsep) if one]
            if any(Path(one).is_file() for one in files):
                return os.pathsep.join(files)
        elif (own := Path("~/.kube/config").expanduser()).is_file():
            return str(own)
        elif "KUBERNETES_SERVICE_HOST" in os.environ:
            return None
        raise self._wrong(
            f"no kubeconfig at {named or '~/.kube/config'}", "set kubeconfig for this backend, or KUBECONFIG"
        )


_APPLY = "application/apply-patch+yaml"


def _asked(*, force: bool) -> dict[str, str]:
    return {"fieldManager": MANAGER, "force": str(force).lower()}


def _hang_up(response: Any, closed: Flag, over: Flag) -> None:
    """End a silent stream once somebody says so."""
    while not over.wait(0.1):
        if closed.is_set():
            with contextlib.suppress(OSError, ValueError, AttributeError):
                response.shutdown()  # wakes the reader, which close() does not
            return


class _Ear(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.words: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.words.append(record.getMessage())


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Give what is logged as an error meanwhile: the official client says there why a plugin failed."""
    ear = _Ear()
    root = logging.getLogger()
    root.addHandler(ear)
    try:
        yield ear.words
    finally:
        root.removeHandler(ear)


def parse_time(text: str | None) -> datetime | None:
    """Return a time of the API, to the microsecond.

    >>> parse_time("2026-11-25T18:00:00.123456789Z").isoformat()
    '2026-11-25T18:00:00.123456+00:00'
    """
    if not text:
        return None
    whole, _, fraction = text.rstrip("Z").partition(".")
    micros = int((fraction + "000000")[:6]) if fraction else 0
    return datetime.fromisoformat(whole).replace(microsecond=micros, tzinfo=UTC)


def names_of(objects: Sequence[Json]) -> set[str]:
    """Return the names of objects."""
    return {one["metadata"]["name"] for one in objects}
