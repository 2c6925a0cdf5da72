"""Compact placement policies: machines of one gang close together, as far as their zone has room.

Without a distance that must be kept, Compute Engine places them as close as it can and refuses none
for it (docs.cloud.google.com/compute/docs/instances/use-compact-placement-policies).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from backends.vm.port import DEPLOYMENT, GANG, NAMESPACE, Belonging, Order
from backends.vm.rest import Gone, Rest, Taken
from orchestrator.backend import LABEL
from orchestrator.errors import Busy

PLACEMENT_POLICY = "placement policy"

FAMILIES = ("a2-", "a3-", "a4-", "a4x-", "g2-", "g4-")
"""Machine types with GPUs that take one (docs.cloud.google.com/ai-hypercomputer/docs/placement-policy-and-\
workload-policy); what a reservation holds is as close as it was reserved."""

TOLD = (DEPLOYMENT, NAMESPACE, GANG, LABEL + "run")
"""Tags that a policy carries in its description: it has no labels."""

Pages = Callable[..., Iterable[tuple[str, Mapping[str, Any]]]]
"""Yields the scopes of an aggregated list: at a path, with what is asked for as keywords."""


class Compact:
    """The compact placement policies of one project.

    Args:
        api: Where they are asked for.
        project: Returns the project's id.
        pages: Reads aggregated lists.
        finish: Waits for an operation under the path of its region, and raises what became of it.
    """

    def __init__(
        self,
        api: Rest,
        project: Callable[[], str],
        *,
        pages: Pages,
        finish: Callable[[Mapping[str, Any], str, str], None],
    ) -> None:
        self._api = api
        self._project = project
        self._pages = pages
        self._finish = finish

    def of(self, order: Order) -> str | None:
        """Return the path of the policy of an order's gang, made the first time; None where it has none."""
        rent = order.rent
        if not order.gang or rent.reservation or not rent.instance_type.startswith(FAMILIES):
            return None
        name = name_of(order.tags[DEPLOYMENT], order.gang)
        region = self._region(rent.region)
        body = {
            "name": name,
            "description": json.dumps({word: order.tags[word] for word in TOLD if word in order.tags}),
            "groupPlacementPolicy": {"collocation": "COLLOCATED"},
        }
        try:
            operation = self._api.send("POST", f"{region}/resourcePolicies", body, where=rent.region)
            self._finish(operation, region, rent.region)
        except Taken:  # a sibling was first
            pass
        return f"projects/{self._project()}/regions/{rent.region}/resourcePolicies/{name}"

    def belongings(self, tags: Mapping[str, str]) -> Sequence[Belonging]:
        """Return the policies with these tags, in every region of the project."""
        found = []
        for where, scope in self._pages("/aggregated/resourcePolicies", maxResults="500"):
            for one in scope.get("resourcePolicies") or ():
                told = tags_of(one)
                if tags.items() <= told.items():
                    gang, run = told.get(GANG, ""), told.get(LABEL + "run", "")
                    region = where.removeprefix("regions/")
                    found.append(Belonging(one["name"], PLACEMENT_POLICY, region, gang, run))
        return found

    def discard(self, belonging: Belonging) -> bool:
        """Remove a policy; False while a machine that ends still holds it."""
        region, where = self._region(belonging.region), belonging.region
        try:
            operation = self._api.send("DELETE", f"{region}/resourcePolicies/{belonging.id}", where=where)
            self._finish(operation, region, where)
        except Gone:
            pass
        except Busy:
            return False
        return True

    def _region(self, region: str) -> str:
        return f"/{self._project()}/regions/{region}"


def name_of(deployment: str, gang: str) -> str:
    """Return the name of a gang's policy: names are unique in a project and region.

    >>> name_of("d1", "sft-0-gang-0")
    'modelyard-6e68fbb534c35343ae2fa2f5dd857abd'
    """
    return f"modelyard-{uuid.uuid5(uuid.NAMESPACE_OID, f'{deployment}/{gang}').hex}"


def tags_of(policy: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that a policy of ours carries, none of those of others.

    >>> tags_of({"name": "modelyard-1", "description": "{\\"modelyard.dev/run\\": \\"sft\\"}"})
    {'modelyard.dev/run': 'sft'}
    >>> tags_of({"name": "nightly"}), tags_of({"name": "modelyard-x", "description": "by hand"})
    ({}, {})
    """
    if not str(policy.get("name", "")).startswith("modelyard-"):
        return {}
    try:
        told = json.loads(policy.get("description") or "{}")
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in told.items()} if isinstance(told, dict) else {}
