"""What the errors of Nebius' API mean: those of a call, and those an operation ended with later.

Sources: github.com/nebius/api, README ("Error Details") and ``nebius/common/v1/error.proto``; codes are
gRPC's (grpc.github.io/grpc/core/md_doc_statuscodes.html).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backends.nebius.messages import COMMON, fields_of, message
from backends.vm.rest import Meaning, Refusal

BY_DETAIL: Mapping[str, Meaning] = {
    "bad_request": Meaning.INVALID,
    "bad_resource_state": Meaning.INVALID,
    "resource_not_found": Meaning.GONE,
    "resource_already_exists": Meaning.TAKEN,
    "out_of_range": Meaning.INVALID,
    "permission_denied": Meaning.DENIED,
    "resource_conflict": Meaning.LATER,
    "operation_aborted": Meaning.LATER,
    "operation_conflict": Meaning.LATER,
    "too_many_requests": Meaning.LATER,
    "quota_failure": Meaning.LIMIT,
    "not_enough_resources": Meaning.SOLD_OUT,
    "internal_error": Meaning.LATER,
}
"""Kinds of ``ServiceError``."""

CODES: Sequence[str] = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""gRPC's status codes by number."""

BY_CODE: Mapping[str, Meaning] = {
    "UNAUTHENTICATED": Meaning.EXPIRED,
    "PERMISSION_DENIED": Meaning.DENIED,
    "NOT_FOUND": Meaning.GONE,
    "ALREADY_EXISTS": Meaning.TAKEN,
    "RESOURCE_EXHAUSTED": Meaning.LATER,
    "ABORTED": Meaning.LATER,
    "UNAVAILABLE": Meaning.LATER,
    "INTERNAL": Meaning.LATER,
    "UNKNOWN": Meaning.LATER,
    "CANCELLED": Meaning.LATER,
    "DEADLINE_EXCEEDED": Meaning.LATER,
}
"""What a code means that comes without details; all others are requests that are not possible."""

FIXES: Mapping[Meaning, str] = {
    Meaning.SOLD_OUT: "allow another region or instance type",
    Meaning.LIMIT: "ask for a higher quota in that region (console: Limits), or allow another region",
    Meaning.EXPIRED: "renew NEBIUS_IAM_TOKEN (nebius iam get-access-token), or the key in credentials_file",
    Meaning.DENIED: "make the service account a member of the group editors of the project's tenant",
    Meaning.TAKEN: "end what has that name, or wait until it is gone",
}


def read(code: int, text: str, details: Sequence[Any]) -> Refusal:
    """Return what an error means.

    Args:
        code: gRPC's status code.
        text: What the status says.
        details: Its details, each an ``Any``.

    >>> read(8, "Quota limit exceeded", ()).meaning.name, read(8, "Not enough resources", ()).meaning.name
    ('LIMIT', 'SOLD_OUT')
    >>> read(16, "invalid token", ())
    Refusal(meaning=<Meaning.EXPIRED: 'the credentials have expired'>, code='UNAUTHENTICATED', \
message='invalid token')
    """
    name = CODES[code] if 0 <= code < len(CODES) else str(code)
    for found in _service_errors(details):
        for kind, _, _ in fields_of(COMMON + "ServiceError"):
            if kind in BY_DETAIL and found.HasField(kind):
                said = "; ".join(_said(getattr(found, kind))) or text
                return Refusal(BY_DETAIL[kind], found.code or name, said)
    return Refusal(_undetailed(name, text), name, text)


def is_detailed(details: Sequence[Any]) -> bool:
    """Say whether an error is one of a service's own, and not of the way there."""
    return any(True for _ in _service_errors(details))


def _undetailed(name: str, text: str) -> Meaning:
    """Return what a code means; one that is short of something says in words of what."""
    if name in ("RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"):
        if "quota" in text.lower():
            return Meaning.LIMIT
        if "not enough resources" in text.lower():
            return Meaning.SOLD_OUT
    return BY_CODE.get(name, Meaning.INVALID)


def _service_errors(details: Sequence[Any]) -> Iterator[Any]:
    for one in details:
        if one.type_url.rsplit("/", 1)[-1] == COMMON + "ServiceError":
            yield message(COMMON + "ServiceError").FromString(one.value)


def _said(detail: Any) -> Iterator[str]:
    """Yield what the parts of a detail say."""
    for each in getattr(detail, "violations", ()):
        about = getattr(each, "field", "") or getattr(each, "quota", "")
        yield f"{about}: {each.message}" if about else each.message
    if text := getattr(detail, "message", ""):
        yield text
