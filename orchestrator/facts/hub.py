"""Reads a model from a hub or its mirror: one commit, the few small files that matter, kept on disk.

Protocol: ``GET /api/models/{id}/revision/{revision}`` for the commit and its files, and
``GET /{id}/resolve/{commit}/{file}``, which redirects to where the bytes are (huggingface_hub docs).
A commit never changes, so its files are fetched once; only the name of a branch is asked for again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from orchestrator.catalog.values import ModelFacts
from orchestrator.errors import Denied, HubUnreachable, ModelError
from orchestrator.facts.files import assemble
from orchestrator.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

DEFAULT_ENDPOINT = "https://huggingface.co"
_SMALL_FILE = 64 * 2**20  # configs and indexes; the largest public index is some 10 MB


@frozen
class Hub:
    """Where models are published, and the token to read with (never shown)."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 20.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Hub:
        """Return the hub that ``HF_ENDPOINT`` and ``HF_TOKEN`` name, else the public one.

        >>> Hub.from_environment({"HF_ENDPOINT": "https://mirror.example/", "HF_TOKEN": "secret"})
        Hub(endpoint='https://mirror.example', timeout_s=20.0)
        """
        endpoint = environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        return cls(endpoint.rstrip("/"), environment.get("HF_TOKEN") or None)


def hub_facts(id: str, *, revision: str | None, hub: Hub, cache_dir: Path, offline: bool) -> ModelFacts:
    """Return the facts of a published model, with ``revision`` pinned to a commit.

    Args:
        id: Such as ``Qwen/Qwen3-8B``.
        revision: A branch, tag or commit; None is the default branch.
        hub: Where to ask.
        cache_dir: Where commits and their files are kept.
        offline: Use what is kept and ask nobody.

    Raises:
        ModelError: no such model or revision, or its files are damaged; offline, it is not kept.
        Denied: the model is gated or private.
        HubUnreachable: the hub did not answer, or asked to be asked later.
    """
    shelf = Shelf(cache_dir / "hub" / id.replace("/", "--"))
    name = revision or "main"
    kept = shelf.revision(name)
    if offline:
        if kept is None:
            raise ModelError(f"{id} at {name} is not kept in {cache_dir}, and nothing may be fetched")
        return _facts(_Commit(id, kept, shelf, None), hub)
    if kept and kept["sha"] == name:  # a commit: what it means cannot change
        with connected(hub) as client:
            return _facts(_Commit(id, kept, shelf, client), hub)
    with connected(hub) as client:
        return _facts(_Commit(id, _ask_revision(client, id, name, shelf), shelf, client), hub)


def hub_commit(id: str, *, revision: str | None, hub: Hub, cache_dir: Path) -> str:
    """Return the commit that ``revision`` of a published model is at now, the default branch's for None.

    Raises:
        ModelError: no such model or revision.
        Denied: the model is gated or private.
        HubUnreachable: the hub did not answer, or asked to be asked later.
    """
    shelf = Shelf(cache_dir / "hub" / id.replace("/", "--"))
    with connected(hub) as client:
        return str(_ask_revision(client, id, revision or "main", shelf)["sha"])


def _facts(commit: _Commit, hub: Hub) -> ModelFacts:
    facts = assemble(commit, id=commit.id, source=f"{hub.endpoint}/{commit.id} at {commit.sha}")
    return replace(
        facts,
        revision=commit.sha,
        licence=commit.said.get("licence"),
        gated_access=commit.said.get("gated"),
        languages=tuple(commit.said.get("languages", ())),
    )


@frozen
class _Commit:
    """One commit's files, as ``Files``; without a client only what is kept can be read."""

    id: str
    said: Mapping[str, Any]
    shelf: Shelf
    client: httpx.Client | None

    @property
    def near(self) -> bool:
        return False  # a large model has hundreds of files, each two requests away

    @property
    def sha(self) -> str:
        return str(self.said["sha"])

    @property
    def sizes(self) -> Mapping[str, int | None]:
        sizes: Mapping[str, int | None] = self.said["files"]
        return sizes

    def read(self, name: str) -> bytes:
        return self._kept(name, lambda client, url: _fetch(client, url, self.id, _SMALL_FILE))

    def read_part(self, name: str, start: int, length: int) -> bytes:
        return self._kept(
            f"{name}.{start}-{length}",
            lambda client, url: _fetch(client, url, self.id, length, start=start),
            name,
        )

    def _kept(self, key: str, fetch: Callable[[httpx.Client, str], bytes], name: str | None = None) -> bytes:
        kept = self.shelf.file(self.sha, key)
        if kept is not None:
            return kept
        if self.client is None:
            raise ModelError(f"{name or key} of {self.id} is not kept here, and nothing may be fetched")
        raw = fetch(self.client, f"/{self.id}/resolve/{self.sha}/{quote(name or key)}")
        self.shelf.keep_file(self.sha, key, raw)
        return raw


@frozen
class Shelf:
    """What is kept of one model or data set: which commit a name meant, and the files of commits."""

    path: Path

    def revision(self, name: str) -> dict[str, Any] | None:
        """Return what was said of a branch, tag or commit, None where nothing is kept."""
        try:
            kept: dict[str, Any] = json.loads(self._revision(name).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return kept

    def keep_revision(self, name: str, said: Mapping[str, Any]) -> None:
        """Keep what was said of a branch, tag or commit."""
        _write(self._revision(name), json.dumps(said).encode())

    def _revision(self, name: str) -> Path:
        return self.path / "revisions" / f"{quote(name, '')}.json"

    def file(self, sha: str, name: str) -> bytes | None:
        """Return a file of a commit, None where it is not kept."""
        try:
            return (self.path / sha / quote(name, "")).read_bytes()
        except FileNotFoundError:
            return None

    def keep_file(self, sha: str, name: str, raw: bytes) -> None:
        """Keep a file of a commit."""
        _write(self.path / sha / quote(name, ""), raw)


def _write(path: Path, raw: bytes) -> None:
    """Put a file in place whole: two processes may fetch the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(raw)
    part.replace(path)


@contextmanager
def connected(hub: Hub) -> Iterator[httpx.Client]:
    """Lend a client of ``hub``; what the network does is told as ``HubUnreachable``."""
    import httpx  # only where a hub is asked: sizing a known model must not pay for it

    headers = {"authorization": f"Bearer {hub.token}"} if hub.token else {}
    try:
        # httpx drops the token when a redirect leads to another host
        with httpx.Client(
            base_url=hub.endpoint, headers=headers, timeout=hub.timeout_s, follow_redirects=True
        ) as client:
            yield client
    except (httpx.TransportError, httpx.TooManyRedirects, httpx.DecodingError) as error:
        raise HubUnreachable(
            f"the hub at {hub.endpoint} did not answer: {error or type(error).__name__}",
            fix="check the network and HF_ENDPOINT, or plan offline from a folder with config.json",
        ) from error


def _ask_revision(client: httpx.Client, id: str, name: str, shelf: Shelf) -> Mapping[str, Any]:
    """Return the commit that ``name`` means now; an unchanged answer is not sent twice."""
    kept = shelf.revision(name)
    headers = {"if-none-match": kept["etag"]} if kept and kept.get("etag") else {}
    url = f"/api/models/{id}/revision/{quote(name, '')}"
    answer = client.get(url, params={"blobs": "true"}, headers=headers)
    if answer.status_code == 304 and kept:
        return kept
    refuse(answer, id, name)
    try:
        said = _understand(answer.json(), answer.headers.get("etag"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the answer about {id} is not a hub's", fix="check that HF_ENDPOINT names a model hub"
        ) from error
    shelf.keep_revision(name, said)
    return said


def _understand(answer: Mapping[str, Any], etag: str | None) -> dict[str, Any]:
    card = answer.get("cardData") or {}
    languages = card.get("language") or ()
    return {
        "sha": str(answer["sha"]),
        "etag": etag,
        "files": {
            str(file["rfilename"]): file.get("size")
            for file in answer["siblings"]
            if "/" not in file["rfilename"]  # gpt-oss keeps a second copy of its weights in a folder
        },
        "gated": bool(answer.get("gated")),
        "licence": card.get("license_name") or card.get("license"),
        "languages": [languages] if isinstance(languages, str) else [str(one) for one in languages],
    }


def _fetch(client: httpx.Client, url: str, id: str, length: int, *, start: int | None = None) -> bytes:
    """Return a file, or the part of it from ``start``; a server that ignores ranges is cut short."""
    headers = {} if start is None else {"range": f"bytes={start}-{start + length - 1}"}
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code not in (200, 206):
            answer.read()
            refuse(answer, id, url.split("/resolve/")[-1])
        skip = (start or 0) if answer.status_code == 200 else 0
        raw = bytearray()
        for chunk in answer.iter_bytes():
            raw += chunk
            if start is not None and len(raw) >= skip + length:
                break
            if start is None and len(raw) > length:
                raise ModelError(f"{url.rsplit('/', 1)[-1]} of {id} is larger than {length} bytes")
    return bytes(raw[skip : skip + length])


def refuse(answer: httpx.Response, id: str, name: str, *, kind: str = "model") -> None:
    """Raise what an answer other than success means; ``kind`` is what ``id`` names."""
    code, reason = answer.status_code, answer.headers.get("x-error-code", "")
    page = f"/{id}" if kind == "model" else f"/datasets/{id}"
    if code in (401, 403):
        raise Denied(
            f"the hub refuses {id}: it is gated, private, or does not exist",
            fix=f"accept its terms at {answer.url.copy_with(path=page, query=None)}, and set HF_TOKEN",
        )
    if code == 404 and reason == "EntryNotFound":
        raise ModelError(f"{id} has no file {name}")
    if code == 404 and reason == "RevisionNotFound":
        raise ModelError(f"{id} has no revision {name!r}", fix="name a branch, a tag or a commit of it")
    if code == 404:
        raise ModelError(f"the hub has no {kind} {id!r}, or not at {name!r}", fix="check the spelling")
    if code == 429 or code >= 500:
        raise HubUnreachable(
            f"the hub answered {code} for {id}",
            fix="try again later, or set HF_TOKEN: known users may ask more often",
            retry_after_s=_seconds(answer.headers.get("retry-after")),
        )
    if code >= 400:
        raise ModelError(f"the hub answered {code} for {id}", fix="check that HF_ENDPOINT names a model hub")


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.strip().isdigit() else None
