"""What specs need from elsewhere, listed and bundled: from a real registry, through a real engine."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import run
from orchestrator.facts import snapshots
from tests import images
from tests.backends.ssh.farm import until
from tests.facts.hub_server import SHA, FakeHub, serving

MODEL = "Qwen/Qwen3-8B"
SPEC = """\
type: service
name: chat
model: Qwen/Qwen3-8B
resources: {gpu: H100:1}
---
type: task
name: hello
image: python:3.12-slim
commands: [echo hi]
---
type: task
name: sft
train: {method: sft, model: Qwen/Qwen3-8B, dataset: trl-lib/Capybara}
"""
Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return what runs a command in an empty folder: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    for name in ("STATE_HOME", "CACHE_HOME", "CONFIG_HOME"):
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path / name))
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "MODELYARD_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def ask(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(list(arguments))
        return (code, *capsys.readouterr())

    return ask


def test_images_and_models_are_listed_with_the_runs_that_need_them(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "specs.yaml").write_text(SPEC)
    code, out, err = ask("images", "-f", "specs.yaml", "--offline", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["schema"] == "modelyard/images/v1"
    assert [(each["reference"], each["runs"]) for each in found["images"]] == [
        ("huggingface/trl:1.16.0", ["sft"]), ("python:3.12-slim", ["hello"]),
        ("vllm/vllm-openai:v0.33.0", ["chat"]),
    ]  # fmt: skip
    assert [(each["kind"], each["id"], each["runs"]) for each in found["hub"]] == [
        ("dataset", "trl-lib/Capybara", ["sft"]), ("model", MODEL, ["chat", "sft"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "more", ["type: task\nname: bare\ncommands: [echo hi]\n", "type: fleet\nname: bare\nnodes: 2\n"]
)
def test_what_starts_from_no_image_needs_none(ask: Ask, tmp_path: Path, more: str) -> None:
    (tmp_path / "specs.yaml").write_text(SPEC + "---\n" + more)
    code, out, err = ask("images", "-f", "specs.yaml", "--offline")
    assert (code, "hello" in out, "bare" in out) == (0, True, False), err


def test_the_mirror_of_each_image_is_told(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC.split("---\n")[1])
    (tmp_path / "config.yaml").write_text("mirrors: {registries: {docker.io: reg.lan/hub}}\n")
    code, out, _ = ask("images", "-f", "spec.yaml", "--offline", "--config", "config.yaml")
    assert code == 0
    assert out.splitlines()[1].split() == [
        "-",
        "python:3.12-slim",
        "reg.lan/hub/library/python:3.12-slim",
        "hello",
    ]


def test_plans_and_manifests_name_the_mirror_and_the_hub(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC.split("---\n")[0])
    (tmp_path / "config.yaml").write_text(
        "mirrors: {registries: {docker.io: reg.lan/hub}, hub: 'http://hub.lan/'}\n"
    )
    for to in ("compose", "kubernetes"):
        code, out, _ = ask("render", "-f", "spec.yaml", "--to", to, "--config", "config.yaml")
        assert code == 0
        assert "reg.lan/hub/vllm/vllm-openai:v0.33.0" in out
        assert "http://hub.lan" in out
        assert "image: vllm/" not in out


# A registry, an engine and a hub ------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run Debian's registry on loopback, with one image in it."""
    images.require_engine()
    if shutil.which("docker-registry") is None:
        pytest.skip("no docker-registry: apt-get install docker-registry")
    import docker

    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{one.getsockname()[1]}"
    (folder / "config.yml").write_text(
        f"version: 0.1\nhttp: {{addr: '{where}'}}\nstorage: {{filesystem: {{rootdirectory: {folder}}}}}\n"
    )
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    made = f"{where}/team/tool"
    try:
        until(lambda: answers(where), "the registry")
        with closing(docker.APIClient(version="auto")) as client:
            client.tag(images.busybox(), made, "1")
            for line in client.push(made, tag="1", stream=True):
                assert b"errorDetail" not in line, line
            client.remove_image(f"{made}:1")
        yield where
    finally:
        server.terminate()
        server.wait(30)
        with closing(docker.APIClient(version="auto")) as client:
            for name in (f"{made}:1", f"{where}/mirror/team/tool:1"):
                with suppress(docker.errors.APIError):
                    client.remove_image(name)


def answers(where: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{where}/v2/", timeout=5):
            return True
    except OSError:
        return False


def digest(registry: str, name: str) -> str:
    """Return the digest that the registry has of a tag."""
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    request = urllib.request.Request(f"http://{registry}/v2/{name}/manifests/1", headers={"Accept": kind})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.headers["Docker-Content-Digest"])


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    weights = b"\x00" * 70_000
    files = {"config.json": b"{}", "model.safetensors": weights, "1_Pooling/config.json": b"{}",
             "original/consolidated.pth": b"once more"}  # fmt: skip
    large = {"model.safetensors": {"lfs": {"sha256": hashlib.sha256(weights).hexdigest()}}}
    with serving(FakeHub(files, id=MODEL, large=large)) as made:
        yield made


@pytest.mark.docker
def test_what_is_bundled_is_loaded_pushed_and_run_from_the_mirror(
    ask: Ask, tmp_path: Path, registry: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    image = f"{registry}/team/tool:1"
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/tool.yaml").write_text(
        f"type: task\nname: tool\nimage: {image}\ncommands: ['echo carried $HF_ENDPOINT']\n"
    )
    chat = SPEC.split("---\n")[0].replace("gpu: H100:1}", f"gpu: H100:1}}\nimage: {image}")
    (tmp_path / "specs/chat.yaml").write_text(chat)
    namespace = f"modelyard-test-{tmp_path.name.lower().replace('_', '-')[-20:]}"
    (tmp_path / "config.yaml").write_text(
        f"mirrors:\n  registries: {{'{registry}': '{registry}/mirror'}}\n  hub: http://hub.lan\n"
        f"backends: [{{type: docker, namespace: {namespace}}}]\n"
    )

    code, out, err = ask("images", "-f", "specs", "--json", "--config", "config.yaml")
    assert code == 0, err
    found = json.loads(out)
    (listed,) = found["images"]
    assert (listed["digest"], listed["runs"]) == (digest(registry, "team/tool"), ["chat", "tool"])
    assert listed["from"] == f"{registry}/mirror/team/tool:1"
    assert found["hub"] == [{"kind": "model", "id": MODEL, "revision": None, "commit": SHA, "runs": ["chat"]}]

    code, out, err = ask("bundle", "-f", "specs", "--out", "bundle", "--config", "config.yaml")
    assert code == 0, err
    made = json.loads((tmp_path / "bundle/bundle.json").read_text())
    (saved,) = made["images"]
    tar = tmp_path / "bundle" / saved["file"]
    assert (saved["bytes"], saved["sha256"]) == (
        tar.stat().st_size, hashlib.sha256(tar.read_bytes()).hexdigest(),
    )  # fmt: skip
    assert saved["digest"] == listed["digest"]
    with tarfile.open(tar) as archive:
        manifest = json.load(archive.extractfile("manifest.json") or pytest.fail("no manifest"))
    assert manifest[0]["RepoTags"] == [image]
    (model,) = made["hub"]
    folder = tmp_path / "bundle" / model["folder"]
    assert (model["commit"], model["files"], folder) == (SHA, 3, tmp_path / "bundle/models" / MODEL)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert not (folder / "original").exists()

    hub.asked.clear()
    assert ask("bundle", "-f", "specs", "--out", "bundle", "--config", "config.yaml")[0] == 0
    assert not [path for path in hub.paths() if "/resolve/" in path], "what is there is not fetched again"

    subprocess.run(["docker", "rmi", "-f", image], check=True, capture_output=True)
    subprocess.run([tmp_path / "bundle/load.sh"], check=True, capture_output=True)
    subprocess.run(["docker", "rmi", "-f", image, listed["from"]], check=True, capture_output=True)
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{tmp_path}/state.db")
    monkeypatch.delenv("HF_ENDPOINT")
    try:
        code, _, err = ask("apply", "-y", "-f", "specs/tool.yaml", "--config", "config.yaml")
        assert code == 0, err
        assert ask("logs", "tool", "--config", "config.yaml")[1] == "carried http://hub.lan\n"
        shown = subprocess.run(
            ["docker", "inspect", "--format", "{{.Config.Image}}", f"{namespace}-tool-0-0-0"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert shown.strip() == listed["from"]
    finally:
        ask("delete", "tool", "-y", "--config", "config.yaml")


@pytest.mark.docker
def test_what_cannot_be_had_is_named_and_the_rest_is_written(
    ask: Ask, tmp_path: Path, registry: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    (tmp_path / "spec.yaml").write_text(
        f"type: task\nname: a\nimage: {registry}/team/none:1\ncommands: [x]\n---\n"
        f"type: task\nname: b\nimage: {registry}/team/tool:1\ncommands: [x]\n"
    )
    code, _, err = ask("images", "-f", "spec.yaml")
    assert code == 0
    assert f"{registry}/team/none:1" in err
    code, _, err = ask("bundle", "-f", "spec.yaml", "--out", "bundle")
    assert code == 64
    assert f"not written: image {registry}/team/none:1: its registry has none of that name" in err
    made = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert [each["reference"] for each in made["images"]] == [f"{registry}/team/tool:1"]


def test_an_engine_that_does_not_answer_is_named(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    (tmp_path / "spec.yaml").write_text(SPEC.split("---\n")[1])
    code, out, err = ask("images", "-f", "spec.yaml")
    assert code == 0
    assert "python:3.12-slim" in out
    assert "digests unknown: no Docker engine answers" in err
    code, _, err = ask("bundle", "-f", "spec.yaml", "--out", "bundle")
    assert code == 69
    assert "DOCKER_HOST" in err


def test_a_file_that_is_not_what_the_hub_says_is_not_kept(tmp_path: Path, hub: FakeHub) -> None:
    from orchestrator.errors import ModelError
    from orchestrator.facts import Hub

    hub.large["model.safetensors"]["lfs"]["sha256"] = "0" * 64
    fetch: Any = lambda: snapshots.snapshot(  # noqa: E731 - said twice below
        "models", MODEL, revision=None, hub=Hub(hub.url), folder=tmp_path / "m", progress=lambda _: None
    )
    with pytest.raises(ModelError, match=r"model\.safetensors of Qwen/Qwen3-8B is not what the hub says"):
        fetch()
    assert not list((tmp_path / "m").glob("*model.safetensors*"))
    hub.files["../escape"] = b"x"
    with pytest.raises(ModelError, match="outside its repository"):
        fetch()
