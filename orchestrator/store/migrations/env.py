"""Run migrations on the connection that :mod:`orchestrator.store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from orchestrator.store.tables import metadata

if hasattr(context, "config"):  # Alembic runs this file; whoever only imports it has none
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        render_as_batch=True,  # SQLite alters a column by copying the table
    )
    context.run_migrations()
