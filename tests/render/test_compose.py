"""Compose files: what Docker would run, no secret in them, and read back as what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.apply import Plan, RunPlan, plan_documents
from orchestrator.apply.imagined import anywhere, imagined_world, vendor_of
from orchestrator.errors import NothingFits, SpecError
from orchestrator.facts import resolve
from orchestrator.importers import import_text
from orchestrator.render.compose import COMPOSE_CAN, compose_notes, compose_text
from orchestrator.spec.load import load, read

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))

WEB = """\
type: service
name: web
image: nginx:1.29
commands: ['echo "$HOME"', "nginx -g 'daemon off;'"]
env: {A: "1$x", TOKEN: , AUTH: "Bearer ${{ secrets.API }}", NUMBER: "010"}
port: 80
ports: ["*:9000"]
volumes: [data:/data, "/srv/app:/srv:ro"]
resources: {cpu: 2.., memory: 2GB.., gpu: 1, shm_size: 1GB}
replicas: 2
probes: [{url: /health?full=1, interval: 10s, timeout: 5s, failures: 5, start_duration: 2m}]
user: "1000:1000"
working_dir: /srv
privileged: true
stop_duration: 1m
tags: {team: a, example.com/stage: "1"}
"""
TASK = (
    "type: task\nname: hello\nimage: busybox:1.37\ncommands: [echo hi, date]\nretry: {on_events: [error]}\n"
)


def planned(text: str) -> list[Plan]:
    return [
        plan
        for document in read(text)
        for plan in plan_documents(
            [anywhere(document)],
            imagined_world(
                "docker",
                COMPOSE_CAN,
                vendor=vendor_of(document),
                facts=lambda model: resolve(model.id, offline=True),
            ),
        )
    ]


def rendered(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(compose_text(planned(text)))
    return found


@pytest.mark.parametrize("text", [WEB, TASK], ids=["service", "task"])
def test_what_was_rendered_is_imported_as_it_was(text: str) -> None:
    back = import_text(compose_text(planned(text)), tool="compose", file="compose.yaml")

    assert read(back.text)[0].spec.canonical() == read(text)[0].spec.canonical()
    assert back.left_out == ()


def test_a_secret_is_a_reference_that_has_to_be_set() -> None:
    environment = rendered(WEB)["services"]["web"]["environment"]

    assert environment == {
        "A": "1$$x",
        "TOKEN": "${TOKEN:?set TOKEN}",
        "AUTH": "Bearer ${API:?set API}",
        "NUMBER": "010",
    }


def test_tags_are_labels() -> None:
    assert rendered(WEB)["services"]["web"]["labels"] == {"team": "a", "example.com/stage": "1"}


def test_accelerators_are_reserved_by_number() -> None:
    service = rendered(WEB)["services"]["web"]

    assert service["deploy"]["resources"] == {
        "limits": {"cpus": "2", "memory": "2000000000b"},
        "reservations": {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]},
    }
    assert service["shm_size"] == "1000000000b"


def test_amds_accelerators_are_device_files() -> None:
    service = rendered(WEB.replace("gpu: 1", "gpu: MI300X:1"))["services"]["web"]

    assert service["devices"] == ["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"]
    assert "reservations" not in service["deploy"]["resources"]


def test_a_model_comes_with_its_engine_and_its_probe() -> None:
    service = rendered("type: service\nname: chat\nmodel: Qwen/Qwen3-8B\nengine: vllm\n")["services"]["chat"]

    assert service["image"].startswith("vllm/vllm-openai:")
    assert [*service["entrypoint"], *service["command"]][:3] == ["vllm", "serve", "Qwen/Qwen3-8B"]
    assert service["healthcheck"]["test"][1].startswith("curl -fsS")
    assert service["restart"] == "unless-stopped"


def test_volumes_are_those_that_docker_runs_use() -> None:
    assert rendered(WEB)["volumes"] == {"data": {"name": "modelyard-data"}}


def test_files_become_configs(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("echo $HOME\n")
    text = TASK + f"files: ['{tmp_path}/run.sh:/app/run.sh']\n"

    found = rendered(text)

    assert found["configs"] == {"hello-0": {"content": "echo $$HOME\n"}}
    assert found["services"]["hello"]["configs"][0]["target"] == "/app/run.sh"


@pytest.mark.parametrize(
    ("content", "target", "said"),
    [(b"x", "run.sh", "needs the whole path"), (b"\xff", "/run.sh", "is no text")],
    ids=["relative", "binary"],
)
def test_a_file_that_compose_cannot_have_is_refused(
    tmp_path: Path, content: bytes, target: str, said: str
) -> None:
    (tmp_path / "run.sh").write_bytes(content)

    with pytest.raises(SpecError) as caught:
        rendered(TASK + f"files: ['{tmp_path}/run.sh:{target}']\n")

    assert said in caught.value.problems[0].what


def test_work_for_several_machines_fits_nowhere() -> None:
    with pytest.raises(NothingFits):
        rendered(TASK + "nodes: 2\n")


def test_what_compose_has_no_word_for_is_named_at_its_place() -> None:
    text = (
        WEB.replace("replicas: 2", "replicas: 1..3\nscaling: {metric: rps, target: 5}") + "max_duration: 2h\n"
    )

    notes = compose_notes(planned(text))

    assert [(note.at.line, note.what.split()[0]) for note in notes] == [(11, "compose"), (18, "compose")]


def test_wishes_for_a_place_do_not_count() -> None:
    text = TASK + "backends: [aws]\nregions: [eu-west-1]\nspot_policy: spot\nmax_price: 0.01\n"

    assert rendered(text)["services"].keys() == {"hello"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_renders_and_reads_back(path: Path) -> None:
    documents = load([str(path)], env={})
    for document in documents:
        try:
            world = imagined_world(
                "docker",
                COMPOSE_CAN,
                vendor=vendor_of(document),
                facts=lambda model: resolve(model.id, offline=True),
            )
            plans = plan_documents([anywhere(document)], world)
        except NothingFits:
            continue  # a fleet, several machines, or no image
        text = compose_text(plans)
        assert text == compose_text(plans)
        if any(isinstance(plan, RunPlan) for plan in plans):
            assert import_text(text, tool="compose", file="compose.yaml").text


@pytest.mark.parametrize(("port", "path"), [('port: "8080:80"', 4), ('port: 80\nports: ["9000:9000"]', 5)])
def test_replicas_of_one_machine_cannot_share_a_port(port: str, path: int) -> None:
    text = f"type: service\nname: web\nimage: nginx:1.29\n{port}\nreplicas: "
    assert "published" in compose_text(planned(text + "1\n"))
    with pytest.raises(SpecError) as caught:
        compose_text(planned(text + "2\n"))
    (problem,) = caught.value.problems
    assert problem.at.line == path
    assert "cannot all have port" in problem.what
