"""Clouds with one fault each, which the contract of the VM port catches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from backends import lambdacloud
from backends.lambdacloud import LambdaCloud
from backends.vm import cooling
from backends.vm.port import EXPIRES, LAUNCH, Order, Vm
from backends.vm.rest import Meaning, Refusal
from orchestrator.backend import Check
from orchestrator.errors import BackendError, NoCapacity
from tests.backends.vm import test_lambdacloud as of_lambda
from tests.backends.vm.fake import FakeCloud, serving
from tests.backends.vm.machines import Machines
from tests.backends.vm.test_lambdacloud import API_KEY, FakeLambda


class Forgetful(LambdaCloud):
    """Launches without a look at what is there."""

    def create(self, order: Order) -> Vm:
        return self._launch(order)


class Stubborn(LambdaCloud):
    """Asks again behind our back where none is to be had."""

    def create(self, order: Order) -> Vm:
        try:
            return super().create(order)
        except NoCapacity:
            return super().create(order)


class Generous(LambdaCloud):
    """Lists what belongs to others."""

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        return super().list({})


class Careless(LambdaCloud):
    """Does not hand a machine over."""

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        pass


class Poor(LambdaCloud):
    """Loses what a machine was tagged with."""

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        found = super().list(tags)
        return [replace(vm, tags={k: v for k, v in vm.tags.items() if k != EXPIRES}) for vm in found]


class Loud(LambdaCloud):
    """Does not know that gone is no error."""

    def terminate(self, vm: Vm) -> None:
        self._api.send("POST", "/instance-operations/terminate", {"instance_ids": [vm.id]}, where=vm.id)


class Talkative(LambdaCloud):
    """Gives its key to a machine."""

    def create(self, order: Order) -> Vm:
        return super().create(replace(order, user_data=order.user_data.replace("bootcmd", f"{API_KEY}")))


class Raising(LambdaCloud):
    """Raises where it should say what is wrong."""

    def check(self) -> Sequence[Check]:
        self._types()
        return [Check("answers", True)]


class Nameless(LambdaCloud):
    """Says no more than that it was refused."""

    def create(self, order: Order) -> Vm:
        try:
            return super().create(order)
        except BackendError as error:
            raise type(error)("refused", backend=error.backend, fix=error.fix) from None


def _all_sold_out(status: int, body: Any) -> Refusal:
    return Refusal(Meaning.SOLD_OUT, "code", "message")


TWINS: dict[str, type[LambdaCloud]] = {
    "test_a_machine_that_is_ordered_twice_is_there_once": Forgetful,
    "test_a_machine_whose_answer_was_lost_is_found": Forgetful,
    "test_another_request_under_the_same_key_means_the_same_machine": Forgetful,
    "test_a_machine_is_found_by_its_deployment_and_no_other": Generous,
    "test_a_machine_carries_what_its_launch_says": Poor,
    "test_a_machine_is_left_and_taken_over_by_its_tags": Careless,
    "test_terminating_what_is_gone_is_silent": Loud,
    "test_what_the_cloud_refuses_is_told_with_place_and_fix": Nameless,
    "test_a_machine_is_told_no_secret": Talkative,
    "test_a_check_says_what_is_wrong_and_never_raises": Raising,
}
CAUGHT = (AssertionError, BackendError, KeyError, pytest.fail.Exception)


@pytest.fixture(scope="module")
def account(yard: Machines) -> Iterator[FakeLambda]:
    with serving(FakeLambda(yard)) as made:
        assert isinstance(made, FakeLambda)
        yield made


def put(clause: str, account: FakeLambda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put one clause of the contract to Lambda's cloud, as it is patched."""
    held = of_lambda.TestLambda()
    cloud: FakeCloud = account
    monkeypatch.setenv("LAMBDA_API_KEY", API_KEY)
    cloud.reset()
    port = cloud.machines.host.port
    options = {"endpoint_url": f"{cloud.url}/api/v1", "user": "root", "port": port, "boot_timeout": "30s"}
    known = {
        "cloud": cloud, "options": options, "provider": held.provider_of(options), "monkeypatch": monkeypatch,
    }  # fmt: skip
    test = getattr(held, clause)
    test(**{name: known[name] for name in inspect.signature(test).parameters})


@pytest.mark.parametrize("clause", sorted(TWINS))
def test_a_twin_is_caught(clause: str, account: FakeLambda, monkeypatch: pytest.MonkeyPatch) -> None:
    put(clause, account, monkeypatch)
    monkeypatch.setattr(lambdacloud, "LambdaCloud", TWINS[clause])
    with pytest.raises(CAUGHT):
        put(clause, account, monkeypatch)


def test_one_that_asks_again_behind_our_back_is_caught(
    account: FakeLambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lambdacloud, "LambdaCloud", Stubborn)
    with pytest.raises(AssertionError, match="asked again behind our back"):
        put("test_what_the_cloud_refuses_is_told_with_place_and_fix", account, monkeypatch)


def test_a_cloud_that_takes_every_refusal_for_a_shortage_is_caught(
    account: FakeLambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lambdacloud, "read", _all_sold_out)
    with pytest.raises(AssertionError, match="quota"):
        put("test_what_the_cloud_refuses_is_told_with_place_and_fix", account, monkeypatch)


def test_a_kind_that_is_not_left_alone_is_caught(
    account: FakeLambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cooling, "COOL_DOWN_S", -1)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        put("test_a_kind_that_was_sold_out_is_left_alone_for_a_while", account, monkeypatch)


def test_one_that_loses_the_name_of_its_launch_is_caught(
    account: FakeLambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lambdacloud, "_labels_of", lambda name: {LAUNCH: name})
    with pytest.raises(CAUGHT):
        put("test_a_machine_is_left_and_taken_over_by_its_tags", account, monkeypatch)
