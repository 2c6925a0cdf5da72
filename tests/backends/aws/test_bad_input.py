"""What a cloud refuses, from the command line: each with the region or type it is about, and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.backends.aws.cloud import REGIONS, Cloud
from tests.backends.aws.test_story import Prompt, prompt

__all__ = ["prompt"]

pytestmark = pytest.mark.docker


def spec(prompt: Prompt, more: str, *, types: str = "t3.micro") -> str:
    """Write the spec with more lines, and other types."""
    path = prompt.folder / "sft.yaml"
    path.write_text(path.read_text().replace("[t3.micro]", f"[{types}]") + more)
    return "sft.yaml"


@pytest.mark.parametrize(
    ("types", "more", "says"),
    [
        ("p9.huge", "", "no place offers p9.huge: modelyard offers lists what there is"),
        (
            "t3.micro",
            "regions: [eu-west-9]\n",
            "t3.micro is not offered in eu-west-9, but in us-east-1, us-west-2",
        ),
        (
            "t3.micro",
            "availability_zones: [us-east-1z]\n",
            "t3.micro is not offered in us-east-1z, but in us-east-1a",
        ),
    ],
    ids=["type", "region", "zone"],
)
def test_a_place_without_the_type_is_named_at_plan(prompt: Prompt, types: str, more: str, says: str) -> None:
    code, said = prompt("plan", "-f", spec(prompt, more, types=types))
    assert (code, says in said) == (75, True), said


def test_credentials_that_have_expired_are_named_at_plan(aws: Cloud, prompt: Prompt) -> None:
    for kept in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json"):
        kept.unlink()  # types that were read before would do for a plan
    aws.denied = "ExpiredToken"
    for words in (("plan", "-f", "sft.yaml"), ("apply", "-y", "-f", "sft.yaml")):
        code, said = prompt(*words)
        assert code == 77, said
        assert "us-east-1: the credentials have expired" in said
        assert "aws sso login" in said
    code, said = prompt("backend", "check")
    assert code == 77
    assert all(f"{region}: the credentials have expired" in said for region in REGIONS)


def test_a_quota_of_nothing_is_told_for_each_region(aws: Cloud, prompt: Prompt) -> None:
    aws.limited |= set(REGIONS)
    code, said = prompt("apply", "-y", "-f", "sft.yaml")
    assert code == 1
    assert [(zone[:-1], how) for _, zone, how in aws.asked] == [(region, "limited") for region in REGIONS]
    for region in REGIONS:
        assert f"t3.micro in {region}a: the account's limit is reached" in said
    assert "Service Quotas" in said
