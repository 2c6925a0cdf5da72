"""EC2 over HTTP: offers, machines made once, what it refuses, and what it is told."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.aws import Aws
from backends.aws.ec2 import Ec2
from backends.aws.refusals import explained
from backends.vm import boot
from backends.vm.cooling import Cooled
from backends.vm.port import DEPLOYMENT, EXPIRES, KEY, LAUNCH, KeySpent, Order, Provider, Vm
from orchestrator.backend import Launch, Rent
from orchestrator.errors import (
    AuthFailed,
    BackendError,
    Busy,
    ConfigError,
    NoCapacity,
    Quota,
    Rejected,
    Unreachable,
)
from tests.backends.aws.cloud import Cloud

ZONE_A = Rent("t3.micro", "us-east-1", "us-east-1a")
ZONE_B = replace(ZONE_A, zone="us-east-1b")


def provider(options: Mapping[str, Any]) -> Provider:
    return Aws(**options)._provider


def inner(options: Mapping[str, Any]) -> Ec2:
    cooled = Aws(**options)._provider
    assert isinstance(cooled, Cooled)
    assert isinstance(cooled.inner, Ec2)
    return cooled.inner


def order(key: str = "k1", rent: Rent = ZONE_A, **tags: str) -> Order:
    book = boot.cloud_config(key=key, public_key="ssh-ed25519 AAAA test", user="root", lasts_s=3600)
    return Order(key, rent, {DEPLOYMENT: "d1", LAUNCH: "sft-0-0-0", KEY: key, **tags}, book)


# Offers -------------------------------------------------------------------------------------------


def test_every_zone_is_an_offer_with_its_disk_and_address_in_the_price(options: dict[str, Any]) -> None:
    found = [
        offer for offer in Aws(**options).offers() if offer.instance_type == "g6.xlarge" and not offer.spot
    ]
    assert len(found) >= 3
    assert len({offer.zone for offer in found}) == len(found)
    one = found[0]
    assert (one.accelerator, one.vendor, one.count) == ("L4", "nvidia", 1)
    assert one.vram_bytes == 22888 * 2**20
    assert (one.price_list, one.price_usd_hour) == ("aws", 0.026918)
    inside = {o.price_usd_hour for o in Aws(**options, public_address=False).offers() if not o.spot}
    assert inside == {0.021918}
    dear = {o.price_usd_hour for o in Aws(**options, address_usd_hour=0.1).offers() if not o.spot}
    assert dear == {0.121918}


def test_types_are_asked_for_once_a_day(aws: Cloud, options: dict[str, Any]) -> None:
    first = Aws(**options).offers()
    aws.calls.clear()
    assert Aws(**options).offers() == first
    assert aws.calls == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("InsufficientVolumeCapacity", NoCapacity), ("InsufficientAddressCapacity", NoCapacity),
        ("NetworkInterfaceLimitExceeded", Quota),
    ],
)  # fmt: skip
def test_what_a_zone_has_no_disks_or_addresses_for_is_tried_elsewhere(
    code: str, kind: type[BackendError]
) -> None:
    assert type(explained(code, "…", backend="aws", where="g6.xlarge in us-east-1a")) is kind


def test_any_number_of_types_may_be_named(options: dict[str, Any]) -> None:
    many = [f"m7i.{n}xlarge" for n in range(99)]
    assert Aws(**{**options, "instance_types": many}).offers()


def test_a_configured_reservation_is_an_offer_of_its_own(aws: Cloud, options: dict[str, Any]) -> None:
    common = {"availabilityZone": "us-east-1b", "state": "active", "availableInstanceCount": "2"}
    for id, kind, of in (
        ("cr-1", "g6.xlarge", "default"), ("cr-2", "t3.micro", "capacity-block"), ("cr-3", "g6.xlarge", ""),
    ):  # fmt: skip
        aws.reservations.append(
            {"capacityReservationId": id, "instanceType": kind, "reservationType": of, **common}
        )
    options = {**options, "reservations": ["cr-1", "cr-2"]}
    found = {o.reservation: o for o in Aws(**options).offers() if o.reservation}
    assert found.keys() == {"cr-1", "cr-2"}
    assert (found["cr-1"].zone, found["cr-1"].available, found["cr-1"].price_list) == ("us-east-1b", 2, "aws")
    assert (found["cr-2"].price_list, found["cr-2"].price_usd_hour) == ("", 0.026918)

    for key, id in (("k1", "cr-1"), ("k2", "cr-2")):
        provider(options).create(order(key, replace(ZONE_B, reservation=id)))
    target = "CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId"
    assert [(one[target], one.get("InstanceMarketOptions.MarketType")) for one in aws.orders] == [
        ("cr-1", None), ("cr-2", "capacity-block"),
    ]  # fmt: skip


def test_nobody_is_asked_about_reservations_where_none_is_configured(
    aws: Cloud, options: dict[str, Any]
) -> None:
    aws.calls.clear()
    Aws(**options).offers()
    assert "DescribeCapacityReservations" not in aws.calls


# Machines -----------------------------------------------------------------------------------------


def test_a_machine_that_is_ordered_twice_is_there_once(aws: Cloud, options: dict[str, Any]) -> None:
    first = provider(options).create(order())
    again = provider(options).create(order())
    assert again.id == first.id
    assert again.tags[LAUNCH] == "sft-0-0-0"
    assert len(aws.instances()) == 1


def test_another_request_under_the_same_key_means_the_same_machine(
    aws: Cloud, options: dict[str, Any]
) -> None:
    first = provider(options).create(order(**{EXPIRES: "2026-11-29T12:00:00+00:00"}))
    again = provider(options).create(order(**{EXPIRES: "2026-11-29T13:00:00+00:00"}))
    assert again.id == first.id
    assert len(aws.instances()) == 1


def test_a_machine_that_is_not_listed_yet_is_waited_for(aws: Cloud, options: dict[str, Any]) -> None:
    provider(options).create(order())
    aws.tokens["k2"], aws.requests["k2"] = aws.tokens.pop("k1"), {}
    with pytest.raises(Busy, match="not listed yet"):
        inner(options)._made_before(order(), "t3.micro")


def test_a_key_whose_machine_has_ended_is_spent(options: dict[str, Any]) -> None:
    ec2 = provider(options)
    ec2.terminate(ec2.create(order()))
    with pytest.raises(KeySpent):
        ec2.create(order())


def test_a_machine_carries_its_tags_and_ends_with_its_disk_when_it_is_powered_off(
    aws: Cloud, options: dict[str, Any]
) -> None:
    ec2 = provider(options)
    vm = ec2.create(order())
    (made,) = aws.instances()
    assert made.instance_initiated_shutdown_behavior == "terminate"
    assert all(mapping.delete_on_termination for mapping in made.block_device_mapping.values())
    assert [one.id for one in ec2.list({DEPLOYMENT: "d1"}) if one.is_alive] == [vm.id]
    assert ec2.list({DEPLOYMENT: "d2"}) == []
    ec2.tag(vm, {LAUNCH: ""})
    found = ec2.get(vm)
    assert found is not None
    assert found.tags[LAUNCH] == ""


def test_a_machine_bears_tags_of_the_users_own_each_once(aws: Cloud, options: dict[str, Any]) -> None:
    for key, name, shown in (("k1", {}, "modelyard sft-0-0-0"), ("k2", {"Name": "mine"}, "mine")):
        vm = provider(options).create(order(key, **{"example.com/team": "a"}, **name))
        (tags,) = [one.get_tags() for one in aws.instances() if one.id == vm.id]
        assert [tag["value"] for tag in tags if tag["key"] == "Name"] == [shown]
        assert [tag["value"] for tag in tags if tag["key"] == "example.com/team"] == ["a"]


def test_a_disk_is_as_large_as_was_planned(aws: Cloud, options: dict[str, Any]) -> None:
    found = next(o for o in Aws(**options).offers() if o.instance_type == "g6.xlarge" and not o.spot)
    assert found.with_disk(300 * 10**9).price_usd_hour == pytest.approx(280 * 0.08 / 730 + 0.005, abs=1e-6)
    provider(options).create(order(rent=replace(ZONE_A, disk_bytes=300 * 10**9)))
    assert aws.orders[-1]["BlockDeviceMapping.1.Ebs.VolumeSize"] == "280"


def test_terminating_what_is_gone_is_silent(options: dict[str, Any]) -> None:
    ec2 = provider(options)
    vm = ec2.create(order())
    ec2.terminate(vm)
    ec2.terminate(vm)
    ec2.terminate(Vm("i-0123456789abcdef0", "running", "t3.micro", "us-east-1"))


# Refusals -----------------------------------------------------------------------------------------


def test_a_sold_out_zone_costs_one_attempt_and_is_left_alone_for_a_while(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.sold_out.add(("t3.micro", "us-east-1a"))
    with pytest.raises(NoCapacity, match=r"t3\.micro in us-east-1a"):
        provider(options).create(order())
    assert aws.calls.count("RunInstances") == 1
    with pytest.raises(NoCapacity, match="was sold out"):
        provider(options).create(order())
    assert aws.calls.count("RunInstances") == 1
    on_demand = [one for one in Aws(**options).offers() if one.instance_type == "t3.micro" and not one.spot]
    assert {one.zone for one in on_demand if one.available == 0} == {"us-east-1a"}
    assert provider(options).create(order(rent=ZONE_B)).zone == "us-east-1b"

    aws.sold_out.clear()
    sold_out = Path(os.environ["XDG_STATE_HOME"]) / "modelyard/vm/aws/sold-out.json"
    sold_out.write_text(json.dumps(dict.fromkeys(json.loads(sold_out.read_text()), 1.0)))
    assert provider(options).create(order("k2")).zone == "us-east-1a"


def test_a_limit_of_the_account_is_no_shortage(aws: Cloud, options: dict[str, Any]) -> None:
    aws.limited.add("us-east-1")
    with pytest.raises(Quota, match=r"us-east-1a.*VcpuLimitExceeded") as caught:
        provider(options).create(order())
    assert "Service Quotas" in (caught.value.fix or "")
    assert aws.calls.count("RunInstances") == 1


def test_a_throttled_look_is_repeated_and_a_throttled_order_is_not(
    aws: Cloud, options: dict[str, Any]
) -> None:
    ec2 = provider(options)
    ec2.create(order())
    aws.throttled = 1
    assert sum(one.is_alive for one in ec2.list({DEPLOYMENT: "d1"})) == 1
    aws.throttled = 1
    with pytest.raises(Busy):
        ec2.create(order("k2"))
    assert aws.throttled == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [("ExpiredToken", "have expired"), ("UnauthorizedOperation", "refused"), ("AuthFailure", "refused")],
)
def test_credentials_that_are_refused_are_named_with_the_region(
    aws: Cloud, options: dict[str, Any], code: str, words: str
) -> None:
    aws.denied = code
    with pytest.raises(AuthFailed, match=f"us-east-1: .*{words}") as caught:
        provider(options).list({DEPLOYMENT: "d1"})
    assert caught.value.fix
    (bad,) = [check for check in Aws(**options).check() if not check.ok]
    assert "us-east-1" in bad.what
    assert bad.fix


def test_an_account_without_credentials_says_where_they_go(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AuthFailed, match="us-east-1") as caught:
        provider({**options, "endpoint_url": "http://localhost:1"}).list({DEPLOYMENT: "d1"})
    assert "AWS_PROFILE" in (caught.value.fix or "")


def test_a_cloud_that_does_not_answer_is_unreachable(options: dict[str, Any]) -> None:
    with pytest.raises(Unreachable, match="us-east-1"):
        provider({**options, "endpoint_url": "http://127.0.0.1:1"}).list({DEPLOYMENT: "d1"})


@pytest.mark.parametrize(
    ("rent", "words"),
    [
        (Rent("p5.48xlarge", "eu-west-1", "eu-west-1a"), "region eu-west-1 is not configured"),
        (Rent("m5.large", "us-east-1", "us-east-1a"), "m5.large is not offered in us-east-1"),
    ],
)
def test_what_a_region_does_not_have_is_named(options: dict[str, Any], rent: Rent, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        provider(options).create(order(rent=rent))


def test_an_image_that_is_not_there_is_named_with_its_region(options: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="no image 'nothing \\*' in us-east-1"):
        provider({**options, "image_name": "nothing *"}).create(order())


@pytest.mark.parametrize(
    "wrong",
    [
        {"regions": []}, {"regions": "us-east-1"}, {"disk": "200"}, {"abandoned_after": "soon"},
        {"ssh_from": ["home"]}, {"instance_types": [1]},
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(options: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Aws(**{**options, **wrong})


def test_a_missing_package_is_named_with_its_extra(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.aws.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="boto3") as caught:
        Aws(**options)
    assert caught.value.fix == "pip install 'modelyard[aws]'"


# What a machine is told ---------------------------------------------------------------------------


def test_user_data_holds_no_secret(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Aws(**options)
    monkeypatch.setattr(backend, "_booted", _refuse)
    launch = Launch("sft-0-0-0", "sft", image="x", secrets=(("HF_TOKEN", "${{ secrets.hf }}"),), rent=ZONE_A)
    with pytest.raises(NoCapacity):
        backend.start(launch, secrets={"HF_TOKEN": "hf_of_the_test"}, progress=print)
    (made,) = [one for one in aws._all() if one.id in aws.tokens.values()][-1:]
    text = f"{made.user_data} {made.get_tags()} {made.__dict__}"
    assert "hf_of_the_test" not in text
    assert "PRIVATE KEY" not in text
    assert "wJalrXUtnFEMI" not in text


def test_a_machine_that_cannot_take_the_launch_is_ended(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Aws(**options)
    monkeypatch.setattr(backend, "_booted", _refuse)
    with pytest.raises(NoCapacity):
        backend.start(Launch("sft-0-0-0", "sft", image="x", rent=ZONE_A), secrets={}, progress=print)
    assert aws.instances() == []
    assert backend.instances() == []


def _refuse(*_: object) -> None:
    raise NoCapacity("it ended while it booted")


def test_a_machine_that_never_answers_is_given_up(aws: Cloud, options: dict[str, Any]) -> None:
    aws.machines.boots = False
    backend = Aws(**{**options, "boot_timeout": "1s"})
    with pytest.raises(NoCapacity, match="did not answer within 1 s"):
        backend.start(Launch("sft-0-0-0", "sft", image="x", rent=ZONE_A), secrets={}, progress=print)
    assert aws.instances() == []


def starts_what_is_not_known_yet(aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return why a machine that EC2 knows at the second look only, and that answers never, is given up."""
    asked: list[Vm] = []
    get = Ec2.get

    def late(self: Ec2, vm: Vm) -> Vm | None:
        asked.append(vm)
        return get(self, vm) if len(asked) > 1 else None

    monkeypatch.setattr(Ec2, "get", late)
    aws.machines.boots = False
    backend = Aws(**{**options, "boot_timeout": "2s"})
    with pytest.raises(NoCapacity) as error:
        backend.start(Launch("sft-0-0-0", "sft", image="x", rent=ZONE_A), secrets={}, progress=print)
    return error.value.what


def test_a_machine_that_is_not_known_yet_is_not_taken_for_ended(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "did not answer within 2 s" in starts_what_is_not_known_yet(aws, options, monkeypatch)


def test_taking_what_is_not_known_yet_for_ended_is_caught(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.vm.LISTED_S", -1.0)
    assert "ended while it booted" in starts_what_is_not_known_yet(aws, options, monkeypatch)


def test_a_machine_without_renewal_powers_itself_off(
    aws: Cloud, options: dict[str, Any], tmp_path: Path
) -> None:
    provider(options).create(order("dead-man"))
    (made,) = aws.instances()
    said = next(line for line in reversed(aws.timer()) if "dead-man/deadline" in line)
    assert said.startswith(
        "systemd-run --unit=modelyard-deadline --on-boot=60 --on-unit-active=60 /bin/sh -c "
    )
    check = said.partition(" -c ")[2]
    (tmp_path / "systemctl").write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/said"\n')
    (tmp_path / "systemctl").chmod(0o755)

    def is_off() -> bool:
        (tmp_path / "said").unlink(missing_ok=True)
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        subprocess.run(["sh", "-c", check], check=False, env=env, capture_output=True)
        return (tmp_path / "said").exists()

    deadline = aws.book(made) / "deadline"
    assert not is_off()
    deadline.write_text("1000\n")
    assert is_off()
    deadline.write_text("soon\n")
    assert is_off()
    subprocess.run(["sh", "-c", boot.renew("dead-man", lasts_s=60)], check=True)
    assert not is_off()


def test_an_idle_machine_has_one_taker(aws: Cloud, options: dict[str, Any]) -> None:
    provider(options).create(order("idle-1"))

    def take(launch: str) -> str:
        script = boot.take_up("idle-1", launch, lasts_s=60)
        return subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout.strip()

    assert take("a-0-0-0") == ""
    subprocess.run(["sh", "-c", boot.lay_down("idle-1", lasts_s=60)], check=True)
    both = [
        subprocess.Popen(["sh", "-c", boot.take_up("idle-1", n, lasts_s=60)], stdout=subprocess.PIPE)
        for n in "ab"
    ]
    said = [one.communicate()[0].strip() for one in both]
    assert sorted(said) == [b"", b"taken"]
    winner = "ab"[said.index(b"taken")]
    assert take(winner) == "taken"
    assert take("c") == ""


# Once ---------------------------------------------------------------------------------------------


class ByChance(Aws):
    """A broken twin: every order has a key of its own."""

    def _deployment(self) -> str:
        return uuid.uuid4().hex


def _killed_before_it_was_listed(
    kind: type[Aws], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start a launch twice; both are killed after their order, and neither sees the other's machine."""
    monkeypatch.setattr(kind, "_booted", _die)
    monkeypatch.setattr(kind, "_vms", lambda self: ())
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            kind(**options).start(
                Launch("sft-0-0-0", "sft", image="x", rent=ZONE_A), secrets={}, progress=print
            )


def test_a_machine_that_nobody_lists_yet_is_not_rented_twice(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed_before_it_was_listed(Aws, options, monkeypatch)
    assert len(aws.instances()) == 1


def test_keys_by_chance_are_caught(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed_before_it_was_listed(ByChance, options, monkeypatch)
    assert len(aws.instances()) == 2


def _die(*_: object) -> None:
    raise KeyboardInterrupt


# Sweeping -----------------------------------------------------------------------------------------


def test_a_machine_of_another_deployment_is_never_ended(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**{**options, "deployment": "d1"})
    mine, other = (
        provider(options).create(order("k1")),
        provider(options).create(order("k2", **{DEPLOYMENT: "d2"})),
    )
    assert [machine.id for machine in backend.machines()] == [mine.id]
    with pytest.raises(Rejected, match="does not carry the tag"):
        backend.terminate(other.id)
    backend.terminate(mine.id)
    assert [one.id for one in aws.instances()] == [other.id]


def test_a_machine_carries_the_time_to_which_it_lives(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**{**options, "deployment": "d1"})
    provider(options).create(order(**{EXPIRES: "2026-11-29T12:00:00+00:00"}))
    (found,) = backend.machines()
    assert found.expires_at is not None
    assert found.expires_at.isoformat() == "2026-11-29T12:00:00+00:00"


def test_errors_of_boto_stop_at_our_edge(options: dict[str, Any]) -> None:
    with pytest.raises(BackendError):
        provider({**options, "profile": "no-such"}).list({DEPLOYMENT: "d1"})
