"""The reference page says what the models say."""

from __future__ import annotations

from pathlib import Path

from orchestrator.spec.models import TYPES
from orchestrator.spec.reference import reference
from tests.spec.test_models import fields_of

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "spec.md"


def test_page_is_the_one_that_the_models_write() -> None:
    assert PAGE.read_text() == reference(), "python -m orchestrator.spec.reference > docs/reference/spec.md"


def test_every_field_has_a_row_under_its_part() -> None:
    rows = set(reference().splitlines())
    for kind in TYPES.values():
        for path, _, name in fields_of(kind):
            if name != "type" or "." in path:
                assert any(row.startswith(f"| `{name}` |") for row in rows), path


def test_links_lead_to_headings() -> None:
    lines = reference().splitlines()
    headings = {line.removeprefix("## ").lower() for line in lines if line.startswith("## ")}
    for line in lines:
        for link in line.split("](#")[1:]:
            assert link.partition(")")[0] in headings
