"""``transformers serve``, started for real with the command we generate, on this machine's CPU.

``MODELYARD_TRANSFORMERS_PYTHON`` names an interpreter that has torch and ``transformers[serving]``;
without it these tests skip, unless ``MODELYARD_REQUIRE`` asks for them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.catalog.values import ModelFacts
from orchestrator.engines import EngineLaunch, ServingJob, Source, engine
from tests.engines.test_parsers import interpreter

pytestmark = pytest.mark.slow

TINY = ModelFacts("tiny", "LlamaForCausalLM", 2, 48, 96, 4, 2, 12, 259, context=256)


@dataclass
class Served:
    """A running server and the launch it came from."""

    launch: EngineLaunch
    process: subprocess.Popen[bytes]

    def request(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Return status and body of one request."""
        url = f"http://127.0.0.1:{self.launch.port}{path}"
        sent = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(url, sent, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()

    def wait(self) -> None:
        """Return once the launch's own probe succeeds."""
        assert self.launch.probe
        deadline = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if self.request(self.launch.probe.path)[0] == 200:
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)  # the port is not open yet
        pytest.fail(f"not ready, exit code {self.process.poll()}")


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Start the tiny model as a launch without an image would be."""
    python, folder = Path(interpreter("transformers")), tmp_path_factory.mktemp("tiny")
    subprocess.run(
        [python, Path(__file__).with_name("make_tiny.py"), folder], check=True, capture_output=True
    )
    sized = ServingJob(TINY, Source("tiny", path=str(folder)), port=free_port(), context_tokens=256)
    launch = engine("transformers").launch(sized)
    variables = {**os.environ, **dict(launch.env), "HF_HOME": str(folder / "home")}
    variables["PATH"] = f"{python.parent}:{variables['PATH']}"
    words = [*(launch.entrypoint or ()), *launch.command]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(words, env=variables, stdout=log, stderr=subprocess.STDOUT)
    started = Served(launch, process)
    try:
        started.wait()
        yield started
    finally:
        process.kill()
        process.wait()
        log.close()


def test_answers_under_the_stated_name(served: Served) -> None:
    body = {
        "model": served.launch.model_name,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4,
    }
    status, answer = served.request("/v1/chat/completions", body)
    assert status == 200, answer
    assert json.loads(answer)["choices"][0]["message"]["role"] == "assistant"


def test_another_name_is_refused(served: Served) -> None:
    status, _ = served.request("/v1/completions", {"model": "other", "prompt": "a", "max_tokens": 2})
    assert status == 400


def test_streams(served: Served) -> None:
    body = {"model": served.launch.model_name, "prompt": "a", "max_tokens": 3, "stream": True}
    status, answer = served.request("/v1/completions", body)
    assert status == 200
    assert answer.count(b"data: ") >= 3


def test_tells_no_metrics(served: Served) -> None:
    assert served.launch.metrics is None
    assert served.request("/metrics")[0] == 404


def test_stops_within_its_grace(served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(timeout=served.launch.stop_grace_s) in (0, -signal.SIGTERM)
