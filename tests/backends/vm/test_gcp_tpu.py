"""TPU slices over HTTP, from the TPU API's reference (docs.cloud.google.com/tpu/docs/reference/rest/v2)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from backends.gcp import Gcp, slices
from backends.vm.labels import tags_of
from backends.vm.port import DEPLOYMENT, GANG, KEY, LAUNCH, Order, Provider
from orchestrator.api.opened import _listed
from orchestrator.backend import LABEL, Can, Launch, Phase, Rent
from orchestrator.errors import AuthFailed, Busy, ConfigError, NoCapacity, Quota, Rejected
from tests import images
from tests.backends.vm.contract import Refused, die
from tests.backends.vm.fake import Asked, Made, Reply, route, serving
from tests.backends.vm.machines import Machines
from tests.backends.vm.test_gcp import PROJECT, FakeGcp, GoogleContract, private_key

__all__ = ["private_key"]

P = f"/v2/projects/{PROJECT}"
ZONE = P + "/locations/([a-z0-9-]+)"
KINDS = {"us-central1-b": ("v6e-8", "v6e-16", "v5litepod-4", "v2-8"), "us-central1-a": ("v5p-8",)}


def error(code: int, status: str, message: str) -> dict[str, Any]:
    """Return an error of a request, as google.rpc.Status is sent."""
    return {"error": {"code": code, "message": message, "status": status}}


def failed(code: int, message: str) -> dict[str, Any]:
    """Return an operation that ended with an error."""
    return {"name": f"projects/{PROJECT}/locations/z/operations/o", "done": True,
            "error": {"code": code, "message": message}}  # fmt: skip


class FakeTpu(FakeGcp):
    """The TPU API beside Compute Engine's."""

    def tags_of(self, made: Made) -> Mapping[str, str]:
        return tags_of(made.data["labels"])

    @route("GET", P + "/locations")
    def locations(self, _: Asked) -> Reply:
        return 200, {"locations": [{"locationId": zone} for zone in (*KINDS, "europe-west4-b")]}

    @route("GET", ZONE + "/acceleratorTypes")
    def accelerator_kinds(self, asked: Asked) -> Reply:
        home = f"projects/{PROJECT}/locations/{asked.groups[0]}/acceleratorTypes"
        found = [{"name": f"{home}/{kind}", "type": kind} for kind in KINDS.get(asked.groups[0], ())]
        return 200, {"acceleratorTypes": found}

    @route("POST", ZONE + "/nodes")
    def create_node(self, asked: Asked) -> Reply:
        name, body, zone = asked.query["nodeId"], asked.body, asked.groups[0]
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name)
        for key, value in body["labels"].items():
            assert re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key), key
            assert re.fullmatch(r"[a-z0-9_-]{0,63}", value), value
        if body["acceleratorType"] not in KINDS.get(zone, ()):
            return 400, error(400, "INVALID_ARGUMENT", f"Unsupported type {body['acceleratorType']}")
        if name in self.there:
            return 409, error(409, "ALREADY_EXISTS", f"Resource '{name}' already exists")
        data = {**body, "zone": zone, "state": "READY"}
        keys = body["metadata"]["ssh-keys"].partition(":")[2]
        script = ["sh", "-c", body["metadata"]["startup-script"]]
        config = {"ssh_authorized_keys": [keys], "bootcmd": [script], "runcmd": []}
        self.start(Made(name, "#cloud-config\n" + json.dumps(config), data))
        return 200, {"name": f"projects/{PROJECT}/locations/{zone}/operations/op-{self.made}"}

    @route("GET", ZONE + "/operations/([a-z0-9-]+)")
    def operation(self, asked: Asked) -> Reply:
        return 200, {"name": asked.path.removeprefix("/v2/"), "done": True, "response": {}}

    @route("GET", P + "/locations/-/nodes")
    def list_nodes(self, _: Asked) -> Reply:
        return 200, {"nodes": [self._node(one) for one in self.there.values() if "zone" in one.data]}

    @route("GET", ZONE + "/nodes/([a-z0-9-]+)")
    def get_node(self, asked: Asked) -> Reply:
        made = self.there.get(asked.groups[1])
        return (200, self._node(made)) if made else (404, error(404, "NOT_FOUND", "not found"))

    @route("PATCH", ZONE + "/nodes/([a-z0-9-]+)")
    def patch_node(self, asked: Asked) -> Reply:
        assert asked.query["updateMask"] == "labels"
        self.there[asked.groups[1]].data["labels"] = asked.body["labels"]
        return 200, {"name": f"projects/{PROJECT}/locations/{asked.groups[0]}/operations/op-labels"}

    @route("DELETE", ZONE + "/nodes/([a-z0-9-]+)")
    def delete_node(self, asked: Asked) -> Reply:
        if asked.groups[1] not in self.there:
            return 404, error(404, "NOT_FOUND", "not found")
        self.end(asked.groups[1])
        del self.there[asked.groups[1]]
        return 200, {"name": f"projects/{PROJECT}/locations/{asked.groups[0]}/operations/op-delete"}

    @route("GET", "/compute/v1/projects/acme-ml/aggregated/instances")
    def instances(self, asked: Asked) -> Reply:
        return 200, {"items": {}}

    def _node(self, made: Made) -> dict[str, Any]:
        kind = slices.slice_of(made.data["acceleratorType"])
        ends = [
            {"ipAddress": f"10.130.0.{rank + 2}", "port": 8470, "accessConfig": {"externalIp": made.address}}
            for rank in range(kind.machines if kind else 1)
        ]
        shown = ("acceleratorType", "runtimeVersion", "labels", "schedulingConfig", "state")
        return {
            "name": f"projects/{PROJECT}/locations/{made.data['zone']}/nodes/{made.id}",
            "createTime": "2026-11-29T11:00:00.123456789Z", "networkEndpoints": ends,
            **{key: made.data[key] for key in shown if key in made.data},
        }  # fmt: skip


@pytest.fixture(scope="session")
def tpus(yard: Machines) -> Iterator[FakeTpu]:
    with serving(FakeTpu(yard)) as made:
        assert isinstance(made, FakeTpu)
        yield made


class TestTpu(GoogleContract):
    rent = Rent("v6e-8", "us-central1", "us-central1-b")
    created = ("POST", "/v2/.*/nodes$")
    listed = ("GET", "/v2/.*/locations/-/nodes$")
    refusals: ClassVar[tuple[Refused, ...]] = (
        Refused(
            "sold out, later", 200,
            failed(8, 'There is no more capacity in the zone "us-central1-b"; you can try in another zone '
                   "where Cloud TPU Nodes are offered (see https://cloud.google.com/tpu/docs/regions)"),
            NoCapacity,
        ),
        Refused("no reserved", 200, failed(9, "Insufficient reserved capacity. [EID: 0x2]"), NoCapacity),
        Refused(
            "quota", 429,
            error(429, "RESOURCE_EXHAUSTED", "Quota limit 'TPUV6EPerProjectPerZoneForTPUAPI' has been "
                  "exceeded. Limit: 0 in zone us-central1-b."),
            Quota,
        ),
        Refused("quota, later", 200, failed(8, "Quota limit 'TPUV6E' has been exceeded"), Quota),
        Refused(
            "rate", 429,
            error(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Requests' and limit "
                  "'Requests per minute'"),
            Busy,
        ),
        Refused("token", 401, error(401, "UNAUTHENTICATED", "Request had invalid credentials"), AuthFailed),
        Refused("rights", 403, error(403, "PERMISSION_DENIED", "Permission 'tpu.nodes.create'"), AuthFailed),
        Refused("API off", 403, error(403, "PERMISSION_DENIED", "Cloud TPU API has not been"), AuthFailed),
        Refused("runtime", 400, error(400, "INVALID_ARGUMENT", "Invalid runtime version"), Rejected),
        Refused("later", 503, error(503, "UNAVAILABLE", "The service is currently unavailable"), Busy),
        Refused("internal, later", 200, failed(13, "an internal error has occurred"), Busy),
    )  # fmt: skip

    @pytest.fixture
    def cloud(self, tpus: FakeTpu) -> Iterator[FakeTpu]:
        tpus.reset()
        yield tpus
        tpus.reset()

    @pytest.fixture
    def options(self, credentials: dict[str, Any]) -> dict[str, Any]:
        return {**credentials, "tpu_endpoint_url": credentials["endpoint_url"], "tpus": ["v5e", "v6e"]}

    # What there is ------------------------------------------------------------------------------

    def test_slices_of_the_configured_generations_are_offers_by_the_machine(
        self, cloud: FakeTpu, options: dict[str, Any]
    ) -> None:
        found = [o for o in Gcp(**options).offers() if o.vendor == "google" and not o.spot]
        assert [(o.instance_type, o.accelerator, o.count, o.nodes, o.zone) for o in found] == [
            ("v5litepod-4", "v5litepod", 4, 1, "us-central1-b"),
            ("v6e-16", "v6e", 4, 4, "us-central1-b"),
            ("v6e-8", "v6e", 8, 1, "us-central1-b"),
        ]
        assert {o.price_list for o in found} == {"gcp"}
        cloud.calls.clear()
        Gcp(**options).offers()
        assert not [path for _, path in cloud.calls if path.startswith("/v2/")]
        assert not [o for o in Gcp(**{**options, "tpus": []}).offers() if o.vendor == "google"]

    def test_a_slice_is_asked_for_with_the_runtime_of_its_generation(
        self, cloud: FakeTpu, options: dict[str, Any]
    ) -> None:
        self.provider_of(options).create(self.order(rent=replace(self.rent, spot=True)))
        (made,) = cloud.there.values()
        assert made.data["runtimeVersion"] == "v2-alpha-tpuv6e"
        assert made.data["schedulingConfig"] == {"spot": True}
        assert made.data["networkConfig"] == {"enableExternalIps": True, "network": "default"}
        own = {**options, "tpu_runtimes": {"v6e": "mine"}, "public_address": False, "deployment": "d9"}
        self.provider_of(own).create(self.order("o" * 32))
        assert cloud.there["modelyard-" + "o" * 32].data["runtimeVersion"] == "mine"

    def test_a_preempted_slice_is_told_and_deleted(self, cloud: FakeTpu, provider: Provider) -> None:
        vm = provider.create(self.order(rent=replace(self.rent, spot=True)))
        cloud.there[vm.id].data["state"] = "PREEMPTED"
        (found,) = provider.list({DEPLOYMENT: "d1"})
        assert (found.state, found.preempted, found.lingers, found.spot) == ("ended", True, True, True)
        provider.terminate(found)
        assert cloud.there == {}

    @pytest.mark.parametrize("wrong", [{"tpus": ["v2"]}, {"tpus": "v6e"}, {"tpu_runtimes": {"v9": "x"}}])
    def test_a_wrong_option_is_named(self, options: dict[str, Any], wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="tpus"):
            Gcp(**{**options, **wrong})

    # Several machines ---------------------------------------------------------------------------

    def worker(self, rank: int, key: str = "k") -> Order:
        rent = replace(self.rent, instance_type="v6e-16")
        launch = Launch(f"sft-0-{rank}-0", "sft", node=rank, spec_hash="a" * 64).labels()
        order = self.order(f"{key}{rank}".ljust(32, "0"), rent, **launch, **{GANG: "sft-0-gang-0"})
        return replace(order, gang="sft-0-gang-0")

    def test_a_slice_of_several_machines_is_made_once_and_each_has_its_rank(
        self, cloud: FakeTpu, provider: Provider
    ) -> None:
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda rank: provider.create(self.worker(rank)), range(4)))
        assert (cloud.made, len({vm.id for vm in made})) == (1, 4)
        found = provider.list({DEPLOYMENT: "d1"})
        assert [vm.tags[LAUNCH] for vm in found] == [f"sft-0-{rank}-0" for rank in range(4)]
        assert [vm.tags[LABEL + "node"] for vm in found] == list("0123")
        assert [vm.internal_ip for vm in found] == [f"10.130.0.{rank + 2}" for rank in range(4)]
        assert len({vm.tags[KEY] for vm in found}) == 1

    def test_a_slice_stays_until_its_last_machine_is_done(self, cloud: FakeTpu, provider: Provider) -> None:
        made = [provider.create(self.worker(rank)) for rank in range(4)]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(provider.terminate, made[:3]))
        assert [vm.is_alive for vm in provider.list({DEPLOYMENT: "d1"})] == [False, False, False, True]
        provider.terminate(made[0])
        assert len(cloud.there) == 1
        provider.tag(made[3], {LAUNCH: ""})  # what is kept idle elsewhere goes
        assert cloud.there == {}
        assert provider.create(self.worker(1)).is_alive

    def test_a_slice_of_several_machines_for_one_node_is_refused(self, provider: Provider) -> None:
        alone = replace(self.worker(0), gang="")
        with pytest.raises(Rejected, match="4 machines") as caught:
            provider.create(alone)
        assert caught.value.fix == "set nodes: 4"

    @pytest.mark.docker
    def test_four_nodes_run_on_one_slice_and_it_goes_with_the_last(
        self, cloud: FakeTpu, rented: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert Can.NODES in Gcp.can
        rent = replace(self.rent, instance_type="v6e-16")

        def node(rank: int) -> Launch:
            env = (("MODELYARD_NODES_NUM", "4"), ("MODELYARD_NODE_RANK", str(rank)))
            command = ("sh", "-c", "echo $MODELYARD_NODE_RANK of $MODELYARD_NODES_IPS")
            return Launch(
                f"sft-0-{rank}-0", "sft", node=rank, spec_hash="a", image=images.busybox(), command=command,
                env=env, rent=rent,
            )  # fmt: skip

        dying = Gcp(**rented)
        with monkeypatch.context() as patched:
            patched.setattr(dying, "_booted", die)
            with pytest.raises(KeyboardInterrupt):
                self.start(dying, node(2))
        seen = Gcp(**rented).instances()
        assert [(one.name, one.phase) for one in seen] == [(f"sft-0-{r}-0", Phase.PENDING) for r in range(4)]
        backend = Gcp(**rented)
        with ThreadPoolExecutor(4) as pool:
            started = list(pool.map(lambda rank: self.start(backend, node(rank)), range(4)))
        assert (cloud.made, len({one.machine for one in started})) == (1, 4)
        for rank in range(4):
            assert self.ended(backend, f"sft-0-{rank}-0").exit_code == 0
            (line,) = [line.text for line in backend.logs(f"sft-0-{rank}-0")]
            assert line.split() == [str(rank), "of", *(f"10.130.0.{each + 2}" for each in range(4))]
            backend.release(f"sft-0-{rank}-0", keep_s=300)
            assert len(cloud.there) == (0 if rank == 3 else 1)
        assert [(one.name, one.rented) for one in backend.instances()] == [
            (f"sft-0-{rank}-0", False) for rank in range(4)
        ]

    def test_one_that_forgets_which_machines_are_done_is_caught(
        self, cloud: FakeTpu, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("backends.gcp.tpu.gone_of", lambda labels: set())
        with pytest.raises(AssertionError):
            self.test_a_slice_stays_until_its_last_machine_is_done(cloud, provider)

    def test_the_price_of_a_slice_is_for_all_of_its_machines(self) -> None:
        (offer,) = (o for o in slices.offers_of("v5p-8", "us-east1-d", backend="gcp") if not o.spot)
        assert _listed(offer).price_usd_hour == 16.8
        quarter = _listed(replace(offer, nodes=4))
        assert quarter.costs_usd_hour(count=4, nodes=4) == 16.8
