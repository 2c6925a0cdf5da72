"""What nodes of one run have around them on EC2: a placement group, network cards, addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from backends.vm.port import DEPLOYMENT, GANG, KEY, Belonging, Order
from orchestrator.backend import LABEL

PLACEMENT_GROUP = "placement group"
ADDRESS = "address"

Asking = Callable[[str], AbstractContextManager[Any]]
"""Lends the client of a region."""

HELD = frozenset({"InvalidPlacementGroup.InUse", "InvalidIPAddress.InUse"})
NOT_THERE = frozenset(
    {"InvalidPlacementGroup.Unknown", "InvalidAllocationID.NotFound", "InvalidAssociationID.NotFound"}
)
NOT_YET = frozenset({"IncorrectInstanceState", "InvalidInstanceID", "InvalidNetworkInterfaceID.NotFound"})
"""A machine that has only just been made takes no address yet."""


def interfaces(
    cards: int, *, first: Mapping[str, Any], nodes: Sequence[str], public: bool
) -> list[dict[str, Any]]:
    """Return the network interfaces of a node with ``cards`` cards that know EFA; pure.

    The first carries the machine's addresses, and EFA beside them; every other card has EFA alone,
    without an address, so that routes of the machine stay as they are
    (docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-acc-inst-types.html, "Use case 1").

    Args:
        cards: Of the instance type; 0 where it knows no EFA.
        first: The interface of a machine without EFA.
        nodes: Security groups whose members let each other in.
        public: Whether the machine gets a public address. With several interfaces EC2 gives none
            (API_InstanceNetworkInterfaceSpecification, ``AssociatePublicIpAddress``).

    >>> found = interfaces(3, first={"DeviceIndex": 0}, nodes=["sg-1"], public=True)
    >>> [(each["NetworkCardIndex"], each["DeviceIndex"], each["InterfaceType"]) for each in found]
    [(0, 0, 'efa'), (1, 1, 'efa-only'), (2, 1, 'efa-only')]
    """
    head: dict[str, Any] = dict(first)
    if cards < 2:
        head["AssociatePublicIpAddress"] = public
    if not cards:
        return [head]
    head["DeleteOnTermination"] = True
    others: list[dict[str, Any]] = [
        {
            "NetworkCardIndex": card, "DeviceIndex": 1, "InterfaceType": "efa-only",
            "Groups": list(nodes), "DeleteOnTermination": True,
            **({"SubnetId": first["SubnetId"]} if "SubnetId" in first else {}),
        }
        for card in range(1, cards)
    ]  # fmt: skip
    return [{**head, "NetworkCardIndex": 0, "InterfaceType": "efa"}, *others]


class Around:
    """Placement groups, the group in which nodes reach each other, and addresses, of one account.

    Args:
        asking: Lends the client of a region.
        regions: Those of the configuration.
    """

    def __init__(self, asking: Asking, regions: Sequence[str]) -> None:
        self._asking = asking
        self._regions = regions

    def placement_group(self, order: Order) -> str:
        """Return the cluster placement group of a gang, made the first time."""
        name = f"modelyard-{order.tags[DEPLOYMENT]}-{order.gang}"
        with self._asking(order.rent.region) as ec2:
            _unless(
                "InvalidPlacementGroup.Duplicate", ec2.create_placement_group, GroupName=name,
                Strategy="cluster", TagSpecifications=_tagged("placement-group", order),
            )  # fmt: skip
        return name

    def nodes_group(self, region: str, deployment: str) -> str:
        """Return the security group whose members reach each other, made the first time.

        EFA asks for rules in both directions that name the group itself
        (docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html, step 1).
        """
        name = f"modelyard-{deployment}-nodes"
        tags = [{"ResourceType": "security-group", "Tags": [{"Key": DEPLOYMENT, "Value": deployment}]}]
        with self._asking(region) as ec2:
            _unless(
                "InvalidGroup.Duplicate", ec2.create_security_group, GroupName=name,
                Description="modelyard: nodes of one run reach each other", TagSpecifications=tags,
            )  # fmt: skip
            found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])
            group = str(found["SecurityGroups"][0]["GroupId"])
            rules = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
            for allow in (ec2.authorize_security_group_ingress, ec2.authorize_security_group_egress):
                _unless("InvalidPermission.Duplicate", allow, GroupId=group, IpPermissions=rules)
            return group

    # -- addresses ---------------------------------------------------------------------------------

    def address(self, region: str, tags: Mapping[str, str], interface: str) -> str | None:
        """Return the public address of a machine that has several interfaces, None while it takes none.

        It is tagged with the machine's key, so that whoever comes after a crash finds it.
        """
        with self._asking(region) as ec2:
            key = [{"Name": f"tag:{KEY}", "Values": [tags[KEY]]}]
            found = ec2.describe_addresses(Filters=key)["Addresses"]
            if found and found[0].get("AssociationId"):
                return str(found[0]["PublicIp"])
            if not found:
                wanted = [{"Key": word, "Value": value} for word, value in sorted(tags.items())]
                specifications = [{"ResourceType": "elastic-ip", "Tags": wanted}]
                found = [ec2.allocate_address(Domain="vpc", TagSpecifications=specifications)]
            allocation = found[0]["AllocationId"]
            given = _unless(
                NOT_YET, ec2.associate_address, AllocationId=allocation, NetworkInterfaceId=interface
            )
        return None if given is None else str(found[0]["PublicIp"])

    def release(self, region: str, key: str) -> None:
        """Give back the addresses of a machine that ends."""
        with self._asking(region) as ec2:
            for one in ec2.describe_addresses(Filters=[{"Name": f"tag:{KEY}", "Values": [key]}])["Addresses"]:
                if one.get("AssociationId"):
                    _unless(NOT_THERE, ec2.disassociate_address, AssociationId=one["AssociationId"])
                _unless(NOT_THERE | HELD, ec2.release_address, AllocationId=one["AllocationId"])

    # -- what is left over -------------------------------------------------------------------------

    def belongings(self, tags: Mapping[str, str]) -> Sequence[Belonging]:
        """Return placement groups and addresses with these tags."""
        filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in sorted(tags.items())]
        return [each for region in self._regions for each in self._belongings(region, filters)]

    def _belongings(self, region: str, filters: Sequence[Mapping[str, Any]]) -> Iterator[Belonging]:
        with self._asking(region) as ec2:
            for one in ec2.describe_placement_groups(Filters=filters)["PlacementGroups"]:
                yield _belonging(one["GroupName"], PLACEMENT_GROUP, region, one)
            for one in ec2.describe_addresses(Filters=filters)["Addresses"]:
                yield _belonging(one["AllocationId"], ADDRESS, region, one)

    def discard(self, belonging: Belonging) -> bool:
        """Remove what was made; False while a machine that ends still holds it."""
        with self._asking(belonging.region) as ec2:
            if belonging.kind == PLACEMENT_GROUP:
                return _is_gone(ec2.delete_placement_group, GroupName=belonging.id)
            return _is_gone(ec2.release_address, AllocationId=belonging.id)


def _belonging(id: str, kind: str, region: str, found: Mapping[str, Any]) -> Belonging:
    tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", ())}
    key = tags.get(KEY, "") if kind == ADDRESS else ""
    return Belonging(id, kind, region, tags.get(GANG, ""), tags.get(LABEL + "run", ""), key)


def _tagged(kind: str, order: Order) -> list[dict[str, Any]]:
    words = (DEPLOYMENT, GANG, LABEL + "run", LABEL + "namespace")
    tags = [{"Key": word, "Value": order.tags[word]} for word in words if word in order.tags]
    return [{"ResourceType": kind, "Tags": tags}]


def _unless(codes: str | frozenset[str], call: Callable[..., Any], **arguments: Any) -> Any:
    """Return what a call answers, None where it is refused with one of ``codes``."""
    from botocore.exceptions import ClientError  # heavy: only where a call is made

    try:
        return call(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ({codes} if isinstance(codes, str) else codes):
            raise
        return None


def _is_gone(call: Callable[..., Any], **arguments: Any) -> bool:
    from botocore.exceptions import ClientError

    try:
        call(**arguments)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in HELD:
            return False
        if code not in NOT_THERE:
            raise
    return True
