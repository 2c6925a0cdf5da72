"""What is written down of a change in place: who waits for it waits until it is carried out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from orchestrator.api import Local, has_arrived
from orchestrator.apply import RunPlan
from orchestrator.reconcile import RunState, Wanted
from orchestrator.reconcile.values import CANARY
from orchestrator.spec.load import load
from orchestrator.units import GIB

WEB = "type: service\nname: web\ncommands: ['serve {serve}']\nport: 8000\nbackends: [sim]\nreplicas: 2\n"


@contextmanager
def a_place(folder: Path) -> Iterator[Local]:
    config = folder / "config.yaml"
    script = 'script: {"web-*": {ready_s: 0.0}}'
    config.write_text(f"backends: [{{type: sim, state: {folder}/sim.jsonl, {script}}}]\n")
    api = Local(f"sqlite:///{folder}/state.db", config=config)
    try:
        yield api
    finally:
        api.ask(["web"], Wanted.DELETE)
        api.follow(["web"], "deleted", timeout_s=30)
        api.close()


def test_a_task_that_is_stopped_first_keeps_the_machine_it_has(tmp_path: Path) -> None:
    card = {"accelerator": "L4-24GB", "count": 1, "vram_bytes": 24 * GIB, "divisible": True}
    card |= {"cpu": 8, "memory_bytes": 64 * GIB, "vendor": "nvidia"}
    other = card | {"accelerator": "H100-80GB", "count": 2, "vram_bytes": 80 * GIB}
    offers = [card | {"instance_type": "near"}, other | {"instance_type": "far"}]
    prices = {"L4-24GB": 1, "H100-80GB": 20}
    place = {"type": "sim", "prices": prices, "offers": offers, "script": {"long-*": {"run_s": 1e9}}}
    config, file = tmp_path / "config.yaml", tmp_path / "long.yaml"
    config.write_text(json.dumps({"backends": [place]}))
    text = "type: task\nname: long\ncommands: [{what}]\nresources: {{gpu: '1..2'}}\n"
    with closing(Local(f"sqlite:///{tmp_path}/state.db", config=config)) as api:

        def planned(what: str) -> RunPlan:
            file.write_text(text.format(what=what))
            (plan,) = api.plan(load([str(file)]))
            assert isinstance(plan, RunPlan)
            return plan

        first = planned("train")
        api.apply((first,))
        api.follow(["long"], "started", timeout_s=30)

        again = planned("train --longer")

    assert again.placed
    assert first.placed
    chosen = [
        [choice.offer.instance_type for choice in each.choices] for each in (first.placed, again.placed)
    ]
    assert (again.action, chosen) == ("replace", [["near", "far"], ["near", "far"]])
    assert next(iter(again.placed.choices)).count == 1


def applied(api: Local, folder: Path, text: str) -> None:
    (folder / "web.yaml").write_text(text)
    api.apply(api.plan(load([str(folder / "web.yaml")])))


def is_settled(api: Local) -> bool:
    run = api.store.run("web")
    return has_arrived(run, api.store.jobs(run.id), "settled")


@pytest.mark.parametrize("replicas", [1, 4])
def test_another_number_of_replicas_is_waited_for(tmp_path: Path, replicas: int) -> None:
    with a_place(tmp_path) as api:
        applied(api, tmp_path, WEB.format(serve=1))
        assert api.follow(["web"], "settled", timeout_s=30)
        applied(api, tmp_path, WEB.format(serve=1).replace("replicas: 2", f"replicas: {replicas}"))
        before = is_settled(api)
        assert api.follow(["web"], "settled", timeout_s=30)
        run = api.store.run("web")
        live = [job for job in api.store.jobs(run.id) if not job.state.is_final]
        assert (before, run.state, run.ready, len(live)) == (False, RunState.READY, replicas, replicas)


def test_a_canary_that_is_promoted_is_waited_for(tmp_path: Path) -> None:
    with a_place(tmp_path) as api:
        applied(api, tmp_path, WEB.format(serve=1))
        assert api.follow(["web"], "settled", timeout_s=30)
        applied(api, tmp_path, WEB.format(serve=2) + "rollout: {weight: 20}\n")
        assert api.follow(["web"], "settled", timeout_s=30)
        assert api.store.run("web").reason.startswith(CANARY)
        applied(api, tmp_path, WEB.format(serve=2))
        assert not is_settled(api)
        assert api.follow(["web"], "settled", timeout_s=30)
        run = api.store.run("web")
        live = [job for job in api.store.jobs(run.id) if not job.state.is_final]
        assert {job.spec_hash for job in live} == {run.spec_hash}


def test_what_asks_nothing_of_replicas_leaves_a_service_ready(tmp_path: Path) -> None:
    with a_place(tmp_path) as api:
        applied(api, tmp_path, WEB.format(serve=1))
        assert api.follow(["web"], "settled", timeout_s=30)
        applied(api, tmp_path, WEB.format(serve=1) + "rate_limits: [{rps: 1}]\n")
        assert is_settled(api)
