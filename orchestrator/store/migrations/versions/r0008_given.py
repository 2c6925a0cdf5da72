"""Tell the values that a run was given from those that were set by hand."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_APPLIED = sa.text(
    "SELECT 1 FROM events WHERE run = :run AND project = :project AND at = :at AND cause LIKE 'apply:%'"
)
_THERE = sa.text("SELECT 1 FROM runs WHERE name = :run AND project = :project")


def upgrade() -> None:
    """Give values that an apply brought to its run; those of runs that are gone go, too.

    An apply wrote the value and its event down with one time, which a secret set by hand shares
    with none.
    """
    there = op.get_bind()
    rows = there.execute(sa.text("SELECT name, ciphertext, updated_at FROM secrets")).all()
    kept = []
    for name, ciphertext, updated_at in rows:
        project, _, path = name.rpartition(":")
        run = path.partition("/")[0] if "/" in path else ""
        of = {"run": run, "project": project or "main"}
        given = run and there.execute(_APPLIED, {**of, "at": updated_at}).first()
        if given and not there.execute(_THERE, of).first():
            continue
        row = {"name": name, "ciphertext": ciphertext, "updated_at": updated_at}
        kept.append({**row, "given_to": run if given else ""})
    op.drop_table("secrets")
    secrets = op.create_table(
        "secrets",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("given_to", sa.Text, nullable=False, server_default=""),
        sa.Column("ciphertext", sa.LargeBinary, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", "given_to", name="secrets_pkey"),
    )
    op.create_index("secrets_by_run", "secrets", ["given_to"])
    op.bulk_insert(secrets, kept)
