"""Every block of YAML in the documentation loads and plans, every block of Python runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path
from tempfile import NamedTemporaryFile, gettempdir
from typing import IO

import pytest
from hypothesis import HealthCheck, Phase, settings
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from orchestrator.places import read_places
from tests.places import plan_everywhere

if os.environ.get("CI"):
    # The same examples each time, and no search for the smallest that fails: each planted fault would
    # pay for one. A failure is found again by the same command at a desk, which has CI unset.
    settings.register_profile("pipeline", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate))
    settings.load_profile("pipeline")
else:
    # How fast examples are made says how busy the machine is, which a run beside six others is.
    settings.register_profile("desk", suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("desk")


ENGINE = re.compile(
    r"tests/(backends/(aws|ssh|vm)/|backends/test_docker|cli/test_(images|program)|gateway/test_real"
    r"|loop/test_crash|server/test_idle|training/)"
)
"""Tests that start containers. There is one engine, and a host counts what anybody runs there."""

_turn: list[IO[str]] = []
"""The lock on the engine, while it is held."""


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before a test's time begins to run
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Let processes that run tests at once (``-n 2 --dist loadfile``) take turns at the engine."""
    if _is_for_engine(item) and not _turn:
        lock = Path(gettempdir(), "modelyard-tests-engine.lock")
        _turn.append(lock.open("w"))  # until the turn is over
        flock(_turn[0], LOCK_EX)
    try:
        return (yield)
    finally:
        if _turn and not (nextitem and _is_for_engine(nextitem)):
            _turn.pop().close()


def _is_for_engine(item: pytest.Item) -> bool:
    return bool(ENGINE.match(item.path.relative_to(item.config.rootpath).as_posix()))


def evaluate_yaml(example: Example) -> None:
    """Load and plan a block; one marked ``config`` is a configuration of places."""
    plan_everywhere(str(example.parsed), file=example.path)


class ConfigBlockParser(CodeBlockParser):
    """Blocks that begin with ```yaml config."""

    language = "yaml config"

    def evaluate(self, example: Example) -> None:
        """Read the block as a configuration."""
        with NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(str(example.parsed))
            file.flush()
            read_places(Path(file.name))


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), ConfigBlockParser(), CodeBlockParser("yaml", evaluate_yaml)],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
).pytest()
