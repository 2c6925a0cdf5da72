"""What every cloud behind the VM port is held to, and the life of a launch on one of its machines."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.vm import RentedMachines, boot
from backends.vm.port import DEPLOYMENT, EXPIRES, KEY, LAUNCH, NAMESPACE, KeySpent, Order, Provider, Vm
from orchestrator.backend import LABEL, Instance, Launch, Phase, Rent
from orchestrator.errors import AuthFailed, BackendError, Busy, NoCapacity, Quota, Rejected, Unreachable
from tests import images
from tests.backends.ssh.conftest import sweep
from tests.backends.ssh.farm import MAIN_SOCKET, until
from tests.backends.vm.fake import FakeCloud


@dataclass(frozen=True)
class Refused:
    """An error that a cloud documents, and what it has to become.

    ``on`` is the call that is refused: ``create``, ``list`` or another (method, path).
    """

    what: str
    status: int
    body: Any
    error: type[BackendError]
    on: Any = "create"

    def __str__(self) -> str:
        return self.what


def die(*_: object, **__: object) -> None:
    """End as a process does that is killed, for whoever catches errors."""
    raise KeyboardInterrupt


class ProviderContract:
    """The clauses; a subclass names its cloud.

    Attributes:
        kind: The backend.
        rent: A kind of machine that its fake has.
        created: Method and path of the call that makes a machine.
        listed: The same of the call that lists machines.
        secret: What no message, tag or user data may hold.
        refusals: What the cloud's reference says of errors.
        shows_ended: Whether the cloud still lists a machine that was terminated.
    """

    kind: ClassVar[type[RentedMachines]]
    rent: ClassVar[Rent]
    created: ClassVar[tuple[str, str]]
    listed: ClassVar[tuple[str, str]]
    secret: ClassVar[str]
    refusals: ClassVar[tuple[Refused, ...]]

    @pytest.fixture
    def cloud(self) -> FakeCloud:
        """Lend the account with nothing wrong and nothing there."""
        pytest.fail("a contract needs a fixture named cloud")

    @pytest.fixture
    def options(self, cloud: FakeCloud) -> dict[str, Any]:
        """Return the options of a backend that rents there."""
        pytest.fail("a contract needs a fixture named options")

    @pytest.fixture
    def provider(self, options: dict[str, Any]) -> Provider:
        return self.provider_of(options)

    def provider_of(self, options: Mapping[str, Any]) -> Provider:
        """Return a provider, as another process would have it."""
        found: Provider = self.kind(**options)._provider
        return found

    def order(self, key: str = "k" * 32, rent: Rent | None = None, **tags: str) -> Order:
        """Return an order as ``RentedMachines`` makes them."""
        public = "ssh-ed25519 AAAA test"
        book = boot.cloud_config(key=key, public_key=public, user="root", lasts_s=3600)
        labels = Launch("sft-0-0-0", "sft", spec_hash="a" * 64).labels()
        ours = {DEPLOYMENT: "d1", NAMESPACE: "modelyard", EXPIRES: "2026-11-29T12:00:00+00:00"}
        return Order(key, rent or self.rent, {**labels, **ours, KEY: key, **tags}, book, public)

    # Once ---------------------------------------------------------------------------------------

    def test_a_machine_that_is_ordered_twice_is_there_once(
        self, cloud: FakeCloud, options: dict[str, Any]
    ) -> None:
        first = self.provider_of(options).create(self.order())
        again = self.provider_of(options).create(self.order())
        assert again.id == first.id
        assert cloud.made == 1

    def test_another_request_under_the_same_key_means_the_same_machine(
        self, cloud: FakeCloud, provider: Provider
    ) -> None:
        first = provider.create(self.order())
        again = provider.create(self.order(**{EXPIRES: "2026-11-29T13:00:00+00:00"}))
        assert again.id == first.id
        assert cloud.made == 1

    def test_a_machine_whose_answer_was_lost_is_found(self, cloud: FakeCloud, provider: Provider) -> None:
        cloud.refuse(*self.created, 0, None, after=True)
        with pytest.raises(Unreachable):
            provider.create(self.order())
        assert cloud.made == 1
        found = provider.create(self.order())
        assert found.is_alive
        assert cloud.made == 1

    def test_a_key_whose_machine_has_ended_makes_no_dead_one_come_back(
        self, cloud: FakeCloud, provider: Provider
    ) -> None:
        first = provider.create(self.order())
        provider.terminate(first)
        try:
            second = provider.create(self.order())
        except KeySpent:
            return
        assert second.is_alive
        assert second.id in cloud.there

    # Tags ---------------------------------------------------------------------------------------

    def test_a_machine_is_found_by_its_deployment_and_no_other(
        self, cloud: FakeCloud, provider: Provider
    ) -> None:
        mine = provider.create(self.order())
        provider.create(self.order("o" * 32, **{DEPLOYMENT: "d2"}))
        (found,) = provider.list({DEPLOYMENT: "d1", NAMESPACE: "modelyard"})
        assert found.id == mine.id
        assert found.is_alive
        assert (found.instance_type, found.region) == (self.rent.instance_type, self.rent.region)
        assert provider.list({DEPLOYMENT: "d1", NAMESPACE: "another"}) == []

    def test_a_machine_carries_what_its_launch_says(self, cloud: FakeCloud, provider: Provider) -> None:
        vm = provider.create(self.order())
        for found in (vm, *provider.list({DEPLOYMENT: "d1"})):
            wanted = {"run": "sft", "replica": "0", "node": "0", "attempt": "0", "spec-hash": "a" * 64}
            assert {LABEL + key: value for key, value in wanted.items()}.items() <= found.tags.items()
            assert found.tags[LAUNCH] == "sft-0-0-0"
            assert found.tags[EXPIRES] == "2026-11-29T12:00:00+00:00"

    def test_a_machine_bears_tags_of_the_users_own_that_are_taken_for_none_of_ours(
        self, cloud: FakeCloud, provider: Provider
    ) -> None:
        awkward = ("1st", "azure", "google", "modelyard-run", "run", f"example.com/{'z' * 63}")
        vm = provider.create(self.order(**{"example.com/Cost-Centre": "A.b"}, **dict.fromkeys(awkward, "q")))
        assert "cost-centre" in str(cloud.there[vm.id].data).lower()
        (found,) = provider.list({DEPLOYMENT: "d1"})
        assert (found.tags[LABEL + "run"], found.tags[LAUNCH]) == ("sft", "sft-0-0-0")
        provider.tag(found, {LAUNCH: ""})
        assert "cost-centre" in str(cloud.there[vm.id].data).lower()

    def test_a_machine_is_left_and_taken_over_by_its_tags(self, cloud: FakeCloud, provider: Provider) -> None:
        vm = provider.create(self.order())
        provider.tag(vm, {LAUNCH: "", EXPIRES: "2026-11-29T12:30:00+00:00"})
        (idle,) = provider.list({DEPLOYMENT: "d1"})
        assert idle.tags[LAUNCH] == ""
        provider.tag(idle, Launch("eval-1-0-2", "eval", replica=1, attempt=2, spec_hash="b" * 64).labels())
        (taken,) = provider.list({DEPLOYMENT: "d1"})
        assert (taken.id, taken.tags[LAUNCH]) == (vm.id, "eval-1-0-2")
        assert (taken.tags[LABEL + "run"], taken.tags[LABEL + "replica"]) == ("eval", "1")
        assert taken.tags.get(LABEL + "spec-hash") != "a" * 64

    def test_a_machine_is_looked_at_alone(self, cloud: FakeCloud, provider: Provider) -> None:
        vm = provider.create(self.order())
        found = provider.get(vm)
        assert found is not None
        assert (found.id, found.tags[KEY], found.address) == (vm.id, "k" * 32, cloud.there[vm.id].address)

    # Ending -------------------------------------------------------------------------------------

    def test_terminating_what_is_gone_is_silent(self, cloud: FakeCloud, provider: Provider) -> None:
        vm = provider.create(self.order())
        provider.terminate(vm)
        provider.terminate(vm)
        assert not any(one.is_alive for one in provider.list({DEPLOYMENT: "d1"}))
        provider.terminate(replace(vm, id=self.unknown(vm)))
        assert provider.get(replace(vm, id=self.unknown(vm))) is None

    def unknown(self, vm: Vm) -> str:
        """Return an id of the cloud's form that nothing has."""
        return "0" * len(vm.id)

    # Refusals -----------------------------------------------------------------------------------

    def test_what_the_cloud_refuses_is_told_with_place_and_fix(
        self, cloud: FakeCloud, options: dict[str, Any]
    ) -> None:
        for refused in self.refusals:
            cloud.reset()
            provider = self.provider_of(options)
            call = {"create": self.created, "list": self.listed}.get(refused.on, refused.on)
            cloud.refuse(*call, refused.status, refused.body, times=99)
            with pytest.raises(BackendError) as caught:
                provider.list({DEPLOYMENT: "d1"}) if refused.on == "list" else provider.create(self.order())
            self.forget_sold_out()
            assert type(caught.value) is refused.error or (
                refused.error is Rejected and isinstance(caught.value, Rejected)
            ), f"{refused}: {caught.value!r}"
            assert caught.value.backend == self.kind().name
            if refused.error is not Busy:
                assert caught.value.fix, refused
            if refused.on == "create":
                assert self.rent.instance_type in caught.value.what, refused
                assert (self.rent.zone or self.rent.region) in caught.value.what, refused
                assert cloud.count(*self.created) == 1, f"{refused}: asked again behind our back"
            assert self.secret not in str(caught.value)
            assert cloud.made == 0

    def test_every_kind_of_refusal_is_documented(self) -> None:
        assert {one.error for one in self.refusals} >= {NoCapacity, Quota, AuthFailed, Rejected, Busy}

    def forget_sold_out(self) -> None:
        """Let kinds be asked for again."""
        for path in Path(os.environ["XDG_STATE_HOME"]).rglob("sold-out.json"):
            path.unlink()

    def test_a_look_is_repeated_where_the_answer_was_later(
        self, cloud: FakeCloud, provider: Provider
    ) -> None:
        later = next(one for one in self.refusals if one.error is Busy)
        cloud.refuse(*self.listed, later.status, later.body, times=1, headers={"Retry-After": "0"})
        assert provider.list({DEPLOYMENT: "d1"}) == []

    def test_a_kind_that_was_sold_out_is_left_alone_for_a_while(
        self, cloud: FakeCloud, options: dict[str, Any]
    ) -> None:
        sold_out = next(one for one in self.refusals if one.error is NoCapacity)
        cloud.refuse(*self.created, sold_out.status, sold_out.body)
        with pytest.raises(NoCapacity):
            self.provider_of(options).create(self.order())
        with pytest.raises(NoCapacity, match="was sold out"):
            self.provider_of(options).create(self.order())
        assert cloud.count(*self.created) == 1
        offers = self.provider_of(options).offers()
        assert any(o.instance_type == self.rent.instance_type and o.available == 0 for o in offers)

    def test_a_cloud_that_does_not_answer_is_unreachable(self, options: dict[str, Any]) -> None:
        silent = self.provider_of({**options, **self.silent()})
        with pytest.raises(Unreachable) as caught:
            silent.list({DEPLOYMENT: "d1"})
        assert caught.value.fix
        assert self.secret not in str(caught.value)

    def silent(self) -> dict[str, Any]:
        """Return the options that lead to where nobody answers."""
        return {"endpoint_url": "http://127.0.0.1:1"}

    def test_a_check_says_what_is_wrong_and_never_raises(
        self, cloud: FakeCloud, options: dict[str, Any]
    ) -> None:
        assert all(one.ok for one in self.kind(**options).check())
        denied = next(one for one in self.refusals if one.error is AuthFailed)
        for method in ("GET", "POST"):
            cloud.refuse(method, "", denied.status, denied.body, times=99)
        bad = [one for one in self.kind(**options).check() if not one.ok]
        assert bad
        assert all(one.fix for one in bad)

    # Offers -------------------------------------------------------------------------------------

    def test_offers_are_the_same_twice_and_name_the_backend(self, provider: Provider) -> None:
        first, second = provider.offers(), provider.offers()
        assert list(first) == list(second)
        assert {offer.backend for offer in first} == {self.kind().name}
        assert any(
            (offer.instance_type, offer.region, offer.zone) ==
            (self.rent.instance_type, self.rent.region, self.rent.zone) for offer in first
        )  # fmt: skip
        assert all(offer.price_usd_hour or offer.price_list for offer in first)

    # Secrets ------------------------------------------------------------------------------------

    def test_a_machine_is_told_no_secret(
        self, cloud: FakeCloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend = self.kind(**options)
        monkeypatch.setattr(backend, "_booted", die)
        launch = Launch(
            "sft-0-0-0", "sft", image="x", secrets=(("HF_TOKEN", "${{ secrets.hf }}"),), rent=self.rent
        )
        with pytest.raises(KeyboardInterrupt):
            backend.start(launch, secrets={"HF_TOKEN": "hf_of_the_test"}, progress=print)
        assert cloud.made == 1
        sent = [asked for asked in cloud.heard if asked.method != "GET" and not self.signs_in(asked.path)]
        text = json.dumps([(asked.path, dict(asked.query), asked.body) for asked in sent], default=str)
        text += "".join(made.user_data for made in cloud.there.values())  # some send it in base64
        assert "ssh_authorized_keys" in text
        for word in ("hf_of_the_test", self.secret, "PRIVATE KEY"):
            assert word not in text
        kept = [path for path in Path(os.environ["XDG_STATE_HOME"]).rglob("*") if path.is_file()]
        assert all(self.secret not in path.read_text(errors="replace") for path in kept)
        assert self.secret not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout

    def signs_in(self, path: str) -> bool:
        """Say whether a path is where credentials are handed in."""
        return False

    # A launch's life: create, boot, container, logs, terminate ------------------------------------

    @pytest.fixture
    def rented(self, cloud: FakeCloud, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Return options in a namespace of the test's, whose containers are removed afterwards."""
        images.require_engine()
        namespace = f"modelyard-test-{os.urandom(4).hex()}"
        yield {**options, "namespace": namespace}
        sweep(MAIN_SOCKET, namespace)

    def launch(self, script: str = "echo done", name: str = "sft-0-0-0") -> Launch:
        command = ("sh", "-c", script)
        fields: dict[str, Any] = {"image": images.busybox(), "command": command, "rent": self.rent}
        return Launch(name, "sft", spec_hash="a", attempt=int(name[-1]), **fields)

    def start(self, backend: RentedMachines, launch: Launch) -> Instance:
        return backend.start(launch, secrets={}, progress=lambda _: None)

    def ended(self, backend: RentedMachines, name: str = "sft-0-0-0") -> Instance:
        def find() -> list[Instance]:
            return [one for one in backend.instances() if one.name == name and one.phase is Phase.EXITED]

        until(find, f"{name} ends")
        return find()[0]

    @pytest.mark.docker
    def test_from_create_to_terminate(self, cloud: FakeCloud, rented: dict[str, Any]) -> None:
        backend = self.kind(**rented)
        machine = self.start(backend, self.launch("echo once; exit 3")).machine
        assert (cloud.made, list(cloud.there)) == (1, [machine])
        found = self.ended(backend)
        assert (found.rented, found.exit_code, found.machine) == (True, 3, machine)
        backend.release("sft-0-0-0", keep_s=300)
        assert [(one.id, one.launch) for one in backend.machines()] == [(machine, "")]

        another = self.kind(**rented)
        assert self.start(another, self.launch("echo twice", "sft-0-0-1")).machine == machine
        assert cloud.made == 1
        assert self.ended(another, "sft-0-0-1").exit_code == 0
        another.release("sft-0-0-1", keep_s=0)

        assert [one for one in another.machines() if one.state != "ending"] == []
        last = self.kind(**rented)
        assert [(one.name, one.exit_code, one.rented) for one in last.instances()] == [
            ("sft-0-0-0", 3, False), ("sft-0-0-1", 0, False),
        ]  # fmt: skip
        assert [line.text for line in last.logs("sft-0-0-0")] == ["once"]
        assert [line.text for line in last.logs("sft-0-0-1")] == ["twice"]

    @pytest.mark.docker
    def test_a_start_that_is_killed_again_and_again_ends_with_one_machine_and_one_container(
        self, cloud: FakeCloud, rented: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = "sft-0-0-0"
        for point in ("between intent and id", "between id and boot", "between boot and start"):
            dying = self.kind(**rented)
            with monkeypatch.context() as patched:
                if point == "between intent and id":
                    made = dying._provider.create
                    patched.setattr(dying._provider, "create", lambda order, made=made: (made(order), die()))
                elif point == "between id and boot":
                    patched.setattr(dying, "_booted", die)
                else:
                    patched.setattr("backends.ssh.host.HostDocker.start", die)
                with pytest.raises(KeyboardInterrupt):
                    self.start(dying, self.launch("sleep 60"))
            assert cloud.made == 1, point
            (left,) = cloud.there
            (seen,) = self.kind(**rented).instances()
            assert (seen.name, seen.phase, seen.machine, seen.rented) == (name, Phase.PENDING, left, True)

        backend = self.kind(**rented)
        found = self.start(backend, self.launch("sleep 60"))

        assert (found.machine, cloud.made) == (left, 1)
        assert [one.phase for one in backend.instances()] == [Phase.RUNNING]
        backend.remove(name)
        assert backend.instances() == []
        assert cloud.there == {}
