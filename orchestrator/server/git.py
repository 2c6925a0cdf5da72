"""A git repository at one commit, on disk: fetched shallowly by the program, nothing of it is run."""

from __future__ import annotations

import fcntl
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import Temporary, UsageError
from orchestrator.frozen import frozen

TIMEOUT_S = 120
_SAFE = (
    # A repository is somebody else's: its hooks do not run, its links lead nowhere, and no
    # transport of its choosing starts a program.
    "-c", "core.hooksPath=/dev/null", "-c", "core.symlinks=false", "-c", "protocol.ext.allow=never",
    "-c", "advice.detachedHead=false", "-c", "gc.auto=0", "-c", "safe.directory=*",
)  # fmt: skip
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


class GitUnreachable(UsageError, Temporary):
    """git could not fetch: what the repository holds now is unknown."""

    exit_code = 69


@frozen
class Source:
    """Where specs lie: a repository, a branch, tag or commit of it, and a folder in it."""

    url: str
    ref: str = "HEAD"
    folder: str = ""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Return the source that ``git+URL[@REF][//FOLDER]`` names.

        Raises:
            UsageError: it has another form.

        >>> Source.parse("git+https://host/org/repo.git@main//prod/specs")
        Source(url='https://host/org/repo.git', ref='main', folder='prod/specs')
        >>> Source.parse("git+ssh://git@host/repo").ref, Source.parse("git+/srv/repo@v1").url
        ('HEAD', '/srv/repo')
        """
        fix = "git+URL[@REF][//FOLDER], for example git+https://host/org/repo.git@main//specs"
        if not text.startswith("git+"):
            raise UsageError(f"{text!r} names no repository", fix=fix)
        scheme, colon, rest = text[4:].rpartition("://") if "://" in text else ("", "", text[4:])
        rest, _, folder = rest.partition("//")
        head, slash, last = rest.rpartition("/")
        last, _, ref = last.partition("@")
        url, folder = f"{scheme}{colon}{head}{slash}{last}", folder.strip("/")
        if not last or url.startswith("-") or ".." in folder.split("/"):
            raise UsageError(f"{text!r} names no repository", fix=fix)
        if ref and not _REF.fullmatch(ref):
            raise UsageError(f"{ref!r} is no branch, tag or commit", fix=fix)
        return cls(url, ref or "HEAD", folder)

    def __str__(self) -> str:
        # a URL may hold a password: what is shown does not
        url = re.sub(r"//[^/@]*@", "//", self.url)
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

    def update(self) -> str:
        """Fetch, and put the work tree at the newest commit; return it.

        A branch that was pushed by force is followed like any other.

        Raises:
            GitUnreachable: git cannot fetch, or there is no such ref.
            UsageError: the commit has no good signature, and has to have one.
        """
        if not (self.root / ".git").exists():
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._git("init", "--quiet")
        fetch = ("fetch", "--quiet", "--depth", "1", "--force", "--no-tags", "--end-of-options")
        self._git(*fetch, self._source.url, self._source.ref)
        commit = self._git("rev-parse", "FETCH_HEAD^{commit}").strip()
        if self._signed:
            try:
                self._git("verify-commit", commit)
            except GitUnreachable as error:
                raise UsageError(
                    f"commit {commit[:12]} has no good signature", fix="sign it with a key git knows here"
                ) from error
        self._git("checkout", "--quiet", "--force", "--detach", commit)
        self._git("clean", "--quiet", "-ffdx")
        return commit

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

    def _git(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(self.root), *_SAFE, *arguments],
                capture_output=True, text=True, timeout=TIMEOUT_S, env=_environment(),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise GitUnreachable(f"git {arguments[0]}: no answer within {TIMEOUT_S} s") from None
        except FileNotFoundError:
            raise UsageError("there is no program git here", fix="apt-get install git") from None
        if done.returncode:
            raise GitUnreachable(f"git {arguments[0]}: {_reason(done.stderr) or done.returncode}")
        return done.stdout


def _reason(said: str) -> str:
    """Return what git says first that is no warning; its advice comes last. No password is in it.

    >>> _reason("Warning: added\\nfatal: '/srv/x' is no repository\\nand the repository exists.")
    "'/srv/x' is no repository"
    """
    lines = (line.strip() for line in re.sub(r"//[^/@\s]*@", "//", said).splitlines())
    first = next((line for line in lines if line and not line.lower().startswith(("warning:", "hint:"))), "")
    return first.removeprefix("fatal: ").removeprefix("error: ")


def _environment() -> dict[str, str]:
    """Return the environment git runs in: the user's, without questions."""
    import os

    return {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}
