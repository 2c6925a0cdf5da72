"""Other tools' files become documents that load and plan, and what is lost is named at its place."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.apply import World, plan_documents
from orchestrator.backend import Can
from orchestrator.errors import SpecError
from orchestrator.importers import TOOLS, Profiles, import_text
from orchestrator.importers.settle import Imported
from orchestrator.spec.load import Document, read
from orchestrator.spec.models import Placement, Service
from tests.places import is_fleet, offers, world

HERE = Path(__file__).parent
THEIRS = sorted((HERE / "theirs").glob("*/*"))


def imported(path: Path) -> Imported:
    return import_text(path.read_text(), tool=path.parent.name, file=path.name)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the files' relative paths count from."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text("print(42)\n")
    monkeypatch.chdir(tmp_path)


def there(document: Document) -> World:
    """Return a world with offers of the very place that a document asks for."""
    spec = document.spec
    if not isinstance(spec, Placement):
        return world()
    place = {"spot": spec.spot_policy == "spot"}
    where = {"region": [*spec.regions, ""][0], "zone": [*spec.availability_zones, None][0]}
    backend = {"backend": spec.backends[0]} if spec.backends else {}
    found = [replace(offer, **place, **where, **backend) for offer in offers()]
    # a cluster's own controllers start nodes all at once: one that is to start them in turn is none
    places = {name: can - {Can.GROUPS} for name, can in world().places.items()}
    return replace(world(), offers=lambda: found, places=places)


@pytest.mark.parametrize("path", THEIRS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_import_says_what_it_said_before(path: Path) -> None:
    found = imported(path)
    name = path.name.split(".")[0]
    ours = HERE / "ours" / f"{path.parent.name}-{name}.yaml"
    lost = ours.with_suffix(".txt")
    left_out = "".join(f"{problem}\n" for problem in found.left_out)
    if os.environ.get("UPDATE_GOLDEN"):
        ours.write_text(found.text)
        lost.write_text(left_out)
    assert found.text == ours.read_text()
    assert left_out == lost.read_text()


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("path", THEIRS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_imported_plans(path: Path) -> None:
    documents = [d for d in read(imported(path).text) if not is_fleet(d)]

    for document in documents:
        assert len(plan_documents([document], there(document))) == 1


@pytest.mark.parametrize("path", THEIRS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_secret_is_written_nowhere(path: Path) -> None:
    found = imported(path)
    everything = found.text + "".join(map(str, found.left_out))

    assert "made-up-for-this-test" not in everything


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "[1, 2]", "hello", "a: [", "\t", "{}", "a: 1", "services: 3"]
)
def test_what_is_no_file_of_theirs_is_refused_with_its_place(tool: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        import_text(text, tool=tool, file="x.yaml")

    assert caught.value.problems[0].at.file == "x.yaml"


@pytest.mark.parametrize(
    ("said", "kept", "lost"),
    [
        ("cpus: x", None, 1),
        ("mem_limit: '${MEM:-2g}'", {"memory": "2GiB.."}, 0),
        (
            "deploy: {resources: {limits: {cpus: '0.5', memory: 64m}}}",
            {"cpu": "0.5..", "memory": "64MiB.."},
            0,
        ),
        ("gpus: all", {"gpu": {"count": "1.."}}, 0),
        ("gpus: [{driver: amd, count: 2}]", {"gpu": {"vendor": "amd", "count": 2}}, 0),
        ("gpus: [{device_ids: ['0', '3']}]", {"gpu": {"count": 2}}, 0),
    ],
)
def test_composes_resources_are_read(said: str, kept: object, lost: int) -> None:
    text = f"services: {{a: {{image: x, {said}}}}}"

    found = import_text(text, tool="compose", file="compose.yaml")

    assert read(found.text)[0].spec.canonical().get("resources") == kept
    assert len(found.left_out) == lost


def test_what_compose_exposes_is_read_as_what_it_publishes() -> None:
    said = "ports: ['8080:80', '8081:81'], expose: [80, '81', '90/udp', '7000-7001', 7005]"
    found = import_text(f"services: {{web: {{image: nginx, {said}}}}}", tool="compose", file="compose.yaml")
    spec = read(found.text)[0].spec
    assert isinstance(spec, Service)
    assert [each.container_port for each in (spec.port, *spec.ports) if each] == [80, 81, 7000, 7001, 7005]
    assert [each.what for each in found.left_out] == [
        "services.web.expose: not carried over: '90/udp': udp is not published"
    ]


def test_a_volume_of_somebody_elses_is_left_to_them() -> None:
    text = "services: {a: {image: x, volumes: ['d:/d']}}\nvolumes: {d: {external: true}}"

    found = import_text(text, tool="compose", file="compose.yaml")

    assert [document.spec.type for document in read(found.text)] == ["task"]
    assert [problem.at.line for problem in found.left_out] == [2]


@pytest.mark.parametrize(
    ("tool", "text", "line"),
    [
        ("dstack", "type: task\nname: t\ncommands: [a]\ntags:\n  team: a\n  owner: Jane Doe\n", 6),
        ("skypilot", "name: t\nrun: a\nresources:\n  labels:\n    team: a\n    owner: Jane Doe\n", 6),
    ],
)
def test_a_tag_that_no_place_takes_is_left_out_alone(tool: str, text: str, line: int) -> None:
    found = import_text(text, tool=tool, file="x.yaml")
    assert read(found.text)[0].spec.canonical()["tags"] == {"team": "a"}
    (lost,) = found.left_out
    assert (lost.at.line, lost.what) == (
        line,
        "not carried over: tags.owner: 'Jane Doe' is no value of a tag",
    )


def test_names_are_made_ours_and_kept_apart() -> None:
    text = "services: {My_App: {image: x}, my-app: {image: x}}\nvolumes: {my.app: }"

    found = import_text(text, tool="compose", file="compose.yaml")

    assert [document.spec.name for document in read(found.text)] == ["my-app", "my-app-2", "my-app"]


@pytest.mark.parametrize(
    ("shown", "gpu"),
    [
        ("H100:8", {"name": ["H100"], "count": 8}),
        ("[L4, A10G]", {"name": ["L4", "A10G"]}),
        ("{L4, A10G}", {"name": ["L4", "A10G"]}),
        ("{H100: 8}", {"name": ["H100"], "count": 8}),
        ("{H100:8, A100:8}", {"name": ["H100", "A100"], "count": 8}),
        ("tpu-v6e-8", {"name": ["v6e"], "count": 8}),
        ("H100:0.5", None),
    ],
)
def test_skypilots_accelerators_are_read_in_every_form(shown: str, gpu: object) -> None:
    text = f"resources: {{accelerators: {shown}, image_id: 'docker:x'}}\nrun: date"

    found = import_text(text, tool="skypilot", file="x.yaml")

    resources = read(found.text)[0].spec.canonical().get("resources", {})
    assert isinstance(resources, dict)
    assert resources.get("gpu") == gpu
    assert bool(found.left_out) == (gpu is None)


@pytest.mark.parametrize(
    ("ports", "service", "ours"),
    [
        ("[8080, 9000-9001]", "{readiness_probe: /}", [8080, 9000, 9001]),
        ("8080", "{readiness_probe: /}", [8080]),
        ("[8081, 8080]", "{ports: 8080}", [8080, 8081]),
    ],
)
def test_every_port_of_skypilots_service_is_ours(ports: str, service: str, ours: list[int]) -> None:
    text = f"resources: {{ports: {ports}}}\nservice: {service}\nrun: x\n"
    found = import_text(text, tool="skypilot", file="x.yaml")
    spec = read(found.text)[0].spec
    assert isinstance(spec, Service)
    assert [each.container_port for each in (spec.port, *spec.ports) if each] == ours


def test_dstacks_key_of_a_registry_is_a_secret_of_ours() -> None:
    text = "type: task\nname: a\nimage: x\nregistry_auth: {username: u, password: '${{ env.NGC_API_KEY }}'}"

    found = import_text(text, tool="dstack", file="a.dstack.yml")

    auth = {"username": "u", "password": "${{ secrets.NGC_API_KEY }}"}
    assert read(found.text)[0].spec.canonical().get("registry_auth") == auth
    assert found.left_out == ()


@pytest.mark.parametrize(
    ("image", "engine"),
    [
        ("vllm/vllm-openai", "vllm"),
        ("vllm/vllm-openai:v0.19.0", "vllm"),
        (f"vllm/vllm-openai@sha256:{'0' * 64}", "vllm"),
        ("reg:5000/vllm-openai", None),
    ],
)
def test_vllms_image_is_known_with_and_without_a_tag(image: str, engine: str | None) -> None:
    text = f"services: {{chat: {{image: '{image}', ports: [8000], command: --model Qwen/Qwen3-8B}}}}"

    found = import_text(text, tool="compose", file="compose.yaml")

    assert read(found.text)[0].spec.canonical().get("engine") == engine


def test_an_image_that_compose_builds_is_called_as_compose_calls_it() -> None:
    text = "name: shop\nservices: {web: {build: ., ports: [80]}}"

    found = import_text(text, tool="compose", file="compose.yaml")

    assert read(found.text)[0].spec.canonical()["image"] == "shop-web"
    assert [problem.what.split(":")[0] for problem in found.left_out] == ["services.web.build"]


def test_a_document_that_cannot_run_does_not_keep_the_others_back() -> None:
    text = "services: {web: {image: nginx, ports: [80]}, odd: {ports: [80]}}"

    found = import_text(text, tool="compose", file="compose.yaml")

    assert [document.spec.name for document in read(found.text)] == ["web"]
    assert "service 'odd': not carried over" in found.left_out[0].what


# --- profiles -------------------------------------------------------------------------------

PROFILES = """\
profiles:
  - name: cheap
    default: true
    spot_policy: auto
    max_price: 1.5
    max_duration: 1d
    stop_criteria: master-done
    creation_policy: reuse
  - name: big
    backends: [aws]
    max_price: 9
"""
PLAIN = "type: task\nname: a\nimage: x\nmax_price: 3\n---\ntype: volume\nname: v\nsize: 1GB\n"


def fills_in_what_is_not_said() -> None:
    found = import_text(PLAIN, tool="dstack", file="a.yml", profiles=Profiles(PROFILES, "p.yml"))

    task, volume = (document.spec.canonical() for document in read(found.text))
    assert (task["spot_policy"], task["max_duration"], task["max_price"]) == ("auto", "1d", 3.0)
    assert task["stop_criteria"] == "master-done"
    assert set(volume) == {"type", "name", "size"}
    assert "# with what dstack's profile 'cheap' says" in found.text


def test_a_profile_fills_in_what_a_configuration_does_not_say() -> None:
    fills_in_what_is_not_said()


def test_what_a_profile_says_in_vain_is_told_at_its_line() -> None:
    found = import_text(PLAIN, tool="dstack", file="a.yml", profiles=Profiles(PROFILES, "p.yml"))

    assert [str(problem.at) for problem in found.left_out] == ["p.yml:8:5"]


def test_a_profile_is_taken_by_its_name() -> None:
    found = import_text(PLAIN, tool="dstack", file="a.yml", profiles=Profiles(PROFILES, "p.yml", "big"))

    task = read(found.text)[0].spec.canonical()
    assert (task["backends"], "spot_policy" in task) == (["aws"], False)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (PROFILES, "huge", "p.yml:1:1: no profile 'huge'"),
        (PROFILES.replace("default: true", "default: false"), "", "p.yml:1:1: no profile is the default one"),
        ("a: 1", "", "p.yml:1:1: no profiles"),
    ],
)
def test_a_profile_that_is_not_there_is_refused(text: str, name: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        import_text(PLAIN, tool="dstack", file="a.yml", profiles=Profiles(text, "p.yml", name))

    assert str(refused.value).startswith(said)
