"""The tables, as SQLAlchemy Core sees them; migrations make them, and a test holds the two together.

Columns are what a query asks for or a person looks up; whole values (a run's template, a job's
ports) are JSON text. Times are microseconds since 1970, as in :mod:`orchestrator.store.codec`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    # Two processes that apply a new spec of one name at once: the second finds it taken.
    Column("name", Text, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("wanted", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("was_ready", Boolean, nullable=False),
    Column("ready", Integer, nullable=False),
    Column("serial", BigInteger, nullable=False),
    Column("spec_hash", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", BigInteger),
    Column("template", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("set_name", Text, nullable=False, server_default=""),
    Column("project", Text, nullable=False, server_default="main"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("run_id", Text, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("replica", Integer, nullable=False),
    Column("node", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("spec_hash", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("exit_code", Integer),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("stop_cause", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("stop_asked_at", BigInteger),
    Column("started_at", BigInteger),
    Column("ready_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("address", Text),
    Column("ports", Text, nullable=False),
    Column("devices", Text, nullable=False),
    Column("rent", Text),
    Column("machine", Text, nullable=False, server_default=""),
    Column("adapters", Text, nullable=False, server_default="[]"),
    PrimaryKeyConstraint("run_id", "name", name="jobs_pkey"),
)

events = Table(
    "events",
    metadata,
    # Given out under the write lock, so that serials become visible in their order and a
    # reader that remembers the last one misses none.
    # INTEGER and no other word makes it SQLite's own row number: one tree instead of two.
    Column("serial", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("run_id", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("subject", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("project", Text, nullable=False, server_default="main"),
    Index("events_by_run", "run", "serial"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, nullable=False),
    # The run or fleet whose apply brought the value, which goes with it; "" for one set by hand.
    Column("given_to", Text, nullable=False, server_default=""),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("name", "given_to", name="secrets_pkey"),
    Index("secrets_by_run", "given_to"),
)

volumes = Table(
    "volumes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("backend", Text, nullable=False),
    Column("spec_hash", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("spec", Text, nullable=False),
    Column("set_name", Text, nullable=False, server_default=""),
    Column("project", Text, nullable=False, server_default="main"),
)

fleets = Table(
    "fleets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("spec_hash", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("spec", Text, nullable=False),
    Column("set_name", Text, nullable=False, server_default=""),
    Column("project", Text, nullable=False, server_default="main"),
)

# Hosts on which nothing new starts; of fleets, and of places that are configured.
cordons = Table(
    "cordons",
    metadata,
    Column("place", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("leave", Text, nullable=False),
    PrimaryKeyConstraint("place", "host", name="cordons_pkey"),
)

projects = Table(
    "projects",
    metadata,
    Column("name", Text, primary_key=True),
    Column("limits", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("role", Text, nullable=False),
    # SHA-256 of the secret part, which is random: nobody can read a token off this table.
    Column("digest", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)

audit = Table(
    "audit",
    metadata,
    Column("serial", Integer, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("spec_hash", Text, nullable=False),
    Column("outcome", Text, nullable=False),
)

# Answers to calls that carried an Idempotency-Key.
answers = Table(
    "answers",
    metadata,
    Column("key", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

# Servers that share the work, each until when it is taken to be there.
drivers = Table(
    "drivers",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("until", BigInteger, nullable=False),
)

# What a server remembers for the next one: what was synced, sent, or started by the clock.
notes = Table(
    "notes",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("run_id", Text, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("location", Text, nullable=False),
    Column("base_id", Text, nullable=False),
    Column("base_revision", Text, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("dataset_revision", Text, nullable=False),
    Column("image", Text, nullable=False),
    Column("spec_hash", Text, nullable=False),
    Column("launch", Text, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("run_id", "kind", name="artifacts_pkey"),
)

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
