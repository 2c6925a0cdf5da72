"""The frozen documents: canonical form, hash, marks and differences."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.spec.models import (
    TYPES,
    Gpu,
    Resources,
    Retry,
    Service,
    Spec,
    Task,
    Volume,
    changes,
    marks,
    spec_of,
)
from orchestrator.spec.parts import REPLACE, Change, Part, mark_of, part_of
from orchestrator.spec.values import MAX_NAME, ByteRange, FloatRange, IntRange
from tests.spec.texts import problem_in, service, spec_in, task

FULL_SERVICE = """\
port: 80:8000
traffic: {concurrency: 2}
engine: vllm
args: {max-num-seqs: 8, nested: {a: [1, 2.5, null, true]}}
replicas: 1..4
scaling: {metric: queue, target: 4, scale_down_delay: 1h}
probes: [{url: /health, headers: [{name: a, value: b}], start_duration: 20m}]
rate_limits: [{rps: 2, key: {type: header, header: X-Id}}]
retry: {on_events: [error], duration: 1h}
stop_duration: off
idle_duration: 0
max_price: 2
env: [A=1, HF_TOKEN]
volumes: [a:/x, "/b:/y"]
resources: {gpu: "H100,A100:40GB..:2", cpu: arm:2.., memory: 1GiB.., disk: {size: 10GB}, shm_size: 64MB}
utilization_policy: {min_gpu_utilization: 10, time_window: 30m}
schedule: {cron: [0 3 * * *]}
tags: {team: a}
registry_auth: {username: u, password: "${{ secrets.X }}"}
image: x
https: false
"""
FULL_TASK = """\
train: {model: {id: a/b, adapters: []}, dataset: ./d.jsonl, adapter: {type: lora, rank: 8}, epochs: 0.5}
nodes: 4
entrypoint: [sh, -c]
files: [a:/b]
repos: [{url: "https://h/r", branch: main}]
priority: 5
max_duration: 90061s
"""
FLEET = (
    "type: fleet\nname: f\nssh_config: {user: u, hosts: [a, {hostname: b, blocks: 2}], network: 10.0.0.0/8}\n"
)
DEV = "type: dev-environment\nname: d\nide: vscode\ninit: [a]\ninactivity_duration: 2h\n"
VOLUME = "type: volume\nname: v\nsize: 10GB\nauto_cleanup_duration: 1w\n"
TEXTS = (service(FULL_SERVICE), task(FULL_TASK), FLEET, DEV, VOLUME, service(), task())


@pytest.mark.parametrize("text", TEXTS)
def test_canonical_is_read_back_as_the_same(text: str) -> None:
    spec = spec_in(text)

    assert spec_of(spec.canonical()) == spec
    assert spec_of(spec.canonical()).hash() == spec.hash()


@pytest.mark.parametrize("kind", TYPES.values())
def test_defaults_are_left_out_of_canonical(kind: type[Spec]) -> None:
    spec = kind(name="a")

    assert spec.canonical() == {"type": spec.type, "name": "a"}


def test_canonical_is_as_a_person_would_write_it() -> None:
    plain = spec_in(service(FULL_SERVICE)).canonical()

    assert plain["replicas"] == "1..4"
    assert plain["stop_duration"] == "off"
    assert plain["idle_duration"] == "0s"
    assert plain["retry"] == {"on_events": ["error"], "duration": "1h"}
    assert plain["resources"] == {
        "cpu": "arm:2..",
        "memory": "1GiB..",
        "gpu": {"name": ["H100", "A100"], "count": 2, "memory": "40GB.."},
        "disk": "10GB",
        "shm_size": "64MB",
    }
    assert spec_in(task(FULL_TASK)).canonical()["max_duration"] == 90061


def test_order_of_a_mapping_changes_nothing() -> None:
    one, other = (spec_in(task(f"env: {{{text}}}")) for text in ("A: 1, B: 2", "B: 2, A: 1"))

    assert str(one.canonical()["env"]) == str(other.canonical()["env"])
    assert one.hash() == other.hash()


SIZES = st.integers(0, 2**63 - 1) | st.sampled_from([0, 1, 10**9, 2**30, 16 * 10**9])


@settings(max_examples=60, deadline=None)
@given(low=st.none() | SIZES, high=st.none() | SIZES)
def test_byte_ranges_survive_their_text(low: int | None, high: int | None) -> None:
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        with pytest.raises(ValidationError):
            ByteRange(min=low, max=high)
    else:
        wanted = ByteRange(min=low, max=high)
        assert ByteRange.model_validate(wanted.canonical()) == wanted


@settings(max_examples=60, deadline=None)
@given(
    vendor=st.sampled_from([None, "nvidia", "amd"]),
    names=st.lists(st.sampled_from(["H100", "A100", "v5litepod-8"]), max_size=2),
    count=st.sampled_from(["1", "8", "1..8", "2..", "0"]),
    memory=st.sampled_from([None, "24GB", "24GB..80GB", "..1TiB"]),
    order=st.permutations(range(4)),
)
def test_gpu_does_not_depend_on_the_order_of_its_parts(
    vendor: str | None, names: list[str], count: str, memory: str | None, order: list[int]
) -> None:
    parts = [vendor, ",".join(names) or None, count, memory]

    shuffled = ":".join(part for index in order if (part := parts[index]) is not None)
    straight = ":".join(part for part in parts if part is not None)

    assert Gpu.model_validate(shuffled) == Gpu.model_validate(straight)


def test_ranges_hold_their_ends() -> None:
    assert 1 in IntRange(min=1, max=2)
    assert 3 not in IntRange(min=1, max=2)
    assert 0.5 in FloatRange(max=0.5)
    assert 5 in ByteRange(min=5)
    assert 4 not in ByteRange(min=5)


def test_documents_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Volume(name="a").name = "b"  # type: ignore[misc]  # that is the point


# --- hash -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "replicas: 3", "max_price: 9", "priority: 7", "stop_duration: 1m", "retry: true",
        "auth: false", "max_duration: 1h", "idle_duration: off", "rate_limits: [{rps: 1}]",
    ],
)  # fmt: skip
def test_hash_overlooks_what_is_changed_in_place(line: str) -> None:
    assert spec_in(service(line)).hash() == spec_in(service()).hash()


@pytest.mark.parametrize(
    "line",
    ["image: x", "env: [A=1]", "resources: {gpu: 1}", "traffic: {concurrency: 1}", "volumes: [a:/x]",
     "tags: {a: b}", "engine: vllm", "backends: docker", "commands: [a]\nport: 1", "probes: [{}]"],
)  # fmt: skip
def test_hash_sees_what_needs_new_containers(line: str) -> None:
    assert spec_in(service(line)).hash() != spec_in(service()).hash()


def test_hash_overlooks_where_a_local_file_lies() -> None:
    here, there = (spec_in(task("files: [./a:/b]"), folder=folder) for folder in ("/here", "/there"))

    assert here != there
    assert here.hash() == there.hash()


def test_hash_is_the_same_for_ever() -> None:
    # a change here replaces every container of every user on their next apply
    assert spec_in(service(FULL_SERVICE.replace("tags: {team: a}\n", ""))).hash() == (
        "63b1a8cc9282b1f584c666e1d1bab3309e363f26fdadf0c25ffbb888c8951783"
    )
    assert spec_in(task(FULL_TASK)).hash() == (
        "668ece3595f3ce7a021dd1f122d627c8600b60611106af1fcb22185350271463"
    )


# --- marks and changes ----------------------------------------------------------------------


def fields_of(part: type[Part], at: str = "") -> list[tuple[str, type[Part], str]]:
    found = []
    for name, info in part.model_fields.items():
        found.append((f"{at}{name}", part, name))
        if (inner := part_of(info.annotation)) is not None:
            found += fields_of(inner, f"{at}{name}.")
    return found


@pytest.mark.parametrize("kind", TYPES.values())
def test_every_field_says_what_it_means_and_what_a_change_needs(kind: type[Spec]) -> None:
    for path, part, name in fields_of(kind):
        info = part.model_fields[name]
        assert info.description, path
        assert info.description.endswith("."), path
        assert isinstance(info.json_schema_extra, dict), path
        assert info.json_schema_extra["x-on-change"] in ("replace", "in-place"), path
    assert [path for path, _, _ in fields_of(kind)] == list(marks(kind))


@pytest.mark.parametrize("kind", TYPES.values())
def test_nothing_inside_an_in_place_part_needs_new_containers(kind: type[Spec]) -> None:
    leaves = {IntRange, FloatRange, ByteRange}  # their ends follow the field that holds them
    for path, part, name in fields_of(kind):
        outer = path.rpartition(".")[0]
        # an SSH fleet's hosts come and go; how one is reached does not change under its feet
        if outer and part not in leaves and not outer.startswith("ssh_config"):
            assert not (marks(kind)[outer] == "in-place" and mark_of(part.model_fields[name]) == REPLACE), (
                path
            )


def test_changes_are_found_at_their_own_path() -> None:
    old = spec_in(service("env: {A: 1, B: 2}\nresources: {gpu: 'H100:1', memory: 1GB}\nreplicas: 1"))
    new = spec_in(service("env: {A: 1, B: 3, C: 4}\nresources: {gpu: 'H100:2', memory: 1GB}\nreplicas: 2"))

    assert changes(old, new) == (
        Change("env.B", "2", "3", "replace"),
        Change("env.C", None, "4", "replace"),
        Change("resources.gpu.count", 1, 2, "replace"),
        Change("replicas", 1, 2, "in-place"),
    )


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("stop_duration: 1m", "stop_duration: off", Change("stop_duration", "1m", "off", "in-place")),
        ("", "max_duration: 2h", Change("max_duration", None, "2h", "in-place")),
        ("commands: [a, b]", "commands: [a, c]", Change("commands[1]", "b", "c", "replace")),
        ("commands: [a]", "commands: [a, c]", Change("commands", ["a"], ["a", "c"], "replace")),
        ("volumes: [a:/x]", "volumes: [b:/x]", Change("volumes[0].name", "a", "b", "replace")),
        ("", "resources: {gpu: 1}", Change("resources.gpu", None, 1, "replace")),
        ("retry: true", "retry: {on_events: [error]}",
         Change("retry.on_events", ["no-capacity", "interruption", "error"], ["error"], "in-place")),
        ("resources: {shm_size: 1GB}", "resources: {shm_size: 2GiB}",
         Change("resources.shm_size", "1GB", "2GiB", "replace")),
    ],
)  # fmt: skip
def test_changes_are_shown_as_they_are_written(old: str, new: str, change: Change) -> None:
    assert changes(spec_in(task(old)), spec_in(task(new))) == (change,)


@pytest.mark.parametrize("text", TEXTS)
def test_no_change_against_itself(text: str) -> None:
    assert changes(spec_in(text), spec_of(spec_in(text).canonical())) == ()


def test_another_type_is_one_change() -> None:
    assert changes(Task(name="a"), Volume(name="a")) == (Change("type", "task", "volume", "replace"),)


@pytest.mark.parametrize("text", [text for text in TEXTS if "type: service" in text or "type: task" in text])
def test_replace_changes_are_what_moves_the_hash(text: str) -> None:
    old = spec_in(text)
    for line in ("priority: 9", "working_dir: /x", "tags: {q: w}", "user: me"):
        key = line.partition(":")[0]
        if key in old.canonical():
            continue
        new = spec_in(text + line + "\n")
        assert (old.hash() != new.hash()) == any(c.mark == "replace" for c in changes(old, new)), line


# --- names ----------------------------------------------------------------------------------

RULE = "lower case letters, digits and dashes, beginning with a letter"


@pytest.mark.parametrize("name", ["a", "a1", "llama-8b", "x" * MAX_NAME])
def test_names_are_labels(name: str) -> None:
    assert Volume(name=name).name == name


@pytest.mark.parametrize(
    ("name", "fix"),
    [("Chat_1", "did you mean 'chat-1'?"), ("8b", "did you mean 'b'?"), ("a-", "did you mean 'a'?"),
     ("a.b", "did you mean 'a-b'?"), ("---", RULE),
     ("x" * (MAX_NAME + 1), "shorten it"), ("ü", RULE)],
)  # fmt: skip
def test_other_names_are_refused_with_a_better_one(name: str, fix: str) -> None:
    assert problem_in(f"type: volume\nname: '{name}'\n").fix == fix


def test_longest_launch_name_is_a_dns_label() -> None:
    launch = f"{'x' * MAX_NAME}-999-99999-9999999"

    assert len(launch) <= 63


def test_what_was_written_by_hand_in_python_is_checked_too() -> None:
    with pytest.raises(ValidationError):
        Retry(on_events=())
    assert Resources(memory=ByteRange(min=10**9)).canonical() == {"memory": "1GB.."}


def test_unknown_types_are_not_read_back() -> None:
    with pytest.raises(ValueError, match="unknown type 'pod'"):
        spec_of({"type": "pod", "name": "a"})


def test_every_type_is_in_the_union() -> None:
    assert set(TYPES.values()) == set(get_args(Spec))
    assert {word: kind(name="a").type for word, kind in TYPES.items()} == {word: word for word in TYPES}


def test_service_needs_no_default_traffic() -> None:
    assert Service(name="a", model="x/y").traffic.concurrency == 16


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e400", "9" * 30, "9" * 90])
@pytest.mark.parametrize(
    "text",
    [
        "max_price: {}", "replicas: {}", "port: {}", "max_duration: {}", "args: {{seed: {}}}",
        "retry: {{on_events: [error], duration: {}}}", "traffic: {{concurrency: {}}}",
        "resources: {{cpu: {}}}", "resources: {{memory: {}}}",
    ],
)  # fmt: skip
def test_a_number_that_nobody_can_read_is_one_problem_at_its_place(text: str, number: str) -> None:
    problem = problem_in(service(text.format(number)))
    assert problem.fix == "put it in quotes if it is text"


def test_a_bare_number_of_seconds_is_no_longer_than_a_duration_with_a_unit() -> None:
    assert "longer than a century" in problem_in(task(f"max_duration: {10**12}")).what
