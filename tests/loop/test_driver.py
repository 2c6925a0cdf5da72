"""The loop on a real record and the scripted place: driving, waiting, sharing, interrupting."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backends.sim import Script, Sim, SimCluster
from orchestrator.backend import Group, GroupStatus, Instance, Launch, Probe
from orchestrator.errors import AuthFailed, BackendError, Rejected
from orchestrator.loop import Hooks, Loop, pulse
from orchestrator.reconcile import JobState, RunEvent, RunState, Wanted
from orchestrator.reconcile.steps import Turn
from orchestrator.reconcile.values import before_of
from orchestrator.store import open_store
from orchestrator.store.records import Store
from tests.loop.conftest import RETRY, put, state

TASK = Script(run_s=0.05)


def drive(store: Store, sim: Sim, *names: str, hooks: Hooks | None = None, owner: str = "me:1:1") -> None:
    """Drive until every run has ended."""
    with Loop(store, {"sim": sim}, owner=owner, hooks=hooks) as loop:
        assert loop.drive(lambda: all(state(store, n).is_final for n in names), timeout_s=20)


def test_a_run_is_driven_to_its_end(store: Store) -> None:
    put(store, "sft")
    drive(store, Sim(script={"sft-*": TASK}), "sft")
    assert state(store, "sft") is RunState.SUCCEEDED


def test_events_are_told_in_the_order_they_are_recorded(store: Store) -> None:
    put(store, "sft")
    told: list[RunEvent] = []
    drive(store, Sim(script={"sft-*": TASK}), "sft", hooks=Hooks(event=told.append))
    assert told == [event for _, event in store.events("sft")]


def test_driving_ends_when_time_is_over(store: Store) -> None:
    put(store, "chat")
    with Loop(store, {"sim": Sim()}, owner="me:1:1") as loop:
        assert not loop.drive(lambda: state(store, "chat").is_final, timeout_s=0.3)
    assert state(store, "chat") is RunState.RUNNING


def test_a_place_out_of_reach_is_asked_again_later(store: Store) -> None:
    put(store, "sft")
    sim = Sim(script={"sft-*": TASK})
    sim.unreachable = True
    back = threading.Timer(0.3, setattr, (sim, "unreachable", False))
    back.start()
    drive(store, sim, "sft")
    back.join()
    assert (state(store, "sft"), sim.starts["sft-0-0-0"]) == (RunState.SUCCEEDED, 1)


class Refusing(SimCluster):
    """A cluster that takes no group."""

    def apply_group(self, group: Group, *, secrets: Mapping[str, str]) -> GroupStatus:
        raise Rejected(f"no namespace for {group.name}, of {len(secrets)}", backend="sim", fix="create it")


def test_a_refused_group_is_told_with_its_remedy_in_one_line(store: Store) -> None:
    put(store, "sft")
    drive(store, Refusing(), "sft")
    told = "no namespace for sft, of 0 (create it)"
    assert (state(store, "sft"), store.run("sft").reason) == (RunState.FAILED, told)
    (_, last) = store.events("sft")[-1]
    assert (last.after, last.cause, last.message) == ("failed", "refused", told)


class Keeping(SimCluster):
    """A cluster that lets nobody delete a group, until somebody is allowed to."""

    asked = 0
    denied = True

    def delete_group(self, name: str, *, grace_s: float) -> None:
        self.asked += 1
        if self.denied:
            raise AuthFailed(f"not allowed: verb delete on {name}", backend="sim", fix="render rbac")
        super().delete_group(name, grace_s=grace_s)


def test_what_a_place_refuses_to_end_is_told_once_and_asked_again_later(store: Store) -> None:
    put(store, "web", type="service")
    cluster = Keeping()
    told: list[RunEvent] = []
    with Loop(store, {"sim": cluster}, owner="me:1:1", hooks=Hooks(event=told.append)) as loop:
        assert loop.drive(lambda: state(store, "web") is RunState.READY, timeout_s=20)
        run = store.run("web")
        store.commit([Turn(run.asked(Wanted.STOP), None)], expected={run.id: run.serial})
        assert not loop.drive(lambda: state(store, "web").is_final, timeout_s=0.5)
        assert cluster.asked == 1
        loop.settle()  # whoever only looks is not kept
        cluster.denied = False
        assert loop.drive(lambda: state(store, "web").is_final, timeout_s=20)
    assert cluster.asked == 2
    (why,) = [event for event in told if event.cause == "refused"]
    assert (why.subject, why.after, why.action, why.message) == (
        "web", "stopping", "web:refused", "not allowed: verb delete on web (render rbac)",
    )  # fmt: skip


class Expired(Sim):
    """A place whose credentials have expired, until somebody signs in again."""

    denied = True

    def instances(self) -> Sequence[Instance]:
        if self.denied:
            raise AuthFailed("us-east-1: the credentials have expired", backend="sim", fix="sign in again")
        return super().instances()


def test_whoever_drives_is_told_why_nothing_is_known_of_a_place(store: Store) -> None:
    put(store, "sft")
    sim = Expired(script={"sft-*": TASK})
    told: list[tuple[str, str, str | None]] = []

    def unknown(name: str, error: BackendError) -> None:
        told.append((name, error.what, error.fix))
        sim.denied = False

    drive(store, sim, "sft", hooks=Hooks(unknown=unknown))
    assert told == [("sim", "us-east-1: the credentials have expired", "sign in again")]
    assert state(store, "sft") is RunState.SUCCEEDED


def test_a_failed_start_is_recorded_with_its_reason(store: Store) -> None:
    put(store, "sft")
    drive(store, Sim(script={"sft-*": Script(refuse="rejected")}), "sft")
    assert store.run("sft").reason == "sft-0-0-0: this launch is not accepted"


def test_retries_follow_each_other(store: Store) -> None:
    put(store, "sft", retry=replace(RETRY, attempts=3))
    drive(store, Sim(script={"sft-*": Script(run_s=0.01, exit_code=1)}), "sft")
    assert [job.attempt for job in store.jobs("id-sft")] == [0, 1, 2]


def test_a_secret_is_handed_over_at_the_start_and_missing_it_says_how_to_set_it(store: Store) -> None:
    put(store, "sft", secrets=(("TOKEN", "Bearer ${{ secrets.HF_TOKEN }}"),))
    drive(store, Sim(script={"sft-*": TASK}), "sft")
    assert "secret HF_TOKEN is not set" in store.run("sft").reason
    assert "modelyard secret set HF_TOKEN" in store.run("sft").reason


def test_a_runs_own_secret_comes_before_the_shared_one(store: Store) -> None:
    import hashlib
    from datetime import UTC, datetime

    for name, value in (("HF_TOKEN", "shared"), ("sft/HF_TOKEN", "own")):
        store.secrets.set(name, value, now=datetime.now(UTC))
    put(store, "sft", secrets=(("TOKEN", "Bearer ${{ secrets.HF_TOKEN }}"),))
    sim = Sim(script={"sft-*": replace(TASK, digests=("TOKEN",))})
    drive(store, sim, "sft")
    said = [line.text for line in sim.logs("sft-0-0-0")]
    assert said == [hashlib.sha256(b"Bearer own").hexdigest()]


def test_a_service_is_ready_when_it_answers_and_not_when_it_stops_answering(store: Store) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        where = server.getsockname()
        put(store, "web", type="service", probe=Probe("tcp", 80, interval_s=0.05, failures=2))
        sim = Sim(script={"web-*": Script(ports={80: where})})
        with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
            assert loop.drive(lambda: state(store, "web") is RunState.READY, timeout_s=10)
            server.close()
            assert loop.drive(lambda: state(store, "web") is RunState.RUNNING, timeout_s=10)


def test_a_run_that_another_loop_drives_is_left_to_it(store: Store, tmp_path: Path) -> None:
    put(store, "sft")
    sim = Sim(state=tmp_path / "sim.jsonl", script={"*": Script(run_s=0.5)})
    with open_store(f"sqlite:///{tmp_path}/state.db") as second:
        other = threading.Thread(target=drive, args=(second, sim, "sft"), kwargs={"owner": "elsewhere:1:1"})
        with Loop(store, {"sim": sim}, owner="elsewhere:2:2") as loop:
            loop.step()
            other.start()
            assert loop.drive(lambda: state(store, "sft").is_final, timeout_s=20)
        other.join()
    assert sim.starts == {"sft-0-0-0": 1}


def test_a_stop_asked_for_elsewhere_is_carried_out(store: Store) -> None:
    put(store, "chat")
    sim = Sim()
    with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        loop.drive(lambda: state(store, "chat") is RunState.RUNNING, timeout_s=10)
        run = store.run("chat")
        store.commit([Turn(replace(run, wanted=Wanted.STOP), None)], expected={run.id: run.serial})
        assert loop.drive(lambda: state(store, "chat").is_final, timeout_s=10)
    assert state(store, "chat") is RunState.STOPPED


def test_an_interrupt_leaves_the_run_going_and_the_record_whole(store: Store) -> None:
    put(store, "chat")
    sim = Sim()

    def interrupt() -> bool:
        if state(store, "chat") is RunState.RUNNING:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt), Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        loop.drive(interrupt, timeout_s=10)
    assert [i.name for i in sim.instances()] == ["chat-0-0-0"]
    assert state(store, "chat") is RunState.RUNNING
    assert store.lease(
        ["id-chat"], owner="you:2:2", until=store.run("chat").since, now=store.run("chat").since
    )


def test_what_nobody_recorded_is_not_touched(store: Store) -> None:
    sim = Sim()
    sim.start(Launch("ghost-0-0-0", "ghost"), secrets={}, progress=lambda _: None)
    put(store, "sft")
    sim_calls = len(sim.calls)
    with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
        loop.drive(lambda: state(store, "sft") is RunState.RUNNING, timeout_s=10)
    assert {c.name for c in sim.calls[sim_calls:] if c.method in ("stop", "remove")} == set()


def test_the_last_lines_of_what_failed_are_read_before_its_end_is_written_down(store: Store) -> None:
    put(store, "chat", type="service", retry=replace(RETRY, attempts=3))
    said = "serve: error: unrecognized arguments: --swap-space 4"
    drive(store, Sim(script={"chat-*": Script(run_s=0.01, exit_code=2, prints=("loading", said))}), "chat")
    (job,) = store.jobs("id-chat")
    assert (job.reason, said in job.message) == ("config", True)
    assert said in store.run("chat").reason


class Older(BaseHTTPRequestHandler):
    """A program that knows one path."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@pytest.mark.parametrize("is_known", [True, False])
def test_during_a_rollout_an_older_replica_is_asked_what_its_own_spec_asks(
    store: Store, is_known: bool
) -> None:
    probe = Probe("http", 80, interval_s=0.02, failures=1, start_s=0.3)
    with ThreadingHTTPServer(("127.0.0.1", 0), Older) as server:
        threading.Thread(target=server.serve_forever).start()
        sim = Sim(script={"web-*": Script(ports={80: ("127.0.0.1", server.server_address[1])})})
        old = put(store, "web", type="service", probe=probe)
        with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
            assert loop.drive(lambda: state(store, "web") is RunState.READY, timeout_s=10)
            old = store.run("web")
            launch = replace(old.template.launch, spec_hash="i", probe=replace(probe, path="/new"))
            template = replace(
                old.template, launch=launch, surge=True, before=before_of(old) if is_known else None
            )
            new = replace(old, spec_hash="i", template=template, state=RunState.QUEUED, was_ready=False)
            store.commit([Turn(new, None)])
            assert loop.drive(
                lambda: any(job.state is JobState.FAILED for job in store.jobs(old.id)), timeout_s=10
            )
        server.shutdown()
    first, second, *_ = store.jobs(old.id)
    assert (first.name, first.state) == ("web-0-0-0", JobState.READY)
    assert (second.name, second.reason) == ("web-0-0-1", "not-ready")


class Hung(BaseHTTPRequestHandler):
    """An engine that is healthy by its own word and makes no step."""

    def do_GET(self) -> None:
        body = b"vllm:num_requests_running 3\nvllm:iteration_tokens_total_count 5\n"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


def test_an_engine_that_hangs_is_found_by_its_own_figures_and_replaced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "EVERY_S", 0.05)
    monkeypatch.setattr(pulse, "HUNG_S", 0.2)
    told = {"running": ["vllm:num_requests_running"], "steps": ["vllm:iteration_tokens_total_count"]}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hung) as engine:
        threading.Thread(target=engine.serve_forever).start()
        where = {80: ("127.0.0.1", engine.server_address[1])}
        run = put(store, "chat", type="service", probe=Probe(port=80), retry=RETRY)
        store.commit([Turn(replace(run, plan=json.dumps({"serving": {"metrics": told}})), None)])
        sim = Sim(script={"chat-0-0-0": Script(ports=where), "chat-*": Script()})
        with Loop(store, {"sim": sim}, owner="me:1:1") as loop:
            assert loop.drive(lambda: len(store.jobs("id-chat")) == 2, timeout_s=20)
        engine.shutdown()
    first, _ = store.jobs("id-chat")
    assert first.reason == "hung"
    assert first.message.startswith("3 requests run and no step was made for")
