"""What Compute Engine's errors mean: those of a request, and those of an operation that failed later.

Sources: cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation and
cloud.google.com/compute/docs/reference/rest/v1 (errors of operations), cloud.google.com/apis/design/errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.vm.rest import Meaning, Refusal, by_status

MEANINGS: Mapping[str, Meaning] = {
    "ZONE_RESOURCE_POOL_EXHAUSTED": Meaning.SOLD_OUT,
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS": Meaning.SOLD_OUT,
    "RESOURCE_POOL_EXHAUSTED": Meaning.SOLD_OUT,
    "REGION_RESOURCE_POOL_EXHAUSTED": Meaning.SOLD_OUT,
    "STOCKOUT": Meaning.SOLD_OUT,
    "IP_SPACE_EXHAUSTED": Meaning.SOLD_OUT,
    "IP_SPACE_EXHAUSTED_WITH_DETAILS": Meaning.SOLD_OUT,
    "QUOTA_EXCEEDED": Meaning.LIMIT,
    "quotaExceeded": Meaning.LIMIT,
    "limitExceeded": Meaning.LIMIT,
    "rateLimitExceeded": Meaning.LATER,
    "userRateLimitExceeded": Meaning.LATER,
    "RESOURCE_OPERATION_RATE_EXCEEDED": Meaning.LATER,
    "INTERNAL_ERROR": Meaning.LATER,
    "RESOURCE_NOT_READY": Meaning.LATER,
    "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE": Meaning.LATER,
    "resourceInUseByAnotherResource": Meaning.LATER,
    "backendError": Meaning.LATER,
    "internalError": Meaning.LATER,
    "authError": Meaning.EXPIRED,
    "PERMISSIONS_ERROR": Meaning.DENIED,
    "RESOURCE_NOT_FOUND": Meaning.GONE,
    "RESOURCE_ALREADY_EXISTS": Meaning.TAKEN,
    "alreadyExists": Meaning.TAKEN,
    "notFound": Meaning.GONE,
}
"""Reasons of requests are in camel case, codes of operations in capitals."""

FIXES: Mapping[Meaning, str] = {
    Meaning.SOLD_OUT: "allow another zone, region or instance type",
    Meaning.LIMIT: "ask for a higher quota (console: IAM & Admin, Quotas) in that region, or allow another",
    Meaning.EXPIRED: "sign in again: gcloud auth application-default login",
    Meaning.DENIED: "give the account roles/compute.instanceAdmin.v1 in the project, and enable its "
    "Compute Engine API",
    Meaning.GONE: "plan again: see modelyard offers for what the zone has",
}


def read(status: int, body: Any) -> Refusal:
    """Return what the error of a request means.

    >>> body = {"error": {"code": 403, "message": "Quota 'NVIDIA_L4_GPUS' exceeded.  Limit: 0.0",
    ...                   "errors": [{"reason": "quotaExceeded", "domain": "usageLimits"}]}}
    >>> read(403, body)
    Refusal(meaning=<Meaning.LIMIT: "the account's limit is reached">, code='quotaExceeded', \
message="Quota 'NVIDIA_L4_GPUS' exceeded.  Limit: 0.0")
    """
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return Refusal(by_status(status), f"HTTP {status}")
    reasons = [str(each.get("reason", "")) for each in error.get("errors") or () if isinstance(each, dict)]
    code = next((reason for reason in reasons if reason), str(error.get("status") or f"HTTP {status}"))
    meaning = MEANINGS.get(code, Meaning.EXPIRED if status == 401 else by_status(status))
    message = str(error.get("message", ""))
    # a type or zone that there is none of comes as a bad request
    if meaning is Meaning.INVALID and ("does not exist" in message or "was not found" in message):
        meaning = Meaning.GONE
    return Refusal(meaning, code, message)


def failed(operation: Mapping[str, Any]) -> Refusal | None:
    """Return why an operation failed, None where it did not.

    >>> failed({"status": "DONE", "error": {"errors": [{"code": "STOCKOUT", "message": "Try later."}]}})
    Refusal(meaning=<Meaning.SOLD_OUT: 'none to be had now'>, code='STOCKOUT', message='Try later.')
    >>> failed({"status": "DONE"}) is None
    True
    """
    errors = (operation.get("error") or {}).get("errors") or []
    if not errors:
        return None
    code = str(errors[0].get("code", ""))
    status = int(operation.get("httpErrorStatusCode") or 400)
    return Refusal(MEANINGS.get(code, by_status(status)), code, str(errors[0].get("message", "")))
