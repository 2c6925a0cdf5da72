"""Remember the adapters that a replica serves, of those that are loaded while it runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them to jobs; whoever keeps a run going finds out what there is."""
    op.add_column("jobs", sa.Column("adapters", sa.Text, nullable=False, server_default="[]"))
