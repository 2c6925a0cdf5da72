"""Lambda's cloud over HTTP, from its OpenAPI description (docs.lambda.ai/api/cloud)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from backends.lambdacloud import Lambda, LambdaCloud
from backends.vm.cooling import Cooled
from backends.vm.port import DEPLOYMENT, EXPIRES, KEY, LAUNCH
from orchestrator.backend import LABEL, Rent
from orchestrator.errors import AuthFailed, Busy, NoCapacity, Quota, Rejected
from tests.backends.vm.contract import ProviderContract, Refused
from tests.backends.vm.fake import Asked, FakeCloud, Made, Reply, route, serving
from tests.backends.vm.machines import Machines

API_KEY = "secret_of-the-test_0123456789"

TYPES = {
    "gpu_1x_a10": ("A10 (24 GB PCIe)", 75, 30, 226, 1400, 1, ["us-east-1", "us-west-1"]),
    "gpu_8x_h100_sxm5": ("H100 (80 GB SXM5)", 2392, 208, 1800, 22000, 8, []),
    "gpu_1x_gh200": ("GH200 (96 GB)", 149, 64, 432, 4096, 1, ["us-east-3"]),
    "cpu_4x_general": ("N/A", 20, 4, 16, 200, 0, ["us-east-1"]),
}


def error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "suggestion": None}}


class FakeLambda(FakeCloud):
    """The API under /api/v1, with shapes as its description gives them."""

    not_found = (404, error("global/object-does-not-exist", "Specified instance does not exist."))

    def reset(self) -> None:
        super().reset()
        self.keys: list[dict[str, str]] = []
        self._ids = itertools.count(1)

    def tags_of(self, made: Made) -> Mapping[str, str]:
        tags = {LABEL + t["key"].partition(":")[2]: t["value"] for t in made.data["tags"]}
        return {**tags, LAUNCH: made.data["name"]}

    def allows(self, asked: Asked) -> Reply | None:
        if asked.headers.get("Authorization") == f"Bearer {API_KEY}":
            return None
        return 401, error("global/invalid-api-key", "API key was invalid, expired, or deleted.")

    @route("GET", "/api/v1/instance-types")
    def types(self, _: Asked) -> Reply:
        return 200, {
            "data": {
                name: {
                    "instance_type": self._type(name),
                    "regions_with_capacity_available": [{"name": r, "description": r} for r in regions],
                }
                for name, (*_, regions) in TYPES.items()
            }
        }

    def _type(self, name: str) -> dict[str, Any]:
        gpu, cents, cpus, memory, storage, gpus, _ = TYPES[name]
        return {
            "name": name, "description": f"{gpus}x {gpu}", "gpu_description": gpu,
            "price_cents_per_hour": cents,
            "specs": {"vcpus": cpus, "memory_gib": memory, "storage_gib": storage, "gpus": gpus},
        }  # fmt: skip

    @route("GET", "/api/v1/ssh-keys")
    def list_keys(self, _: Asked) -> Reply:
        return 200, {"data": self.keys}

    @route("POST", "/api/v1/ssh-keys")
    def add_key(self, asked: Asked) -> Reply:
        self.keys.append({"id": str(len(self.keys)), **asked.body})
        return 200, {"data": self.keys[-1]}

    @route("POST", "/api/v1/instance-operations/launch")
    def launch(self, asked: Asked) -> Reply:
        body = asked.body
        if body["instance_type_name"] not in TYPES:
            return 404, error("global/object-does-not-exist", "Instance type does not exist.")
        assert body["ssh_key_names"] == [self.keys[0]["name"]]
        assert len(body["name"]) <= 64
        for tag in body["tags"]:
            assert set(tag["key"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789-:")
            assert len(tag["key"]) <= 55
            assert len(tag["value"]) <= 128
        made = self.start(Made(f"{next(self._ids):032x}", body["user_data"], dict(body, status="active")))
        return 200, {"data": {"instance_ids": [made.id]}}

    @route("GET", "/api/v1/instances")
    def list_instances(self, _: Asked) -> Reply:
        return 200, {"data": [self._instance(one) for one in self.there.values()]}

    @route("GET", "/api/v1/instances/([0-9a-f]+)")
    def get(self, asked: Asked) -> Reply:
        made = self.there.get(asked.groups[0])
        return (200, {"data": self._instance(made)}) if made else self.not_found

    @route("POST", "/api/v1/instances/([0-9a-f]+)")
    def rename(self, asked: Asked) -> Reply:
        assert set(asked.body) == {"name"}  # nothing else of an instance can be changed
        self.there[asked.groups[0]].data["name"] = asked.body["name"]
        return 200, {"data": self._instance(self.there[asked.groups[0]])}

    @route("POST", "/api/v1/instance-operations/terminate")
    def terminate(self, asked: Asked) -> Reply:
        (machine,) = asked.body["instance_ids"]
        if machine not in self.there:
            return self.not_found
        self.end(machine)
        return 200, {"data": {"terminated_instances": [self._instance(self.there.pop(machine))]}}

    def _instance(self, made: Made) -> dict[str, Any]:
        data = made.data
        return {
            "id": made.id, "name": data["name"], "ip": made.address, "private_ip": "10.0.2.100",
            "status": data["status"], "ssh_key_names": data["ssh_key_names"], "file_system_names": [],
            "region": {"name": data["region_name"], "description": "Virginia, USA"},
            "instance_type": self._type(data["instance_type_name"]), "tags": data["tags"], "actions": {},
        }  # fmt: skip


@pytest.fixture(scope="session")
def account(yard: Machines) -> Iterator[FakeLambda]:
    with serving(FakeLambda(yard)) as made:
        assert isinstance(made, FakeLambda)
        yield made


class TestLambda(ProviderContract):
    kind = Lambda
    rent = Rent("gpu_1x_a10", "us-east-1")
    created = ("POST", "/instance-operations/launch")
    listed = ("GET", "/api/v1/instances$")
    secret = API_KEY
    refusals: ClassVar[tuple[Refused, ...]] = (
        Refused(
            "no capacity", 400,
            error("instance-operations/launch/insufficient-capacity", "Not enough capacity to fulfill."),
            NoCapacity,
        ),
        Refused("quota", 400, error("global/quota-exceeded", "Quota exceeded."), Quota),
        Refused("expired key", 401, error("global/invalid-api-key", "API key was invalid"), AuthFailed),
        Refused("expired key", 401, error("global/invalid-api-key", "invalid"), AuthFailed, on="list"),
        Refused("inactive", 403, error("global/account-inactive", "Your account is inactive."), AuthFailed),
        Refused("address", 403, error("global/invalid-address", "Your billing address …"), AuthFailed),
        Refused("bad request", 400, error("global/invalid-parameters", "Invalid request data."), Rejected),
        Refused("no type", 404, error("global/object-does-not-exist", "Instance type …"), Rejected),
        Refused("rate", 429, {"error": {"code": "", "message": "Too many requests"}}, Busy),
        Refused("provider", 400, error("provider/internal-unavailable", "Provider unavailable"), Busy),
        Refused("internal", 500, error("global/internal-error", "An internal server error"), Busy),
        Refused("gateway", 502, "<html>Bad gateway</html>", Busy),
    )  # fmt: skip

    @pytest.fixture
    def cloud(self, account: FakeLambda, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLambda]:
        monkeypatch.setenv("LAMBDA_API_KEY", API_KEY)
        account.reset()
        yield account
        account.reset()

    @pytest.fixture
    def options(self, cloud: FakeLambda) -> dict[str, Any]:
        port = cloud.machines.host.port
        url = f"{cloud.url}/api/v1"
        return {"endpoint_url": url, "user": "root", "port": port, "boot_timeout": "30s"}

    def test_what_two_that_raced_have_made_is_one_again(
        self, cloud: FakeLambda, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        assert isinstance(provider, Cooled)
        assert isinstance(provider.inner, LambdaCloud)
        for _ in range(2):  # neither had seen the other's
            provider.inner._launch(self.order())
        assert cloud.made == 2
        found = self.provider_of(options).create(self.order())
        assert list(cloud.there) == [found.id] == ["1".zfill(32)]

    def test_offers_are_what_is_free_now_at_the_price_of_now(self, options: dict[str, Any]) -> None:
        found = {(o.instance_type, o.region): o for o in self.provider_of(options).offers()}
        a10 = found["gpu_1x_a10", "us-west-1"]
        assert (a10.accelerator, a10.count, a10.vram_bytes, a10.price_usd_hour) == (
            "A10",
            1,
            24 * 2**30,
            0.75,
        )
        assert found["gpu_8x_h100_sxm5", ""].available == 0
        assert found["gpu_1x_gh200", "us-east-3"].arch == "arm"
        assert found["cpu_4x_general", "us-east-1"].accelerator is None

    def test_only_configured_regions_are_offered(self, options: dict[str, Any]) -> None:
        found = self.provider_of({**options, "regions": ["us-west-1"]}).offers()
        assert {(o.instance_type, o.region) for o in found if o.available != 0} == {
            ("gpu_1x_a10", "us-west-1")
        }

    def test_an_idle_machine_that_does_not_answer_is_terminated_by_the_next_look(
        self, cloud: FakeLambda, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of({**options, "deployment": "d1"})
        vm = provider.create(self.order())
        provider.tag(vm, {LAUNCH: ""})
        cloud.there[vm.id].data["status"] = "unhealthy"
        (seen,) = provider.list({DEPLOYMENT: "d1"})
        assert (seen.state, seen.lingers) == ("ended", True)
        assert Lambda(**{**options, "deployment": "d1"}).instances() == []
        assert cloud.there == {}

    def test_one_that_a_launch_has_is_left_alone_when_it_does_not_answer(
        self, cloud: FakeLambda, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        vm = provider.create(self.order())
        cloud.there[vm.id].data["status"] = "unhealthy"
        (seen,) = provider.list({KEY: "k" * 32})
        assert seen.is_alive

    def test_a_preempted_machine_is_told(self, cloud: FakeLambda, options: dict[str, Any]) -> None:
        provider = self.provider_of(options)
        vm = provider.create(self.order(**{EXPIRES: "x"}))
        cloud.there[vm.id].data["status"] = "preempted"
        found = provider.get(vm)
        assert found is not None
        assert (found.state, found.preempted) == ("ended", True)

    @pytest.mark.parametrize("way", ["variable", "file"])
    def test_a_key_that_is_not_there_is_named_with_where_to_get_one(
        self, options: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("LAMBDA_API_KEY")
        more = {"api_key_file": "/nonexistent/key"} if way == "file" else {}
        with pytest.raises(AuthFailed) as caught:
            self.provider_of({**options, **more}).list({DEPLOYMENT: "d1"})
        assert ("LAMBDA_API_KEY" if way == "variable" else "/nonexistent/key") in caught.value.what
        assert "cloud.lambda.ai/api-keys" in (caught.value.fix or "")

    def test_a_key_is_read_from_its_file(
        self, cloud: FakeLambda, options: dict[str, Any], folders: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("LAMBDA_API_KEY")
        (folders / "key").write_text(f"{API_KEY}\n")
        assert self.provider_of({**options, "api_key_file": str(folders / "key")}).list({}) == []
