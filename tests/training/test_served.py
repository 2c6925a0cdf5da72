"""What was tuned here answers here."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest

from tests.training.conftest import User
from tests.training.test_interrupted import whole as whole  # the fixture

pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]

SERVE = """\
type: service
name: tuned
backends: [process]
engine: transformers
model: run://whole
port: {port}
env: {{OMP_NUM_THREADS: "1"}}
"""


def test_tuned_model_answers(user: User, whole: float) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
    (user.folder / "tuned.yaml").write_text(SERVE.format(port=port))
    user("apply", "-y", "-f", "tuned.yaml")
    left = {each["kind"]: each for each in user.shown("whole")["artifacts"]}
    assert [*left] == ["adapter", "merged", "state"]
    model = f"{left['merged']['location']}/{left['merged']['path']}"
    body = {"model": model, "messages": [{"role": "user", "content": "3"}], "max_tokens": 4}
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        said = json.loads(answer.read())
    user("stop", "-y", "tuned")
    assert said["choices"][0]["message"]["content"]
    assert said["model"].startswith(model)
