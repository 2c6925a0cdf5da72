"""Azure's Resource Manager over HTTP, from its reference (learn.microsoft.com/rest/api/compute)."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.azure import Azure, machines
from backends.azure.shapes import tags_of
from backends.vm.port import DEPLOYMENT, KEY, LAUNCH
from orchestrator.backend import Rent
from orchestrator.errors import AuthFailed, Busy, ConfigError, NoCapacity, Quota, Rejected
from tests.backends.vm.contract import ProviderContract, Refused
from tests.backends.vm.fake import Asked, FakeCloud, Made, Reply, route, serving
from tests.backends.vm.machines import Machines

SUBSCRIPTION, GROUP = "00000000-0000-0000-0000-000000000001", "ml"
TENANT, CLIENT, SECRET = "tenant-1", "client-1", "azure~secret~of~the~test"
TOKEN = "eyJ0.of-the-test"
S = f"/subscriptions/{SUBSCRIPTION}"
G = f"{S}/resourceGroups/{GROUP}"
VMS = G + "/providers/Microsoft.Compute/virtualMachines"
NET = G + "/providers/Microsoft.Network/"


def error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def sku(name: str, gpus: int = 0, *, restricted: str = "", spot: bool = True) -> dict[str, Any]:
    said = {"vCPUs": "8", "MemoryGB": "56", "CpuArchitectureType": "x64", "LowPriorityCapable": str(spot)}
    if gpus:
        said["GPUs"] = str(gpus)
    return {
        "resourceType": "virtualMachines", "name": name, "locations": ["eastus"],
        "capabilities": [{"name": key, "value": value} for key, value in said.items()],
        "restrictions": [{"type": restricted, "reasonCode": "QuotaId"}] if restricted else [],
    }  # fmt: skip


class FakeAzure(FakeCloud):
    """The Resource Manager as far as machines go, and the token endpoint."""

    not_found = (404, error("ResourceNotFound", "The Resource was not found."))

    def reset(self) -> None:
        super().reset()
        self.networks: dict[str, Any] = {}
        self.fails = ""
        self.limit = 24
        self.token_error: Reply | None = None

    def tags_of(self, made: Made) -> Mapping[str, str]:
        return tags_of(made.data["tags"])

    def allows(self, asked: Asked) -> Reply | None:
        if asked.path.endswith("/token") or asked.headers.get("Authorization") == f"Bearer {TOKEN}":
            return None
        return 401, error("InvalidAuthenticationToken", "The access token is invalid.")

    @route("POST", f"/{TENANT}/oauth2/v2.0/token")
    def token(self, asked: Asked) -> Reply:
        assert asked.body["client_secret"] == SECRET
        assert asked.body["scope"] == "https://management.azure.com/.default"
        return self.token_error or (200, {"token_type": "Bearer", "expires_in": 3599, "access_token": TOKEN})

    @route("GET", G)
    def group(self, _: Asked) -> Reply:
        return 200, {"name": GROUP, "location": "eastus"}

    @route("GET", S + "/providers/Microsoft.Compute/skus")
    def skus(self, asked: Asked) -> Reply:
        assert asked.query["$filter"] == "location eq 'eastus'"
        found = [
            sku("Standard_NC8as_T4_v3", 1), sku("Standard_ND96isr_H100_v5", 8, restricted="Location"),
            sku("Standard_NC24ads_A100_v4", 1, restricted="Zone", spot=False),
            sku("Standard_NV6ads_A10_v5", 1), sku("Standard_D8s_v6"),
            {"resourceType": "disks", "name": "Standard_LRS"},
        ]  # fmt: skip
        return 200, {"value": found}

    @route("GET", S + "/providers/Microsoft.Compute/locations/eastus/usages")
    def usages(self, _: Asked) -> Reply:
        names = {"cores": 100, "standardNCASv3Family": self.limit, "standardNDSv3Family": 0}
        return 200, {
            "value": [
                {"name": {"value": name}, "limit": limit, "currentValue": 0} for name, limit in names.items()
            ]
        }

    @route("GET", NET + "(?:networkSecurityGroups|virtualNetworks)/(.+)")
    def network(self, asked: Asked) -> Reply:
        return (200, self.networks[asked.path]) if asked.path in self.networks else self.not_found

    @route("PUT", NET + "(?:networkSecurityGroups|virtualNetworks)/(.+)")
    def make_network(self, asked: Asked) -> Reply:
        self.networks[asked.path] = asked.body
        return 201, asked.body

    @route("PUT", VMS + "/([a-z0-9-]+)")
    def put(self, asked: Asked) -> Reply:
        name, body = asked.groups[0], asked.body
        if name in self.there:
            return 409, error("PropertyChangeNotAllowed", "Changing property 'osProfile' is not allowed.")
        owned = ("microsoft", "azure", "windows")
        assert not any("/" in key or key.lower().startswith(owned) for key in body["tags"])
        subnet = body["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]["properties"][
            "ipConfigurations"
        ][0]["properties"]["subnet"]["id"]
        assert subnet.rpartition("/subnets/")[0] in self.networks or "/own/" in subnet
        user_data = base64.b64decode(body["properties"]["osProfile"]["customData"]).decode()
        data = dict(body, state="Succeeded", power="PowerState/running")
        if self.fails:
            data |= {"state": "Failed", "power": ""}
            self.there[name] = Made(name, user_data, data)
        else:
            self.start(Made(name, user_data, data))
        return 201, self._machine(self.there[name])

    @route("GET", VMS)
    def machines_of_group(self, asked: Asked) -> Reply:
        at = int(asked.query.get("$skiptoken", "0"))
        found = [self._machine(one) for one in list(self.there.values())[at : at + 1]]
        page: dict[str, Any] = {
            "value": [{k: v for k, v in one.items() if k != "instanceView"} for one in found]
        }
        if at + 1 < len(self.there):  # with a port, as Azure has it (Azure/azure-xplat-cli issue 2961)
            link = f"https://management.azure.com:443{asked.path}?api-version=2024-07-01&$skiptoken={at + 1}"
            page["nextLink"] = link
        return 200, page

    @route("GET", VMS + "/([a-z0-9-]+)")
    def get(self, asked: Asked) -> Reply:
        assert asked.query["$expand"] == "instanceView"
        made = self.there.get(asked.groups[0])
        return (200, self._machine(made)) if made else self.not_found

    @route("DELETE", VMS + "/([a-z0-9-]+)")
    def delete(self, asked: Asked) -> Reply:
        if asked.groups[0] not in self.there:
            return 204, None
        self.end(asked.groups[0])
        del self.there[asked.groups[0]]
        return 202, None

    @route("PATCH", VMS + "/([a-z0-9-]+)/providers/Microsoft.Resources/tags/default")
    def tag(self, asked: Asked) -> Reply:
        assert asked.body["operation"] == "Merge"
        self.there[asked.groups[0]].data["tags"].update(asked.body["properties"]["tags"])
        return 200, {}

    @route("GET", NET + "networkInterfaces/([a-z0-9-]+)")
    def card(self, asked: Asked) -> Reply:
        first = {
            "privateIPAddress": "10.117.0.4",
            "publicIPAddress": {"id": f"{NET}publicIPAddresses/{asked.groups[0]}"},
        }
        return 200, {"properties": {"ipConfigurations": [{"properties": first}]}}

    @route("GET", NET + "publicIPAddresses/([a-z0-9-]+)")
    def address(self, asked: Asked) -> Reply:
        return 200, {"properties": {"ipAddress": self.there[asked.groups[0]].address}}

    def _machine(self, made: Made) -> dict[str, Any]:
        data = made.data
        statuses = [{"code": f"ProvisioningState/{data['state'].lower()}", "level": "Info"}]
        if data["state"] == "Failed":
            statuses = [{"code": f"ProvisioningState/failed/{self.fails}", "message": "Allocation failed. …"}]
        if data["power"]:
            statuses.append({"code": data["power"]})
        properties = {
            **{k: v for k, v in data["properties"].items() if k not in ("osProfile", "networkProfile")},
            "provisioningState": data["state"], "timeCreated": "2026-11-29T11:00:00.1234567+00:00",
            "networkProfile": {"networkInterfaces": [{"id": f"{NET}networkInterfaces/{made.id}"}]},
            "instanceView": {"statuses": statuses},
        }  # fmt: skip
        return {
            "name": made.id,
            "location": data["location"],
            "tags": data["tags"],
            "properties": properties,
        }


@pytest.fixture(scope="session")
def account(yard: Machines) -> Iterator[FakeAzure]:
    with serving(FakeAzure(yard)) as made:
        assert isinstance(made, FakeAzure)
        yield made


class TestAzure(ProviderContract):
    kind = Azure
    rent = Rent("Standard_NC8as_T4_v3", "eastus")
    created = ("PUT", "/virtualMachines/")
    listed = ("GET", "/virtualMachines$")
    secret = SECRET
    refusals: ClassVar[tuple[Refused, ...]] = (
        Refused("no such size here", 409, error("SkuNotAvailable", "The requested size …"), NoCapacity),
        Refused("no capacity", 409, error("AllocationFailed", "Allocation failed."), NoCapacity),
        Refused("zone", 409, error("ZonalAllocationFailed", "Allocation failed."), NoCapacity),
        Refused("constraints", 409, error("OverconstrainedAllocationRequest", "…"), NoCapacity),
        Refused(
            "quota of a family", 409,
            error("OperationNotAllowed", "… results in exceeding approved standardNCASv3Family Cores quota."),
            Quota,
        ),
        Refused("quota", 409, error("QuotaExceeded", "… exceeding approved Total Regional Cores"), Quota),
        Refused("token", 401, error("ExpiredAuthenticationToken", "The token expired."), AuthFailed),
        Refused("token", 401, error("InvalidAuthenticationToken", "…"), AuthFailed, on="list"),
        Refused("rights", 403, error("AuthorizationFailed", "The client does not have"), AuthFailed),
        Refused("provider", 409, error("MissingSubscriptionRegistration", "…"), AuthFailed),
        Refused("disabled", 409, error("ReadOnlyDisabledSubscription", "… is disabled"), AuthFailed),
        Refused("at once", 409, error("Conflict", "conflicts with a concurrent request"), Busy),
        Refused("a conflict of another kind", 409, error("ResourceGroupBeingDeleted", "…"), Rejected),
        Refused("bad field", 400, error("InvalidParameter", "The value of parameter"), Rejected),
        Refused("no group", 404, error("ResourceGroupNotFound", "Resource group 'ml' could not"), Rejected),
        Refused("busy", 409, error("OperationNotAllowed", "Another operation is in progress"), Busy),
        Refused("rate", 429, error("TooManyRequests", "The request is being throttled."), Busy),
        Refused("internal", 500, error("InternalServerError", "…"), Busy),
        Refused("gateway", 503, "<html>", Busy),
    )  # fmt: skip

    @pytest.fixture
    def cloud(self, account: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAzure]:
        for name, value in (
            ("AZURE_TENANT_ID", TENANT), ("AZURE_CLIENT_ID", CLIENT), ("AZURE_CLIENT_SECRET", SECRET),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        account.reset()
        yield account
        account.reset()

    @pytest.fixture
    def options(self, cloud: FakeAzure) -> dict[str, Any]:
        return {
            "endpoint_url": cloud.url, "login_url": cloud.url, "subscription": SUBSCRIPTION,
            "resource_group": GROUP, "user": "root", "port": cloud.machines.host.port, "boot_timeout": "30s",
        }  # fmt: skip

    def signs_in(self, path: str) -> bool:
        return path.endswith("/token")

    def test_offers_are_whole_gpus_that_the_subscription_may_have(self, options: dict[str, Any]) -> None:
        found = self.provider_of({**options, "instance_types": ["Standard_D*"]}).offers()
        assert [(o.instance_type, o.spot, o.accelerator) for o in found] == [
            ("Standard_D8s_v6", False, None), ("Standard_D8s_v6", True, None),
            ("Standard_NC24ads_A100_v4", False, "A100-80GB-PCIE"),
            ("Standard_NC8as_T4_v3", False, "T4"), ("Standard_NC8as_T4_v3", True, "T4"),
        ]  # fmt: skip
        assert (found[-1].price_list, found[-1].price_usd_hour) == (
            "azure",
            0.031301,
        )  # 256 GiB, and an address
        inside = self.provider_of({**options, "public_address": False}).offers()
        assert {o.price_usd_hour for o in inside} == {0.026301}

    def test_a_disk_is_as_large_as_was_planned_and_paid_for_as_the_next_power_of_two(
        self, cloud: FakeAzure, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        found = provider.offers()[0].with_disk(300 * 10**9)
        assert found.disk_bytes == 512 * 2**30
        assert found.price_usd_hour == pytest.approx(512 * 0.075 / 730 + 0.005, abs=1e-6)
        assert provider.offers()[0].with_disk(3 * 2**40).disk_bytes == 4095 * 2**30
        assert provider.offers()[0].with_disk(5 * 2**40).disk_bytes == 200 * 2**30
        vm = provider.create(self.order(rent=replace(self.rent, disk_bytes=512 * 2**30)))
        assert cloud.there[vm.id].data["properties"]["storageProfile"]["osDisk"]["diskSizeGB"] == 512

    def test_a_machine_that_is_not_known_yet_is_waited_for_and_made_once(
        self, cloud: FakeAzure, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unknown = error("ResourceNotFound", "The Resource was not found.")
        cloud.refuse("GET", "/virtualMachines/", 404, unknown, times=2)
        assert self.provider_of(options).create(self.order()).id == "modelyard-" + "k" * 32
        assert cloud.made == 1
        monkeypatch.setattr(machines, "KNOWN_S", 0.0)
        cloud.refuse("GET", "/virtualMachines/", 404, unknown, times=3)
        with pytest.raises(Busy, match="not known yet"):
            self.provider_of(options).create(self.order("l" * 32))
        cloud.faults.clear()
        assert self.provider_of(options).create(self.order("l" * 32)).is_alive
        assert cloud.made == 2

    def test_machines_of_every_page_are_listed(self, options: dict[str, Any]) -> None:
        provider = self.provider_of(options)
        made = {provider.create(self.order(letter * 32)).id for letter in "abc"}
        assert {vm.id for vm in provider.list({DEPLOYMENT: "d1"})} == made

    def test_any_number_of_sizes_may_be_named(self, options: dict[str, Any]) -> None:
        many = [f"Standard_NC{n}ads_A100_v4" for n in range(99)]
        assert self.provider_of({**options, "instance_types": many}).offers()

    @pytest.mark.parametrize(
        ("code", "kind"), [("AllocationFailed", NoCapacity), ("QuotaExceeded", Quota), ("Other", Rejected)]
    )
    def test_a_machine_that_failed_later_is_told_and_does_not_stay(
        self, cloud: FakeAzure, options: dict[str, Any], code: str, kind: type[Exception]
    ) -> None:
        cloud.fails = code
        with pytest.raises(kind, match=r"Standard_NC8as_T4_v3 in eastus"):
            self.provider_of(options).create(self.order())
        assert cloud.there == {}

    def test_the_network_is_made_once_and_lets_in_ssh_only(
        self, cloud: FakeAzure, options: dict[str, Any]
    ) -> None:
        backend = {**options, "ssh_from": ["203.0.113.0/24"]}
        self.provider_of(backend).create(self.order())
        self.provider_of(backend).create(self.order("o" * 32))
        assert cloud.count("PUT", "/Microsoft.Network/") == 2
        guard = next(v for k, v in cloud.networks.items() if "networkSecurityGroups" in k)
        (rule,) = guard["properties"]["securityRules"]
        assert rule["properties"]["destinationPortRange"] == "22"
        assert rule["properties"]["sourceAddressPrefixes"] == ["203.0.113.0/24"]

    def test_a_subnet_of_ones_own_is_used(self, cloud: FakeAzure, options: dict[str, Any]) -> None:
        own = f"{NET}virtualNetworks/own/subnets/gpu"
        self.provider_of({**options, "subnets": {"eastus": own}}).create(self.order())
        assert cloud.networks == {}

    def test_all_that_belongs_to_a_machine_goes_with_it(
        self, cloud: FakeAzure, options: dict[str, Any]
    ) -> None:
        vm = self.provider_of(options).create(self.order())
        said = cloud.there[vm.id].data["properties"]
        card = said["networkProfile"]["networkInterfaceConfigurations"][0]["properties"]
        public = card["ipConfigurations"][0]["properties"]["publicIPAddressConfiguration"]["properties"]
        ways = [said["storageProfile"]["osDisk"], card, public]
        assert [way["deleteOption"] for way in ways] == ["Delete"] * 3
        assert "identity" not in cloud.there[vm.id].data

    def test_an_evicted_machine_is_told_and_one_that_powered_itself_off_is_deleted(
        self, cloud: FakeAzure, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        vm = provider.create(self.order(rent=replace(self.rent, spot=True)))
        assert cloud.there[vm.id].data["properties"]["evictionPolicy"] == "Deallocate"
        cloud.there[vm.id].data["power"] = "PowerState/deallocated"
        (seen,) = provider.list({KEY: "k" * 32})
        assert (seen.state, seen.preempted, seen.lingers) == ("ended", True, True)
        cloud.there[vm.id].data["power"] = "PowerState/stopped"
        provider.tag(vm, {LAUNCH: ""})
        (seen,) = provider.list({KEY: "k" * 32})
        assert (seen.state, seen.preempted, seen.lingers) == ("ended", False, True)
        assert Azure(**{**options, "deployment": "d1"}).instances() == []
        assert cloud.there == {}

    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            ((401, {"error": "invalid_client", "error_description": "AADSTS7000222: The keys are expired."}),
             "have expired .AADSTS7000222"),
            ((400, {"error": "invalid_request", "error_description": "AADSTS90002: Tenant not found."}),
             "refused .AADSTS90002"),
        ],
    )  # fmt: skip
    def test_credentials_that_are_refused_are_told_with_what_to_do(
        self, cloud: FakeAzure, options: dict[str, Any], reply: Reply, words: str
    ) -> None:
        cloud.token_error = reply
        with pytest.raises(AuthFailed, match=words) as caught:
            self.provider_of(options).list({DEPLOYMENT: "d1"})
        assert "AZURE_CLIENT_SECRET" in (caught.value.fix or "")

    def test_who_is_signed_in_at_the_command_line_is_taken(
        self, options: dict[str, Any], folders: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AZURE_CLIENT_SECRET")
        monkeypatch.setenv("PATH", str(folders))
        with pytest.raises(AuthFailed, match="no credentials for Azure") as caught:
            self.provider_of(options).list({DEPLOYMENT: "d1"})
        assert "az login" in (caught.value.fix or "")
        az = folders / "az"
        az.write_text("#!/bin/sh\necho 'ERROR: Please run az login to setup account.' >&2; exit 1\n")
        az.chmod(0o755)
        with pytest.raises(AuthFailed, match="Please run az login"):
            self.provider_of(options).list({DEPLOYMENT: "d1"})
        az.write_text(f'#!/bin/sh\necho \'{{"accessToken": "{TOKEN}", "expires_on": 4102444800}}\'\n')
        assert self.provider_of(options).list({DEPLOYMENT: "d1"}) == []

    def test_a_quota_of_0_is_seen_before_anything_is_rented(
        self, cloud: FakeAzure, options: dict[str, Any]
    ) -> None:
        cloud.limit = 0
        (bad,) = [one for one in Azure(**options).check() if not one.ok]
        assert bad.what == "eastus: has a quota of GPUs"
        assert "Quotas" in bad.fix

    def test_a_subscription_that_is_not_given_is_named(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="subscription is missing"):
            self.provider_of({**options, "subscription": ""}).list({DEPLOYMENT: "d1"})

    @pytest.mark.parametrize("wrong", [{"regions": []}, {"image": "ubuntu"}, {"ssh_from": ["home"]}])
    def test_a_wrong_option_is_named(self, options: dict[str, Any], wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Azure(**{**options, **wrong})
