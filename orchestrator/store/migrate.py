"""Bring a database to this program's schema with Alembic; imported only when there is a need."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(connection: Connection) -> None:
    """Run every migration that the database lacks, inside the caller's transaction."""
    config = Config()
    # Alembic reads options through configparser, to which a percent sign in a path is syntax.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
