"""Compute Engine over HTTP, from its reference (cloud.google.com/compute/docs/reference/rest/v1)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from backends.gcp import Gcp
from backends.vm.labels import tags_of
from backends.vm.port import DEPLOYMENT, GANG, KEY, LAUNCH, NAMESPACE, Order, Provider
from orchestrator.backend import LABEL, Launch, Phase, Rent
from orchestrator.errors import AuthFailed, Busy, ConfigError, NoCapacity, Quota, Rejected
from tests.backends.vm.contract import ProviderContract, Refused, die
from tests.backends.vm.fake import Asked, FakeCloud, Fault, Made, Reply, route, serving
from tests.backends.vm.machines import Machines

PROJECT = "acme-ml"
TOKEN = "ya29.of-the-test"
P = f"/compute/v1/projects/{PROJECT}"
ZONE = P + "/zones/([a-z0-9-]+)"
REGION = P + "/regions/([a-z0-9-]+)"
TYPES = {
    "us-central1-a": ("g2-standard-4", "a3-highgpu-8g", "n2-standard-8"),
    "us-central1-b": ("g2-standard-4", "n1-standard-8", "n1-standard-32"),
    "europe-west4-a": ("g2-standard-4",),
}
GPUS = {"g2-standard-4": ("nvidia-l4", 1, 4, 16384), "a3-highgpu-8g": ("nvidia-h100-80gb", 8, 208, 1916928)}


def error(status: int, reason: str, message: str, word: str = "") -> dict[str, Any]:
    """Return an error of a request, as googleapis.com sends it."""
    each = {"message": message, "domain": "global", "reason": reason}
    return {"error": {"code": status, "message": message, "errors": [each], "status": word}}


def failed(code: str, message: str, status: int = 503) -> dict[str, Any]:
    """Return an operation that ended with an error."""
    return {
        "kind": "compute#operation", "name": "operation-failed", "status": "DONE", "progress": 100,
        "httpErrorStatusCode": status, "error": {"errors": [{"code": code, "message": message}]},
    }  # fmt: skip


class FakeGcp(FakeCloud):
    """Compute Engine's version 1 as far as machines go, and the token endpoint."""

    not_found = (404, error(404, "notFound", "The resource was not found"))

    def reset(self) -> None:
        super().reset()
        self.requests: dict[str, dict[str, Any]] = {}
        self.policies: dict[tuple[str, str], dict[str, Any]] = {}
        self.preempted: list[str] = []
        self.quota = 8.0
        self.token_error: Reply | None = None

    def tags_of(self, made: Made) -> Mapping[str, str]:
        return tags_of(made.data["labels"])

    def allows(self, asked: Asked) -> Reply | None:
        if asked.path == "/token" or asked.headers.get("Authorization") == f"Bearer {TOKEN}":
            return None
        return 401, error(
            401, "authError", "Request had invalid authentication credentials.", "UNAUTHENTICATED"
        )

    @route("POST", "/token")
    def token(self, asked: Asked) -> Reply:
        assert asked.body["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        return self.token_error or (200, {"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"})

    @route("GET", P + "/aggregated/machineTypes")
    def machine_types(self, asked: Asked) -> Reply:
        pattern = re.fullmatch(r'name eq "(.*)"', asked.query["filter"])
        assert pattern is not None
        first = "pageToken" not in asked.query
        zones = list(TYPES)[:1] if first else list(TYPES)[1:]
        items: dict[str, Any] = {
            f"zones/{zone}": {
                "machineTypes": [self._type(name) for name in TYPES[zone] if re.fullmatch(pattern[1], name)]
            }
            for zone in zones
        }
        items["zones/asia-east1-a"] = {"warning": {"code": "NO_RESULTS_ON_PAGE"}}
        return 200, {"items": items, **({"nextPageToken": "2"} if first else {})}

    def _type(self, name: str) -> dict[str, Any]:
        if name not in GPUS:
            cpus = int(name.rsplit("-", 1)[1])
            return {"name": name, "guestCpus": cpus, "memoryMb": cpus * 4096, "architecture": "X86_64"}
        gpu, count, cpus, memory = GPUS[name]
        accelerators = [{"guestAcceleratorType": gpu, "guestAcceleratorCount": count}]
        return {"name": name, "guestCpus": cpus, "memoryMb": memory, "accelerators": accelerators}

    @route("GET", P + "/aggregated/acceleratorTypes")
    def accelerator_types(self, asked: Asked) -> Reply:
        found = ["nvidia-tesla-t4", "nvidia-tesla-v100", "nvidia-l4", "nvidia-tesla-t4-vws"]
        wanted = re.findall(r'name = "([a-z0-9-]+)"', asked.query["filter"])
        there = [{"name": name, "maximumCardsPerInstance": 4} for name in found if name in wanted]
        return 200, {"items": {"zones/us-central1-b": {"acceleratorTypes": there}, "zones/us-central1-a": {}}}

    @route("GET", P + "/aggregated/reservations")
    def reservations(self, _: Asked) -> Reply:
        def one(name: str, kind: str, status: str = "READY") -> dict[str, Any]:
            said = {"count": "4", "inUseCount": "1", "instanceProperties": {"machineType": kind}}
            return {"name": name, "status": status, "specificReservation": said}

        found = [
            one("block-1", "g2-standard-4"), one("block-2", "g2-standard-4", "UPDATING"),
            one("theirs", "g2-standard-4"), one("other", "a3-highgpu-8g"),
        ]  # fmt: skip
        return 200, {"items": {"zones/us-central1-a": {"reservations": found}, "zones/us-central1-b": {}}}

    @route("GET", P + "/regions/([a-z0-9-]+)")
    def region(self, asked: Asked) -> Reply:
        quotas = [
            {"metric": "CPUS", "limit": 72.0, "usage": 0.0},
            {"metric": "NVIDIA_L4_GPUS", "limit": self.quota, "usage": 0.0},
            {"metric": "PREEMPTIBLE_NVIDIA_L4_GPUS", "limit": self.quota, "usage": 0.0},
        ]
        return 200, {"name": asked.groups[0], "status": "UP", "quotas": quotas}

    @route("POST", ZONE + "/instances")
    def insert(self, asked: Asked) -> Reply:
        (zone,), body = asked.groups, asked.body
        if known := self.requests.get(asked.query["requestId"]):
            return 200, known
        kind = body["machineType"].rsplit("/", 1)[-1]
        assert body["machineType"] == f"zones/{zone}/machineTypes/{kind}"
        for key, value in body["labels"].items():
            assert re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key), key
            assert re.fullmatch(r"[a-z0-9_-]{0,63}", value), value
        if kind not in TYPES.get(zone, ()):
            return 400, error(
                400, "invalid", f"Invalid value for field 'resource.machineType': Machine type with name "
                f"'{kind}' does not exist in zone '{zone}'.",
            )  # fmt: skip
        if body["name"] in self.there:
            return 409, error(409, "alreadyExists", "The resource already exists")
        for path in body.get("resourcePolicies", ()):
            region, name = path.split("/")[3::2]
            assert path == f"projects/{PROJECT}/regions/{region}/resourcePolicies/{name}"
            assert zone.startswith(region)
            if (region, name) not in self.policies:
                return 404, error(404, "notFound", f"The resource '{path}' was not found")
        user_data = next(i["value"] for i in body["metadata"]["items"] if i["key"] == "user-data")
        data = dict(body, status="RUNNING", zone=zone, fingerprint=1)
        self.start(Made(body["name"], user_data, data))
        operation = {"kind": "compute#operation", "name": f"operation-{self.made}", "status": "RUNNING"}
        self.requests[asked.query["requestId"]] = operation
        return 200, operation

    @route("POST", REGION + "/resourcePolicies")
    def make_policy(self, asked: Asked) -> Reply:
        (region,), body = asked.groups, asked.body
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", body["name"])
        assert body["groupPlacementPolicy"] == {"collocation": "COLLOCATED"}
        if (region, body["name"]) in self.policies:
            return 409, error(409, "alreadyExists", "The resource already exists")
        self.policies[region, body["name"]] = body
        return 200, {"kind": "compute#operation", "name": "operation-policy", "status": "RUNNING"}

    @route("GET", P + "/aggregated/resourcePolicies")
    def list_policies(self, _: Asked) -> Reply:
        found: dict[str, Any] = {"regions/asia-east1": {"warning": {"code": "NO_RESULTS_ON_PAGE"}}}
        for (region, _name), body in self.policies.items():
            scope = found.setdefault(f"regions/{region}", {"resourcePolicies": []})
            scope["resourcePolicies"].append({**body, "status": "READY"})
        return 200, {"items": found}

    @route("DELETE", REGION + "/resourcePolicies/([a-z0-9-]+)")
    def delete_policy(self, asked: Asked) -> Reply:
        region, name = asked.groups
        if (region, name) not in self.policies:
            return self.not_found
        path = f"projects/{PROJECT}/regions/{region}/resourcePolicies/{name}"
        if any(path in made.data.get("resourcePolicies", ()) for made in self.there.values()):
            return 400, error(400, "resourceInUseByAnotherResource", f"{path} is already being used")
        del self.policies[region, name]
        return 200, {"kind": "compute#operation", "name": "operation-policy", "status": "RUNNING"}

    @route("POST", f"(?:{ZONE}|{REGION})/operations/([a-z0-9-]+)/wait")
    def wait(self, asked: Asked) -> Reply:
        return 200, {"kind": "compute#operation", "name": asked.groups[-1], "status": "DONE", "progress": 100}

    @route("GET", ZONE + "/operations")
    def operations(self, asked: Asked) -> Reply:
        assert asked.query["filter"] == 'operationType = "compute.instances.preempted"'
        link = f"https://www.googleapis.com{P}/zones/{asked.groups[0]}/instances/"
        return 200, {"items": [{"targetLink": link + name} for name in self.preempted]}

    @route("GET", P + "/aggregated/instances")
    def instances(self, asked: Asked) -> Reply:
        wanted = dict(re.findall(r'\(labels\.([a-z0-9-]+) = "([^"]*)"\)', asked.query["filter"]))
        found: dict[str, Any] = {f"zones/{zone}": {"instances": []} for zone in TYPES}
        for one in self.there.values():
            if wanted.items() <= one.data["labels"].items():
                found[f"zones/{one.data['zone']}"]["instances"].append(self._instance(one))
        return 200, {"items": found}

    @route("GET", ZONE + "/instances/([a-z0-9-]+)")
    def get(self, asked: Asked) -> Reply:
        made = self.there.get(asked.groups[1])
        return (200, self._instance(made)) if made else self.not_found

    @route("POST", ZONE + "/instances/([a-z0-9-]+)/setLabels")
    def set_labels(self, asked: Asked) -> Reply:
        data = self.there[asked.groups[1]].data
        if asked.body["labelFingerprint"] != str(data["fingerprint"]):
            return 412, error(412, "conditionNotMet", "Labels fingerprint either invalid or resource changed")
        data["labels"], data["fingerprint"] = asked.body["labels"], data["fingerprint"] + 1
        return 200, {"name": "operation-labels", "status": "RUNNING"}

    @route("DELETE", ZONE + "/instances/([a-z0-9-]+)")
    def delete(self, asked: Asked) -> Reply:
        if asked.groups[1] not in self.there:
            return self.not_found
        self.end(asked.groups[1])
        del self.there[asked.groups[1]]
        return 200, {"name": "operation-delete", "status": "RUNNING"}

    def _instance(self, made: Made) -> dict[str, Any]:
        data, home = made.data, f"https://www.googleapis.com{P}/zones/{made.data['zone']}"
        return {
            "name": made.id, "status": data["status"], "zone": home,
            "machineType": f"{home}/machineTypes/{data['machineType'].rsplit('/', 1)[-1]}",
            "labels": data["labels"], "labelFingerprint": str(data["fingerprint"]),
            **({"guestAccelerators": data["guestAccelerators"]} if "guestAccelerators" in data else {}),
            "scheduling": data["scheduling"], "creationTimestamp": "2026-11-29T03:00:00.000-08:00",
            "networkInterfaces": [
                {"networkIP": "10.128.0.2", "accessConfigs": [{"natIP": made.address}]}
            ],
        }  # fmt: skip


@pytest.fixture(scope="session")
def account(yard: Machines) -> Iterator[FakeGcp]:
    with serving(FakeGcp(yard)) as made:
        assert isinstance(made, FakeGcp)
        yield made


@pytest.fixture(scope="session")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class GoogleContract(ProviderContract):
    """What machines and slices share: the account, how it signs in, and what an id looks like."""

    kind = Gcp
    secret = TOKEN

    @pytest.fixture
    def credentials(self, cloud: FakeGcp, folders: Path, private_key: str) -> dict[str, Any]:
        account = {
            "type": "service_account", "project_id": PROJECT, "private_key_id": "1",
            "private_key": private_key, "client_email": f"ml@{PROJECT}.iam.gserviceaccount.com",
            "client_id": "1", "token_uri": f"{cloud.url}/token",
        }  # fmt: skip
        (folders / "key.json").write_text(json.dumps(account))
        return {
            "endpoint_url": cloud.url, "credentials_file": str(folders / "key.json"), "user": "root",
            "port": cloud.machines.host.port, "boot_timeout": "30s",
        }  # fmt: skip

    def signs_in(self, path: str) -> bool:
        return path == "/token"

    def unknown(self, vm: Any) -> str:
        return "modelyard-" + "0" * 32


class TestGcp(GoogleContract):
    rent = Rent("g2-standard-4", "us-central1", "us-central1-a")
    created = ("POST", "/zones/[a-z0-9-]+/instances$")
    listed = ("GET", "/aggregated/instances")
    refusals: ClassVar[tuple[Refused, ...]] = (
        Refused(
            "sold out, later", 200,
            failed("ZONE_RESOURCE_POOL_EXHAUSTED", "The zone does not have enough resources available"),
            NoCapacity,
        ),
        Refused(
            "sold out with details", 200,
            failed("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "… (resource type:compute)"), NoCapacity,
        ),
        Refused("no addresses", 200, failed("IP_SPACE_EXHAUSTED", "IP space is exhausted", 400), NoCapacity),
        Refused(
            "quota, at once", 403,
            error(403, "quotaExceeded", "Quota 'NVIDIA_L4_GPUS' exceeded. Limit: 0.0 in region us-central1."),
            Quota,
        ),
        Refused("quota, later", 200, failed("QUOTA_EXCEEDED", "Quota 'GPUS_ALL_REGIONS'", 403), Quota),
        Refused("token", 401, error(401, "authError", "Invalid Credentials", "UNAUTHENTICATED"), AuthFailed),
        Refused("token", 401, error(401, "authError", "Invalid Credentials"), AuthFailed, on="list"),
        Refused("rights", 403, error(403, "forbidden", "Required 'compute.instances.create'"), AuthFailed),
        Refused("API off", 403, error(403, "accessNotConfigured", "Compute Engine API has not"), AuthFailed),
        Refused(
            "no such type", 400,
            error(400, "invalid", "Machine type with name 'x' does not exist in zone 'y'."), Rejected,
        ),
        Refused("no zone", 404, error(404, "notFound", "The resource 'zones/x' was not found"), Rejected),
        Refused("another conflict", 409, error(409, "conflict", "The resource is fenced"), Rejected),
        Refused("bad field", 400, error(400, "invalid", "Invalid value for field 'resource.name'"), Rejected),
        Refused("rate", 403, error(403, "rateLimitExceeded", "Rate Limit Exceeded"), Busy),
        Refused("rate", 429, error(429, "rateLimitExceeded", "Quota exceeded for quota metric"), Busy),
        Refused("backend", 503, error(503, "backendError", "Backend Error", "UNAVAILABLE"), Busy),
        Refused("internal, later", 200, failed("INTERNAL_ERROR", "Internal error", 500), Busy),
    )  # fmt: skip

    @pytest.fixture
    def cloud(self, account: FakeGcp) -> Iterator[FakeGcp]:
        account.reset()
        yield account
        account.reset()

    @pytest.fixture
    def options(self, credentials: dict[str, Any]) -> dict[str, Any]:
        return credentials

    def test_every_zone_is_an_offer_twice_and_the_catalog_has_its_price(
        self, options: dict[str, Any]
    ) -> None:
        found = self.provider_of({**options, "instance_types": ["n2-standard-*"]}).offers()
        whole = [offer for offer in found if "+" not in offer.instance_type]
        assert [(o.instance_type, o.zone, o.spot) for o in whole] == [
            (kind, zone, spot)
            for zone, kinds in (
                ("us-central1-a", ("a3-highgpu-8g", "g2-standard-4", "n2-standard-8")),
                ("us-central1-b", ("g2-standard-4",)),
            )
            for kind in kinds for spot in (False, True)
        ]  # fmt: skip
        h100 = found[0]
        assert (h100.accelerator, h100.count, h100.vram_bytes) == ("nvidia-h100-80gb", 8, 80 * 2**30)
        assert (h100.price_list, h100.price_usd_hour) == ("gcp", 0.032397)
        assert {o.price_usd_hour for o in found if o.spot} == {0.029897}  # half as much for its address

    def test_gpus_are_attached_to_n1_machines_where_a_zone_has_them_and_they_fit(
        self, options: dict[str, Any]
    ) -> None:
        attached = [o for o in Gcp(**options).offers() if o.instance_type.startswith("n1-") and not o.spot]
        assert {(o.instance_type, o.accelerator, o.count) for o in attached} == {
            *((f"n1-standard-{size}+t4x{n}", "nvidia-tesla-t4", n) for size in (8, 32) for n in (1, 2, 4)),
            *((f"n1-standard-8+v100x{n}", "nvidia-tesla-v100", n) for n in (1, 2, 4, 8)),
            *((f"n1-standard-32+v100x{n}", "nvidia-tesla-v100", n) for n in (4, 8)),
        }
        assert {(o.zone, o.vendor, o.price_list) for o in attached} == {("us-central1-b", "nvidia", "gcp")}
        assert {o.vram_bytes for o in attached} == {16 * 2**30}
        alone = Gcp(**options, instance_types=["n1-standard-*"]).offers()
        assert {o.count for o in alone if o.instance_type == "n1-standard-8"} == {0}

    def test_an_attached_gpu_is_asked_for_and_seen_again(self, cloud: FakeGcp, provider: Provider) -> None:
        rent = replace(self.rent, instance_type="n1-standard-8+t4x2", zone="us-central1-b")
        vm = provider.create(self.order(rent=rent))
        body = next(asked.body for asked in cloud.heard if asked.path.endswith("/instances") and asked.body)
        assert body["machineType"] == "zones/us-central1-b/machineTypes/n1-standard-8"
        kind = "zones/us-central1-b/acceleratorTypes/nvidia-tesla-t4"
        assert body["guestAccelerators"] == [{"acceleratorType": kind, "acceleratorCount": 2}]
        assert body["scheduling"]["onHostMaintenance"] == "TERMINATE"
        (found,) = provider.list({DEPLOYMENT: "d1"})
        assert (vm.instance_type, found.instance_type) == (rent.instance_type, rent.instance_type)

    def test_types_are_asked_for_once_a_day(self, cloud: FakeGcp, options: dict[str, Any]) -> None:
        first = self.provider_of(options).offers()
        cloud.calls.clear()
        assert list(self.provider_of(options).offers()) == list(first)
        assert cloud.count("GET", "machineTypes") == 0

    def test_a_request_that_is_sent_twice_carries_one_id(
        self, cloud: FakeGcp, options: dict[str, Any]
    ) -> None:
        for _ in range(2):
            self.provider_of(options).create(self.order())
        ids = {a.query["requestId"] for a in cloud.heard if "requestId" in a.query}
        assert len(ids) == 1

    def test_a_spot_machine_is_asked_for_and_its_end_is_told(
        self, cloud: FakeGcp, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        vm = provider.create(self.order(rent=replace(self.rent, spot=True)))
        data = cloud.there[vm.id].data
        assert data["scheduling"]["provisioningModel"] == "SPOT"
        assert vm.spot
        data["status"] = "TERMINATED"
        (seen,) = provider.list({KEY: "k" * 32})
        assert (seen.state, seen.lingers, seen.preempted) == ("ended", True, False)
        cloud.preempted.append(vm.id)
        (seen,) = provider.list({KEY: "k" * 32})
        assert seen.preempted

    def test_what_was_taken_away_is_told_once_and_then_deleted(
        self, cloud: FakeGcp, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend = Gcp(**options)
        with monkeypatch.context() as patched:
            patched.setattr(backend, "_booted", die)
            launch = Launch("sft-0-0-0", "sft", image="x", rent=replace(self.rent, spot=True))
            with pytest.raises(KeyboardInterrupt):
                backend.start(launch, secrets={}, progress=print)
        (made,) = cloud.there.values()
        made.data["status"] = "TERMINATED"
        cloud.preempted.append(made.id)
        (seen,) = backend.instances()
        assert (seen.phase, seen.reason, seen.rented) == (Phase.EXITED, "preempted", True)
        backend.release("sft-0-0-0", keep_s=300)
        assert cloud.there == {}
        (seen,) = backend.instances()
        assert (seen.reason, seen.rented) == ("preempted", False)

    def test_an_idle_machine_that_powered_itself_off_is_deleted_by_the_next_look(
        self, cloud: FakeGcp, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        vm = provider.create(self.order())
        provider.tag(vm, {LAUNCH: ""})
        cloud.there[vm.id].data["status"] = "TERMINATED"
        assert Gcp(**{**options, "deployment": "d1"}).instances() == []
        assert cloud.there == {}

    def test_a_machine_has_no_credentials_and_its_disk_goes_with_it(
        self, cloud: FakeGcp, options: dict[str, Any]
    ) -> None:
        vm = self.provider_of(options).create(self.order())
        data = cloud.there[vm.id].data
        assert "serviceAccounts" not in data
        assert all(disk["autoDelete"] for disk in data["disks"])
        assert {i["key"] for i in data["metadata"]["items"]} == {"user-data", "block-project-ssh-keys"}

    def test_a_disk_is_as_large_as_was_planned(self, cloud: FakeGcp, options: dict[str, Any]) -> None:
        provider = self.provider_of(options)
        found = next(o for o in provider.offers() if o.accelerator).with_disk(300 * 10**9)
        assert found.disk_bytes == 280 * 2**30
        assert found.price_usd_hour == pytest.approx(280 * 0.1 / 730 + 0.005, abs=1e-6)
        vm = provider.create(self.order(rent=replace(self.rent, disk_bytes=280 * 2**30)))
        (disk,) = cloud.there[vm.id].data["disks"]
        assert disk["initializeParams"]["diskSizeGb"] == "280"

    def test_a_reservation_and_a_subnetwork_are_used(self, cloud: FakeGcp, options: dict[str, Any]) -> None:
        subnet = "regions/us-central1/subnetworks/gpu"
        provider = self.provider_of({**options, "network": subnet, "public_address": False})
        vm = provider.create(self.order(rent=replace(self.rent, reservation="block-1")))
        data = cloud.there[vm.id].data
        assert data["reservationAffinity"]["values"] == ["block-1"]
        assert data["networkInterfaces"] == [{"subnetwork": subnet}]

    def test_a_configured_reservation_is_an_offer_of_its_own(
        self, cloud: FakeGcp, options: dict[str, Any]
    ) -> None:
        self.provider_of(options).offers()
        assert cloud.count("GET", "reservations") == 0
        found = self.provider_of({**options, "reservations": ["block-1", "block-2", "other"]}).offers()
        assert [(o.reservation, o.instance_type, o.zone, o.available) for o in found if o.reservation] == [
            ("other", "a3-highgpu-8g", "us-central1-a", 3), ("block-1", "g2-standard-4", "us-central1-a", 3),
        ]  # fmt: skip

    def gang_order(self, key: str, gang: str = "sft-0-gang-0", rent: Rent | None = None) -> Order:
        return replace(self.order(key.ljust(32, "0"), rent, **{GANG: gang}), gang=gang)

    def test_machines_of_one_gang_share_a_placement_policy_that_goes_with_the_last(
        self, cloud: FakeGcp, options: dict[str, Any]
    ) -> None:
        backend = Gcp(**{**options, "deployment": "d1"})
        backend._shelf.furnish("sft-0-gang-0")
        first, second = (backend._provider.create(self.gang_order(key)) for key in ("a", "b"))
        cloud.policies["us-central1", "nightly"] = {"name": "nightly", "snapshotSchedulePolicy": {}}
        ((path,), (same,)) = (cloud.there[vm.id].data["resourcePolicies"] for vm in (first, second))
        assert path == same
        assert json.loads(cloud.policies["us-central1", path.rpartition("/")[2]]["description"]) == {
            DEPLOYMENT: "d1", NAMESPACE: "modelyard", GANG: "sft-0-gang-0", LABEL + "run": "sft",
        }  # fmt: skip
        backend._provider.terminate(first)
        backend.instances()
        assert len(cloud.policies) == 2
        backend._provider.terminate(second)
        backend.instances()
        assert list(cloud.policies) == [("us-central1", "nightly")]

    def test_a_policy_that_an_ending_machine_holds_is_left_for_the_next_look(
        self, cloud: FakeGcp, options: dict[str, Any]
    ) -> None:
        backend = Gcp(**{**options, "deployment": "d1"})
        backend._shelf.furnish("sft-0-gang-0")
        vm = backend._provider.create(self.gang_order("a"))
        cloud.there[vm.id].data["status"] = "STOPPING"
        made = cloud.there.pop(vm.id)
        cloud.there["still-there"] = made
        labels, made.data["labels"] = made.data["labels"], {}
        backend.instances()
        assert len(cloud.policies) == 1
        made.data["labels"] = labels
        del cloud.there["still-there"]
        backend.instances()
        assert cloud.policies == {}

    def test_a_policy_of_a_lost_record_is_listed_and_removed_when_asked(
        self, cloud: FakeGcp, options: dict[str, Any]
    ) -> None:
        backend = Gcp(**{**options, "deployment": "d1"})
        backend._provider.terminate(backend._provider.create(self.gang_order("a")))
        assert Gcp(**{**options, "deployment": "d2"}).machines() == []
        (left,) = backend.machines()
        assert (left.instance_type, left.run, left.region, left.state) == (
            "placement policy", "sft", "us-central1", "unused",
        )  # fmt: skip
        backend.terminate(left.id)
        assert (cloud.policies, list(backend.machines())) == ({}, [])

    @pytest.mark.parametrize(
        "rent",
        [
            Rent("g2-standard-4", "us-central1", "us-central1-a", reservation="block-1"),
            Rent("n1-standard-8+t4x2", "us-central1", "us-central1-b"),
        ],
        ids=["as-it-was-reserved", "no-such-family"],
    )
    def test_what_takes_no_policy_is_asked_for_without(
        self, cloud: FakeGcp, options: dict[str, Any], rent: Rent
    ) -> None:
        vm = self.provider_of(options).create(self.gang_order("a", rent=rent))
        assert "resourcePolicies" not in cloud.there[vm.id].data
        assert cloud.policies == {}

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (403, error(403, "forbidden", "Required 'compute.resourcePolicies.create'"), AuthFailed),
            (403, error(403, "quotaExceeded", "Quota 'RESOURCE_POLICIES' exceeded. Limit: 10.0"), Quota),
            (200, failed("QUOTA_EXCEEDED", "Quota 'RESOURCE_POLICIES'", 403), Quota),
        ],
        ids=["rights", "quota", "quota-later"],
    )
    def test_a_policy_that_cannot_be_made_is_told_and_nothing_is_rented(
        self, cloud: FakeGcp, options: dict[str, Any], status: int, body: Any, kind: type[Exception]
    ) -> None:
        cloud.faults.append(Fault("POST", "/resourcePolicies$", status, body))
        with pytest.raises(kind, match="us-central1"):
            self.provider_of(options).create(self.gang_order("a"))
        assert cloud.made == 0

    def test_a_region_that_is_not_configured_is_named(self, options: dict[str, Any]) -> None:
        with pytest.raises(Rejected, match=r"g2-standard-4 in europe-west4-a.*not configured"):
            self.provider_of(options).create(
                self.order(rent=Rent("g2-standard-4", "europe-west4", "europe-west4-a"))
            )

    def test_a_quota_of_0_is_seen_before_anything_is_rented(
        self, cloud: FakeGcp, options: dict[str, Any]
    ) -> None:
        cloud.quota = 0.0
        (bad,) = [one for one in Gcp(**options).check() if not one.ok]
        assert bad.what == "us-central1: has a quota of GPUs"
        assert "Quotas" in bad.fix

    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            ((400, {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}),
             "Google does not take the credentials"),
            ((401, {"error": "invalid_client"}), "Google does not take the credentials"),
        ],
    )  # fmt: skip
    def test_credentials_that_have_expired_are_told_with_what_to_do(
        self, cloud: FakeGcp, options: dict[str, Any], reply: Reply, words: str
    ) -> None:
        cloud.token_error = reply
        with pytest.raises(AuthFailed, match=words) as caught:
            self.provider_of(options).list({DEPLOYMENT: "d1"})
        assert "gcloud auth application-default login" in (caught.value.fix or "")

    @pytest.mark.parametrize("text", [None, "", "{}", '{"type": "service_account"}'])
    def test_credentials_that_cannot_be_read_are_told(
        self, options: dict[str, Any], folders: Path, text: str | None
    ) -> None:
        path = folders / "other.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(AuthFailed, match="no credentials for Google Cloud") as caught:
            self.provider_of({**options, "credentials_file": str(path)}).list({DEPLOYMENT: "d1"})
        assert "credentials_file" in (caught.value.fix or "")

    @pytest.mark.parametrize(
        "wrong", [{"regions": []}, {"disk": "200"}, {"deployment": "Team.A"}, {"instance_types": "n2"}]
    )
    def test_a_wrong_option_is_named(self, options: dict[str, Any], wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Gcp(**{**options, **wrong})

    def test_a_missing_package_is_named_with_its_extra(
        self, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("backends.gcp.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="google-auth") as caught:
            Gcp(**options)
        assert caught.value.fix == "pip install 'modelyard[gcp]'"

    def test_labels_of_others_are_no_tags_of_ours(self) -> None:
        assert tags_of({"owner": "me", "modelyard-run": "chat"}) == {LABEL + "run": "chat"}
