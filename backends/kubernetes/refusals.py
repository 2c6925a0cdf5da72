"""What an API server's refusal means to a user, and what to do about it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass

from orchestrator.errors import AuthFailed, BackendError, Busy, Quota, Rejected

_CANNOT = re.compile(r'cannot (\w+) resource "([^"]+)" in API group "([^"]*)"(.*)')
_HOOK = re.compile(r'admission webhook "([^"]+)" denied')
_POLICY = re.compile(r"ValidatingAdmissionPolicy '([^']+)' .*denied")
GOING = "wait until it is gone and make it again, or set another namespace for this backend"
"""What to do where a namespace is being deleted."""
_SCALED = 'subresource "scale"'
"""What the server adds of a manager that wrote a number of replicas: kubectl scale, or an autoscaler."""

_SCALERS = frozenset({"kube-controller-manager", "keda"})
"""Who writes a number of replicas for a HorizontalPodAutoscaler, and for a ScaledObject at zero."""

_MANAGER = re.compile(r'conflict with "([^"]+)"')


def grant(backend: str) -> str:
    """Return the command that writes the roles whoever runs a cluster has to grant there.

    >>> grant("lab")
    'modelyard render rbac --backend lab'
    """
    return f"modelyard render rbac --backend {shlex.quote(backend)}"


@dataclass(frozen=True)
class Refused(Exception):
    """An answer of the API server that says no; stays inside this backend.

    ``causes`` are pairs of field and message.
    """

    status: int
    reason: str
    message: str
    causes: tuple[tuple[str, str], ...] = ()
    retry_after_s: float | None = None

    @classmethod
    def of(cls, status: int, body: bytes) -> Refused:
        """Return the refusal that the server's answer spells.

        >>> Refused.of(404, b'{"reason": "NotFound", "message": "gone"}').reason
        'NotFound'
        >>> Refused.of(502, b"<html>").message
        '<html>'
        """
        try:
            said = json.loads(body)
            details = said.get("details") or {}
            causes = tuple((c.get("field", ""), c.get("message", "")) for c in details.get("causes", ()))
            after = details.get("retryAfterSeconds")
            return cls(status, said.get("reason", ""), said.get("message", ""), causes, after)
        except (ValueError, AttributeError):
            return cls(status, "", body.decode("utf-8", "replace").strip()[:200])


def explained(refusal: Refused, backend: str) -> BackendError:
    """Return the error of ours that a refusal is."""
    return _explained(refusal, backend) or BackendError(
        f"the API server answered {refusal.status}: {refusal.message}", backend=backend
    )


def _explained(refusal: Refused, backend: str) -> BackendError | None:
    said = refusal.message
    match refusal.status:
        case 401:
            return AuthFailed("the credentials are expired or wrong", backend=backend, fix="log in again")
        case 403:
            return _forbidden(said, backend)
        case 404 if "namespaces" in said:
            return Rejected(said, backend=backend, fix="create it, or set another namespace for this backend")
        case 409 if refusal.causes:
            return _conflict(refusal, backend)
        case 409:
            return Busy(said, backend=backend)
        case 422 if policy := _POLICY.search(said):
            return Rejected(said, backend=backend, fix=f"ask who runs the cluster what {policy[1]} takes")
        case 400 | 405 | 413 | 415 | 422:
            return Rejected(said, backend=backend, fix="kubectl explain tells what the field takes")
        case 408 | 410 | 429 | 500 | 502 | 503 | 504:  # 410: a long list that changed meanwhile
            busy = Busy(f"the API server asks to be asked later: {said}", backend=backend)
            busy.retry_after_s = refusal.retry_after_s
            return busy
        case _:
            return None


def is_by_scaler(error: BackendError | None) -> bool:
    """Return whether all that an apply was refused for is a number that an autoscaler wrote."""
    refusal = error.__cause__ if error else None
    return (
        isinstance(refusal, Refused)
        and refusal.status == 409
        and bool(refusal.causes)
        and all(
            field == ".spec.replicas"
            and _SCALED in said
            and (by := _MANAGER.search(said))
            and by[1] in _SCALERS
            for field, said in refusal.causes
        )
    )


def _forbidden(said: str, backend: str) -> BackendError:
    if "exceeded quota" in said:
        return Quota(said, backend=backend, fix="raise the ResourceQuota, or stop other runs")
    if "violates PodSecurity" in said:
        return Rejected(said, backend=backend, fix="set security: restricted for this backend")
    if "error looking up service account" in said:  # a namespace a moment after it was made
        return Busy(said, backend=backend)
    if "because it is being terminated" in said:
        return Rejected(said, backend=backend, fix=GOING)
    if hook := _HOOK.search(said):  # a policy of the site: whoever asks, the object is refused
        fix = f"ask who runs the cluster what {hook[1]} takes"
        if "field is immutable" in said:  # a queue admits what spans pods by its size
            fix = "stop the run, and apply it again"
        return Rejected(said, backend=backend, fix=fix)
    missing = _CANNOT.search(said)
    if missing:
        verb, resource, group, scope = missing.groups()
        rule = f"verb {verb} on {resource}" + (f" of {group}" if group else "")
        return AuthFailed(f"not allowed: {rule}{scope}", backend=backend, fix=grant(backend))
    return AuthFailed(said, backend=backend, fix="ask who runs the cluster")


def _conflict(refusal: Refused, backend: str) -> BackendError:
    held = []
    for field, message in refusal.causes:
        manager = _MANAGER.search(message)
        held.append(f"{field} by {manager[1]}" if manager else field)
    scaled = any(_SCALED in message for _, message in refusal.causes)
    fix = "let them go there, or take them: apply --force-conflicts"
    return Rejected(
        f"fields are held by others: {', '.join(held)}",
        backend=backend,
        fix=f"{fix}; set autoscaler for this backend where one scales it" if scaled else fix,
    )
