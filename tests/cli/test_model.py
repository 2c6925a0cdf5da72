"""A model by its name, served for real on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.mark.slow
def test_a_model_is_served_on_this_machine_from_its_name_to_an_answer(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = os.environ.get("MODELYARD_TRANSFORMERS_PYTHON")
    if not python:
        pytest.skip("MODELYARD_TRANSFORMERS_PYTHON names no interpreter with transformers[serving]")
    make = Path(__file__).parents[1] / "engines/make_tiny.py"
    subprocess.run([python, make, cli.folder / "tiny"], check=True, capture_output=True)
    monkeypatch.setenv("PATH", f"{Path(python).parent}:{os.environ['PATH']}")
    monkeypatch.setenv(
        "MODELYARD_CONFIG", cli.write("c.yaml", f"backends: [{{type: process, state_dir: {cli.folder}/p}}]")
    )
    spec = (
        "type: service\nname: tiny\nmodel: ./tiny\nengine: transformers\nbackends: [process]\nport: 18231\n"
    )
    spec += "traffic: {concurrency: 1, input_tokens: 50, output_tokens: 20}\n"
    try:
        assert cli("apply", "-y", "-f", cli.write("tiny.yaml", spec)).code == 0
        address = json.loads(cli("show", "tiny", "--json").out)["run"]["addresses"][0]
        body = {
            "model": f"{cli.folder}/tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4,
        }
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4
    finally:
        assert cli("delete", "-y", "tiny").code == 0


def test_a_model_that_nobody_knows_is_told_at_its_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    served = cli.write("a.yaml", "type: service\nname: a\nmodel: {id: acme/none-of-ours}\n")
    tuned = cli.write("b.yaml", "type: task\nname: b\ntrain: {model: acme/none-of-ours, dataset: a/b}\n")
    for file, place in ((served, "3:13"), (tuned, "3:16")):
        refused = cli("plan", "-f", file)
        assert refused.code == 65
        assert refused.err.startswith(f"{file}:{place}: ")
