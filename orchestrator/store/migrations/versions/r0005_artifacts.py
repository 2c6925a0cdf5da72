"""Remember what training left, and what it was made from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TEXTS = (
    "path", "sha256", "location", "base_id", "base_revision", "dataset", "dataset_revision", "image",
    "spec_hash", "launch", "metrics",
)  # fmt: skip


def upgrade() -> None:
    """Add the table of artifacts; runs that ended before have none."""
    op.create_table(
        "artifacts",
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in _TEXTS),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "kind", name="artifacts_pkey"),
    )
