"""What the client makes of a server's answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime

import httpx
import pytest

from orchestrator.api import RunView
from orchestrator.backend import Launch
from orchestrator.client import Remote
from orchestrator.errors import Unreachable
from orchestrator.loop import Hooks
from orchestrator.planner.mirrors import NO_MIRRORS
from orchestrator.reconcile import Run, RunEvent, RunState, Template
from tests.server.conftest import Served

AT = datetime(2026, 11, 30, tzinfo=UTC)
DEED = {
    "at": AT.isoformat(),
    "who": "a",
    "address": "",
    "project": "",
    "action": "x",
    "subject": "",
    "outcome": "201",
    "spec_hash": "",
}


def answering(transport: httpx.MockTransport) -> Remote:
    return Remote("http://server", "my-x", transport=transport)


def test_an_older_server_has_no_mirrors_and_holds_no_plan_to_its_record(served: Served) -> None:
    today = served.http.get(f"{served.url}/v1/projects/main/of-tomorrow")
    said = {"content-type": today.headers["content-type"]}
    unknown = httpx.MockTransport(lambda _: httpx.Response(404, content=today.content, headers=said))
    remote = answering(unknown)
    assert today.status_code == 404
    assert (remote.record_id(), remote.mirrors()) == ("", NO_MIRRORS)


def test_pages_are_read_to_their_end_and_each_goes_on_where_the_last_ended() -> None:
    asked: list[str] = []

    def pages(request: httpx.Request) -> httpx.Response:
        after = request.url.params["after"]
        asked.append(after)
        deeds = [
            {"serial": n, "deed": DEED | {"at": AT.isoformat()}}
            for n in range(int(after) + 1, int(after) + 3)
        ]
        return httpx.Response(
            200, json={"items": deeds, "next": None if after == "4" else str(int(after) + 2)}
        )

    found = answering(httpx.MockTransport(pages)).audit()
    assert ([each.serial for each in found], asked) == ([1, 2, 3, 4, 5, 6], ["0", "2", "4"])


def test_what_reads_is_asked_again_and_what_changes_keeps_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.client.connection.AGAIN_S", 0.0)
    keys: list[str | None] = []

    def silent(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers.get("Idempotency-Key"))
        raise httpx.ConnectError("refused")

    remote = answering(httpx.MockTransport(silent))
    with pytest.raises(Unreachable, match="does not answer: refused"):
        remote.sync_now()
    assert (len(keys), len(set(keys)), None in keys) == (4, 1, False)


def test_what_happens_right_after_a_look_ends_the_wait_behind_it() -> None:
    happened: list[tuple[int, RunEvent]] = []
    waited: list[int] = []
    told: list[str] = []
    template = Template(Launch("web-0-0-0", "web"), ("sim",))

    class Slow(Remote):
        def events(self, name: str | None, *, after: int = 0) -> list[tuple[int, RunEvent]]:
            return [(serial, event) for serial, event in happened if serial > after]

        def _newest(self) -> int:
            return 0

        def _views(self, names: Collection[str] | None) -> Iterator[RunView]:
            state = RunState.READY if happened else RunState.STARTING
            happened[:] = [(1, RunEvent("i", "web", AT, "web", "starting", "ready", "probe", "turn"))]
            yield RunView(Run("i", "web", "service", "{}", "h", template, AT, state=state), jobs=())

        def _wait(self, after: int, timeout_s: float) -> None:
            waited.append(after)

    assert Slow("http://server", "my-x").follow(
        ["web"], "ready", hooks=Hooks(event=lambda e: told.append(e.after))
    )
    assert (waited, told) == ([0], ["ready"])
