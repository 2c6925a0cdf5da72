"""A git repository at one commit, on disk: fetched shallowly by the program, nothing of it is run."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import field
from pathlib import Path
from urllib.parse import unquote

from orchestrator.errors import Temporary, UsageError
from orchestrator.frozen import frozen

TIMEOUT_S = 120
FETCH_S = 1_800
"""How long a fetch may take: the first brings every file. HTTP that stalls ends before (``_SAFE``)."""
MOST_COMMITS = 500
"""Commits that a work tree has gathered when it is fetched anew: git keeps what each of them left."""
_SAFE = (
    # A repository is somebody else's: its hooks do not run, and no transport of its choosing
    # starts a program. Where its links lead is looked at once they are there.
    "-c", "core.hooksPath=/dev/null", "-c", "core.symlinks=true", "-c", "protocol.ext.allow=never",
    "-c", "advice.detachedHead=false", "-c", "gc.auto=0", "-c", "safe.directory=*",
    "-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=60",
)  # fmt: skip
_REF = re.compile(r"(?![-+/])(?!.*(?:\.\.|@\{|//|\.lock$))[^\x00-\x20\x7f~^:?*\[\\]+(?<![/.])")
"""What git allows a branch or tag to be called (git-check-ref-format), and no option or refspec."""
_ASKED = (
    '!f() { test "$1" = get && '
    'printf "username=%s\\npassword=%s\\n" "$MODELYARD_GIT_USER" "$MODELYARD_GIT_WORD"; }; f'
)
"""What git asks for the credentials of the address, so that they stand in no list of processes."""
_ADVICE = ("could not read from remote repository.", "the remote end hung up unexpectedly")
"""What git says last where a program below it has said why."""


_LINK, _SUBMODULE = "120000", "160000"
"""Modes in git's trees (git-fast-import, "M")."""


class GitUnreachable(UsageError, Temporary):
    """git could not fetch: what the repository holds now is unknown."""

    exit_code = 69


@frozen
class Source:
    """Where specs lie: a repository, a branch, tag or commit of it, and a folder in it."""

    url: str
    ref: str = "HEAD"
    folder: str = ""
    credentials: tuple[str, str] = field(default=("", ""), repr=False)
    """User and password of an HTTP address, which are shown nowhere."""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Return the source that ``git+URL[@REF][//FOLDER]`` names; a path is made whole.

        What follows the last ``@`` of the path is the ref.

        Raises:
            UsageError: it has another form.

        >>> Source.parse("git+https://host/org/repo.git@main//prod/specs")
        Source(url='https://host/org/repo.git', ref='main', folder='prod/specs')
        >>> Source.parse("git+ssh://git@host/repo").ref, Source.parse("git+/srv/repo@feature/v1").url
        ('HEAD', '/srv/repo')
        >>> Source.parse("git+git@host:org/repo.git@feature/a#1")
        Source(url='git@host:org/repo.git', ref='feature/a#1', folder='')
        """
        fix = "git+URL[@REF][//FOLDER], for example git+https://host/org/repo.git@main//specs"
        shown = re.sub(r"//\S*@", "//", text)
        if not text.startswith("git+"):
            raise UsageError(f"{shown!r} names no repository", fix=fix)
        scheme, colon, rest = text[4:].rpartition("://") if "://" in text else ("", "", text[4:])
        rest, _, folder = rest.partition("//")
        # what stands before the path: host and user of an address, or of git's own ``user@host:path``
        at = rest.find("/") + 1 if colon else rest.partition("/")[0].find(":") + 1
        host, path = rest[:at], rest[at:]
        path, marked, ref = path.rpartition("@") if "@" in path else (path, "", "")
        folder = folder.strip("/")
        if not path.rpartition("/")[2] or text[4:].startswith("-") or ".." in folder.split("/"):
            raise UsageError(f"{shown!r} names no repository", fix=fix)
        if marked and not _REF.fullmatch(ref):
            raise UsageError(f"{ref!r} is no branch, tag or commit", fix=fix)
        credentials = ("", "")
        if scheme in ("http", "https") and "@" in host:
            said, _, host = host.rpartition("@")
            user, _, password = said.partition(":")
            credentials = unquote(user), unquote(password)
        if colon and re.search(r":\D", host.rpartition("]")[2]):
            what = "the port is no number: a password's / and # are written %2F and %23"
            raise UsageError(what, fix="keep it in git's credential store instead")
        url = f"{scheme}{colon}{host}{path}" if colon or host else str(Path(path).absolute())
        return cls(url, ref or "HEAD", folder, credentials)

    def __str__(self) -> str:
        # an address may hold a password though git does not use it: what is shown does not
        url = re.sub(r"//[^/]*@", "//", self.url)
        return f"git+{url}@{self.ref}" + (f"//{self.folder}" if self.folder else "")


class Checkout:
    """A work tree of a source, brought to its newest commit again and again.

    Args:
        source: What is fetched.
        root: Where the work tree is, made when it is not there.
        signed: Refuse commits that git cannot verify.
    """

    def __init__(self, source: Source, root: Path, *, signed: bool = False) -> None:
        self._source = source
        self._signed = signed
        self._running: subprocess.Popen[str] | None = None
        self._ended = False
        self.root = root

    @property
    def folder(self) -> Path:
        """The folder of the specs in it."""
        return self.root / self._source.folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the work tree to oneself: servers of one machine and user share it."""
        self.root.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.root.with_name(f"{self.root.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go of with the file
            yield

    def end(self) -> None:
        """End what git does now, and begin nothing more; does not wait for it."""
        self._ended = True
        if (git := self._running) is not None:
            _kill(git)

    def update(self) -> str:
        """Fetch, and put the work tree at the newest commit; return it.

        A branch that was pushed by force is followed like any other. What a git that was killed, or a
        full disk, left of the work tree is fetched anew.

        Raises:
            GitUnreachable: git cannot fetch, or there is no such ref.
            UsageError: the commit has no good signature, and has to have one.
        """
        try:
            return self._brought()
        except GitUnreachable:
            if not self.root.exists() or self.newest() is None:
                raise  # it is not the work tree that is at fault
        shutil.rmtree(self.root)
        return self._brought()

    def _brought(self) -> str:
        if self._gathered() > MOST_COMMITS:
            shutil.rmtree(self.root)
        if not (self.root / ".git").exists():
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._here("init", "--quiet")
        fetch = ("fetch", "--quiet", "--depth", "1", "--force", "--no-tags", "--end-of-options")
        self._here(*fetch, self._source.url, self._source.ref)
        commit = self._here("rev-parse", "FETCH_HEAD^{commit}").strip()
        if self._signed:
            try:
                self._here("verify-commit", commit)
            except GitUnreachable as error:
                raise UsageError(
                    f"commit {commit[:12]} has no good signature", fix="sign it with a key git knows here"
                ) from error
        self._here("checkout", "--quiet", "--force", "--detach", commit)
        self._here("clean", "--quiet", "-ffdx")
        self._look_at(self._here("ls-tree", "-r", "-z", "--full-tree", commit))
        return commit

    def _gathered(self) -> int:
        """Return how many commits were fetched into the work tree: each is an end of history of its own."""
        try:
            return (self.root / ".git" / "shallow").read_bytes().count(b"\n")
        except OSError:
            return 0

    def _look_at(self, listed: str) -> None:
        """Remove the links of a work tree that lead out of it; refuse those among the specs, and submodules.

        Specs that only seem to be missing would be deleted.
        """
        root, specs = (Path(os.path.realpath(path)) for path in (self.root, self.folder))
        for mode, name in ((line.split(" ")[0], line.partition("\t")[2]) for line in listed.split("\0")):
            at = root / name
            if mode == _SUBMODULE and at.is_relative_to(specs):
                what = f"{name} is a submodule, which is not fetched"
                raise UsageError(what, fix="keep the specs in the repository itself")
            if mode != _LINK:
                continue
            end = Path(os.path.realpath(at))
            if end.is_relative_to(root) and not end.is_relative_to(root / ".git"):
                continue
            at.unlink()
            if at.is_relative_to(specs):
                raise UsageError(f"{name} leads out of the repository", fix="commit what it leads to")

    def newest(self) -> str | None:
        """Return the commit that the branch or tag is at now, None where that cannot be told."""
        peeled = f"{self._source.ref}^{{}}"  # the commit of a tag that is an object of its own
        try:
            found = self._git(
                "ls-remote", "--quiet", "--end-of-options", self._source.url, self._source.ref, peeled
            )
        except GitUnreachable:
            return None
        # asked for one name, git lists every one that ends so
        there = {name: commit for commit, _, name in (line.partition("\t") for line in found.splitlines())}
        ref = self._source.ref
        names = (ref, f"refs/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}")
        return next((there[name] for name in names if name in there), None)

    def _here(self, *arguments: str) -> str:
        """Run git on this work tree and no other: a broken one has it look for one further up."""
        return self._git(*arguments, at=("--git-dir", f"{self.root}/.git", "--work-tree", str(self.root)))

    def _git(self, *arguments: str, at: tuple[str, ...] = ()) -> str:
        try:
            git = subprocess.Popen(
                ["git", *at, *_SAFE, *arguments], cwd=self.root if at else "/", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                encoding="utf-8", errors="surrogateescape", env=self._environment(),
            )  # fmt: skip
        except FileNotFoundError:
            raise UsageError("there is no program git here", fix="apt-get install git") from None
        most_s = FETCH_S if arguments[0] == "fetch" else TIMEOUT_S
        with git:
            self._running = git
            try:
                if self._ended:
                    _kill(git)
                said, complained = git.communicate(timeout=most_s)
            except subprocess.TimeoutExpired:
                _kill(git)
                raise GitUnreachable(f"git {arguments[0]}: no answer within {most_s} s") from None
            finally:
                self._running = None
        if git.returncode:
            raise GitUnreachable(f"git {arguments[0]}: {_reason(complained) or git.returncode}")
        return said

    def _environment(self) -> Mapping[str, str]:
        """Return the environment git runs in: the user's, without questions.

        Without a terminal, which a session of its own has not, neither git nor ssh can ask.
        """
        environ = {n: v for n, v in os.environ.items() if n not in ("GIT_DIR", "GIT_WORK_TREE")}
        environ |= {"GIT_TERMINAL_PROMPT": "0", "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C.UTF-8"}
        user, password = self._source.credentials
        if user or password:
            environ |= {"MODELYARD_GIT_USER": user, "MODELYARD_GIT_WORD": password}
            number = int(environ.get("GIT_CONFIG_COUNT", "0"))
            environ[f"GIT_CONFIG_KEY_{number}"] = f"credential.{self._source.url}.helper"
            environ[f"GIT_CONFIG_VALUE_{number}"] = _ASKED
            environ["GIT_CONFIG_COUNT"] = str(number + 1)
        return environ


def _kill(git: subprocess.Popen[str]) -> None:
    """End git and what it started, such as ssh."""
    with suppress(ProcessLookupError):
        os.killpg(git.pid, signal.SIGKILL)


def _reason(said: str) -> str:
    """Return why git failed, in one line without a password: the first that it calls an error.

    Where a program below git says why, as ssh does, that is the line before git's own.

    >>> _reason("Warning: added\\nfatal: '/srv/x' is no repository\\nand the repository exists.")
    "'/srv/x' is no repository"
    >>> _reason("@@@@\\nPermission denied.\\nfatal: Could not read from remote repository.\\n\\nPlease")
    'Permission denied.'
    """
    said = re.sub(r"//[^/\s]*@", "//", said.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    marks = ("fatal: ", "error: ")
    for at, line in enumerate(lines):
        mark = next((mark for mark in marks if line.startswith(mark)), None)
        if mark and not (at and line.removeprefix(mark).lower() in _ADVICE):
            return line.removeprefix(mark)
        if mark:
            return lines[at - 1]
    return next((line for line in lines if not line.lower().startswith(("warning:", "hint:"))), "")
