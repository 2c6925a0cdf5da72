"""The messages of Nebius' API that are sent and read here, by name and number of their fields.

A table and not the official SDK, which brings aiohttp and an event loop of its own, and costs 0.3 to 0.4
CPU-seconds to import where ``grpc`` costs 0.08. Names and numbers are those of github.com/nebius/api; a test
holds every one to the definitions in the SDK. Fields that are not named here are kept as they came, so
that a machine which is read, changed and written back loses none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

COMMON = "nebius.common.v1."
COMPUTE = "nebius.compute.v1."
BILLING = "nebius.billing.v1."
CAPACITY = "nebius.capacity.v1."
IAM = "nebius.iam.v1."
VPC = "nebius.vpc.v1."

TABLE: Mapping[str, str] = {
    "google.protobuf.Any": "type_url=1 value=2:bytes",
    "google.protobuf.Timestamp": "seconds=1:int64 nanos=2:int32",
    "google.rpc.Status": "code=1:int32 message=2 details=3:[google.protobuf.Any]",
    COMMON + "ResourceMetadata": "id=1 parent_id=2 name=3 resource_version=4:int64 "
    "created_at=5:google.protobuf.Timestamp labels=7:map",
    COMMON + "GetByNameRequest": "parent_id=1 name=2",
    COMMON + "Operation": "id=1 resource_id=7 status=10:google.rpc.Status",
    COMMON + "GetOperationRequest": "id=1",
    COMMON + "BadRequest": f"violations=1:[{COMMON}BadRequest.Violation]",
    COMMON + "BadRequest.Violation": "field=1 message=2",
    COMMON + "BadResourceState": "resource_id=1 message=2",
    COMMON + "ResourceNotFound": "resource_id=1",
    COMMON + "ResourceAlreadyExists": "resource_id=1",
    COMMON + "OutOfRange": "requested=1 limit=2",
    COMMON + "PermissionDenied": "resource_id=1",
    COMMON + "ResourceConflict": "resource_id=1 message=2",
    COMMON + "OperationAborted": "operation_id=1",
    COMMON + "OperationConflict": "conflicting_operation_id=1",
    COMMON + "TooManyRequests": "violation=1",
    COMMON + "QuotaFailure": f"violations=1:[{COMMON}QuotaFailure.Violation]",
    COMMON + "QuotaFailure.Violation": "quota=1 message=2 limit=3 requested=4",
    COMMON + "NotEnoughResources": f"violations=1:[{COMMON}NotEnoughResources.Violation]",
    COMMON + "NotEnoughResources.Violation": "resource_type=1 message=2",
    COMMON + "InternalError": "request_id=1",
    COMMON + "ServiceError": f"service=1 code=2 bad_request=100:{COMMON}BadRequest "
    f"bad_resource_state=110:{COMMON}BadResourceState resource_not_found=111:{COMMON}ResourceNotFound "
    f"resource_already_exists=112:{COMMON}ResourceAlreadyExists out_of_range=113:{COMMON}OutOfRange "
    f"permission_denied=120:{COMMON}PermissionDenied resource_conflict=130:{COMMON}ResourceConflict "
    f"operation_aborted=131:{COMMON}OperationAborted operation_conflict=132:{COMMON}OperationConflict "
    f"too_many_requests=140:{COMMON}TooManyRequests quota_failure=141:{COMMON}QuotaFailure "
    f"not_enough_resources=142:{COMMON}NotEnoughResources internal_error=999:{COMMON}InternalError",
    COMPUTE + "SourceImageFamily": "image_family=1",
    COMPUTE + "DiskSpec": f"size_gibibytes=4:int64 type=6:enum source_image_id=8 "
    f"source_image_family=10:{COMPUTE}SourceImageFamily",
    COMPUTE + "ManagedDisk": f"name=1 labels=2:map spec=4:{COMPUTE}DiskSpec",
    COMPUTE + "AttachedDiskSpec": f"attach_mode=1:enum managed_disk=4:{COMPUTE}ManagedDisk",
    COMPUTE + "ResourcesSpec": "platform=1 preset=2",
    COMPUTE + "IPAddress": "allocation_id=1",
    COMPUTE + "PublicIPAddress": "static=3:bool",
    COMPUTE + "NetworkInterfaceSpec": f"subnet_id=1 name=2 ip_address=3:{COMPUTE}IPAddress "
    f"public_ip_address=4:{COMPUTE}PublicIPAddress",
    COMPUTE + "PreemptibleSpec": "on_preemption=1:enum",
    COMPUTE + "ReservationPolicy": "policy=1:enum reservation_ids=2:[]",
    COMPUTE + "InstanceSpec": f"resources=2:{COMPUTE}ResourcesSpec "
    f"network_interfaces=4:[{COMPUTE}NetworkInterfaceSpec] boot_disk=5:{COMPUTE}AttachedDiskSpec "
    f"cloud_init_user_data=8 recovery_policy=15:enum preemptible=19:{COMPUTE}PreemptibleSpec "
    f"reservation_policy=23:{COMPUTE}ReservationPolicy",
    COMPUTE + "IPAddressStatus": "address=1",
    COMPUTE + "PublicIPAddressStatus": "address=1",
    COMPUTE + "NetworkInterfaceStatus": f"ip_address=3:{COMPUTE}IPAddressStatus "
    f"public_ip_address=4:{COMPUTE}PublicIPAddressStatus",
    COMPUTE + "InstanceStatus": f"state=1:enum network_interfaces=2:[{COMPUTE}NetworkInterfaceStatus]",
    COMPUTE + "Instance": f"metadata=1:{COMMON}ResourceMetadata spec=2:{COMPUTE}InstanceSpec "
    f"status=3:{COMPUTE}InstanceStatus",
    COMPUTE + "CreateInstanceRequest": f"metadata=1:{COMMON}ResourceMetadata spec=2:{COMPUTE}InstanceSpec",
    COMPUTE + "UpdateInstanceRequest": f"metadata=1:{COMMON}ResourceMetadata spec=2:{COMPUTE}InstanceSpec",
    COMPUTE + "GetInstanceRequest": "id=1",
    COMPUTE + "DeleteInstanceRequest": "id=1",
    COMPUTE + "ListInstancesRequest": "parent_id=1 page_size=2:int64 page_token=3",
    COMPUTE + "ListInstancesResponse": f"items=1:[{COMPUTE}Instance] next_page_token=2",
    COMPUTE + "PresetResources": "vcpu_count=1:int32 memory_gibibytes=3:int32 gpu_count=4:int32",
    COMPUTE + "Preset": f"name=1 resources=2:{COMPUTE}PresetResources",
    COMPUTE + "PlatformSpec": f"presets=1:[{COMPUTE}Preset] human_readable_name=4 "
    "gpu_memory_gibibytes=11:int32 gpu_memory_gigabytes=12:int32",
    COMPUTE + "PlatformStatus": "allowed_for_preemptibles=3:bool",
    COMPUTE + "Platform": f"metadata=1:{COMMON}ResourceMetadata spec=2:{COMPUTE}PlatformSpec "
    f"status=3:{COMPUTE}PlatformStatus",
    COMPUTE + "ListPlatformsRequest": "page_size=1:int64 page_token=2 parent_id=3",
    COMPUTE + "ListPlatformsResponse": f"items=1:[{COMPUTE}Platform] next_page_token=2",
    BILLING + "ResourceSpec": "spec=1:google.protobuf.Any",
    BILLING + "FilterAggregationUnit": "filter_aggregation_unit_values=1:[enum]",
    BILLING + "EstimateBatchRequest": f"resource_specs=1:[{BILLING}ResourceSpec] offer_types=10:[enum] "
    f"currency=11 filter_aggregation_unit=20:{BILLING}FilterAggregationUnit",
    BILLING + "CostBreakdown": "cost=2",
    BILLING + "GeneralResourceCost": f"total=1:{BILLING}CostBreakdown",
    BILLING + "AggregationUnit": "unit=1",
    BILLING + "ResourceCost": f"metadata=1:{COMMON}ResourceMetadata "
    f"aggregation_unit=4:{BILLING}AggregationUnit general=20:{BILLING}GeneralResourceCost",
    BILLING + "EstimateBatchResponse": f"resource_costs=1:[{BILLING}ResourceCost] currency=20",
    CAPACITY + "ComputeInstanceDetails.Preset": "name=1",
    CAPACITY + "ComputeInstanceDetails": f"platform=1 preset=2:{CAPACITY}ComputeInstanceDetails.Preset",
    CAPACITY + "ResourceAdviceSpec": "region=1 fabric=2 "
    f"compute_instance=10:{CAPACITY}ComputeInstanceDetails",
    CAPACITY + "ResourceAdviceStatus.Availability": "data_state=1:enum available=2:uint32 limit=4:uint32 "
    "availability_level=5:enum",
    CAPACITY + "ResourceAdviceStatus": f"on_demand=2:{CAPACITY}ResourceAdviceStatus.Availability "
    f"preemptible=3:{CAPACITY}ResourceAdviceStatus.Availability",
    CAPACITY + "ResourceAdvice": f"spec=2:{CAPACITY}ResourceAdviceSpec "
    f"status=3:{CAPACITY}ResourceAdviceStatus",
    CAPACITY + "ListResourceAdviceRequest": "parent_id=1 page_size=2:int64 page_token=3",
    CAPACITY + "ListResourceAdviceResponse": f"items=1:[{CAPACITY}ResourceAdvice] next_page_token=2",
    IAM + "ContainerSpec": "region=1",
    IAM + "ContainerStatus": "region=4",
    IAM + "Container": f"metadata=1:{COMMON}ResourceMetadata spec=2:{IAM}ContainerSpec "
    f"status=3:{IAM}ContainerStatus",
    IAM + "GetProjectRequest": "id=1",
    IAM + "ExchangeTokenRequest": "grant_type=1 requested_token_type=2 subject_token=3 subject_token_type=4",
    IAM + "CreateTokenResponse": "access_token=1 expires_in=4:int64",
    VPC + "Subnet": f"metadata=1:{COMMON}ResourceMetadata",
    VPC + "ListSubnetsRequest": "parent_id=1 page_size=2:int64 page_token=3",
    VPC + "ListSubnetsResponse": f"items=1:[{VPC}Subnet] next_page_token=2",
}  # fmt: skip
"""Every message that is used: ``name=number:type``, a string where no type is given, ``[…]`` for many.

Enums are numbers here, as they are on the wire.
"""

SCALARS: Mapping[str, int] = {
    "": 9, "int64": 3, "int32": 5, "uint32": 13, "bool": 8, "bytes": 12, "enum": 5,
}  # fmt: skip
"""Numbers of protobuf's types (``FieldDescriptorProto.Type``)."""

_MESSAGE = 11


def message(name: str) -> type[Any]:
    """Return the class of the message with this full name."""
    return _classes()[name]


@functools.cache
def _classes() -> Mapping[str, type[Any]]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    packages: dict[str, Any] = {}
    for full in TABLE:
        package = package_of(full)
        if package not in packages:
            packages[package] = descriptor_pb2.FileDescriptorProto(
                name=f"modelyard/{package}.proto", package=package, syntax="proto3",
                dependency=[each.name for each in packages.values()],
            )  # fmt: skip
        _describe(packages[package], full, package)
    for each in packages.values():
        pool.Add(each)
    return {full: message_factory.GetMessageClass(pool.FindMessageTypeByName(full)) for full in TABLE}


def package_of(full: str) -> str:
    """Return the package of a message's full name: what comes before its first capital.

    >>> package_of("nebius.common.v1.BadRequest.Violation")
    'nebius.common.v1'
    """
    words = full.split(".")
    return ".".join(words[: next(i for i, word in enumerate(words) if word[0].isupper())])


def fields_of(full: str) -> Iterator[tuple[str, int, str]]:
    """Yield name, number and type of the fields of a message.

    >>> list(fields_of("google.protobuf.Timestamp"))
    [('seconds', 1, 'int64'), ('nanos', 2, 'int32')]
    """
    for word in TABLE[full].split():
        head, _, kind = word.partition(":")
        name, _, number = head.partition("=")
        yield name, int(number), kind


def _describe(file: Any, full: str, package: str) -> None:
    """Add a message to its file, inside the one that it is nested in."""
    *outer, name = full.removeprefix(package + ".").split(".")
    where = file.message_type
    for each in outer:
        where = _named(where, each).nested_type
    made = _named(where, name)
    for field, number, kind in fields_of(full):
        many = kind == "map" or kind.startswith("[")
        added = made.field.add(name=field, number=number, label=3 if many else 1)
        if kind == "map":
            entry = made.nested_type.add(name=f"{field.capitalize()}Entry")
            entry.options.map_entry = True
            for position, part in enumerate(("key", "value"), 1):
                entry.field.add(name=part, number=position, label=1, type=SCALARS[""])
            added.type, added.type_name = _MESSAGE, f".{full}.{entry.name}"
        elif (each := kind.strip("[]")) in SCALARS:
            added.type = SCALARS[each]
        else:
            added.type, added.type_name = _MESSAGE, f".{each}"


def _named(where: Any, name: str) -> Any:
    found = next((each for each in where if each.name == name), None)
    return found if found is not None else where.add(name=name)
