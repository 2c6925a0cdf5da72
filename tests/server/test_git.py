"""The work tree of a repository: its address, how it is reached, and what a killed git leaves of it."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.server import git
from orchestrator.server.git import Checkout, GitUnreachable, Source
from orchestrator.server.sync import Syncer, Wish
from tests.server.conftest import Served
from tests.server.test_sync import HELLO, Repository, repository

__all__ = ["repository"]

WORD = "pl@nt/ed"
QUOTED = "pl%40nt%2Fed"


@pytest.mark.parametrize(
    ("text", "url", "ref", "folder"),
    [
        ("git+https://host/o/r.git@feature/x//prod", "https://host/o/r.git", "feature/x", "prod"),
        ("git+ssh://git@host:22/o/r@release/1.2", "ssh://git@host:22/o/r", "release/1.2", ""),
        ("git+git@host:r.git@main", "git@host:r.git", "main", ""),
        ("git+https://[::1]:8443/r@main", "https://[::1]:8443/r", "main", ""),
        ("git+/srv/repo@fix#1", "/srv/repo", "fix#1", ""),
        ("git+/srv/a@b/repo@HEAD", "/srv/a@b/repo", "HEAD", ""),
    ],
)
def test_an_address_is_taken_apart(text: str, url: str, ref: str, folder: str) -> None:
    assert Source.parse(text) == Source(url, ref, folder)


def test_a_path_counts_from_where_the_server_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert Source.parse("git+./models@main").url == f"{tmp_path}/models"


@pytest.mark.parametrize(
    "text",
    [
        "git+https://me:planted@host/r@main",
        "git+https://me:pl@nted@host/r@main",
        "git+https://me:planted/x@host/r",
        "git+https://me:planted@host/r//../x",
        "https://me:planted@host/r",
    ],
)
def test_a_password_in_an_address_is_not_shown(text: str) -> None:
    try:
        source = Source.parse(text)
        shown = f"{source} {source!r} {source.url}"
    except UsageError as error:
        shown = str(error)

    assert "planted" not in shown
    assert "nted@" not in shown


@pytest.mark.parametrize("ref", ["feature/x", "fix#1", "a+b", "größe", "v1.0"])
def test_a_branch_may_be_called_as_git_allows(repository: Repository, tmp_path: Path, ref: str) -> None:
    repository.commit(hello=HELLO)
    repository.git("checkout", "--quiet", "-b", ref)
    commit = repository.commit(hello=HELLO.replace("echo hi", "echo ho"))
    checkout = Checkout(Source.parse(f"git+{repository.root}@{ref}//specs"), tmp_path / "checkout")

    assert (checkout.update(), checkout.newest()) == (commit, commit)


def _lock(name: str) -> Callable[[Path], object]:
    return lambda root: (root / ".git" / name).touch()


def _empty_objects(root: Path) -> None:
    for path in (p for p in (root / ".git/objects").rglob("*") if p.is_file()):
        path.chmod(0o600)
        path.write_bytes(b"")


def _half_made(root: Path) -> None:
    shutil.rmtree(root)
    (root / ".git").mkdir(parents=True)


@pytest.mark.parametrize(
    "left",
    [
        _lock("index.lock"),
        _lock("shallow.lock"),
        _lock("HEAD.lock"),
        _empty_objects,
        lambda root: (root / ".git/index").write_bytes(b"torn"),
        lambda root: (root / ".git/HEAD").write_bytes(b""),
        _half_made,
    ],
    ids=["index.lock", "shallow.lock", "HEAD.lock", "objects", "index", "HEAD", "half made"],
)
def test_what_a_killed_git_left_is_fetched_anew(
    repository: Repository, tmp_path: Path, left: Callable[[Path], object]
) -> None:
    repository.commit(hello=HELLO)
    checkout = Checkout(Source.parse(f"git+{repository.root}@main//specs"), tmp_path / "checkout")
    checkout.update()
    left(checkout.root)
    commit = repository.commit(hello=HELLO.replace("echo hi", "echo ho"))

    assert checkout.update() == commit
    assert "echo ho" in (checkout.folder / "hello.yaml").read_text()


def test_a_repository_around_the_work_tree_is_left_alone(repository: Repository, tmp_path: Path) -> None:
    """As where somebody keeps their home folder in git, and the state of the server lies in it."""
    around = Repository(tmp_path / "home")
    around.commit(mine=HELLO)
    edited = around.root / "specs" / "mine.yaml"
    edited.write_text("edited")
    root = around.root / "state"
    (root / ".git").mkdir(parents=True)
    repository.commit(hello=HELLO)

    Checkout(Source.parse(f"git+{repository.root}@main//specs"), root).update()

    assert edited.read_text() == "edited"


def test_a_work_tree_does_not_grow_with_every_commit(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git, "MOST_COMMITS", 3)
    checkout = Checkout(Source.parse(f"git+{repository.root}@main"), tmp_path / "checkout")
    gathered = []
    for number in range(6):
        commit = repository.commit(hello=HELLO.replace("echo hi", f"echo {number}"))
        assert checkout.update() == commit
        gathered.append(int(checkout._here("rev-list", "--all", "--reflog", "--count")))

    assert max(gathered) == 4
    assert gathered[-1] < 4


class _Host(ThreadingHTTPServer):
    """git's own HTTP backend behind a password, which looks who shows it while it answers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.folder = folder
        self.shown: list[bytes] = []


class _Asked(BaseHTTPRequestHandler):
    server: _Host

    def do_GET(self) -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                said = path.read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if WORD.encode() in said or QUOTED.encode() in said:
                self.server.shown.append(said)
        wanted = "Basic " + base64.b64encode(f"bot:{WORD}".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environ = {
            **os.environ, "GIT_PROJECT_ROOT": str(self.server.folder), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
        }  # fmt: skip
        done = subprocess.run(["git", "http-backend"], input=body, env=environ, capture_output=True)
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(lines.pop("Status", "200").split()[0]))
        for name, value in lines.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[_Host]:
    with _Host(tmp_path) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_the_password_of_an_address_opens_it_and_stands_in_no_list_of_processes(
    repository: Repository, tmp_path: Path, host: _Host
) -> None:
    commit = repository.commit(hello=HELLO)
    address = f"127.0.0.1:{host.server_address[1]}/repository"
    right = Checkout(Source.parse(f"git+http://bot:{QUOTED}@{address}@main"), tmp_path / "checkout")
    wrong = Checkout(Source.parse(f"git+http://bot:{QUOTED}x@{address}@main"), tmp_path / "wrong")

    assert (right.update(), right.newest()) == (commit, commit)
    assert WORD not in "".join(p.read_text("latin-1") for p in right.root.rglob("*") if p.is_file())
    with pytest.raises(GitUnreachable, match=f"Authentication failed for 'http://{address}"):
        wrong.update()
    assert host.shown == []


def _ssh(folder: Path, script: str) -> str:
    """Return what stands for ssh: the command is the last argument."""
    path = folder / "ssh"
    path.write_text(f"#!/bin/sh\nfor command; do :; done\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_ssh_is_called_as_the_user_has_it(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.commit(hello=HELLO)
    monkeypatch.setenv("GIT_SSH_COMMAND", _ssh(tmp_path, 'exec sh -c "$command"'))
    monkeypatch.setenv("GIT_SSH_VARIANT", "ssh")
    checkout = Checkout(Source.parse(f"git+ssh://host{repository.root}@main"), tmp_path / "checkout")

    assert checkout.update() == commit


def test_why_ssh_failed_is_told_whatever_its_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = r"printf '@@@@@@@@\n@ WARNING @\nf\374r dich: No host key.\n' >&2; exit 255"
    monkeypatch.setenv("GIT_SSH_COMMAND", _ssh(tmp_path, says))
    monkeypatch.setenv("GIT_SSH_VARIANT", "ssh")

    with pytest.raises(GitUnreachable, match=r"^git fetch: f\ufffdr dich: No host key\.$"):
        Checkout(Source.parse("git+ssh://host/repo@main"), tmp_path / "checkout").update()


def test_a_server_that_ends_does_not_wait_for_git(served: Served, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = Source.parse(f"git+http://127.0.0.1:{silent.getsockname()[1]}/r@main")
        syncer = Syncer(served.site, Wish(source), tmp_path / "checkout")
        syncer.start()
        asked, _ = silent.accept()
        closing = threading.Thread(target=syncer.close, daemon=True)
        closing.start()
        closing.join(timeout=20)

        assert not closing.is_alive()
        asked.close()
    assert syncer.history() == []


def test_a_disk_that_takes_no_work_tree_is_told(
    served: Served, repository: Repository, tmp_path: Path
) -> None:
    repository.commit(hello=HELLO)
    (tmp_path / "taken").write_text("")
    source = Source.parse(f"git+{repository.root}@main//specs")

    status = Syncer(served.site, Wish(source), tmp_path / "taken" / "checkout").once()

    assert (status.state, status.message) == ("failed", f"{tmp_path}/taken: File exists")
