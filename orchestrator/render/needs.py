"""What specs need from elsewhere, as text or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.apply.needs import ImageNeed, Needs
from orchestrator.render.table import table, to_json


def needs_text(needs: Needs, digests: Mapping[str, str], commits: Mapping[tuple[str, str], str]) -> str:
    """Return images and models as tables; what nobody could tell is a dash.

    Args:
        needs: What is needed.
        digests: Digests by image.
        commits: Commits by id and revision as asked.
    """
    parts = []
    if needs.images:
        rows = [[_digest(each, digests) or "-", each.reference, _mirror(each), ", ".join(each.runs)]
                for each in needs.images]  # fmt: skip
        shown = ["DIGEST", "IMAGE", "FROM", "RUNS"]
        if not any(row[2] for row in rows):
            rows, shown = [[*row[:2], row[3]] for row in rows], [*shown[:2], "RUNS"]
        parts.append(table(shown, rows))
    if needs.hub:
        rows = [
            [each.kind, each.id, commits.get((each.id, each.revision or ""), each.revision or "-"),
             ", ".join(each.runs)]
            for each in needs.hub
        ]  # fmt: skip
        parts.append(table(["KIND", "ID", "REVISION", "RUNS"], rows))
    return "\n\n".join(parts) or "nothing is needed from elsewhere"


def needs_json(needs: Needs, digests: Mapping[str, str], commits: Mapping[tuple[str, str], str]) -> str:
    """Return the same as ``modelyard/images/v1``."""
    return to_json("modelyard/images/v1", needs_plain(needs, digests, commits))


def needs_plain(
    needs: Needs, digests: Mapping[str, str], commits: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    """Return it as plain values."""
    return {
        "images": [
            {
                "reference": each.reference, "from": each.mirror, "digest": _digest(each, digests),
                "runs": list(each.runs),
            }
            for each in needs.images
        ],
        "hub": [
            {
                "kind": each.kind, "id": each.id, "revision": each.revision,
                "commit": commits.get((each.id, each.revision or "")), "runs": list(each.runs),
            }
            for each in needs.hub
        ],
    }  # fmt: skip


def _digest(need: ImageNeed, digests: Mapping[str, str]) -> str | None:
    return need.pinned or digests.get(need.reference)


def _mirror(need: ImageNeed) -> str:
    return need.mirror if need.mirror != need.reference else ""
