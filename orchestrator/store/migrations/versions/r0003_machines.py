"""Remember the kind of machine a job is rented, at what price, and the machine it was seen on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both to jobs; what is there rented nothing."""
    op.add_column("jobs", sa.Column("rent", sa.Text))
    op.add_column("jobs", sa.Column("machine", sa.Text, nullable=False, server_default=""))
