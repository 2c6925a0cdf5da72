"""Remember under which set a run or a volume was applied."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the set's name to runs and volumes; what is there belongs to none."""
    for table in ("runs", "volumes"):
        op.add_column(table, sa.Column("set_name", sa.Text, nullable=False, server_default=""))
