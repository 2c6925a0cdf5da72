"""Short forms: every spelling that is accepted, and what is said of the others."""

from __future__ import annotations

import pytest

from orchestrator.spec import forms
from orchestrator.spec.models import Task
from orchestrator.spec.parts import Plain
from tests.spec.texts import place, problem_in, service, spec_in, task


def gpu_of(text: str) -> Plain:
    spec = spec_in(task(f"resources: {{gpu: {text}}}"))
    assert isinstance(spec, Task)
    assert spec.resources.gpu is not None
    return spec.resources.gpu.canonical()


@pytest.mark.parametrize(
    ("text", "long"),
    [
        ("1", 1),
        ("2", {"count": 2}),
        ("24GB", {"memory": "24GB"}),
        ("A100", {"name": ["A100"]}),
        ("A100:80GB:8", {"name": ["A100"], "memory": "80GB", "count": 8}),
        ("8:80GB:A100", {"name": ["A100"], "memory": "80GB", "count": 8}),
        ("'A10G,A100'", {"name": ["A10G", "A100"]}),
        ("'A100, H100:1..8'", {"name": ["A100", "H100"], "count": "1..8"}),
        ("24GB..80GB:2", {"memory": "24GB..80GB", "count": 2}),
        ("24GB..", {"memory": "24GB.."}),
        ("..80GB:1..", {"memory": "..80GB", "count": "1.."}),
        ("nvidia:4:16GB", {"vendor": "nvidia", "count": 4, "memory": "16GB"}),
        ("mi300x:8", {"name": ["mi300x"], "count": 8}),
        ("MI300X:4..", {"name": ["MI300X"], "count": "4.."}),
        ("amd:MI300X:8", {"vendor": "amd", "name": ["MI300X"], "count": 8}),
        ("nvidia:1..8", {"vendor": "nvidia", "count": "1..8"}),
        ("tpu:v5litepod-8", {"vendor": "google", "name": ["v5litepod-8"]}),
        ("v5litepod-8", {"name": ["v5litepod-8"]}),
        ("tt-galaxy-wh:32", {"name": ["tt-galaxy-wh"], "count": 32}),
        ("{vendor: tpu, name: v5litepod}", {"vendor": "google", "name": ["v5litepod"]}),
        ("{count: 1..2, total_memory: 96GB..}", {"count": "1..2", "total_memory": "96GB.."}),
        ("{compute_capability: 8.9}", {"compute_capability": "8.9"}),
        ("{compute_capability: 10}", {"compute_capability": "10.0"}),
    ],
)
def test_gpu_parts_come_in_any_order(text: str, long: Plain) -> None:
    assert gpu_of(text) == long


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("24GB:two", 23, "resources.gpu: expected a count such as 2 or 1..4, got 'two'"),
        ("H100:two", 23, "resources.gpu: expected a count such as 2 or 1..4, got 'two'"),
        ("H1OO", 18, "resources.gpu: unknown accelerator 'H1OO'"),
        ("'A100,H1OO:2'", 24, "resources.gpu: unknown accelerator 'H1OO'"),
        ("H100:A100", 23, "resources.gpu: 'A100' is a second name"),
        ("2:3", 20, "resources.gpu: '3' is a second count"),
        ("24GB:80GB", 23, "resources.gpu: '80GB' is a second memory"),
        ("amd:nvidia", 22, "resources.gpu: 'nvidia' is a second vendor"),
        ("'H100:'", 24, "resources.gpu: an empty part in 'H100:'"),
        ("'H100,:2'", 24, "resources.gpu: an empty name in 'H100,'"),
        ("80GB..24GB", 18, "resources.gpu: the range '80GB..24GB' ends before it begins"),
        ("24..80GB", 18, "resources.gpu: expected a size with its unit, such as 16GB or 512MiB, got '24'"),
        ("-1", 18, "resources.gpu.count: expected at least 0, got -1"),
        ("1.5", 18, "resources.gpu: expected a mapping, got 1.5"),
        ("{name: [H100, H1OO]}", 32, "resources.gpu.name[1]: unknown accelerator 'H1OO'"),
        ("{memory: 24}", 27, "resources.gpu.memory: expected a size with its unit, got 24"),
    ],
)
def test_gpu_slips_are_pointed_at(text: str, column: int, what: str) -> None:
    problem = problem_in(task(f"resources: {{gpu: {text}}}"))

    assert (problem.what, place(problem)) == (what, (4, column))


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("H1OO", "did you mean 'H100'?"), ("8xH100", "write H100:8"), ("H100 x 8", "write H100:8"),
        ("NVIDIA-H100", "write nvidia:H100"), ("nvidia H100:2", "write nvidia:H100"),
    ],
)  # fmt: skip
def test_unknown_accelerators_come_with_what_was_meant(text: str, fix: str) -> None:
    problem = problem_in(task(f"resources: {{gpu: {text}}}"))

    assert (problem.what.startswith("resources.gpu: unknown accelerator "), problem.fix) == (True, fix)


@pytest.mark.parametrize("text", ["4090", "'4090:1'"])
def test_a_name_without_its_letters_is_no_count(text: str) -> None:
    problem = problem_in(task(f"resources: {{gpu: {text}}}"))

    assert (problem.what, problem.fix) == (
        "resources.gpu: 4090 is a count of accelerators here", "write RTX4090",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("512MB", 512 * 10**6, 512 * 10**6),
        ("16GB", 16 * 10**9, 16 * 10**9),
        ("1TB", 10**12, 10**12),
        ("16GiB..", 16 * 2**30, None),
        ("..1.5TB", None, 1_500_000_000_000),
        ("4GB..8GB", 4 * 10**9, 8 * 10**9),
        ("{min: 4GB}", 4 * 10**9, None),
    ],
)
def test_memory_is_bytes(text: str, low: int | None, high: int | None) -> None:
    spec = spec_in(task(f"resources: {{memory: {text}}}"))

    assert isinstance(spec, Task)
    assert spec.resources.memory is not None
    assert (spec.resources.memory.min, spec.resources.memory.max) == (low, high)


@pytest.mark.parametrize("text", ["16", "16GB..8GB", "much", "..", "16XB", "{min: 16}", "{}", "-1GB", "true"])
def test_memory_needs_size_and_unit(text: str) -> None:
    assert problem_in(task(f"resources: {{memory: {text}}}")).at.line == 4


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("8", 8), ("8..", "8.."), ("0.5", 0.5), ("arm:8..", "arm:8.."), ("'arm64:4'", "arm:4"),
        ("{arch: aarch64, count: 2..4}", "arm:2..4"), ("'x86_64:2'", "x86:2"),
    ],
)  # fmt: skip
def test_cpu_has_cores_and_architecture(text: str, written: Plain) -> None:
    spec = spec_in(task(f"resources: {{cpu: {text}}}"))

    assert isinstance(spec, Task)
    assert spec.resources.cpu is not None
    assert spec.resources.cpu.canonical() == written


@pytest.mark.parametrize("text", ["many", "arm", "arm:x86:2", "mips:2", "-1", "'2:3'"])
def test_cpu_slips_are_refused(text: str) -> None:
    assert problem_in(task(f"resources: {{cpu: {text}}}")).at.line == 4


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86_400), ("1w", 604_800), ("1h30m", 5400), ("90", 90),
     ("'90'", 90), ("off", None), ("OFF", None), ("false", None)],
)  # fmt: skip
def test_durations_are_seconds(text: str, seconds: int | None) -> None:
    spec = spec_in(task(f"max_duration: {text}"))

    assert isinstance(spec, Task)
    assert spec.max_duration == seconds


@pytest.mark.parametrize("text", ["5 parsecs", "-1", "1.5", "true", "[]", "9999999w", "-5m"])
def test_duration_slips_are_refused(text: str) -> None:
    assert problem_in(task(f"max_duration: {text}")).what.startswith("max_duration: ")


@pytest.mark.parametrize(
    ("text", "container", "local"),
    [("8000", 8000, 8000), ("80:8080", 8080, 80), ("'*:8080'", 8080, None), ("'8080'", 8080, 8080),
     ("{container_port: 8080}", 8080, None)],
)  # fmt: skip
def test_ports_of_a_task_are_the_same_here(text: str, container: int, local: int | None) -> None:
    spec = spec_in(task(f"ports: [{text}]"))

    assert isinstance(spec, Task)
    assert [(port.container_port, port.local_port) for port in spec.ports] == [(container, local)]


@pytest.mark.parametrize(
    "text", ["0", "65536", "99999", "70000:80", "80:0", "a", "'80:'", "1:2:3", "-80", "1.5"]
)
def test_ports_out_of_range_are_refused(text: str) -> None:
    assert problem_in(task(f"ports: [{text}]")).what.startswith("ports[0]")


def test_port_of_a_service_is_any_free_one_here() -> None:
    spec = spec_in(service("port: 8000"))

    assert spec.canonical()["port"] == {"container_port": 8000}


@pytest.mark.parametrize(
    ("text", "env"),
    [
        ("[A=1, B=x=y, C=, HF_TOKEN]", {"A": "1", "B": "x=y", "C": "", "HF_TOKEN": None}),
        ("{A: 1, V: 3.10, T: true, Z: 010, N: , Q: ''}",
         {"A": "1", "V": "3.10", "T": "true", "Z": "010", "N": None, "Q": ""}),
    ],
)  # fmt: skip
def test_env_is_text_as_it_is_written(text: str, env: dict[str, str | None]) -> None:
    spec = spec_in(task(f"env: {text}"))

    assert isinstance(spec, Task)
    assert spec.env == env


@pytest.mark.parametrize(
    ("text", "column"),
    [("[A=1, 9B=2]", 12), ("[A=1, A=2]", 12), ("[=1]", 7), ("{9: 1}", 6), ("{A: [1]}", 10), ("7", 6),
     ("[A, {B: 1}]", 10)],
)  # fmt: skip
def test_env_slips_are_pointed_at(text: str, column: int) -> None:
    assert place(problem_in(task(f"env: {text}"))) == (4, column)


@pytest.mark.parametrize(
    ("text", "long"),
    [
        ("cache:/cache", {"name": "cache", "path": "/cache"}),
        ("/data:/data", {"instance_path": "/data", "path": "/data"}),
        ("./rel:/data", {"instance_path": "./rel", "path": "/data"}),
        ("cache:/cache:ro", {"name": "cache", "path": "/cache", "read_only": True}),
        ("cache:/cache:rw", {"name": "cache", "path": "/cache"}),
        ("{name: a, path: /x, read_only: true}", {"name": "a", "path": "/x", "read_only": True}),
    ],
)
def test_mounts_are_volumes_or_folders(text: str, long: Plain) -> None:
    assert spec_in(task(f"volumes: [{text}]")).canonical()["volumes"] == [long]


@pytest.mark.parametrize(
    "text",
    [
        "a", "'a:'", "':/x'", "a:x", "a:/x:wo", "a:/x:ro:z", "s3://b:/x", "Big_Name:/x", "{path: /x}",
        "{name: a, instance_path: /b, path: /x}",
    ],
)  # fmt: skip
def test_mount_slips_are_refused(text: str) -> None:
    assert problem_in(task(f"volumes: [{text}]")).what.startswith("volumes[0]")


def test_files_and_repos_have_short_forms() -> None:
    spec = spec_in(task("files: [a.py, 'b:/c']\nrepos: ['https://h:8080/o/r:/src', 'git@h:o/r.git', .]"))

    plain = spec.canonical()
    assert plain["files"] == [{"local_path": "a.py"}, {"local_path": "b", "path": "/c"}]
    assert plain["repos"] == [
        {"url": "https://h:8080/o/r", "path": "/src"},
        {"url": "git@h:o/r.git"},
        {"local_path": "."},
    ]


@pytest.mark.parametrize("text", ["true", "{}"])
def test_retry_true_is_everything(text: str) -> None:
    assert spec_in(task(f"retry: {text}")).canonical()["retry"] is True


def test_retry_false_is_nothing() -> None:
    assert "retry" not in spec_in(task("retry: false")).canonical()


def test_entrypoint_is_split_as_a_shell_would() -> None:
    spec = spec_in(task("entrypoint: sh -c 'echo a b'"))

    assert isinstance(spec, Task)
    assert spec.entrypoint == ("sh", "-c", "echo a b")


def test_a_lone_command_is_a_list_of_one() -> None:
    assert spec_in(task("commands: echo hi")).canonical()["commands"] == ["echo hi"]


@pytest.mark.parametrize(
    "line",
    [
        "0 3 * * *", "*/5 0-6,22 1 jan-mar mon", "0 0 1 1 7", "0 0 29 2 *", "0 0 30 2 mon", "0 0 31 2,3 *",
        "0 0 28/3 feb *", "0 0 */30 2 *",
    ],
)  # fmt: skip
def test_cron_lines_are_accepted(line: str) -> None:
    assert spec_in(task(f"schedule: {{cron: '{line}'}}")).canonical()["schedule"] == {"cron": [line]}


@pytest.mark.parametrize(
    "line",
    [
        "0 3 * *",
        "60 * * * *",
        "* * * * mox",
        "*/0 * * * *",
        "1-2-3 * * * *",
        "5-1 * * * *",
        "² * * * *",
        "a b c d e",
    ],
)
def test_cron_slips_are_refused(line: str) -> None:
    assert problem_in(task(f"schedule: {{cron: '{line}'}}")).what.startswith("schedule: ")


@pytest.mark.parametrize("line", ["0 0 30 2 *", "0 0 31 apr,jun,9,11 *", "0 0 30-31 2 */2"])
def test_a_cron_line_that_never_comes_is_refused(line: str) -> None:
    problem = problem_in(task(f"schedule: {{cron: ['0 3 * * *', '{line}']}}"))
    assert problem.what == f"schedule: '{line}' never comes: no month it names has such a day"


def test_messages_name_values_in_words_of_yaml() -> None:
    values: tuple[object, ...] = ({}, [], None, True, "x" * 99)

    assert [forms.shown(value) for value in values] == [
        "a mapping", "a list", "nothing", "true", repr("x" * 57 + "..."),
    ]  # fmt: skip
