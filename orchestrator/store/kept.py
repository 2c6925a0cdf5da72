"""What is written down beside runs: volumes, fleets, secrets, and hosts that are used again."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from orchestrator.store.codec import to_micros
from orchestrator.store.prepared import insert_for
from orchestrator.store.tables import cordons, fleets, secrets, volumes
from orchestrator.store.values import Fleet, Kept, Sealed, Uncordoned, Volume


def statement_of(kept: Kept, dialect: sa.Dialect) -> sa.Executable:
    """Return the statement that writes ``kept`` down, in place of what has its name; whose that is stays.

    Only under the write lock: what is sealed is sealed now.
    """
    match kept:
        case Volume():
            return _put(dialect, volumes, {"name": kept.name}, _asked(kept) | {"backend": kept.backend})
        case Fleet():
            return _put(dialect, fleets, {"name": kept.name}, _asked(kept))
        case Sealed(name, seal, updated_at, given_to):
            row = {"ciphertext": seal(), "updated_at": to_micros(updated_at)}
            return _put(dialect, secrets, {"name": name, "given_to": given_to}, row)
        case Uncordoned(place, host):
            return cordons.delete().where(cordons.c.place == place, cordons.c.host == host)


def _asked(kept: Volume | Fleet) -> dict[str, Any]:
    return {
        "spec": kept.spec,
        "spec_hash": kept.spec_hash,
        "created_at": to_micros(kept.created_at),
        "set_name": kept.set_name,
        "project": kept.project,
    }


def _put(dialect: sa.Dialect, table: sa.Table, key: dict[str, str], row: dict[str, Any]) -> sa.Executable:
    put = insert_for(dialect, table).values(**key, **row)
    changes = {column: value for column, value in row.items() if column != "project"}  # whose it is stays
    return put.on_conflict_do_update(index_elements=list(key), set_=changes)
