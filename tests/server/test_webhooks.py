"""Events sent to an address: in order, signed, again until taken, and on from where a server ended."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from orchestrator.server.webhooks import TRIES, Herald, signature
from orchestrator.spec.load import read
from tests.server.conftest import Served

HELLO = "type: task\nname: hello\ncommands: [echo hi]\n"


@dataclass
class Receiver:
    """An address that takes events, unless told to refuse."""

    url: str = ""
    refuse: int = 0
    endless: bool = False
    """Whether it answers with a body that has no end."""
    sent: int = 0
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = 503 if found.refuse else 200 if found.endless else 204
            found.refuse = max(0, found.refuse - 1)
            if status != 503:
                found.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(status)
            self.send_header("Content-Length", str(2**40) if found.endless else "0")
            self.end_headers()
            with suppress(OSError):  # whoever told us has left
                for _ in range(2**10 if found.endless else 0):
                    self.wfile.write(b"x" * 2**20)
                    found.sent += 2**20

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    found.url = f"http://127.0.0.1:{server.server_address[1]}/events"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ran(served: Served) -> Served:
    served.site.environ = {**served.site.environ, "MODELYARD_WEBHOOK_SECRET": "planted"}
    client = served.client()
    client.apply(client.plan(read(HELLO)))
    client.follow(["hello"], "ended")
    return served


def test_every_state_of_a_run_is_told_once_in_order_and_signed(ran: Served, receiver: Receiver) -> None:
    herald = Herald(ran.site, receiver.url)
    with httpx.Client() as http:
        herald.once(http)
        herald.once(http)

    told = [json.loads(body) for _, body in receiver.got]
    states = [event.after for _, event in ran.site.store.events("hello") if event.subject == "hello"]
    assert [each["type"] for each in told] == [f"dev.modelyard.run.{state}" for state in states]
    assert len({each["id"] for each in told}) == len(told)
    for headers, body in receiver.got:
        id, at = headers["webhook-id"], headers["webhook-timestamp"]
        assert headers["webhook-signature"] == signature("planted", id, at, body)
        assert headers["content-type"] == "application/cloudevents+json"
        assert b"planted" not in body


def test_what_is_refused_is_sent_again_before_anything_else(ran: Served, receiver: Receiver) -> None:
    receiver.refuse = 3
    herald = Herald(ran.site, receiver.url)
    with httpx.Client() as http:
        waits = [herald.once(http) for _ in range(4)]

    assert waits[:3] == [1.0, 2.0, 4.0]
    assert json.loads(receiver.got[0][1])["data"]["after"] == "queued"


def test_another_server_goes_on_behind_what_was_taken(ran: Served, receiver: Receiver) -> None:
    with httpx.Client() as http:
        Herald(ran.site, receiver.url).once(http)
        many = len(receiver.got)
        Herald(ran.site, receiver.url).once(http)

    assert (many > 2, len(receiver.got)) == (True, many)


def test_one_event_that_nobody_takes_does_not_hold_the_others_for_ever(
    ran: Served, receiver: Receiver
) -> None:
    receiver.refuse = TRIES
    herald = Herald(ran.site, receiver.url)
    with httpx.Client() as http:
        for _ in range(TRIES):
            herald.once(http)

    assert any("was refused 12 times" in said for said in ran.complaints)
    assert receiver.got


def test_an_answer_without_an_end_is_not_read_to_it(ran: Served, receiver: Receiver) -> None:
    """The server held 7.6 GB of one after 6 seconds, and could not be ended."""
    receiver.endless = True
    herald = Herald(ran.site, receiver.url)
    with httpx.Client() as http:
        herald.once(http)

    told = [json.loads(body)["data"]["after"] for _, body in receiver.got]
    assert told == [event.after for _, event in ran.site.store.events("hello") if event.subject == "hello"]
    assert receiver.sent < 2**20 * 16 * len(told)
