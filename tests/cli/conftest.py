"""The command line in this process and as a program, on a record and places of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.cli import run

CONFIG = """\
backends:
  - {{type: sim, state: {state}, script: {{"hello-*": {{run_s: 0.0, prints: [hi, "42"]}},
     "bad-*": {{run_s: 0.0, exit_code: 3}}, "web-*": {{ready_s: 0.0}}}}}}
"""


@dataclass
class Result:
    """What a command did: its exit code, and what it printed where."""

    code: int
    out: str
    err: str


@dataclass
class Cli:
    """A user at a prompt in an empty folder."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Result:
        """Run a command in this process."""
        self.capsys.readouterr()
        code = run(list(arguments))
        out, err = self.capsys.readouterr()
        return Result(code, out, err)

    def program(self, *arguments: str, stdin: str | None = None) -> Result:
        """Run a command as a program of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            cwd=self.folder, input=stdin, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    def write(self, name: str, text: str) -> str:
        """Write a file and return its path."""
        path = self.folder / name
        path.write_text(text)
        return str(path)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A prompt whose only place is a sim that ends ``hello``, fails ``bad`` and keeps ``web``."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(state=tmp_path / "sim.jsonl"))
    monkeypatch.setenv("MODELYARD_CONFIG", str(config))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # no catalog of the tester's own
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the public hub is not asked
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{tmp_path}/state.db")
    monkeypatch.chdir(tmp_path)
    return Cli(tmp_path, capsys)
