"""Remember fleets, and the hosts on which nothing new starts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both tables, empty."""
    op.create_table(
        "fleets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("spec_hash", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("set_name", sa.Text, nullable=False, server_default=""),
        sa.Column("project", sa.Text, nullable=False, server_default="main"),
    )
    op.create_table(
        "cordons",
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("leave", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("place", "host", name="cordons_pkey"),
    )
