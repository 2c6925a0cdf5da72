"""What a spec brings along from this machine: its files and repositories, read before it is planned."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from orchestrator.backend import File
from orchestrator.errors import Problem, SpecError
from orchestrator.planner.ask import Work
from orchestrator.planner.compose import Inputs
from orchestrator.spec.load import Document
from orchestrator.spec.models import FileMapping, Repo
from orchestrator.spec.values import plain_path
from orchestrator.units import format_bytes

MAX_INPUT_BYTES = 16 * 2**20
"""All files of one spec together: they are kept with the run. Larger things belong in a volume."""

_POINTER = b"version https://git-lfs.github.com/spec/"
"""How what Git LFS keeps in a file's place begins (git-lfs, docs/spec.md)."""
_PULL = "git lfs pull; where a server syncs, put it into a volume"


def read_inputs(document: Document, spec: Work) -> Inputs:
    """Return the files and clone commands of ``spec``.

    Raises:
        SpecError: a file is not there, cannot be read, or goes where something else does, or all are
            too large; at the field.
    """
    read: dict[str, list[File]] = {}
    for at, mapping in enumerate(spec.files):
        read[f"files[{at}]"] = _checked(document, f"files[{at}]", partial(_files, mapping))
    clones: list[str] = []
    for at, repo in enumerate(spec.repos):
        if repo.local_path:
            read[f"repos[{at}]"] = _checked(document, f"repos[{at}]", partial(_checkout, repo))
        else:
            clones.append(clone_command(repo))
    targets = {path: [file.target for file in files] for path, files in read.items()}
    if clashing := [*_clashes(document, spec, targets)]:
        raise SpecError(clashing)
    if pointers := [
        document.problem(path, f"{path}: {file.target} is a pointer of Git LFS, not the file", _PULL)
        for path, files in read.items()
        for file in files
        if file.content.startswith(_POINTER)
    ]:
        raise SpecError(pointers)
    found = [file for files in read.values() for file in files]
    size = sum(len(file.content) for file in found)
    if size > MAX_INPUT_BYTES:
        most = format_bytes(MAX_INPUT_BYTES)
        what = f"files of {format_bytes(size)} are too large to send along: {most} at most"
        raise SpecError([document.problem("files", what, "put them into a volume or an image")])
    return Inputs(tuple(found), digest_of(found), tuple(clones))


def unfit(document: Document, spec: Work) -> Iterator[Problem]:
    """Yield a problem for each file, folder or clone of ``spec`` that cannot be put where it says.

    It is not there, cannot be read, or goes where another file goes or something is mounted.
    """
    yield from _not_there(document, spec)
    files = {f"files[{at}]": list(map(str, _targets(mapping))) for at, mapping in enumerate(spec.files)}
    yield from _clashes(document, spec, files)


def _clashes(document: Document, spec: Work, targets: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    """Yield a problem for each field of which a file goes where something is by then.

    A file below a mounted volume is put into it; below one that refuses writes nobody could.
    """
    mounts = {plain_path(mount.path): f"volumes[{at}]" for at, mount in enumerate(spec.volumes)}
    closed = {plain_path(mount.path) for mount in spec.volumes if mount.read_only}
    files: dict[str, str] = {}
    folders = {str(above): path for mount, path in mounts.items() for above in PurePosixPath(mount).parents}
    for path, said in targets.items():
        placed = [plain_path(each, spec.working_dir or "") for each in said]
        for target in placed:
            above = [str(folder) for folder in PurePosixPath(target).parents]
            if wrong := _clash(target, above, mounts, closed, files, folders):
                what, first = wrong
                fix = f"give each its own path; the first is at {document.at(first)}"
                yield document.problem(path, f"{path}: {what}", fix)
                break  # of a folder many would
        for target in placed:
            files.setdefault(target, path)
            folders.update(dict.fromkeys(map(str, PurePosixPath(target).parents), path))


def _clash(
    target: str,
    above: Sequence[str],
    mounts: Mapping[str, str],
    closed: Collection[str],
    files: Mapping[str, str],
    folders: Mapping[str, str],
) -> tuple[str, str] | None:
    """Return what is wrong with a file at ``target``, and the field that was there before."""
    if target in mounts:
        return f"a file at {target}, where a volume is mounted", mounts[target]
    if target in files:
        return f"two files at {target}", files[target]
    if target in folders:
        return f"a file at {target}, which is the folder of others", folders[target]
    for folder in above:
        if folder in files:
            return f"a file below {folder}, which is a file", files[folder]
        if folder in closed:
            return f"a file below {folder}, which is read-only", mounts[folder]
        if folder in mounts:
            return None  # it is put into what is mounted there
    return None


def _not_there(document: Document, spec: Work) -> Iterator[Problem]:
    named = [(f"files[{at}]", file.local_path) for at, file in enumerate(spec.files)]
    named += [(f"repos[{at}]", repo.local_path) for at, repo in enumerate(spec.repos) if repo.local_path]
    for path, local in named:
        try:
            if not Path(local).is_dir():
                Path(local).open("rb").close()
        except OSError as error:
            yield _unreadable(document, path, error)


def _unreadable(document: Document, path: str, error: OSError) -> Problem:
    what = f"cannot read {error.filename}: {error.strerror}"
    return document.problem(path, what, _CHECK)


_CHECK = "check the path; it counts from this file's folder"


def clone_command(repo: Repo) -> str:
    """Return the shell command that puts a repository in place.

    >>> clone_command(Repo(url="https://example.com/a.git", branch="main", path="a"))
    'git clone --branch main https://example.com/a.git a'
    """
    branch = ["--branch", repo.branch] if repo.branch else []
    command = shlex.join(["git", "clone", *branch, repo.url or "", repo.path])
    if repo.hash:
        command += " && " + shlex.join(["git", "-C", repo.path, "checkout", "--detach", repo.hash])
    if repo.if_exists == "skip":
        command = f"test -e {shlex.quote(repo.path + '/.git')} || {{ {command}; }}"
    return command


def _checked(document: Document, path: str, read: Callable[[], Iterator[File]]) -> list[File]:
    try:
        return list(read())
    except OSError as error:
        raise SpecError([_unreadable(document, path, error)]) from None
    except subprocess.CalledProcessError as error:
        what = f"git cannot list the repository: {error.stderr.strip()}"
    raise SpecError([document.problem(path, what, _CHECK)])


def _files(mapping: FileMapping) -> Iterator[File]:
    for target, local in _targets(mapping).items():
        yield _file(local, target)


def _targets(mapping: FileMapping) -> dict[PurePosixPath, Path]:
    """Return where each file of a mapping goes, and where it lies here."""
    local = Path(mapping.local_path)
    target = PurePosixPath(mapping.path or local.name)
    if not local.is_dir():
        return {target: local}
    files = (path for path in sorted(local.rglob("*")) if path.is_file())
    return {target / path.relative_to(local).as_posix(): path for path in files}


def _checkout(repo: Repo) -> Iterator[File]:
    """Yield what git tracks or would track of a local clone, as it lies in the work tree."""
    root = Path(repo.local_path or ".")
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    target = PurePosixPath(repo.path)
    for name in sorted(filter(None, listing.stdout.split("\0"))):
        if (path := root / name).is_file():
            yield _file(path, target / name)


def _file(local: Path, target: PurePosixPath) -> File:
    return File(str(target), local.read_bytes(), 0o755 if local.stat().st_mode & 0o100 else 0o644)


def digest_of(files: Sequence[File]) -> str:
    """Return what tells these files from any others, "" where there are none."""
    if not files:
        return ""
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.target}\0{file.mode}\0{len(file.content)}\0".encode())
        whole.update(file.content)
    return whole.hexdigest()
