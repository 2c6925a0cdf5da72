"""Compose files as their users write them: what references stand for, what runs, and who reaches whom."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.importers import import_text
from orchestrator.importers.settle import Imported
from orchestrator.spec.load import read


def imported(said: str, more: str = "") -> Imported:
    """Import a service ``web`` that says so, and ``more`` of them."""
    text = f"services:\n  web: {{image: nginx, {said}}}\n{more}"
    return import_text(text, tool="compose", file="compose.yaml")


def spec(found: Imported, **env: str) -> dict[str, Any]:
    """Return the first document's fields, with an environment."""
    return read(found.text, env=env)[0].spec.canonical()


@pytest.mark.parametrize(
    ("said", "value", "lost"),
    [
        ("${V:-a b}", "a b", 0),
        ("${V-}", "", 0),
        ("${V:-${W:-deep}}", "deep", 0),
        ("x${V:-{a}}y", "x{a}y", 0),
        ("${V:+given}", "", 1),
        ("${V+given}", "", 1),
        ("pre-${V}-post", "pre-set-post", 0),
        ("$$V and $${V} and $V", "$V and ${V} and set", 0),
        ("${V", "${V", 0),
    ],
)
def test_a_variables_value_is_what_compose_makes_of_it(said: str, value: str, lost: int) -> None:
    found = imported(f"environment: {{A: '{said}'}}")

    assert spec(found, V="set")["env"] == {"A": value}
    assert len(found.left_out) == lost


@pytest.mark.parametrize("said", ["${V:?say it}", "${V?}", "${V}", "$V"])
def test_a_variable_of_its_own_name_is_bare(said: str) -> None:
    assert spec(imported(f"environment: ['V={said}']"))["env"] == {"V": None}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("ports: ['80'], deploy: {replicas: '${N:-3}'}", {"replicas": 3}),
        ("gpus: [{count: '${N:-2}'}]", {"resources": {"gpu": {"count": 2}}}),
        ("volumes: [{type: bind, source: '${D}', target: /d}]", {"volumes": [("/srv/d", "/d")]}),
        ("volumes: ['${D}/in:${D}/in']", {"volumes": [("/srv/d/in", "/srv/d/in")]}),
        ("entrypoint: [run, '${N}']", {"entrypoint": ["run", "7"]}),
    ],
)
def test_a_reference_may_stand_anywhere(said: str, kept: Mapping[str, Any]) -> None:
    found = imported(said)
    made = spec(found, N="7", D="/srv/d")
    for mount in made.get("volumes", ()):
        made["volumes"] = [(mount["instance_path"], mount["path"])]

    assert {key: made[key] for key in kept} == dict(kept), found.text
    assert found.left_out == ()


TRAEFIK = "traefik.http.routers.web.rule"


@pytest.mark.parametrize(
    "labels",
    [
        "    labels:\n      team: a\n      stage: ${STAGE}\n      note: it is mine\n      on: yes\n"
        f"      {TRAEFIK}: Host(`web.example.com`)\n",
        "    labels:\n    - team=a\n    - stage=${STAGE}\n    - note=it is mine\n    - on=yes\n"
        f"    - {TRAEFIK}=Host(`web.example.com`)\n",
    ],
    ids=["mapping", "list"],
)  # fmt: skip
def test_labels_are_tags_and_what_is_none_is_named_at_its_line(labels: str) -> None:
    found = import_text(f"services:\n  web:\n    image: nginx\n{labels}", tool="compose", file="compose.yaml")

    assert spec(found, STAGE="test")["tags"] == {"team": "a", "stage": "test", "on": "yes"}
    assert [(one.at.line, one.at.column) for one in found.left_out] == [(7, 7), (9, 7)]
    assert all("no value of a tag" in one.what and one.fix for one in found.left_out)


@pytest.mark.parametrize("name", ["+", "a(b", "[x"])
def test_what_is_no_name_of_a_variable_is_named(name: str) -> None:
    (problem,) = imported(f"environment: ['{name}', 'A=1']").left_out

    assert "is no name of an environment variable" in problem.what


def test_defaults_that_were_taken_are_named() -> None:
    text = imported("environment: {A: '${V:-1}'}, user: '${UID:-5}'").text

    assert "# at their defaults, as nothing beside the file is read: UID, V\nname: web\n" in text


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("command: 'serve --model ${M} -x \"a b\"'", "serve --model one two -x 'a b'"),
        ("command: [serve, '${M}']", "serve 'one two'"),
        ("command: 'serve --dir=${M}/x'", "serve --dir=one two/x"),
    ],
)
def test_a_reference_in_a_command_stays_whole(said: str, line: str) -> None:
    assert spec(imported(said), M="one two")["commands"] == [line]


def test_that_a_command_takes_the_entrypoints_place_is_said() -> None:
    remark = "# compose hands this to the image's own entrypoint"

    assert remark in imported("command: server /data").text
    assert remark not in imported("entrypoint: sh -c, command: date").text


@pytest.mark.parametrize(
    ("said", "kept", "lost"),
    [
        ("'${P}:80'", [(80, 9000)], 0),
        ("'127.0.0.1:${P}:80/tcp'", [(80, 9000)], 0),
        ("{target: 80, published: 8000-8010}", [(80, None)], 0),
        ("'8000-8001:80'", [], 1),
        ("'80:${P}'", [], 1),
    ],
)
def test_a_port_is_published_where_a_variable_says(
    said: str, kept: list[tuple[int, int | None]], lost: int
) -> None:
    found = imported(f"ports: [{said}]")
    port = spec(found, P="9000").get("port")

    assert ([(port["container_port"], port.get("local_port"))] if port else []) == kept
    assert len(found.left_out) == lost


def test_ports_of_two_variables_are_two_ports() -> None:
    assert imported("ports: ['${A}:80', '${B}:81']").left_out == ()


OTHERS = "  db: {image: postgres, container_name: store}\n  cache-1: {image: redis, hostname: fast}\n"


@pytest.mark.parametrize(
    "said",
    [
        "environment: {URL: 'postgres://u:p@db:5432/x'}",
        "environment: ['URL=redis://cache-1']",
        "environment: {DB_HOST: db}",
        "environment: {URL: 'http://store:80/', DB_HOST: fast}",
        "environment: {BROKERS: 'db:9092,cache-1:9092'}",
        "command: [wait-for, 'db:5432']",
    ],
)
def test_an_address_that_is_another_services_name_is_named(said: str) -> None:
    problems = [one for one in imported(said, OTHERS).left_out if one.at.line == 2]

    assert problems
    for problem in problems:
        assert re.search(r"service '(db|cache-1)' is not reached by its name here$", problem.what)


@pytest.mark.parametrize(
    "said",
    [
        "environment: {POSTGRES_DB: db, URL: 'https://db.example.com/db', M: 'a/db:1'}",
        "command: [db, 'cache-1']",
        "environment: {WEB_HOST: web}",
    ],
)
def test_a_word_that_is_a_services_name_too_is_none(said: str) -> None:
    assert not [one for one in imported(said, OTHERS).left_out if one.at.line == 2]


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("healthcheck: {test: [CMD, pg_isready]}", "healthcheck: not carried over: a command inside"),
        ("volumes: [{type: volume, source: v, target: /v, volume: {subpath: a}}]", "volumes.volume.subpath:"),
        ("volumes: [{type: bind, source: /v, target: /v, bind: {propagation: shared}}]", "bind.propagation:"),
    ],
)
def test_what_is_lost_of_a_task_is_named(said: str, lost: str) -> None:
    (problem,) = imported(said).left_out

    assert lost in problem.what


def test_accelerators_of_several_reservations_are_counted_together() -> None:
    devices = "[{device_ids: ['0', '3']}, {device_ids: ['5']}]"
    found = imported(f"deploy: {{resources: {{reservations: {{devices: {devices}}}}}}}")

    assert spec(found)["resources"]["gpu"] == {"count": 3}


@pytest.mark.parametrize(("condition", "retried"), [("on-failure", True), ("any", True), ("none", False)])
def test_a_tasks_restart_policy_is_its_retry(condition: str, retried: bool) -> None:
    found = imported(f"deploy: {{restart_policy: {{condition: {condition}}}}}")

    assert ("retry" in spec(found)) is retried


def test_a_model_that_a_variable_names_is_sized_too() -> None:
    text = """
services:
  llm:
    image: vllm/vllm-openai:v0.10.0
    command: --model ${MODEL} --max-model-len ${LEN} --port 80
    ports: [80]
"""
    found = import_text(text, tool="compose", file="compose.yaml")
    made = spec(found, MODEL="org/seven-7b", LEN="4096")

    assert found.left_out == ()
    assert (made["model"], made["engine"]) == ("org/seven-7b", "vllm")
    assert made["args"] == {"max-model-len": 4096}


@pytest.mark.parametrize(("period", "start_s"), [("1s", None), ("30s", None), ("5m", "5m")])
def test_a_short_start_period_is_no_time_to_end_a_service_after(period: str, start_s: str | None) -> None:
    check = f"{{test: curl -f http://localhost/ok, start_period: {period}}}"

    (probe,) = spec(imported(f"ports: [80], healthcheck: {check}"))["probes"]

    assert probe.get("start_duration") == start_s
