"""What apply writes down is there in full, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.apply import Plan, RunPlan, plan_documents
from orchestrator.apply.recording import record
from orchestrator.catalog.hardware import known_names
from orchestrator.errors import StateMoved, StoreError
from orchestrator.spec.load import read
from orchestrator.store.records import Store
from orchestrator.store.values import SecretName
from tests.places import world
from tests.store.test_faults import everything
from tests.store.values import T0, a_run, made

SPECS = """
type: volume
name: cache
size: 1GB
---
type: fleet
name: rack
ssh_config: {user: ops, hosts: [one]}
env: [PROXY]
---
type: task
name: hello
image: python:3.12-slim
commands: [echo hi]
env: [HF_TOKEN]
"""
FULL = {
    "sqlite": ["CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'disk full'); END"],
    "postgresql": [
        "CREATE FUNCTION full_disk() RETURNS trigger AS $$ BEGIN "
        "RAISE EXCEPTION 'disk full' USING ERRCODE = '53100'; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER no_room BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION full_disk()",
    ],
}


def planned() -> tuple[Plan, ...]:
    return plan_documents(read(SPECS, file="specs.yaml", known_accelerators=known_names()), world())


def write_down(store: Store) -> None:
    record(planned(), store, environ={"HF_TOKEN": "hf_planted", "PROXY": "p"}, now=T0, new_id=lambda: "id")


def test_all_is_there(store: Store) -> None:
    write_down(store)

    assert [run.name for run in store.runs()] == ["hello"]
    assert [volume.name for volume in store.volumes()] == ["cache"]
    assert [fleet.name for fleet in store.fleets()] == ["rack"]
    assert store.secrets.get("hello/HF_TOKEN") == "hf_planted"
    assert store.secrets.list() == [
        SecretName("hello/HF_TOKEN", T0, "hello"), SecretName("rack/PROXY", T0, "fleet:rack"),
    ]  # fmt: skip


def test_a_run_that_moved_leaves_nothing_behind(store: Store) -> None:
    store.commit([made(replace(a_run("hello"), id="another"))])
    before = everything(store)

    with pytest.raises(StateMoved):
        write_down(store)

    assert everything(store) == before


def test_a_database_that_refuses_one_row_has_none(store: Store) -> None:
    with store.database.writing() as connection:
        for statement in FULL[connection.dialect.name]:
            connection.exec_driver_sql(statement)
    before = everything(store)

    with pytest.raises(StoreError):
        write_down(store)

    assert everything(store) == before


def test_volumes_alone_are_written_too(store: Store) -> None:
    plans = [plan for plan in planned() if not isinstance(plan, RunPlan)]

    assert record(plans, store, environ={"PROXY": "p"}, now=T0, new_id=lambda: "id") == ()

    assert [volume.name for volume in store.volumes()] == ["cache"]
