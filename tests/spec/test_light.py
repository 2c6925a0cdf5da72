"""What importing and loading costs: heavy modules come only when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest


def modules_after(code: str) -> set[str]:
    listing = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(listing.stdout.split())


@pytest.mark.parametrize("module", ["models", "load", "forms"])
def test_importing_the_spec_brings_no_yaml_and_no_diff(module: str) -> None:
    found = modules_after(f"import orchestrator.spec.{module}")

    assert found.isdisjoint({"yaml", "difflib", "orchestrator.catalog"})


def test_only_the_documents_that_are_named_are_built() -> None:
    code = (
        "from orchestrator.spec.load import read\n"
        "from orchestrator.spec import models\n"
        "read('type: volume\\nname: a')\n"
        "assert models.Volume.__pydantic_complete__\n"
        "assert not models.Service.__pydantic_complete__\n"
    )

    assert "yaml" in modules_after(code)
