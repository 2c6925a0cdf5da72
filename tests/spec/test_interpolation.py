"""References: what is filled in, what stays, and that no secret becomes part of a spec."""

from __future__ import annotations

import pytest

from orchestrator.spec.parts import Plain
from tests.spec.texts import place, problem_in, problems_in, spec_in, task

ENV = {"N": "2", "WORD": "hi there", "HF_TOKEN": "hf_secret", "API_KEY": "k_secret", "DIR": "/data"}


def field(line: str, key: str, args: tuple[str, ...] = ()) -> Plain:
    return spec_in(task(line), env=ENV, args=args).canonical()[key]


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("commands: ['echo ${{ env.WORD }} ${{env.N}}']", "commands", ["echo hi there 2"]),
        ("nodes: ${{ env.N }}", "nodes", 2),
        ("working_dir: ${{ env.DIR }}/x", "working_dir", "/data/x"),
        ("working_dir: '${{ env.N }}'", "working_dir", "2"),
        ("resources: {shm_size: '${{ env.N }}GB'}", "resources", {"shm_size": "2GB"}),
        ("env: {A: '${{ env.WORD }}'}", "env", {"A": "hi there"}),
        ("env: ['A=${{ env.N }}']", "env", {"A": "2"}),
        ("env: {A: '${{ secrets.S }}'}", "env", {"A": "${{ secrets.S }}"}),
        ("env: ['A=Bearer ${{ secrets.S }}']", "env", {"A": "Bearer ${{ secrets.S }}"}),
        ("env: {HF_TOKEN: '${{ env.HF_TOKEN }}'}", "env", {"HF_TOKEN": None}),
        ("env: ['HF_TOKEN=${{ env.HF_TOKEN }}']", "env", {"HF_TOKEN": None}),
        ("env: [HF_TOKEN]", "env", {"HF_TOKEN": None}),
        ("commands: ['echo ${N} $${ {{ x }}']", "commands", ["echo ${N} $${ {{ x }}"]),
    ],
)
def test_references_are_filled_in_or_stay(line: str, key: str, value: Plain) -> None:
    assert field(line, key) == value


def test_arguments_of_the_run_are_quoted() -> None:
    assert field("commands: ['python a.py ${{ run.args }}']", "commands", ("--x", "a b", "$(rm)")) == [
        "python a.py --x 'a b' '$(rm)'"
    ]


def test_no_arguments_are_no_words() -> None:
    assert field("commands: ['run ${{ run.args }}']", "commands") == ["run "]


@pytest.mark.parametrize(
    ("line", "at", "what"),
    [
        ("commands: ['${{ env.NOPE }}']", (4, 13), "'NOPE' is not set in the environment"),
        ("commands: ['x ${{ env.N }} ${{ env.NOPE }}']", (4, 28), "'NOPE' is not set in the environment"),
        ("commands: ['${{ secrets.S }}']", (4, 13), "a secret can only stand in env and registry_auth"),
        ("nodes: ${{ secrets.S }}", (4, 8), "a secret can only stand in env and registry_auth"),
        ("commands: ['${{ env.API_KEY }}']", (4, 13), "the value of 'API_KEY' would be written into plans"),
        ("env: {A: '${{ env.API_KEY }}'}", (4, 11), "the value of 'API_KEY' would be written into plans"),
        ("env: ['A=${{ env.API_KEY }}']", (4, 10), "the value of 'API_KEY' would be written into plans"),
        ("commands: ['${{ dstack.x }}']", (4, 13), "unknown reference 'dstack.x'"),
        ("commands: ['${{ }}']", (4, 13), "unknown reference ''"),
        ("commands: ['echo ${{ env.N']", (4, 18), "this reference has no end"),
        ("commands: ['${{ env.N }} ${{ env.N }']", (4, 26), "this reference has no end"),
        (
            "commands:\n  - |\n    one\n    two ${{ env.NOPE }}",
            (7, 9),
            "'NOPE' is not set in the environment",
        ),
    ],
)
def test_what_cannot_be_filled_in_is_pointed_at(line: str, at: tuple[int, int], what: str) -> None:
    problem = problem_in(task(line), ENV)

    assert (place(problem), problem.what) == (at, what)
    assert problem.fix


@pytest.mark.parametrize(
    "where",
    [
        "user: {}", "env: ['A={}']", "env: {{A: '{}'}}", "commands: ['{}']", "tags: {{a: '{}'}}",
        "working_dir: {}", "registry_auth: {{username: '{}', password: x}}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["HF_TOKEN", "API_KEY"])
def test_no_secret_of_the_environment_becomes_part_of_a_spec(where: str, name: str) -> None:
    text = task(where.format("${{ env." + name + " }}"))

    problems = problems_in(text, ENV)

    assert problems
    assert not any(ENV[name] in str(problem) for problem in problems)


def test_a_value_is_not_read_for_references_again() -> None:
    spec = spec_in(task("working_dir: ${{ env.A }}"), env={"A": "${{ env.B }}", "B": "b"})

    assert spec.canonical()["working_dir"] == "${{ env.B }}"
