"""Nebius' API over a real gRPC server, with the messages and services of the official definitions.

What the server reads and writes are the definitions that Nebius' own SDK carries, not those that are written
down in ``backends.nebius.messages``: a wrong number there is a field that does not arrive.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from backends.vm.labels import tags_of
from tests.backends.vm.fake import Asked, FakeCloud, Made

TOKEN = "ne1token-of-the-test"
REGIONS = {"project-e00a": "eu-north1", "project-u00b": "us-central1"}
TENANT = "tenant-e00t"
PLATFORMS = {
    "gpu-h100-sxm": ("NVIDIA® H100 NVLink", 80, True, (("1gpu-16vcpu-200gb", 16, 200, 1),)),
    "cpu-d3": ("Non-GPU AMD EPYC Genoa", 0, False, (("4vcpu-16gb", 4, 16, 0),)),
    "gpu-next-sxm": ("Something newer", 400, True, (("8gpu-256vcpu-4000gb", 256, 4000, 8),)),
}
DISK_USD_GIB_HOUR = 0.0001
PRICES = {("gpu-h100-sxm", False): "4.5201", ("gpu-h100-sxm", True): "2.2701", ("cpu-d3", False): "0.1193"}

CREATE = ("POST", "/nebius.compute.v1.InstanceService/Create")
LIST = ("POST", "/nebius.compute.v1.InstanceService/List$")

RUNNING, STOPPED = 4, 6


@functools.cache
def definitions() -> Any:
    """Return a pool of the official definitions."""
    import importlib

    from google.protobuf import descriptor_pb2, descriptor_pool

    for package in ("billing.v1", "capacity.v1", "common.v1", "compute.v1", "iam.v1", "vpc.v1"):
        importlib.import_module(f"nebius.api.nebius.{package}")
    from nebius.base.protos.dynamic import REGISTRY

    files = {
        name: descriptor_pb2.FileDescriptorProto.FromString(text)
        for name, text in REGISTRY._serialized_files.items()
    }
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        for each in files[name].dependency:
            add(each)
        pool.Add(files[name])

    for name in files:
        add(name)
    return pool


def official(name: str) -> Any:
    """Return the class of a message as Nebius defines it."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(definitions().FindMessageTypeByName(name))


class Error(Exception):
    """What a call is refused with: gRPC's code, a text, and what the ``ServiceError`` holds."""

    def __init__(self, status: str, text: str, **detail: Any) -> None:
        super().__init__(text)
        self.code, self.text, self.detail = status, text, detail

    def status(self) -> Any:
        """Return it as ``google.rpc.Status``."""
        import grpc

        status = official("google.rpc.Status")(code=grpc.StatusCode[self.code].value[0], message=self.text)
        if self.detail:
            found = official("nebius.common.v1.ServiceError")(service="compute", **self.detail)
            any_of = status.details.add()
            any_of.type_url = "type.googleapis.com/nebius.common.v1.ServiceError"
            any_of.value = found.SerializeToString()
        return status


class FakeNebius(FakeCloud):
    """An account with two projects; ``later`` is what the operation of the next create ends with."""

    def reset(self) -> None:
        super().reset()
        self.operations: dict[str, Any] = {}
        self.requests: dict[str, Any] = {}
        self.later: Error | None = None
        self.advises, self.counts = True, True
        self.exchanged: list[Any] = []
        self._ids = itertools.count(1)

    def tags_of(self, made: Made) -> Mapping[str, str]:
        return tags_of(dict(made.data["instance"].metadata.labels))

    def serve(self, path: str, request: Any, headers: Mapping[str, str]) -> Any:
        """Answer one call, after what is wrong at the moment."""
        with self.lock:
            asked = Asked("POST", path, (), {}, headers, request)
            self.calls.append((asked.method, asked.path))
            self.heard.append(asked)
            fault = next((f for f in self.faults if self._matches(f, asked)), None)
            if fault is not None:
                fault.times -= 1
                if fault.after:
                    self._serve(path, request, headers)
                raise fault.body or Error("UNAVAILABLE", "Socket closed")
            return self._serve(path, request, headers)

    def _serve(self, path: str, request: Any, headers: Mapping[str, str]) -> Any:
        service, method = path.rsplit(".", 1)[-1].split("/")
        if service != "TokenExchangeService" and headers.get("authorization") != f"Bearer {TOKEN}":
            raise Error("UNAUTHENTICATED", "The token is invalid or has expired")
        return getattr(self, f"{service}_{method}")(request, headers)

    # -- who asks, and where ---------------------------------------------------------------------

    def TokenExchangeService_Exchange(self, request: Any, _: Any) -> Any:  # noqa: N802  # the API's name
        assert request.grant_type == "urn:ietf:params:oauth:grant-type:token-exchange"
        self.exchanged.append(request.subject_token)
        return official("nebius.iam.v1.CreateTokenResponse")(access_token=TOKEN, expires_in=43_200)

    def ProjectService_Get(self, request: Any, _: Any) -> Any:  # noqa: N802
        if request.id not in REGIONS:
            raise Error(
                "NOT_FOUND",
                "Project not found",
                code="NotFound",
                resource_not_found={"resource_id": request.id},
            )
        found = official("nebius.iam.v1.Container")()
        found.metadata.id, found.metadata.parent_id = request.id, TENANT
        found.status.region = REGIONS[request.id]
        return found

    def SubnetService_List(self, request: Any, _: Any) -> Any:  # noqa: N802
        found = official("nebius.vpc.v1.ListSubnetsResponse")()
        for name in ("another", "default-subnet-x7"):
            one = found.items.add()
            one.metadata.id, one.metadata.name = f"vpcsubnet-{name}", name
        return found

    # -- what there is ---------------------------------------------------------------------------

    def PlatformService_List(self, request: Any, _: Any) -> Any:  # noqa: N802
        assert request.parent_id in REGIONS
        found = official("nebius.compute.v1.ListPlatformsResponse")()
        names = list(PLATFORMS)
        at = int(request.page_token or 0)
        found.next_page_token = str(at + 1) if at + 1 < len(names) else ""
        title, gigabytes, spot, presets = PLATFORMS[names[at]]
        one = found.items.add()
        one.metadata.name, one.spec.human_readable_name = names[at], title
        one.spec.gpu_memory_gigabytes = gigabytes
        one.status.allowed_for_preemptibles = spot
        for name, cpus, memory, gpus in presets:
            preset = one.spec.presets.add(name=name)
            preset.resources.vcpu_count, preset.resources.memory_gibibytes = cpus, memory
            preset.resources.gpu_count = gpus
        return found

    def ResourceAdviceService_List(self, request: Any, _: Any) -> Any:  # noqa: N802
        if not self.advises:
            raise Error("PERMISSION_DENIED", "Permission denied", code="PermissionDenied")
        assert request.parent_id == TENANT
        found = official("nebius.capacity.v1.ListResourceAdviceResponse")()
        for region, fabric, fresh, free, level in (
            ("eu-north1", "f-2", 1, 3, 2), ("eu-north1", "f-3", 1, 1, 3), ("us-central1", "a", 2, 9, 1),
        ):  # fmt: skip
            one = found.items.add()
            one.spec.region, one.spec.fabric = region, fabric
            one.spec.compute_instance.platform = "gpu-h100-sxm"
            one.spec.compute_instance.preset.name = "1gpu-16vcpu-200gb"
            one.status.on_demand.data_state, one.status.on_demand.available = fresh, free
            one.status.on_demand.availability_level = level
            one.status.preemptible.data_state, one.status.preemptible.availability_level = 1, 4
        return found

    def CalculatorService_EstimateBatch(self, request: Any, _: Any) -> Any:  # noqa: N802
        if not self.counts:
            raise Error("PERMISSION_DENIED", "Permission denied", code="PermissionDenied")
        found = official("nebius.billing.v1.EstimateBatchResponse")(currency="usd")
        assert list(request.filter_aggregation_unit.filter_aggregation_unit_values) == [2]
        for each in request.resource_specs:
            assert each.spec.type_url.endswith("/nebius.compute.v1.CreateInstanceRequest")
            asked = official("nebius.compute.v1.CreateInstanceRequest").FromString(each.spec.value)
            more_gib = asked.spec.boot_disk.managed_disk.spec.size_gibibytes - 200
            kind = asked.spec.resources.platform, asked.spec.HasField("preemptible")
            cost = found.resource_costs.add()
            cost.aggregation_unit.unit = "hour"
            cost.general.total.cost = f"{float(PRICES[kind]) + more_gib * DISK_USD_GIB_HOUR:.6f}"
        return found

    # -- machines --------------------------------------------------------------------------------

    def InstanceService_Create(self, request: Any, headers: Mapping[str, str]) -> Any:  # noqa: N802
        key = headers["x-idempotency-key"]
        if key in self.requests:
            return self.requests[key]
        meta, spec = request.metadata, request.spec
        platform = PLATFORMS.get(spec.resources.platform)
        if platform is None or spec.resources.preset not in [each[0] for each in platform[3]]:
            raise Error(
                "INVALID_ARGUMENT", "Invalid request", code="BadRequest",
                bad_request={"violations": [{"field": "spec.resources.platform", "message": "unknown"}]},
            )  # fmt: skip
        if any(one.data["instance"].metadata.name == meta.name for one in self.there.values()):
            raise Error("ALREADY_EXISTS", "Instance exists", resource_already_exists={"resource_id": "x"})
        self._check(request)
        instance = official("nebius.compute.v1.Instance")(metadata=meta, spec=spec)
        instance.metadata.id = f"computeinstance-e00{next(self._ids):06d}"
        instance.metadata.resource_version = 1
        instance.metadata.created_at.FromJsonString("2026-11-29T12:00:00Z")
        instance.status.state = RUNNING
        made = self.start(Made(instance.metadata.id, spec.cloud_init_user_data, {"instance": instance}))
        network = instance.status.network_interfaces.add()
        network.ip_address.address, network.public_ip_address.address = "10.0.0.7/32", f"{made.address}/32"
        operation = self._operation(instance.metadata.id)
        if self.later is not None:
            operation.status.CopyFrom(self.later.status())
            instance.status.state = 8
        self.operations[operation.id] = operation
        self.requests[key] = operation
        begun = official("nebius.common.v1.Operation")()
        begun.CopyFrom(operation)
        begun.ClearField("status")
        return begun

    def _check(self, request: Any) -> None:
        spec = request.spec
        assert spec.recovery_policy == 1  # or one that powers itself off is started again
        assert spec.reservation_policy.policy == 1
        (network,) = spec.network_interfaces
        assert (network.subnet_id, network.name) == ("vpcsubnet-default-subnet-x7", "eth0")
        assert network.HasField("ip_address")
        assert network.HasField("public_ip_address")
        disk = spec.boot_disk
        assert (disk.attach_mode, disk.managed_disk.spec.type) == (2, 1)
        assert disk.managed_disk.spec.source_image_family.image_family == "ubuntu24.04-cuda13.0"
        assert len(spec.cloud_init_user_data) <= 32_768
        for key, value in request.metadata.labels.items():
            assert set(key + value) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_"), (key, value)
            assert max(len(key), len(value)) <= 63

    def _operation(self, resource: str) -> Any:
        done = official("nebius.common.v1.Operation")(
            id=f"computeoperation-{next(self._ids)}", resource_id=resource
        )
        done.status.SetInParent()
        return done

    def OperationService_Get(self, request: Any, _: Any) -> Any:  # noqa: N802
        return self.operations[request.id]

    def _found(self, machine: str) -> Any:
        if machine not in self.there:
            raise Error(
                "NOT_FOUND",
                "Instance not found",
                code="NotFound",
                resource_not_found={"resource_id": machine},
            )
        return self.there[machine].data["instance"]

    def InstanceService_Get(self, request: Any, _: Any) -> Any:  # noqa: N802
        return self._found(request.id)

    def InstanceService_GetByName(self, request: Any, _: Any) -> Any:  # noqa: N802
        for one in self.there.values():
            meta = one.data["instance"].metadata
            if (meta.parent_id, meta.name) == (request.parent_id, request.name):
                return one.data["instance"]
        raise Error(
            "NOT_FOUND", "Instance not found", code="NotFound", resource_not_found={"resource_id": ""}
        )

    def InstanceService_List(self, request: Any, _: Any) -> Any:  # noqa: N802
        found = official("nebius.compute.v1.ListInstancesResponse")()
        for one in self.there.values():
            if one.data["instance"].metadata.parent_id == request.parent_id:
                found.items.add().CopyFrom(one.data["instance"])
        return found

    def InstanceService_Update(self, request: Any, _: Any) -> Any:  # noqa: N802
        now = self._found(request.metadata.id)
        if request.metadata.resource_version not in (0, now.metadata.resource_version):
            raise Error("ABORTED", "Conflict", resource_conflict={"resource_id": now.metadata.id})
        assert request.spec == now.spec  # nothing of it was lost
        now.metadata.labels.clear()
        now.metadata.labels.update(request.metadata.labels)
        now.metadata.resource_version += 1
        return self._operation(now.metadata.id)

    def InstanceService_Delete(self, request: Any, _: Any) -> Any:  # noqa: N802
        self._found(request.id)
        self.end(request.id)
        del self.there[request.id]
        return self._operation(request.id)


@contextmanager
def serving(cloud: FakeNebius) -> Iterator[FakeNebius]:
    """Let a fake answer over gRPC, with every service that it has methods for."""
    import grpc

    def handle(path: str) -> Any:
        def answer(request: Any, context: Any) -> Any:
            try:
                return cloud.serve(path, request, dict(context.invocation_metadata()))
            except Error as error:
                status = error.status()
                trailer = (("grpc-status-details-bin", status.SerializeToString()),) if error.detail else ()
                context.set_trailing_metadata(trailer)
                context.abort(grpc.StatusCode[error.code], error.text)

        return answer

    class Services(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]  # no types there
        def service(self, details: Any) -> Any:
            service, method = details.method.lstrip("/").split("/")
            described = definitions().FindServiceByName(service).FindMethodByName(method)
            return grpc.unary_unary_rpc_method_handler(
                handle(details.method),
                request_deserializer=official(described.input_type.full_name).FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )

    server = grpc.server(ThreadPoolExecutor(8), handlers=(Services(),))
    cloud.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield cloud
    finally:
        server.stop(None).wait()


def credentials(private_key: str) -> str:
    """Return a file of credentials as Nebius' command writes it."""
    subject = {
        "type": "JWT", "alg": "RS256", "private-key": private_key, "kid": "publickey-e00k",
        "iss": "serviceaccount-e00s", "sub": "serviceaccount-e00s",
    }  # fmt: skip
    return json.dumps({"subject-credentials": subject})
