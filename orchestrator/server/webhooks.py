"""Tell others what happens to runs: CloudEvents over HTTP, signed, in order, tried again until taken."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC

import httpx

from orchestrator.errors import UsageError
from orchestrator.reconcile import RunEvent
from orchestrator.server.duty import Duty
from orchestrator.server.site import Site

SECRET = "MODELYARD_WEBHOOK_SECRET"
TRIES = 12
FIRST_S, MOST_S = 1.0, 300.0
TIMEOUT_S = 10.0
MOST_BYTES = 2**16
"""What is read of an answer, of which the status alone counts."""
LOOK_S = 1.0


class Herald(Duty):
    """Sends the events of runs to one address, from a thread of its own; of several servers the first does.

    What was taken last is on record, so that a server that ends halfway goes on where it was: an event may
    be sent twice, with the same id, and none is left out. One that was refused twelve times is.

    Args:
        site: The server's share of the world.
        url: Where events go.
    """

    called = "webhook"
    look_s = LOOK_S

    def __init__(self, site: Site, url: str) -> None:
        super().__init__(site)
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--webhook: {url!r} is no address", fix="https://HOST/PATH")
        self._url = url
        self._http = httpx.Client(timeout=TIMEOUT_S)
        self._key = f"webhook/{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        self._tries = 0

    def start(self) -> None:
        """Begin to send: what happens from now on, or behind what was taken last."""
        if self._site.store.access.note(self._key) is None:
            self._took(self._site.store.last_serial())
        super().start()

    def close(self) -> None:
        """End after the event under way."""
        super().close()
        self._http.close()

    def once(self, http: httpx.Client) -> float:
        """Send what is new, in order; return how long to wait before the next look, in seconds."""
        after = int(self._site.store.access.note(self._key) or 0)
        for serial, event in self._site.store.events(after=after, limit=100):
            if event.subject == event.run and not self._sent(http, serial, event):
                self._tries += 1
                if self._tries < TRIES:
                    return min(MOST_S, FIRST_S * 2.0 ** (self._tries - 1))
                self._site.complain(f"webhook: event {serial} was refused {TRIES} times and is left out")
            self._tries = 0
            self._took(serial)
        return 0.0 if self._site.feed.serial > after + 100 else LOOK_S

    def _sent(self, http: httpx.Client, serial: int, event: RunEvent) -> bool:
        body = json.dumps(cloud_event(self._site.store.deployment, serial, event)).encode()
        id = f"{self._site.store.deployment}-{serial}"
        headers = {"Content-Type": "application/cloudevents+json", "Webhook-Id": id}
        if secret := self._site.environ.get(SECRET):
            at = str(int(self._site.clock().timestamp()))
            headers |= {"Webhook-Timestamp": at, "Webhook-Signature": signature(secret, id, at, body)}
        try:
            with http.stream("POST", self._url, content=body, headers=headers) as answer:
                return _read(answer).is_success
        except httpx.HTTPError:
            return False

    def _took(self, serial: int) -> None:
        self._site.store.access.remember(self._key, str(serial), now=self._site.clock())

    def duty(self) -> float:
        """Send what is new; return how long to wait for the next look, in seconds."""
        return self.once(self._http)


def _read(answer: httpx.Response) -> httpx.Response:
    """Read an answer to its end, so that its connection serves again, unless it is long or slow."""
    size, deadline = 0, time.monotonic() + TIMEOUT_S
    for piece in answer.iter_raw():
        size += len(piece)
        if size > MOST_BYTES or time.monotonic() > deadline:
            break
    return answer


def cloud_event(deployment: str, serial: int, event: RunEvent) -> dict[str, object]:
    """Return an event of a run in CloudEvents' structured form (specification 1.0.2).

    >>> from datetime import datetime
    >>> at = datetime(2026, 1, 1, tzinfo=UTC)
    >>> cloud_event("d", 7, RunEvent("id", "chat", at, "chat", "running", "ready", "probe"))["type"]
    'dev.modelyard.run.ready'
    """
    return {
        "specversion": "1.0",
        "id": f"{deployment}-{serial}",
        "source": f"modelyard/{deployment}",
        "type": f"dev.modelyard.run.{event.after or 'deleted'}",
        "subject": event.run,
        "time": event.at.astimezone(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": {
            "serial": serial,
            "run": event.run,
            "before": event.before,
            "after": event.after,
            "cause": event.cause,
            "message": event.message,
        },
    }


def signature(secret: str, id: str, at: str, body: bytes) -> str:
    """Return how a delivery is signed, as Standard Webhooks has it: id, time and body, with HMAC-SHA256."""
    sealed = hmac.new(secret.encode(), f"{id}.{at}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(sealed).decode()}"
