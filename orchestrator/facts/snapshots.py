"""Whole repositories of the model hub as folders: every file of one commit, checked by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from orchestrator.errors import ModelError
from orchestrator.facts.hub import Hub, connected, refuse
from orchestrator.frozen import frozen

if TYPE_CHECKING:
    import httpx

SECOND_COPIES = ("original/", "metal/")
"""Folders in which some publishers keep their weights once more, in a form that no engine here reads."""


@frozen
class Snapshot:
    """A commit of a repository, and what was written of it."""

    commit: str
    files: int
    bytes: int


def snapshot(
    kind: Literal["models", "datasets"],
    id: str,
    *,
    revision: str | None,
    hub: Hub,
    folder: Path,
    progress: Callable[[str], None],
) -> Snapshot:
    """Write all files of a repository to ``folder``; what is there whole already is kept.

    Args:
        kind: What it is a repository of.
        id: Such as ``Qwen/Qwen3-8B``.
        revision: A branch, tag or commit; None is the default branch.
        hub: Where to ask.
        folder: Where to write; made where it is missing.
        progress: Told each file.

    Raises:
        ModelError: no such repository or revision, or a file is not what the hub says it is.
        Denied: it is gated or private.
        HubUnreachable: the hub did not answer, or asked to be asked later.
    """
    name = revision or "main"
    with connected(hub) as client:
        answer = client.get(f"/api/{kind}/{id}/revision/{quote(name, '')}", params={"blobs": "true"})
        refuse(answer, id, name)
        said = answer.json()
        commit, total, count = str(said["sha"]), 0, 0
        where = f"/{id}" if kind == "models" else f"/{kind}/{id}"
        for file in _wanted(said):
            progress(f"{id}: {file['rfilename']}")
            total += _write(client, f"{where}/resolve/{commit}/{quote(file['rfilename'])}", file, folder, id)
            count += 1
    return Snapshot(commit, count, total)


def _wanted(said: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for file in sorted(said["siblings"], key=lambda each: str(each["rfilename"])):
        name = str(file["rfilename"])
        if name.startswith(SECOND_COPIES):
            continue
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ModelError(f"the hub names a file outside its repository: {name!r}")
        yield file


def _write(client: httpx.Client, url: str, file: Mapping[str, Any], folder: Path, id: str) -> int:
    """Write one file whole, or not at all; return its bytes."""
    path = folder / str(file["rfilename"])
    size = file.get("size")
    if size is not None and path.exists() and path.stat().st_size == size:
        return int(size)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    digest, written = hashlib.sha256(), 0
    try:
        with client.stream("GET", url) as answer, draft.open("wb") as out:
            if answer.status_code != 200:
                answer.read()
                refuse(answer, id, str(file["rfilename"]))
            for chunk in answer.iter_bytes():
                digest.update(chunk)
                written += out.write(chunk)
        wanted = (file.get("lfs") or {}).get("sha256")
        if (size is not None and written != size) or (wanted and digest.hexdigest() != wanted):
            raise ModelError(
                f"{file['rfilename']} of {id} is not what the hub says it is", fix="try again, or elsewhere"
            )
        draft.replace(path)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}", fix="make room there") from None
    finally:
        draft.unlink(missing_ok=True)
    return written
