"""Every promise of the server has a broken twin that its test catches."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from orchestrator.api import Local
from orchestrator.loop.leases import Leases
from orchestrator.server import carrying, gate, office, runs
from orchestrator.server.users import Caller, Role
from orchestrator.store import leases
from orchestrator.store.access import Access
from orchestrator.store.values import Limits, Project
from tests.cli.conftest import cli
from tests.server import test_gate, test_several
from tests.server.conftest import Served, serve, served
from tests.store.conftest import postgres, postgres_store_url, url

__all__ = ["cli", "postgres", "postgres_store_url", "serve", "served", "url"]

Patch = pytest.MonkeyPatch


def lets_anybody_in(patch: Patch) -> None:
    nobody = Caller("0", "nobody", "*", Role.ADMIN)
    patch.setattr(gate, "caller_of", lambda header, access, now: nobody)


def opens_other_projects(patch: Patch) -> None:
    patch.setattr(Caller, "may", lambda self, role, project: self.role >= role)


def lets_viewers_change(patch: Patch) -> None:
    patch.setattr(Caller, "may", lambda self, role, project: self.project in ("*", project))


def knows_no_revocation(patch: Patch) -> None:
    def caller_of(header: str | None, access: Access, *, now: datetime) -> Caller | None:
        found = access.token((header or "----").split("-")[1])
        return found and Caller(found.id, found.name, found.project, Role.named(found.role))

    patch.setattr(gate, "caller_of", caller_of)


def gives_a_route_to_viewers(patch: Patch) -> None:
    (route,) = [r for r in runs.gate.routes if isinstance(r, APIRoute) and r.name == "apply"]
    patch.setitem(route.openapi_extra or {}, "x-role", "viewer")


def adds_a_route_beside_the_gate(patch: Patch) -> None:
    plain = APIRouter()
    plain.add_api_route("/v1/projects/{project}/all", lambda project: project, methods=["POST"])
    patch.setattr(office.gate, "routes", [*office.gate.routes, *plain.routes])


def adds_a_socket_beside_the_gate(patch: Patch) -> None:
    async def shell(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    (route, *_) = test_gate.SOCKETS
    patch.setattr(route, "endpoint", shell)


def writes_nothing_down(patch: Patch) -> None:
    patch.setattr(Access, "note_deed", lambda self, deed: None)


def writes_down_what_ended_well(patch: Patch) -> None:
    def note(self: Access, deed: Any, right: Any = Access.note_deed) -> None:
        if deed.outcome.startswith("2"):
            right(self, deed)

    patch.setattr(Access, "note_deed", note)


def heeds_no_key(patch: Patch) -> None:
    patch.setattr(Access, "claim", lambda self, key, digest, **_: None)


def keeps_answers_as_they_are(patch: Patch) -> None:
    class Open:
        def __init__(self, key: bytes) -> None:
            del key

        def encrypt(self, body: bytes) -> bytes:
            return body

        def decrypt(self, body: bytes) -> bytes:
            return body

    patch.setattr(gate, "Fernet", Open)


def heeds_no_serial(patch: Patch) -> None:
    patch.setattr(runs, "require_serial", lambda request, serial: None)


def shows_everybodys_runs(patch: Patch) -> None:
    patch.setattr(Local, "_is_ours", lambda self, project: True)


def holds_nobody_to_limits(patch: Patch) -> None:
    patch.setattr(carrying, "require_limits", lambda *_, **__: None)


def counts_no_dollars(patch: Patch) -> None:
    patch.setattr("orchestrator.server.limits.Prices.node", lambda *_, **__: 0.0)


def takes_any_template(patch: Patch) -> None:
    patch.setattr(runs, "_refuse_strange", lambda api, plans: None)
    patch.setattr(runs, "carry_out", lambda *_: ())  # it is not to be driven


def takes_leases_of_others(patch: Patch) -> None:
    patch.setattr(leases, "is_free", lambda holder, until, **_: True)


def keeps_more_than_its_share(patch: Patch) -> None:
    patch.setattr(Leases, "_give_back", lambda self, runs: None)


def counts_the_silent(patch: Patch) -> None:
    def there(
        self: Access, owner: str, *, until: datetime, now: datetime, right: Any = Access.be_there
    ) -> Any:
        return right(self, owner, until=until, now=datetime.fromtimestamp(0, now.tzinfo))

    patch.setattr(Access, "be_there", there)


On = Callable[[Served, Path], None]


def on(test: Callable[..., None], *more: object) -> On:
    return lambda served, folder: test(served, *more)


REFUSES = on(test_gate.test_every_route_refuses_whom_it_does_not_know)
TABLE = on(test_gate.test_every_route_has_a_role_and_what_changes_takes_more_than_a_viewers)
SOCKETS = on(test_gate.test_every_socket_refuses_whom_it_does_not_know)
DEEDS = on(test_gate.test_every_change_is_written_down_with_who_and_how_it_ended)
GPUS = on(test_gate.test_a_project_is_held_to_its_limits, {"gpus": 1}, "would hold 2 GPUs")


def shares(served: Served, folder: Path) -> None:
    test_several.test_a_loop_takes_its_share_and_gives_back_what_is_above_it(folder)


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        (lets_anybody_in, REFUSES),
        (opens_other_projects, REFUSES),
        (lets_viewers_change, REFUSES),
        (knows_no_revocation, REFUSES),
        (lets_viewers_change, SOCKETS),
        (gives_a_route_to_viewers, TABLE),
        (adds_a_route_beside_the_gate, TABLE),
        (adds_a_socket_beside_the_gate, SOCKETS),
        (writes_nothing_down, DEEDS),
        (writes_down_what_ended_well, DEEDS),
        (writes_nothing_down, on(test_gate.test_who_tries_what_they_may_not_is_written_down)),
        (heeds_no_key, on(test_gate.test_of_calls_with_one_key_at_the_same_time_one_is_carried_out)),
        (
            keeps_answers_as_they_are,
            lambda s, f: test_gate.test_the_answer_that_is_a_token_is_not_on_record(s, f),
        ),
        (heeds_no_serial, on(test_gate.test_a_run_that_moved_is_not_stopped_by_who_saw_it_before)),
        (shows_everybodys_runs, on(test_gate.test_projects_do_not_see_each_other)),
        (holds_nobody_to_limits, GPUS),
        (takes_any_template, on(test_gate.test_a_template_that_no_plan_of_ours_would_hold_is_refused)),
        (takes_leases_of_others, shares),
        (keeps_more_than_its_share, shares),
        (counts_the_silent, on(test_several.test_a_server_that_fell_silent_is_no_longer_counted)),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_fault_is_caught(
    fault: Callable[[Patch], None], test: On, served: Served, tmp_path: Path, monkeypatch: Patch
) -> None:
    served.site.store.access.put_project(Project("other", served.site.clock(), Limits()))
    fault(monkeypatch)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(served, tmp_path)


def test_dollars_that_nobody_counts_are_caught(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: Patch
) -> None:
    counts_no_dollars(monkeypatch)

    with pytest.raises(pytest.fail.Exception):
        test_gate.test_a_project_is_held_to_its_dollars(serve, tmp_path)
