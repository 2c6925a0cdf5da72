"""Who may ask for what, and who asked: projects, tokens, deeds, and the answers given to keys."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from orchestrator.errors import NotFound, UsageError
from orchestrator.store.codec import decode, encode, from_micros, legible, to_micros
from orchestrator.store.database import Database
from orchestrator.store.leases import is_gone
from orchestrator.store.prepared import insert_for
from orchestrator.store.tables import (
    answers,
    audit,
    drivers,
    fleets,
    notes,
    projects,
    runs,
    secrets,
    tokens,
    volumes,
)
from orchestrator.store.values import MAIN, Answer, Deed, Limits, Project, Token


class Access:
    """The tables of users, of one store; safe from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Projects --------------------------------------------------------------------------------

    def projects(self) -> list[Project]:
        """Return every project by name; ``main`` is always there."""
        found = {row["name"]: _project_of(row) for row in self._rows(sa.select(projects))}
        found.setdefault(MAIN, Project(MAIN, from_micros(0)))
        return sorted(found.values(), key=lambda project: project.name)

    def project(self, name: str) -> Project:
        """Return one project.

        Raises:
            NotFound: there is none of that name.
        """
        for row in self._rows(sa.select(projects).where(projects.c.name == name)):
            return _project_of(row)
        if name == MAIN:
            return Project(MAIN, from_micros(0))
        raise NotFound(f"no project {name!r}", fix="modelyard project list")

    def put_project(self, project: Project) -> None:
        """Write down a project, in place of the one of its name; when it was made stays."""
        row = {"limits": encode(project.limits)}
        put = insert_for(self._database.engine.dialect, projects).values(
            name=project.name, created_at=to_micros(project.created_at), **row
        )
        with self._database.writing() as connection:
            connection.execute(put.on_conflict_do_update(index_elements=["name"], set_=row))

    def delete_project(self, name: str) -> None:
        """Strike out a project that holds nothing, with its tokens and secrets.

        Raises:
            NotFound: there is none of that name.
            UsageError: it has runs, volumes or fleets, or is ``main``.
        """
        if name == MAIN:
            raise UsageError("project 'main' stays", fix="delete its runs, or its tokens")
        with self._database.writing() as connection:
            for table in (runs, volumes, fleets):
                if connection.execute(sa.select(table.c.name).where(table.c.project == name)).first():
                    raise UsageError(
                        f"project {name!r} still has {table.name}", fix=f"delete its {table.name} first"
                    )
            connection.execute(tokens.delete().where(tokens.c.project == name))
            kept = secrets.c.name.startswith(f"{name}:", autoescape=True)
            connection.execute(secrets.delete().where(kept))  # or whoever takes the name next has them
            gone = connection.execute(projects.delete().where(projects.c.name == name)).rowcount
        if not gone:
            raise NotFound(f"no project {name!r}", fix="modelyard project list")

    # Tokens ----------------------------------------------------------------------------------

    def add_token(self, token: Token) -> None:
        """Write down a token."""
        with self._database.writing() as connection:
            connection.execute(tokens.insert().values(_token_row(token)))

    def token(self, id: str) -> Token | None:
        """Return a token by its id, None where there is none."""
        for row in self._rows(sa.select(tokens).where(tokens.c.id == id)):
            return _token_of(row)
        return None

    def tokens(self, project: str | None = None) -> list[Token]:
        """Return every token, or those of a project, oldest first."""
        found = sa.select(tokens).order_by(tokens.c.created_at, tokens.c.id)
        if project is not None:
            found = found.where(tokens.c.project == project)
        return [_token_of(row) for row in self._rows(found)]

    def revoke(self, id: str, *, now: datetime) -> None:
        """Let a token open nothing from now on; it stays listed.

        Raises:
            NotFound: there is no such token.
        """
        with self._database.writing() as connection:
            found = connection.execute(
                tokens.update()
                .where(tokens.c.id == id)
                .values(revoked_at=sa.func.coalesce(tokens.c.revoked_at, to_micros(now)))
            ).rowcount
        if not found:
            raise NotFound(f"no token {id!r}", fix="modelyard token list")

    # Deeds -----------------------------------------------------------------------------------

    def note_deed(self, deed: Deed) -> None:
        """Add to the audit log, which nobody changes."""
        row = {
            "at": to_micros(deed.at),
            "who": legible(deed.who),
            "address": deed.address,
            "project": legible(deed.project),
            "action": deed.action,
            "subject": legible(deed.subject),
            "spec_hash": deed.spec_hash,
            "outcome": deed.outcome,
        }
        with self._database.writing() as connection:
            connection.execute(audit.insert().values(row))

    def forget_refusals(self, *, keep: int) -> None:
        """Drop the oldest calls that were refused, but for the newest ``keep``; what was done stays."""
        refused = audit.c.outcome.startswith("4")
        newest = sa.select(audit.c.serial).where(refused).order_by(audit.c.serial.desc())
        with self._database.writing() as connection:
            last = connection.execute(newest.offset(keep).limit(1)).scalar()
            if last is not None:
                connection.execute(audit.delete().where(refused, audit.c.serial <= last))

    def deeds(
        self, project: str | None = None, *, after: int = 0, limit: int = 1_000
    ) -> list[tuple[int, Deed]]:
        """Return the audit log with serials, oldest first."""
        found = sa.select(audit).where(audit.c.serial > after).order_by(audit.c.serial).limit(limit)
        if project is not None:
            found = found.where(audit.c.project == project)
        return [(row["serial"], _deed_of(row)) for row in self._rows(found)]

    # Answers ---------------------------------------------------------------------------------

    def claim(
        self, key: str, digest: str, *, owner: str, now: datetime, stale_before: datetime
    ) -> Answer | None:
        """Return what was answered to a key; where it was not used, take it for ``owner``, and return None.

        Of those who ask at once one gets it; to the others its answer has the status 0 until it is kept.
        One that nobody answered is free again where its owner is gone, or took it before ``stale_before``.
        """
        row = {"digest": digest, "status": 0, "body": owner, "at": to_micros(now)}
        put = insert_for(self._database.engine.dialect, answers).values(key=key, **row)
        with self._database.writing() as connection:
            if connection.execute(put.on_conflict_do_nothing()).rowcount:
                return None
            found = connection.execute(sa.select(answers).where(answers.c.key == key)).mappings().one()
            is_open = found["status"] == 0 and found["digest"] == digest
            if is_open and (found["at"] < to_micros(stale_before) or is_gone(found["body"])):
                connection.execute(answers.update().where(answers.c.key == key).values(row))
                return None
            return Answer(found["digest"], found["status"], found["body"])

    def drop_claim(self, key: str) -> None:
        """Give back a key that was taken and not answered."""
        with self._database.writing() as connection:
            connection.execute(answers.delete().where(answers.c.key == key, answers.c.status == 0))

    def keep_answer(self, key: str, answer: Answer, *, now: datetime, forget_before: datetime) -> None:
        """Keep an answer under its key, and drop those older than ``forget_before``."""
        row = {"digest": answer.digest, "status": answer.status, "body": answer.body, "at": to_micros(now)}
        put = insert_for(self._database.engine.dialect, answers).values(key=key, **row)
        with self._database.writing() as connection:
            connection.execute(answers.delete().where(answers.c.at < to_micros(forget_before)))
            connection.execute(put.on_conflict_do_update(index_elements=["key"], set_=row))

    # Servers ---------------------------------------------------------------------------------

    def be_there(self, owner: str, *, until: datetime, now: datetime) -> list[str]:
        """Say that a server is there until then; return all that are, itself among them, in order."""
        put = insert_for(self._database.engine.dialect, drivers).values(owner=owner, until=to_micros(until))
        with self._database.writing() as connection:
            connection.execute(
                put.on_conflict_do_update(index_elements=["owner"], set_={"until": to_micros(until)})
            )
            connection.execute(drivers.delete().where(drivers.c.until <= to_micros(now)))
            return sorted(connection.execute(sa.select(drivers.c.owner)).scalars())

    def leave(self, owner: str) -> None:
        """Say that a server has gone."""
        with self._database.writing() as connection:
            connection.execute(drivers.delete().where(drivers.c.owner == owner))

    # Notes -----------------------------------------------------------------------------------

    def note(self, key: str) -> str | None:
        """Return what is remembered under a key, None for nothing."""
        for row in self._rows(sa.select(notes).where(notes.c.key == key)):
            return str(row["value"])
        return None

    def notes(self, prefix: str) -> dict[str, str]:
        """Return all that is remembered under keys that begin with ``prefix``, by key."""
        found = self._rows(sa.select(notes).where(notes.c.key.startswith(prefix, autoescape=True)))
        return {row["key"]: row["value"] for row in found}

    def remember(self, key: str, value: str, *, now: datetime, was: str | None = None) -> bool:
        """Put a value under a key; with ``was`` only in place of that one. Return whether it was put."""
        row = {"value": value, "at": to_micros(now)}
        with self._database.writing() as connection:
            there = connection.execute(sa.select(notes.c.value).where(notes.c.key == key)).scalar()
            if was is not None and there != was:
                return False
            put = insert_for(self._database.engine.dialect, notes).values(key=key, **row)
            connection.execute(put.on_conflict_do_update(index_elements=["key"], set_=row))
        return True

    def forget(self, key: str) -> None:
        """Drop what is remembered under a key."""
        with self._database.writing() as connection:
            connection.execute(notes.delete().where(notes.c.key == key))

    def _rows(self, statement: sa.Select[Any]) -> list[Mapping[str, Any]]:
        with self._database.reading() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]


def _project_of(row: Mapping[str, Any]) -> Project:
    return Project(row["name"], from_micros(row["created_at"]), decode(Limits, row["limits"]))


def _token_row(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": legible(token.name),
        "project": token.project,
        "role": token.role,
        "digest": token.digest,
        "created_at": to_micros(token.created_at),
        "expires_at": token.expires_at and to_micros(token.expires_at),
        "revoked_at": token.revoked_at and to_micros(token.revoked_at),
    }


def _token_of(row: Mapping[str, Any]) -> Token:
    expires, revoked = row["expires_at"], row["revoked_at"]
    return Token(
        row["id"], row["name"], row["project"], row["role"], row["digest"], from_micros(row["created_at"]),
        None if expires is None else from_micros(expires),
        None if revoked is None else from_micros(revoked),
    )  # fmt: skip


def _deed_of(row: Mapping[str, Any]) -> Deed:
    return Deed(
        at=from_micros(row["at"]),
        who=row["who"],
        address=row["address"],
        project=row["project"],
        action=row["action"],
        subject=row["subject"],
        outcome=row["outcome"],
        spec_hash=row["spec_hash"],
    )
