"""What a spec brings along: each file has a place of its own in the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.apply.inputs import read_inputs, unfit
from orchestrator.errors import Problem, SpecError
from orchestrator.spec.load import Document, load
from orchestrator.spec.models import Task

FOLDER = "files[{}]: a file at {}, which is the folder of others"
MOUNT = "files[0]: a file at /x, where a volume is mounted"


def document(folder: Path, more: str) -> Document:
    """Return a task beside two files, and a folder with ``main`` and ``more/b``."""
    for name in ("a", "b", "conf/main", "conf/more/b"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "t.yaml").write_text(f"type: task\nname: t\nimage: busybox\ncommands: [ls]\n{more}\n")
    (found,) = load([str(folder / "t.yaml")])
    return found


def problems(folder: Path, more: str) -> list[Problem]:
    """Return what is wrong, which both who checks a file and who reads what it brings have to say."""
    found = document(folder, more)
    assert isinstance(found.spec, Task)
    told = [*unfit(found, found.spec)]
    if told:
        with pytest.raises(SpecError) as refused:
            read_inputs(found, found.spec)
        assert list(refused.value.problems) == told
    else:
        assert read_inputs(found, found.spec).files
    return told


@pytest.mark.parametrize(
    ("more", "at", "what", "first"),
    [
        ("files: [a:/tmp/x, b:/tmp/../tmp/x]", (5, 19), "files[1]: two files at /tmp/x", "5:9"),
        ("files: [a:x, b:./x]", (5, 14), "files[1]: two files at x", "5:9"),
        ("working_dir: /w\nfiles:\n- a:x\n- b:/w/x", (8, 3), "files[1]: two files at /w/x", "7:3"),
        ("files: [conf:/etc/app, a:/etc/app/main]", (5, 24), "files[1]: two files at /etc/app/main", "5:9"),
        ("files: [a:/x, conf:/x]", (5, 15), "files[1]: a file below /x, which is a file", "5:9"),
        ("files: [conf:/x, a:/x/more]", (5, 18), FOLDER.format(1, "/x/more"), "5:9"),
        ("volumes: [v:/x/]\nfiles: [a:/x]", (6, 9), MOUNT, "5:11"),
        ("volumes: [v:/x/y]\nfiles: [a:/x]", (6, 9), FOLDER.format(0, "/x"), "5:11"),
        (
            "volumes: ['v:/x:ro']\nfiles: [a:/x/y]",
            (6, 9), "files[0]: a file below /x, which is read-only", "5:11",
        ),
    ],
)  # fmt: skip
def test_files_that_go_where_something_is_are_refused_with_both_places(
    tmp_path: Path, more: str, at: tuple[int, int], what: str, first: str
) -> None:
    (problem,) = problems(tmp_path, more)
    assert (problem.at.line, problem.at.column, problem.what) == (*at, what)
    assert problem.fix == f"give each its own path; the first is at {tmp_path / 't.yaml'}:{first}"


@pytest.mark.parametrize(
    "more",
    [
        "files: [a, b]",
        "files: [a:/tmp/x, b:/tmp/xy]",
        "files: [conf:/etc/app, a:/etc/app/more/a]",
        "volumes: ['v:/x']\nfiles: [a:/x/y]",
        "volumes: ['v:/x:ro', 'w:/x/w']\nfiles: [a:/x/w/y]",
    ],
)
def test_files_with_places_of_their_own_are_taken(tmp_path: Path, more: str) -> None:
    assert problems(tmp_path, more) == []


def test_a_pointer_of_git_lfs_is_not_sent_in_its_files_place(tmp_path: Path) -> None:
    found = document(tmp_path, "files: [b, conf]")
    (tmp_path / "conf" / "main").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    assert isinstance(found.spec, Task)

    with pytest.raises(SpecError) as refused:
        read_inputs(found, found.spec)

    (problem,) = refused.value.problems
    assert (problem.at.line, problem.at.column) == (5, 12)
    assert problem.what == "files[1]: conf/main is a pointer of Git LFS, not the file"
