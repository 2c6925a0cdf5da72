"""What the gateway answers itself: errors in OpenAI's form, the merged list of models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

from orchestrator.gateway.keys import Key
from orchestrator.gateway.routes import Routes
from orchestrator.gateway.wire import LAST_CHUNK, chunk

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "api_error", 502: "api_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


def answer(
    status: int,
    content: object,
    *,
    close: bool,
    head_only: bool = False,
    more: Sequence[tuple[str, str]] = (),
    media_type: str = "application/json",
) -> bytes:
    """Return a whole response; ``content`` is text, or anything that JSON holds.

    >>> answer(200, {"ok": True}, close=False).splitlines()[0]
    b'HTTP/1.1 200 OK'
    """
    body = (content if isinstance(content, str) else json.dumps(content)).encode()
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"content-type: {media_type}"]
    lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in more)]
    lines.append("connection: close" if close else "connection: keep-alive")
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return head if head_only else head + body


def error_object(status: int, what: str, code: str = "") -> dict[str, object]:
    """Return an error as OpenAI's clients read it.

    >>> error_object(404, "no such model")["error"]["type"]
    'not_found_error'
    """
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": what, "type": kind, "param": None, "code": code or None}}


def error_event(what: str) -> bytes:
    """Return the end of a stream that broke off: an error event and the last chunk.

    The blank line before it ends an event that was cut in the middle.
    """
    text = json.dumps(error_object(502, what, "stream_broken"))
    return chunk(f"\n\ndata: {text}\n\n".encode()) + LAST_CHUNK


def models(routes: Routes, key: Key | None) -> list[dict[str, object]]:
    """Return the models that ``key`` may use, one entry for each name, in order of names.

    A service with ``auth: false`` is there for everybody.
    """
    found = []
    for model, owner in sorted(routes.by_model.items()):
        service = routes.services[owner]
        if not service.over and (not service.auth or (key is not None and key.opens(owner))):
            found.append({"id": model, "object": "model", "created": service.created_s, "owned_by": owner})
    return found
