"""``modelyard import``: YAML on stdout, warnings on stderr, errors with ``--strict``."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from orchestrator.cli import run

THEIRS = "type: task\nname: hi\ncommands: [echo hi]\nnvcc: true\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "hi.dstack.yml"
    path.write_text(THEIRS)
    return path


def test_what_is_left_out_is_a_warning(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["import", "--from", "dstack", str(file)])

    out, err = capsys.readouterr()
    assert code == 0
    assert out.endswith("commands:\n- echo hi\n")
    assert err.startswith(f"warning: {file}:4:1: nvcc: not carried over")


def test_strict_refuses_what_cannot_be_carried_over(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["import", "--from", "dstack", "--strict", str(file)])

    out, err = capsys.readouterr()
    assert (code, out) == (65, "")
    assert err.startswith(f"{file}:4:1: nvcc")


def test_the_result_goes_where_it_is_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = file.with_name("ours.yaml")

    assert run(["import", "--from", "dstack", str(file), "-o", str(target)]) == 0

    assert capsys.readouterr().out == ""
    assert run(["validate", "-f", str(target)]) == 0


def test_a_file_is_read_from_stdin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(THEIRS.encode())))

    assert run(["import", "--from", "dstack", "-"]) == 0

    assert "<stdin>:4:1" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "no UTF-8"])
def test_a_file_that_cannot_be_read_is_a_usage_error(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)

    assert run(["import", "--from", "compose", str(path)]) == 64

    assert str(path) in capsys.readouterr().err


def test_profiles_are_dstacks_and_come_from_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiles = file.with_name("profiles.yml")
    profiles.write_text("profiles: [{name: p, default: true, max_price: 1.5}]")

    assert run(["import", "--from", "dstack", str(file), "--profiles", str(profiles)]) == 0
    assert "max_price: 1.5" in capsys.readouterr().out
    assert run(["import", "--from", "dstack", str(file), "--profile", "p"]) == 64
    assert run(["import", "--from", "compose", str(file), "--profiles", str(profiles)]) == 64
