"""What people read of a server's users and of its sync."""

from __future__ import annotations

from datetime import UTC, datetime

from orchestrator.render.users import sync_text
from orchestrator.wire import SyncStatus

AT = datetime(2026, 11, 30, 12, tzinfo=UTC)


def status(commit: str, message: str = "", *changed: str) -> SyncStatus:
    """Return what became of a commit: it failed where there is a message."""
    return SyncStatus(
        source="git+/r@main", commit=commit, state="failed" if message else "applied", at=AT,
        message=message, changed=list(changed), failures=int(bool(message)), left=[],
    )  # fmt: skip


def test_what_was_wrong_before_the_last_applied_commit_is_over() -> None:
    found = [
        status("", "no answer"),
        status("c4", "bad again"),
        status("c3"),
        status("c2", "bad"),
        status("c1"),
    ]

    text = sync_text(found)

    assert text.count("failed") == 3
    assert text.endswith("git+/r@main\nno answer\nc4\nbad again")


def test_a_commit_that_changed_many_runs_keeps_its_line() -> None:
    (*_, line) = sync_text([status("c1", "", *(f"run-{n}" for n in range(400)))]).splitlines()

    assert "run-0, run-1, run-2, run-3 and 396 more" in line
    assert len(line) < 100
