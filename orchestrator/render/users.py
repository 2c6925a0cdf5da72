"""Tokens, projects and the audit log, for people and for machines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from orchestrator.render.table import table, to_json
from orchestrator.units import format_usd
from orchestrator.wire import NotedDeed, ProjectBody, SyncStatus, TokenView


def tokens_text(tokens: Sequence[TokenView]) -> str:
    """Return one line per token."""
    if not tokens:
        return "no tokens"
    return table(["ID", "NAME", "PROJECT", "ROLE", "STATE"], [_token_cells(token) for token in tokens])


def _token_cells(token: TokenView) -> list[str]:
    state = "good"
    if token.revoked_at is not None:
        state = "revoked"
    elif token.expires_at is not None:
        state = f"until {token.expires_at.isoformat(timespec='minutes')}"
    return [token.id, token.name, token.project, token.role, state]


def tokens_json(tokens: Sequence[TokenView]) -> str:
    """Return tokens as JSON."""
    return to_json("modelyard/tokens/v1", {"tokens": [token.model_dump(mode="json") for token in tokens]})


def projects_text(projects: Sequence[ProjectBody]) -> str:
    """Return one line per project."""
    rows = [
        [
            each.name,
            "-" if each.limits.gpus is None else str(each.limits.gpus),
            "-" if each.limits.usd_hour is None else f"${format_usd(each.limits.usd_hour)}/h",
            "all" if each.limits.backends is None else ", ".join(each.limits.backends) or "none",
        ]
        for each in projects
    ]
    return table(["PROJECT", "GPUS", "COSTS", "BACKENDS"], rows)


def projects_json(projects: Sequence[ProjectBody]) -> str:
    """Return projects as JSON."""
    found = [each.model_dump(mode="json") for each in projects]
    return to_json("modelyard/projects/v1", {"projects": found})


def audit_text(deeds: Sequence[NotedDeed]) -> str:
    """Return one line per deed."""
    if not deeds:
        return "nothing was changed"
    rows = [
        [
            noted.deed.at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            noted.deed.who, noted.deed.address, noted.deed.project or "-", noted.deed.action,
            noted.deed.subject or "-", noted.deed.outcome,
        ]
        for noted in deeds
    ]  # fmt: skip
    return table(["AT", "WHO", "FROM", "PROJECT", "DID", "WHAT", "OUTCOME"], rows)


def audit_json(deeds: Sequence[NotedDeed]) -> str:
    """Return the audit log as JSON."""
    found = [{"serial": noted.serial, **noted.model_dump(mode="json")["deed"]} for noted in deeds]
    return to_json("modelyard/audit/v1", {"deeds": found})


MOST_NAMES = 5
"""Names that a line of a table has room for."""


def sync_text(found: Sequence[SyncStatus]) -> str:
    """Return one line per commit that was synced, and what is wrong with those since the last applied one."""
    if not found:
        return "nothing was synced"
    rows = [
        [
            status.commit[:12] or "-", status.state,
            status.at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            _few(status.changed), f"{status.failures} times" if status.failures else "-",
        ]
        for status in found
    ]  # fmt: skip
    text = table(["COMMIT", "STATE", "AT", "CHANGED", "FAILED"], rows)
    newest = itertools.takewhile(lambda status: status.state == "failed", found)
    said = "".join(f"\n{status.commit[:12] or status.source}\n{status.message}" for status in newest)
    left = "".join(
        f"\n{', '.join(status.left)}: ended, and not started again by the commit that it was applied with"
        "\n  fix     push a new commit, or modelyard sync now"
        for status in found[:1]
        if status.left
    )
    return f"{found[0].source}\n{text}{said}{left}"


def _few(names: Sequence[str]) -> str:
    """Return some names and how many there are besides.

    >>> _few([]), _few(["a", "b"]), _few([f"w{n}" for n in range(9)])
    ('-', 'a, b', 'w0, w1, w2, w3 and 5 more')
    """
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[: MOST_NAMES - 1])} and {len(names) - MOST_NAMES + 1} more"
    return ", ".join(names) or "-"


def sync_json(found: Sequence[SyncStatus]) -> str:
    """Return commits that were synced as JSON."""
    return to_json("modelyard/sync/v1", {"commits": [status.model_dump(mode="json") for status in found]})
