"""RunPod's API as far as pods go (version 2): what there is, pods, their output, and keys of registries."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from backends.runpod.refusals import FIXES, KEYS_PAGE, of_create, read
from backends.runpod.shapes import COUNTS, Pod, cpu_offers, gpu_offers, pod_of
from backends.vm.options import secret
from backends.vm.rest import Gone, Rest, trusted
from orchestrator.backend import Growth, Offer
from orchestrator.errors import Busy, Unreachable
from orchestrator.frozen import frozen

URL = "https://api.runpod.io"

DISK_USD_GB_MONTH = 0.1
"""The disk of a container that runs (docs.runpod.io/pods/pricing)."""

HOURS_A_MONTH = 730
REGISTRY = "modelyard-"


@frozen
class Line:
    """A line of a pod's output; ``cursor`` is where the stream goes on after it."""

    text: str
    at: datetime | None
    cursor: str


class Pods:
    """Pods of one account.

    Args:
        backend: The backend's name, for errors and offers.
        api_key_file: The file that holds the API key; None: ``RUNPOD_API_KEY``.
        clouds: ``secure``, ``community`` or both.
        disk_gb: The size of a pod's disk, in GB.
        url: Where the API answers.
    """

    def __init__(
        self, backend: str, *, api_key_file: str | None, clouds: tuple[str, ...], disk_gb: int, url: str
    ) -> None:
        self._backend = backend
        self._file = api_key_file
        self._clouds = clouds
        self.disk_gb = disk_gb
        self._url = url.rstrip("/")
        self._api = Rest(url, backend=backend, sign=self._sign, read=read, fixes=FIXES)
        self._maker = Rest(url, backend=backend, sign=self._sign, read=of_create, fixes=FIXES)

    def _sign(self) -> dict[str, str]:
        key = secret(self._backend, variable="RUNPOD_API_KEY", file=self._file, page=KEYS_PAGE)
        return {"Authorization": f"Bearer {key}"}

    # -- what there is ---------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return every kind of GPU, one to eight in a pod, and of CPU, in each data centre, as of now."""
        disk: dict[str, Any] = {
            "backend": self._backend, "disk_bytes": self.disk_gb * 10**9,
            "growth": Growth(DISK_USD_GB_MONTH / HOURS_A_MONTH, step_bytes=10**9),
        }  # fmt: skip
        wanted = [(cloud, count) for cloud in self._clouds for count in COUNTS]
        with ThreadPoolExecutor(len(wanted) + 1) as pool:
            cpus = pool.submit(self._cpus)
            answers = list(pool.map(self._gpus, wanted))
        found = [offer for each in cpus.result() for offer in cpu_offers(each, **disk)]
        for (cloud, count), gpus in zip(wanted, answers, strict=True):
            for gpu in gpus:
                found += gpu_offers(gpu, count=count, community=cloud == "community", **disk)
        return sorted(found, key=lambda offer: (offer.instance_type, offer.region))

    def _gpus(self, wanted: tuple[str, int]) -> Sequence[Mapping[str, Any]]:
        """Return the kinds of GPU of a cloud, with where so many of each are to be had."""
        cloud, count = wanted
        asked = {"include": "AVAILABILITY", "product": "POD", "cloud": cloud.upper(), "count": str(count)}
        found: Sequence[Mapping[str, Any]] = self._api.get("/v2/catalog/gpus", where="GPUs", **asked)["gpus"]
        return found

    def _cpus(self) -> Sequence[Mapping[str, Any]]:
        """Return the kinds of CPU; the community has none."""
        if "secure" not in self._clouds:
            return ()
        asked = {"include": "AVAILABILITY", "product": "POD"}
        found: Sequence[Mapping[str, Any]] = self._api.get("/v2/catalog/cpus", where="CPUs", **asked)["cpus"]
        return found

    # -- pods ------------------------------------------------------------------------------------

    def create(self, body: Mapping[str, Any], *, where: str) -> Pod:
        """Create a pod, once."""
        made = pod_of(self._maker.send("POST", "/v2/pods", body, where=where))
        assert made is not None  # it has our labels
        return made

    def list(self) -> Sequence[Pod]:
        """Return all pods that have labels of ours, whoever's of us."""
        found = self._api.get("/v2/pods", where="pods")["pods"]
        return [pod for one in found if (pod := pod_of(one)) is not None]

    def stop(self, pod: Pod) -> None:
        """Ask the container to end, and release what it holds; gone, or ended before, is no error."""
        with contextlib.suppress(Gone, Busy):  # busy: not valid for what it is doing now
            self._api.send("POST", f"/v2/pods/{pod.id}/action", {"action": "stop"}, where=pod.id)

    def delete(self, pod: Pod) -> None:
        """Delete a pod, and the key of a registry that was made for it; gone is no error."""
        with contextlib.suppress(Gone):
            self._api.send("DELETE", f"/v2/pods/{pod.id}", where=pod.id)
        if pod.registry:
            with contextlib.suppress(Gone):
                known = self._api.get(f"/v2/registries/{pod.registry}", where="registries")
                if str(known["name"]).startswith(REGISTRY):
                    self.forget_registry(pod.registry)

    # -- registries ------------------------------------------------------------------------------

    def add_registry(self, name: str, login: str) -> str:
        """Hand in ``user:password`` of a registry under a name; return its id."""
        user, _, password = login.partition(":")
        body = {"name": REGISTRY + name, "username": user, "password": password}
        return str(self._api.send("POST", "/v2/registries", body, where="registries")["id"])

    def forget_registry(self, registry: str) -> None:
        """Delete a key of a registry; gone is no error."""
        with contextlib.suppress(Gone):
            self._api.send("DELETE", f"/v2/registries/{registry}", where="registries")

    # -- output ----------------------------------------------------------------------------------

    def output(
        self,
        pod: Pod,
        *,
        source: str = "container",
        quiet_s: float | None = None,
        after: str = "",
        live: bool = False,
        **query: str,
    ) -> Iterator[Line]:
        """Yield lines of a pod's output, oldest first: those that were there when it was asked for.

        The stream has no end of its own: what came is taken for all there is once nothing more did for
        ``quiet_s``, and a line that was written after the answer began is of what comes, which ``live``
        asks for as well. ``after`` is the cursor of the last line that was read.

        Raises:
            Gone: there is no such pod.
            Unreachable: nobody answers.
        """
        import httpx  # heavy: only where a call is made

        headers = {
            **self._sign(),
            "Accept": "text/event-stream",
            **({"Last-Event-ID": after} if after else {}),
        }
        try:
            with httpx.Client(verify=trusted(), timeout=httpx.Timeout(30.0)) as client:
                request = client.build_request(
                    "GET", f"{self._url}/v2/pods/{pod.id}/logs", params={"source": source, **query},
                    headers=headers,
                )  # fmt: skip
                answer = client.send(request, stream=True)
                with contextlib.closing(answer):
                    if answer.status_code >= 400:
                        raise self._refused(answer.status_code, answer.read(), pod)
                    # read by what reads the body, which has not begun: the head may take longer
                    request.extensions["timeout"]["read"] = quiet_s
                    began = _began(answer.headers)
                    for line in _events(answer.iter_lines()):
                        if not live and line.at is not None and line.at >= began:
                            return
                        yield line
        except (httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ReadError):
            return
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(
                f"{pod.id}: {self._url} does not answer ({type(error).__name__})", backend=self._backend,
                fix="check the network, and endpoint_url of this backend where it is set",
            ) from None  # fmt: skip

    def _refused(self, status: int, body: bytes, pod: Pod) -> Exception:
        try:
            found = json.loads(body)
        except ValueError:
            found = body.decode(errors="replace")
        return self._api.refused(read(status, found), pod.id)


def _began(headers: Mapping[str, str]) -> datetime:
    """Return the second after the one in which an answer began, by the clock of who answers.

    >>> _began({"Date": "Mon, 01 Jun 2026 12:02:03 GMT"}).isoformat()
    '2026-06-01T12:02:04+00:00'
    """
    told = headers.get("Date")
    at = parsedate_to_datetime(told) if told else datetime.now(UTC)
    return at + timedelta(seconds=1)


def _events(lines: Iterator[str]) -> Iterator[Line]:
    """Yield the events of a stream (``id`` and ``data`` of server-sent events).

    >>> list(_events(iter(['id: 7', 'data: {"ts":"2026-06-01T12:02:03Z","source":"container","line":"a"}'])))
    [Line(text='a', at=datetime.datetime(2026, 6, 1, 12, 2, 3, tzinfo=datetime.timezone.utc), cursor='7')]
    """
    cursor = ""
    for line in lines:
        name, _, value = line.partition(":")
        if name == "id":
            cursor = value.strip()
        elif name == "data":
            said = json.loads(value)
            at = said.get("ts")
            yield Line(said.get("line", ""), datetime.fromisoformat(at) if at else None, cursor or at or "")
