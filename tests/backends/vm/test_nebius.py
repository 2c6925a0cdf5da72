"""Nebius over gRPC, from its public definitions (github.com/nebius/api)."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("grpc", reason="needs grpcio: pip install 'modelyard[nebius]'")
pytest.importorskip("nebius", reason="needs Nebius' definitions: pip install -e '.[dev]'")

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from backends.nebius import Nebius, messages
from backends.nebius.machines import NebiusMachines
from backends.nebius.messages import SCALARS, TABLE, fields_of, message, package_of
from backends.vm.port import DEPLOYMENT, EXPIRES, KEY, LAUNCH, KeySpent
from orchestrator.backend import Rent
from orchestrator.errors import AuthFailed, BackendError, Busy, ConfigError, NoCapacity, Quota, Rejected
from tests.backends.vm.contract import ProviderContract, Refused
from tests.backends.vm.machines import Machines
from tests.backends.vm.nebius_api import (
    CREATE,
    DISK_USD_GIB_HOUR,
    LIST,
    STOPPED,
    TOKEN,
    Error,
    FakeNebius,
    credentials,
    definitions,
    serving,
)

H100 = "gpu-h100-sxm_1gpu-16vcpu-200gb"


def violation(**fields: str) -> dict[str, Any]:
    """Return the parts of a detail that lists what is wrong."""
    return {"violations": [fields]}


NO_ROOM = Error(
    "RESOURCE_EXHAUSTED", "Not enough resources", code="NotEnoughResources",
    not_enough_resources=violation(resource_type="gpu", message="not enough GPUs of gpu-h100-sxm"),
)  # fmt: skip
QUOTA = Error(
    "RESOURCE_EXHAUSTED", "Quota limit exceeded", code="QuotaFailure",
    quota_failure=violation(quota="compute.instance.gpu.h100", limit="0", requested="1", message="over"),
)  # fmt: skip
EXPIRED = Error("UNAUTHENTICATED", "The token is invalid or has expired")


def refused(what: str, error: Error, kind: Any, **more: Any) -> Refused:
    """Return an error of the API as the contract takes it."""
    return Refused(what, 400, error, kind, **more)


@pytest.fixture(scope="session")
def account(yard: Machines) -> Iterator[FakeNebius]:
    with serving(FakeNebius(yard)) as made:
        yield made


class TestNebius(ProviderContract):
    kind = Nebius
    rent = Rent(H100, "eu-north1")
    created = CREATE
    listed = LIST
    secret = TOKEN
    refusals: ClassVar[tuple[Refused, ...]] = (
        refused("not enough resources", NO_ROOM, NoCapacity),
        refused("no room, in words", Error("RESOURCE_EXHAUSTED", "Not enough resources"), NoCapacity),
        refused("quota", QUOTA, Quota),
        refused("quota, in words", Error("FAILED_PRECONDITION", "Quota limit exceeded"), Quota),
        refused("token", EXPIRED, AuthFailed),
        refused("token", EXPIRED, AuthFailed, on="list"),
        refused(
            "rights",
            Error(
                "PERMISSION_DENIED", "Permission denied", code="PermissionDenied",
                permission_denied={"resource_id": "project-e00a"},
            ),
            AuthFailed,
        ),
        refused(
            "bad request",
            Error("INVALID_ARGUMENT", "x", bad_request=violation(field="spec.resources", message="no")),
            Rejected,
        ),
        refused("range", Error("OUT_OF_RANGE", "x", out_of_range={"requested": "9", "limit": "8"}), Rejected),
        refused(
            "state",
            Error("FAILED_PRECONDITION", "x", bad_resource_state={"resource_id": "s", "message": "gone"}),
            Rejected,
        ),
        refused("not found", Error("NOT_FOUND", "x", resource_not_found={"resource_id": "n"}), Rejected),
        refused("unimplemented", Error("UNIMPLEMENTED", "x"), Rejected),
        refused("rate", Error("RESOURCE_EXHAUSTED", "x", too_many_requests={"violation": "rps"}), Busy),
        refused("conflict", Error("ABORTED", "x", operation_conflict={"resource_id": "n"}), Busy),
        refused("aborted", Error("ABORTED", "x", operation_aborted={"operation_id": "n"}), Busy),
        refused("changed", Error("ABORTED", "x", resource_conflict={"resource_id": "n"}), Busy),
        refused("internal", Error("INTERNAL", "x", internal_error={"request_id": "r"}), Busy),
        refused("unavailable", Error("UNAVAILABLE", "x", internal_error={"request_id": "r"}), Busy),
    )  # fmt: skip

    @pytest.fixture
    def cloud(self, account: FakeNebius, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNebius]:
        monkeypatch.setenv("NEBIUS_IAM_TOKEN", TOKEN)
        account.reset()
        yield account
        account.reset()

    @pytest.fixture
    def options(self, cloud: FakeNebius) -> dict[str, Any]:
        return {
            "endpoint_url": cloud.url, "projects": ["project-e00a", "project-u00b"], "user": "root",
            "port": cloud.machines.host.port, "boot_timeout": "30s",
        }  # fmt: skip

    def silent(self) -> dict[str, Any]:
        return {"endpoint_url": "http://127.0.0.1:1"}

    # -- what there is, and what it costs --------------------------------------------------------

    def test_a_disk_is_as_large_as_was_planned_at_the_price_that_the_calculator_says(
        self, cloud: FakeNebius, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        small = next(o for o in provider.offers() if o.accelerator and not o.spot)
        found = small.with_disk(300 * 2**30)
        assert found.price_usd_hour - small.price_usd_hour == pytest.approx(100 * DISK_USD_GIB_HOUR, abs=1e-5)
        vm = provider.create(self.order(rent=replace(self.rent, disk_bytes=300 * 2**30)))
        disk = cloud.there[vm.id].data["instance"].spec.boot_disk.managed_disk
        assert disk.spec.size_gibibytes == 300

    def test_offers_are_priced_by_the_calculator_and_counted_by_the_advisor(
        self, options: dict[str, Any]
    ) -> None:
        found = {(o.instance_type, o.region, o.spot): o for o in self.provider_of(options).offers()}
        h100 = found[H100, "eu-north1", False]
        assert (h100.accelerator, h100.count, h100.vram_bytes, h100.cpu) == ("H100", 1, 80 * 2**30, 16)
        assert (h100.price_usd_hour, h100.price_list, h100.available) == (4.5201, "", 4)
        spot = found[H100, "eu-north1", True]
        assert (spot.price_usd_hour, spot.available) == (2.2701, None)  # a limit is no lack of machines
        assert found[H100, "us-central1", False].available is None  # old news
        cpu = found["cpu-d3_4vcpu-16gb", "us-central1", False]
        assert (cpu.accelerator, cpu.price_usd_hour) == (None, 0.1193)
        assert ("cpu-d3_4vcpu-16gb", "us-central1", True) not in found
        assert not [name for name, *_ in found if name.startswith("gpu-next")]

    def test_without_rights_to_ask_prices_are_the_catalogs_and_stock_is_unknown(
        self, cloud: FakeNebius, options: dict[str, Any]
    ) -> None:
        cloud.advises = cloud.counts = False
        found = self.provider_of(options).offers()
        assert {(o.price_usd_hour, o.price_list, o.available) for o in found} == {(0.0, "nebius", None)}
        cloud.advises = cloud.counts = True  # what was not told is asked for again, and not tomorrow
        assert {o.price_list for o in self.provider_of(options).offers()} == {""}

    def test_prices_are_asked_for_once_a_day(self, cloud: FakeNebius, options: dict[str, Any]) -> None:
        for _ in range(3):
            self.provider_of(options).offers()
        assert cloud.count("POST", "CalculatorService/EstimateBatch") == len(options["projects"])

    # -- machines --------------------------------------------------------------------------------

    def test_one_that_finds_no_room_after_it_was_taken_on_is_deleted(
        self, cloud: FakeNebius, options: dict[str, Any]
    ) -> None:
        for later, kind in ((NO_ROOM, NoCapacity), (QUOTA, Quota)):
            cloud.reset()
            cloud.later = later
            with pytest.raises(kind) as caught:
                self.provider_of(options).create(self.order())
            assert f"{H100} in eu-north1" in caught.value.what
            assert cloud.there == {}
            self.forget_sold_out()

    def test_a_spot_machine_that_was_taken_away_is_told_and_stays_until_it_was_seen(
        self, cloud: FakeNebius, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        vm = provider.create(self.order(rent=replace(self.rent, spot=True), **{EXPIRES: ""}))
        assert cloud.there[vm.id].data["instance"].spec.preemptible.on_preemption == 1
        cloud.there[vm.id].data["instance"].status.state = STOPPED
        found = provider.get(vm)
        assert found is not None
        assert (found.spot, found.state, found.preempted, found.lingers) == (True, "ended", True, True)

    def test_one_that_powered_itself_off_is_deleted_by_whoever_wants_its_name(
        self, cloud: FakeNebius, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        vm = provider.create(self.order())
        cloud.there[vm.id].data["instance"].status.state = STOPPED
        with pytest.raises(KeySpent):
            provider.create(self.order())
        assert cloud.there == {}

    def test_one_that_is_being_deleted_keeps_its_name_a_while(
        self, cloud: FakeNebius, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        vm = provider.create(self.order())
        cloud.there[vm.id].data["instance"].status.state = 7
        with pytest.raises(Busy, match="an earlier machine"):
            provider.create(self.order())

    def test_a_machine_that_is_tagged_keeps_what_we_do_not_know_of_it(
        self, cloud: FakeNebius, options: dict[str, Any]
    ) -> None:
        provider = self.provider_of(options)
        vm = provider.create(self.order())
        spec = cloud.there[vm.id].data["instance"].spec
        spec.hostname, spec.local_disks.passthrough_group.requested = "h", True  # not in our table
        provider.tag(vm, {LAUNCH: ""})
        assert (spec.hostname, spec.local_disks.passthrough_group.requested) == ("h", True)

    def test_image_lets_ports_through(self, cloud: FakeNebius, options: dict[str, Any]) -> None:
        self.provider_of(options).create(self.order())
        vm = self.kind(**options)
        assert any("AllowTcpForwarding yes" in " ".join(each) for each in vm._prepare)

    def test_a_region_without_a_project_is_refused_with_the_fix(self, options: dict[str, Any]) -> None:
        with pytest.raises(Rejected) as caught:
            self.provider_of(options).create(self.order(rent=Rent(H100, "eu-west1")))
        assert "eu-west1" in caught.value.what
        assert "projects" in (caught.value.fix or "")

    # -- credentials -----------------------------------------------------------------------------

    @pytest.fixture
    def key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65_537, key_size=2048)

    def test_a_service_accounts_key_is_exchanged_for_a_token_once(
        self, cloud: FakeNebius, options: dict[str, Any], key: Any, folders: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.delenv("NEBIUS_IAM_TOKEN")
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        (folders / "sa.json").write_text(credentials(pem))
        provider = self.provider_of({**options, "credentials_file": str(folders / "sa.json")})
        provider.list({})
        provider.list({})
        (claim,) = cloud.exchanged
        head, body, signature = claim.split(".")
        key.public_key().verify(
            base64.urlsafe_b64decode(signature + "=="), f"{head}.{body}".encode(), padding.PKCS1v15(),
            hashes.SHA256(),
        )  # fmt: skip
        said = json.loads(base64.urlsafe_b64decode(body + "=="))
        assert (said["iss"], said["sub"]) == ("serviceaccount-e00s", "serviceaccount-e00s")
        assert said["exp"] - said["iat"] == 300
        assert json.loads(base64.urlsafe_b64decode(head + "=="))["kid"] == "publickey-e00k"

    @pytest.mark.parametrize("text", [None, "{}", '{"subject-credentials": {}}', "no json", credentials("x")])
    def test_credentials_that_are_none_are_named_with_how_to_make_them(
        self, options: dict[str, Any], folders: Path, text: str | None
    ) -> None:
        file = folders / "sa.json"
        if text is not None:
            file.write_text(text)
        with pytest.raises(AuthFailed) as caught:
            self.provider_of({**options, "credentials_file": str(file)}).list({DEPLOYMENT: "d"})
        assert str(file) in caught.value.what
        assert "auth-public-key generate" in (caught.value.fix or "")

    def test_a_key_that_nebius_does_not_take_is_told(
        self, cloud: FakeNebius, options: dict[str, Any], key: Any, folders: Path
    ) -> None:
        cloud.refuse("POST", "TokenExchangeService/Exchange", 400, EXPIRED, times=9)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        (folders / "sa.json").write_text(credentials(pem))
        with pytest.raises(AuthFailed, match="does not take the credentials") as caught:
            self.provider_of({**options, "credentials_file": str(folders / "sa.json")}).list({KEY: "k"})
        assert "PRIVATE KEY" not in str(caught.value)

    def test_without_any_credentials_both_ways_are_named(
        self, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("NEBIUS_IAM_TOKEN")
        with pytest.raises(AuthFailed) as caught:
            self.provider_of(options).list({DEPLOYMENT: "d"})
        assert "NEBIUS_IAM_TOKEN" in caught.value.what
        assert "credentials_file" in (caught.value.fix or "")


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"projects": "project-e00a"}, "projects"),
        ({"projects": ["p"], "disk": "many"}, "disk"),
        ({"projects": ["p"], "abandoned_after": "soon"}, "abandoned_after"),
        ({"projects": ["p"], "endpoint_url": "http://example.org:80"}, "endpoint_url"),
        ({"projects": ["p"], "endpoint_url": "https://127.0.0.1"}, "endpoint_url"),
    ],
)
def test_an_option_that_is_wrong_is_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Nebius(**options)


def test_an_account_without_projects_is_told_what_to_give() -> None:
    with pytest.raises(ConfigError) as caught:
        Nebius().offers()
    assert "nebius iam project list" in (caught.value.fix or "")
    (check,) = [one for one in Nebius().check() if not one.ok]
    assert "nebius iam project list" in check.fix


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.nebius.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        Nebius(projects=["p"])
    assert caught.value.fix == "pip install 'modelyard[nebius]'"


# -- planted faults ------------------------------------------------------------------------------


class Leaves(NebiusMachines):
    """Leaves what could not be made behind, where its disk is paid for."""

    def _delete(self, machine: str) -> None:
        pass


class Guesses(NebiusMachines):
    """Makes a machine under a name of the moment."""

    def _by_name(self, project: Any, name: str) -> Any:
        return None


class Narrow(NebiusMachines):
    """Writes back no more of a machine than it knows."""

    def _read(self, vm: Any) -> Any:
        now = super()._read(vm)
        now.DiscardUnknownFields()
        return now


class Blind(NebiusMachines):
    """Takes what the advisor counts in one place of a region for all of it."""

    def _free(self, project: Any) -> Any:
        return {kind: min(count, 1) for kind, count in super()._free(project).items()}


TWINS = {
    "test_one_that_finds_no_room_after_it_was_taken_on_is_deleted": Leaves,
    "test_a_machine_that_is_ordered_twice_is_there_once": Guesses,
    "test_a_machine_that_is_tagged_keeps_what_we_do_not_know_of_it": Narrow,
    "test_offers_are_priced_by_the_calculator_and_counted_by_the_advisor": Blind,
}


def put(clause: str, account: FakeNebius) -> None:
    """Put one test to Nebius' machines, as they are patched."""
    account.reset()
    held = TestNebius()
    options = {"endpoint_url": account.url, "projects": ["project-e00a", "project-u00b"]}
    known = {"cloud": account, "options": options, "provider": held.provider_of(options)}
    test = getattr(held, clause)
    test(**{name: known[name] for name in inspect.signature(test).parameters})


@pytest.mark.parametrize("clause", sorted(TWINS))
def test_a_twin_is_caught(clause: str, account: FakeNebius, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEBIUS_IAM_TOKEN", TOKEN)
    put(clause, account)
    monkeypatch.setattr("backends.nebius.NebiusMachines", TWINS[clause])
    with pytest.raises((AssertionError, BackendError, KeySpent)):
        put(clause, account)
    account.reset()


# -- messages ------------------------------------------------------------------------------------


def differences(full: str) -> list[str]:
    """Return the fields of a message of ours that are not as Nebius defines them."""
    described = definitions().FindMessageTypeByName(full)
    found = []
    for name, number, kind in fields_of(full):
        theirs = described.fields_by_name.get(name)
        if theirs is None or theirs.number != number:
            found.append(f"{full}.{name}")
            continue
        is_map = theirs.message_type is not None and theirs.message_type.GetOptions().map_entry
        each = kind.strip("[]")
        is_many = kind.startswith("[")
        wanted = "map" if is_map else theirs.message_type.full_name if theirs.message_type else ""
        same = each == wanted if wanted else SCALARS.get(each) == (5 if theirs.type == 14 else theirs.type)
        if not same or (is_many or kind == "map") != theirs.is_repeated:
            found.append(f"{full}.{name}: {kind}")
    return found


@pytest.mark.parametrize("full", sorted(TABLE))
def test_a_message_is_as_nebius_defines_it(full: str) -> None:
    assert differences(full) == []
    assert message(full).DESCRIPTOR.full_name == full
    assert full.startswith(package_of(full) + ".")


@pytest.mark.parametrize(
    "wrong", ["id=2", "id=1:int64", "id=1:[]", "nid=1", "id=1:google.protobuf.Any", "id=1:map"]
)
def test_a_field_that_is_written_down_wrong_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full = "nebius.compute.v1.GetInstanceRequest"
    assert differences(full) == []
    monkeypatch.setattr(messages, "TABLE", {full: wrong})
    assert len(differences(full)) == 1
