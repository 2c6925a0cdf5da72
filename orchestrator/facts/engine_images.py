"""Images through the Docker engine at hand: which digest a name has now, and an image as a file."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.catalog.references import read_reference
from orchestrator.errors import Denied, ModelyardError, NotFound, Unreachable
from orchestrator.frozen import frozen

if TYPE_CHECKING:
    import docker

TIMEOUT_S = 600
"""An engine answers late where it has an image of many gigabytes to read."""


@contextmanager
def engine() -> Iterator[docker.APIClient]:
    """Lend the engine that ``DOCKER_HOST`` names, else this machine's.

    Raises:
        Unreachable: none answers.
    """
    import docker  # heavy: only where an engine is asked
    from docker.utils import kwargs_from_env
    from requests.exceptions import RequestException

    try:
        options = kwargs_from_env()
        _require_listening(options.get("base_url", "unix:///var/run/docker.sock"))
        with closing(docker.APIClient(version="auto", timeout=TIMEOUT_S, **options)) as client:
            yield client
    except (docker.errors.DockerException, RequestException, OSError) as error:
        raise Unreachable(
            f"no Docker engine answers: {_first_line(error)}", fix="start Docker, or set DOCKER_HOST"
        ) from None


def _require_listening(url: str) -> None:
    """Raise what the system says where nobody listens on an engine's socket: docker-py leaves one open."""
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(url.removeprefix("unix://"))


def digest_of(client: docker.APIClient, reference: str) -> str:
    """Return the digest that an image's registry has under this name now.

    Raises:
        NotFound: it has none of that name.
        Denied: it does not let us see it.
        Unreachable: it does not answer.
    """
    from docker.errors import APIError

    try:
        told: dict[str, Any] = client.inspect_distribution(reference)  # type: ignore[no-untyped-call]  # types-docker
    except APIError as error:
        raise _refused(error, reference) from None
    return str(told["Descriptor"]["digest"])


@frozen
class Saved:
    """An image as a file: what ``docker load`` calls it, and the file's size and SHA-256."""

    name: str
    bytes: int
    sha256: str


def save(client: docker.APIClient, reference: str, path: Path, *, progress: Callable[[str], None]) -> Saved:
    """Write an image as ``docker load`` reads it, pulled where it is not here.

    Raises:
        NotFound: there is no such image.
        Denied: its registry does not let us have it.
        Unreachable: its registry does not answer.
        ModelyardError: the file cannot be written.
    """
    from docker.errors import APIError, ImageNotFound

    repository, tag, digest = parts_of(reference)
    try:
        try:
            client.inspect_image(reference)  # type: ignore[no-untyped-call]  # types-docker
        except ImageNotFound:
            progress(f"pulling {reference}")
            _pull(client, repository, digest or tag, reference)
        if digest:  # an image that is saved by its digest is loaded without a name
            client.tag(reference, repository, tag)
        progress(f"writing {reference}")
        name = f"{repository}:{tag}"
        size, sha256 = _write(client.get_image(name), path)
    except APIError as error:
        raise _refused(error, reference) from None
    return Saved(name, size, sha256)


def parts_of(reference: str) -> tuple[str, str, str]:
    """Return repository, tag and digest of an image; one without a tag gets ``latest``, or its digest's.

    >>> parts_of("reg:5000/a/b"), parts_of("a:1@sha256:" + "0" * 64)[:2], parts_of("a@sha256:1234567890ab")[1]
    (('reg:5000/a/b', 'latest', ''), ('a', '1'), '1234567890ab')
    """
    named = read_reference(reference)
    digest = named.digest or ""
    return named.repository, named.tag or digest.removeprefix("sha256:")[:12] or "latest", digest


def _write(chunks: Iterable[bytes], path: Path) -> tuple[int, str]:
    """Write a file whole, or not at all; return its bytes and its SHA-256."""
    digest, size = hashlib.sha256(), 0
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                size += file.write(chunk)
        draft.replace(path)
    except OSError as error:
        raise ModelyardError(f"cannot write {path}: {error.strerror}", fix="make room there") from None
    finally:
        draft.unlink(missing_ok=True)
    return size, digest.hexdigest()


def _pull(client: docker.APIClient, repository: str, tag: str, reference: str) -> None:
    for line in client.pull(repository, tag=tag, stream=True):
        for each in line.decode().splitlines():
            if each.strip() and (said := json.loads(each).get("error")):
                raise _meant(str(said), reference)


def _refused(error: Any, reference: str) -> ModelyardError:
    return _meant(str(error.explanation or error), reference)


def _meant(said: str, reference: str) -> ModelyardError:
    """Return what an engine says of a registry, which it does in words only (moby, errdefs)."""
    low = said.lower()
    if "unauthorized" in low or "denied" in low or "no basic auth" in low:
        return Denied(f"image {reference}: its registry refuses us", fix="docker login, or correct the name")
    if "not found" in low or "manifest unknown" in low or "no such image" in low:
        return NotFound(f"image {reference}: its registry has none of that name", fix="correct the name")
    return Unreachable(
        f"image {reference}: {said.splitlines()[0][:200] if said else 'the engine says nothing'}",
        fix="check that the engine reaches its registry",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
