"""What a kubelet cannot ask itself is asked by a command, with whatever the image has to ask with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backends.kubernetes import questions
from backends.kubernetes.questions import command, question
from backends.kubernetes.render import render_group
from backends.kubernetes.settings import Settings
from orchestrator.backend import Probe
from tests.backends.kubernetes import rules
from tests.backends.kubernetes.samples import SERVE, SERVICE

BODY = json.dumps({"model": 'it\'s a "model" $HOME `id`', "prompt": "1", "max_tokens": 1})
TOKEN = Probe(
    port=1, path="/v1/completions", method="POST", body=BODY, timeout_s=5,
    headers=(("content-type", "application/json"), ("x-key", "a: b  c")),
)  # fmt: skip
TOOLS = ["curl", "python3", "python", "wget", "busybox"]


class Asked(ThreadingHTTPServer):
    """A program that answers ``status`` to everything; 0 is never."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.ends = threading.Event()
        self.seen: list[tuple[str, str, str, str | None, str | None]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Asked

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        told = self.headers.get("content-type"), self.headers.get("x-key")
        self.server.seen.append((self.command, self.path, body, *told))
        if not self.server.status:
            self.server.ends.wait()
            return
        self.send_response(self.server.status)
        self.send_header("location", "http://127.0.0.1:1/")
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST  # noqa: N815  # as the server calls them

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def program(status: int) -> Iterator[Asked]:
    with Asked(status) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.ends.set()
            server.shutdown()
            thread.join()


def image(folder: Path, tool: str) -> str:
    """Return a PATH with a shell and one tool, as a small image has it."""
    folder.mkdir()
    shell = shutil.which("busybox" if tool == "busybox" else "sh")
    assert shell is not None
    (folder / "sh").symlink_to(shell)
    if tool == "busybox":
        (folder / "wget").symlink_to(shell)
    elif tool:
        found = sys.executable if tool.startswith("python") else shutil.which(tool)
        if found is None:
            pytest.skip(f"there is no {tool} here")
        (folder / tool).write_text(f'#!/bin/sh\nexec {found} "$@"\n')
        (folder / tool).chmod(0o755)
    return str(folder)


def run(probe: Probe, path: str) -> subprocess.CompletedProcess[str]:
    words = command(probe)
    shell = shutil.which(words[0], path=path)
    assert shell is not None
    return subprocess.run(
        words, executable=shell, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_a_program_is_asked_as_the_probe_says_with_what_the_image_has(tmp_path: Path, tool: str) -> None:
    asks_as_the_probe_says(tmp_path, tool)


def asks_as_the_probe_says(folder: Path, tool: str) -> None:
    path = image(folder / "bin", tool)
    with program(200) as server:
        done = run(replace(TOKEN, port=server.server_port), path)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.seen == [("POST", "/v1/completions", BODY, "application/json", "a: b  c")]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_what_answers_with_an_error_is_not_ready(tmp_path: Path, tool: str, status: int) -> None:
    fails_on(tmp_path, tool, status)


def fails_on(folder: Path, tool: str, status: int) -> None:
    path = image(folder / "bin", tool)
    with program(status) as server:
        done = run(replace(TOKEN, port=server.server_port, timeout_s=30), path)
    assert done.returncode
    assert len(server.seen) == 1


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "busybox"])
def test_what_hangs_or_does_not_listen_is_not_ready_in_time(tmp_path: Path, tool: str) -> None:
    path = image(tmp_path / "bin", tool)
    with program(0) as server:
        hangs = replace(TOKEN, port=server.server_port, timeout_s=1)
        assert run(hangs, path).returncode
    assert run(hangs, path).returncode


@pytest.mark.parametrize("tool", ["curl", "python3"])
def test_other_methods_are_asked_and_what_leads_elsewhere_is_an_answer(tmp_path: Path, tool: str) -> None:
    path = image(tmp_path / "bin", tool)
    with program(307) as server:
        done = run(replace(TOKEN, port=server.server_port, method="PUT"), path)
    assert done.returncode == 0
    assert [seen[:3] for seen in server.seen] == [("PUT", "/v1/completions", BODY)]


@pytest.mark.parametrize(
    ("tool", "method", "says"),
    [
        ("", "POST", "curl, python or wget in the image"),
        ("busybox", "PUT", "a probe with PUT takes curl or python"),
    ],
)
def test_an_image_that_cannot_ask_says_so(tmp_path: Path, tool: str, method: str, says: str) -> None:
    done = run(replace(TOKEN, method=method), image(tmp_path / "bin", tool))
    assert done.returncode == 1
    assert says in done.stdout  # which a kubelet tells as an event


def test_a_group_is_asked_for_its_token_by_all_three_probes() -> None:
    group = replace(SERVICE, template=replace(SERVE, probe=replace(TOKEN, port=8000)))
    (owner, *_) = render_group(group, Settings()).objects
    (template, *_) = rules.pod_templates(owner)
    asked = template["spec"]["containers"][0]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert asked[name]["exec"]["command"] == command(replace(TOKEN, port=8000))
        assert "httpGet" not in asked[name]
    assert "exec" not in question(replace(TOKEN, method="GET", body=None))


def _takes_any_status(text: str) -> str:
    return text.replace("-sSf", "-sS").replace("200 <= status < 400", "True")


def _drops_fields(text: str) -> str:
    return (
        text.replace('-H "$field"', "")
        .replace('--header "$field"', "")
        .replace("for field in fields", "for field in []")
    )


@pytest.mark.parametrize("tool", ["curl", "python3", "busybox"])
@pytest.mark.parametrize(
    ("broken", "test"),
    [(_takes_any_status, lambda f, tool: fails_on(f, tool, 500)), (_drops_fields, asks_as_the_probe_says)],
)  # fmt: skip
def test_a_broken_question_is_caught(
    broken: Callable[[str], str],
    test: Callable[[Path, str], None],
    tool: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if tool == "busybox" and broken is _takes_any_status:
        pytest.skip("wget has no way not to fail")
    monkeypatch.setattr(questions, "SHELL", broken(questions.SHELL))
    monkeypatch.setattr(questions, "PYTHON", broken(questions.PYTHON))
    with pytest.raises(AssertionError):
        test(tmp_path, tool)
