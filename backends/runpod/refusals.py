"""What the errors of RunPod's API mean.

Source: docs.runpod.io/api-reference-v2 (``openapi.json`` of August 2026), where errors are those of RFC 9457
and "Create a pod" says which of them are worth another try.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.vm.rest import Meaning, Refusal, by_status

KEYS_PAGE = "https://console.runpod.io/user/settings"

FIXES: Mapping[Meaning, str] = {
    Meaning.SOLD_OUT: "allow another data centre or kind of GPU; where each says so, what it says is wrong",
    Meaning.LIMIT: "add credit (console: Billing), or ask RunPod's support for what the account may not have",
    Meaning.EXPIRED: f"set RUNPOD_API_KEY to a key from {KEYS_PAGE}",
    Meaning.DENIED: f"give the key the right to read and write pods, at {KEYS_PAGE}",
}


def read(status: int, body: Any) -> Refusal:
    """Return what an error means.

    >>> read(404, {"title": "Not Found", "status": 404, "detail": "pod not found"})
    Refusal(meaning=<Meaning.GONE: 'there is no such thing'>, code='HTTP 404 Not Found', \
message='pod not found')
    """
    if not isinstance(body, dict):
        return Refusal(Meaning.EXPIRED if status == 401 else _meaning(status), f"HTTP {status}")
    said = [str(body.get("detail", "")), *map(str, body.get("errors") or ())]
    code = f"HTTP {status} {body.get('title', '')}".strip()
    return Refusal(_meaning(status), code, "; ".join(filter(None, said)))


def of_create(status: int, body: Any) -> Refusal:
    """Return what an error means to who asked for a pod.

    400 is both "no room" and "breaks a rule", and only its words tell which: it is taken for no room, so
    that the next candidate is asked, as RunPod advises. 403 is a pool that the account may not use.

    >>> [of_create(status, {"detail": "x"}).meaning.name for status in (400, 402, 403, 422, 404)]
    ['SOLD_OUT', 'LIMIT', 'LIMIT', 'INVALID', 'GONE']
    """
    found = read(status, body)
    if status == 400:
        return Refusal(Meaning.SOLD_OUT, f"{found.code}: {found.message}".removesuffix(": "), found.message)
    if status == 403:
        return Refusal(Meaning.LIMIT, f"{found.code}: {found.message}".removesuffix(": "), found.message)
    return found


def _meaning(status: int) -> Meaning:
    if status == 401:
        return Meaning.EXPIRED
    if status == 402:  # insufficient balance
        return Meaning.LIMIT
    if status == 409:  # not valid for what the pod is doing now
        return Meaning.LATER
    return by_status(status)
