"""Pulling images, and what stands between us and one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from backends.docker.engine import Engine, EngineError, Json
from orchestrator.backend import Progress
from orchestrator.errors import AuthFailed, BackendError, Busy, NoCapacity, Rejected

REFUSED = ("unauthorized", "authentication required", "no basic auth", "denied", "incorrect username")
UNKNOWN = ("not found", "manifest unknown", "invalid reference", "does not exist")


class PullError(Exception):
    """The engine reported an error in the middle of a pull."""


def pull(engine: Engine, image: str, *, login: str | None, progress: Progress, backend: str) -> None:
    """Fetch ``image`` from its registry.

    Args:
        engine: Fetches it.
        image: With its registry and tag, where it has them.
        login: ``user:password``; None leaves it to what ``docker login`` stored.
        progress: Told the percentage of bytes.
        backend: Named in errors.

    Raises:
        Rejected: there is no such image.
        AuthFailed: the registry wants another login.
        NoCapacity: the engine's disk is full.
        Busy: the registry did not answer.
    """
    progress(f"pulling {image}")
    user, _, password = (login or "").partition(":")
    auth = {"username": user, "password": password} if login else None
    try:
        with engine.client() as client:
            for phrase in pull_progress(client.pull(image, stream=True, decode=True, auth_config=auth)):
                progress(phrase)
    except (EngineError, PullError) as error:
        raise explained(image, str(error), has_login=login is not None, backend=backend) from error


def pull_progress(messages: Iterable[Json]) -> Iterator[str]:
    """Yield ``pulling 40%`` as the percentage over all layers seen so far grows.

    Raises:
        PullError: the engine put an error into the stream.

    >>> half = {"status": "Downloading", "id": "a", "progressDetail": {"current": 1, "total": 2}}
    >>> list(pull_progress([half, half, {"status": "Download complete", "id": "a"}]))
    ['pulling 50%', 'pulling 100%']
    """
    layers: dict[str, tuple[int, int]] = {}
    told = -1
    for message in messages:
        if "error" in message:
            raise PullError(message["error"])
        detail, layer = message.get("progressDetail") or {}, message.get("id", "")
        if message.get("status") == "Downloading" and detail.get("total"):
            layers[layer] = (detail["current"], detail["total"])
        elif message.get("status") == "Download complete" and layer in layers:
            layers[layer] = (layers[layer][1], layers[layer][1])
        total = sum(size for _, size in layers.values())
        percent = 100 * sum(current for current, _ in layers.values()) // total if total else -1
        if percent > told:
            told = percent
            yield f"pulling {percent}%"


def explained(image: str, text: str, *, has_login: bool, backend: str) -> BackendError:
    """Return what stood between us and ``image``; the engine tells it in words only.

    It answers 500 or puts a sentence into the stream, whether a name is wrong, a password is
    missing or a cable is out.
    """
    lowered = text.lower()
    if any(word in lowered for word in REFUSED):
        fix = (
            "check registry_auth of the spec"
            if has_login
            else "add registry_auth to the spec, or docker login"
        )
        if "does not exist" in lowered:  # a registry tells a stranger no more than that
            fix = f"check the image's name; if it is private, {fix}"
        return AuthFailed(f"the registry refused image '{image}'", backend=backend, fix=fix)
    if "no space left" in lowered:
        return NoCapacity("the engine's disk is full", backend=backend, fix="docker system prune")
    # A lookup that fails says "no such host", a refused connection "connection refused"; a
    # missing image is the one thing a registry itself says "not found" or "unknown" about.
    if any(word in lowered for word in UNKNOWN):
        return Rejected(f"no image '{image}'", backend=backend, fix="check its name and tag")
    return Busy(
        f"image '{image}' could not be pulled: {without_noise(text)}",
        backend=backend,
        fix="check the registry and the network, or docker load the image",
    )


def without_noise(text: str) -> str:
    """Return the end of a chain of wrapped errors, where the reason stands.

    >>> without_noise('OCI runtime create failed: runc: exec: "nosuch": no such file: unknown')
    'exec: "nosuch": no such file'
    """
    text = text.strip().removesuffix(": unknown")
    found = re.search(r"exec: .*|bind source path .*|open \S+: .*|dial tcp.*", text)
    return found[0] if found else text
