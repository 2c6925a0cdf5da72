"""A real engine behind the gateway: ``transformers serve`` from zero, driven by OpenAI's own client.

It takes the interpreter that ``MODELYARD_TRANSFORMERS_PYTHON`` names, as the tests of that engine do.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from orchestrator.api import Local
from orchestrator.gateway.keys import PREFIX, new_key
from orchestrator.reconcile.values import Wanted
from orchestrator.spec.load import load
from tests import images
from tests.engines.test_parsers import interpreter
from tests.gateway.test_record import NOW, program
from tests.training.conftest import needed

pytestmark = pytest.mark.slow

MAKE = Path(__file__).parents[1] / "engines" / "make_tiny.py"
SERVICE = """\
type: service
name: tiny
model: {id: ./tiny, context: 128}
engine: transformers
traffic: {concurrency: 1, input_tokens: 32, output_tokens: 16}
replicas: 0..1
scaling: {metric: running, target: 4}
"""


def on_docker(python: Path) -> str:
    """Return what a spec says so that a container runs the engine of this machine."""
    images.require_engine()
    mounts = ", ".join(f'"{path}:{path}"' for path in needed(python))
    boxed = f'env: {{PATH: "{python.parent}:/bin", HOME: /tmp}}\nresources: {{gpu: 0}}\n'
    return f"backends: [docker]\nimage: {images.python()}\nvolumes: [{mounts}]\n{boxed}"


@pytest.mark.parametrize("backend", ["process", pytest.param("docker", marks=pytest.mark.docker)])
def test_openai_s_client_is_served_from_zero_by_a_real_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    openai = pytest.importorskip("openai")
    python = Path(interpreter("transformers"))
    where = on_docker(python) if backend == "docker" else "backends: [process]\n"
    subprocess.run([python, MAKE, tmp_path / "tiny"], check=True, capture_output=True)
    (tmp_path / "hub").mkdir()
    config = tmp_path / "config.yaml"
    options = {
        "process": f"state_dir: {tmp_path}/process",
        "docker": f"namespace: real-{uuid.uuid4().hex[:8]}",
    }
    config.write_text(f"backends: [{{type: {backend}, {options[backend]}}}]\n")
    monkeypatch.setenv("MODELYARD_CONFIG", str(config))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    file = tmp_path / "tiny.yaml"
    file.write_text(SERVICE + where)
    api = Local(f"sqlite:///{tmp_path}/state.db", config=config)
    api.apply(api.plan(load([str(file)])))
    key, secret = new_key("ann", None)
    api.store.secrets.set(PREFIX + "ann", key.text(), now=NOW)
    said = [{"role": "user", "content": "hello"}]
    try:
        with (
            program(tmp_path) as (_, url),
            openai.OpenAI(base_url=f"{url}/v1", api_key=secret, timeout=120) as client,
        ):
            (model,) = [model.id for model in client.models.list()]
            answer = client.chat.completions.create(model=model, messages=said, max_tokens=4)
            assert answer.choices[0].message.role == "assistant"
            assert answer.usage.completion_tokens == 4
            with client.chat.completions.create(
                model=model, messages=said, max_tokens=4, stream=True
            ) as chunks:
                assert len(list(chunks)) >= 4
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="other", messages=said)
            with pytest.raises(openai.NotFoundError):
                client.post("/load_model", body={"model": model}, cast_to=object)
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="my-own").models.list()
    finally:
        api.ask(["tiny"], Wanted.DELETE)
        api.follow(["tiny"], "deleted", timeout_s=60)
        api.close()
