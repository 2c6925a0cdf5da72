"""What the client makes of a server's answers."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest

from orchestrator.client import Remote
from orchestrator.errors import Unreachable
from orchestrator.planner.mirrors import NO_MIRRORS
from tests.server.conftest import Served

DEED = {
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
        at = datetime(2026, 11, 30, tzinfo=UTC).isoformat()
        deeds = [{"serial": n, "deed": DEED | {"at": at}} for n in range(int(after) + 1, int(after) + 3)]
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
