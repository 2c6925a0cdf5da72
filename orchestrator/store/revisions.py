"""The schema revisions this program knows, oldest first; the last is the one it works with.

Kept apart from the migrations, so that a store that is up to date is opened without Alembic.
"""

from __future__ import annotations

from orchestrator.errors import StoreError

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")
HEAD = REVISIONS[-1]


def is_current(revision: str | None, *, where: str) -> bool:
    """Return whether a store at ``revision`` needs no migration; None is an empty database.

    Args:
        revision: What the database says.
        where: Its name in an error.

    Raises:
        StoreError: a newer program wrote it.
    """
    if revision is not None and revision not in REVISIONS:
        raise StoreError(
            f"{where} was written by a newer modelyard (schema {revision}, this one knows up to {HEAD})",
            fix="upgrade modelyard, or point it at another store",
        )
    return revision == HEAD
