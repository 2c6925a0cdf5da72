"""What the Resource Manager's errors mean: those of a request, and those a machine failed with later.

Sources: learn.microsoft.com/azure/azure-resource-manager/troubleshooting (common deployment errors, SKU not
available, resource quota), learn.microsoft.com/troubleshoot/azure/virtual-machines (allocation failures).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.vm.rest import Meaning, Refusal, by_status

MEANINGS: Mapping[str, Meaning] = {
    "AllocationFailed": Meaning.SOLD_OUT,
    "ZonalAllocationFailed": Meaning.SOLD_OUT,
    "OverconstrainedAllocationRequest": Meaning.SOLD_OUT,
    "OverconstrainedZonalAllocationRequest": Meaning.SOLD_OUT,
    "SkuNotAvailable": Meaning.SOLD_OUT,
    "QuotaExceeded": Meaning.LIMIT,
    "ResourceQuotaExceeded": Meaning.LIMIT,
    "PublicIPCountLimitReached": Meaning.LIMIT,
    "ExpiredAuthenticationToken": Meaning.EXPIRED,
    "InvalidAuthenticationToken": Meaning.EXPIRED,
    "AuthorizationFailed": Meaning.DENIED,
    "LinkedAuthorizationFailed": Meaning.DENIED,
    "MissingSubscriptionRegistration": Meaning.DENIED,
    "SubscriptionNotFound": Meaning.DENIED,
    "ReadOnlyDisabledSubscription": Meaning.DENIED,
    "TooManyRequests": Meaning.LATER,
    "RetryableError": Meaning.LATER,
    "InternalExecutionError": Meaning.LATER,
    "InternalServerError": Meaning.LATER,
    "ConflictingUserInput": Meaning.LATER,
    "AnotherOperationInProgress": Meaning.LATER,
    "Conflict": Meaning.LATER,
    "ConflictingConcurrentWriteNotAllowed": Meaning.LATER,
    "ResourceGroupNotFound": Meaning.INVALID,
    "PropertyChangeNotAllowed": Meaning.TAKEN,
}

FIXES: Mapping[Meaning, str] = {
    Meaning.SOLD_OUT: "allow another region or instance type",
    Meaning.LIMIT: "ask for a higher quota of that family and region (portal: Quotas), or allow another",
    Meaning.EXPIRED: "sign in again: az login, or renew AZURE_CLIENT_SECRET",
    Meaning.DENIED: "give the account Contributor on the resource group, and register Microsoft.Compute and "
    "Microsoft.Network in the subscription",
}


def read(status: int, body: Any) -> Refusal:
    """Return what the error of a request means.

    >>> read(409, {"error": {"code": "OperationNotAllowed", "message":
    ...     "Operation could not be completed as it results in exceeding approved standardNCASv3Family Cores "
    ...     "quota."}}).meaning
    <Meaning.LIMIT: "the account's limit is reached">
    """
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return Refusal(Meaning.EXPIRED if status == 401 else by_status(status), f"HTTP {status}")
    code, message = str(error.get("code", "")), str(error.get("message", ""))
    return Refusal(meaning_of(code, message, status), code, message)


def meaning_of(code: str, message: str, status: int) -> Meaning:
    """Return what a code means; a quota comes as one that means other things too.

    >>> meaning_of("OperationNotAllowed", "The VM is deallocating", 409).name
    'LATER'
    """
    if code == "OperationNotAllowed":
        return Meaning.LIMIT if "quota" in message.lower() else Meaning.LATER
    return MEANINGS.get(code, by_status(status))


def failed(statuses: list[dict[str, Any]]) -> Refusal | None:
    """Return why a machine was never made, as its instance view says; None where it was.

    >>> failed([{"code": "ProvisioningState/failed/AllocationFailed", "message": "Allocation failed."}])
    Refusal(meaning=<Meaning.SOLD_OUT: 'none to be had now'>, code='AllocationFailed', \
message='Allocation failed.')
    """
    for one in statuses:
        head, _, code = one["code"].partition("/failed/")
        if head == "ProvisioningState" and code:
            message = str(one.get("message", ""))
            return Refusal(meaning_of(code, message, 409), code, message)
    return None
