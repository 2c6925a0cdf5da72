"""Several nodes on EC2: all of them or none, close together, and nothing of them left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.aws import Aws
from backends.ssh import host as ssh_host
from backends.vm import RentedMachines
from backends.vm.port import DEPLOYMENT, GANG, KEY, LAUNCH, Order
from orchestrator.backend import Can, Instance, Launch, Phase, Rent
from orchestrator.errors import NoCapacity, Quota
from tests import images
from tests.backends.aws.cloud import Cloud
from tests.backends.ssh.conftest import sweep
from tests.backends.ssh.farm import MAIN_SOCKET, until

SMALL = "c5n.9xlarge"
"""A type without GPUs that goes into a cluster placement group; its network card knows no EFA."""
ONE_CARD = "c5n.18xlarge"
TWO_CARDS = "c6in.32xlarge"

RENT = Rent(SMALL, "us-east-1", "us-east-1a")


@pytest.fixture
def options(aws: Cloud) -> Iterator[dict[str, Any]]:
    namespace = f"modelyard-test-{os.urandom(4).hex()}"
    types = ["t3.micro", SMALL, ONE_CARD, TWO_CARDS]
    yield aws.options(namespace=namespace, instance_types=types, deployment="d1")
    if Path(MAIN_SOCKET).exists():
        sweep(MAIN_SOCKET, namespace)


def node(rank: int, nodes: int = 3, script: str = "sleep 60", attempt: int = 0, **more: Any) -> Launch:
    env = (("MODELYARD_NODES_NUM", str(nodes)), ("MODELYARD_NODE_RANK", str(rank)))
    fields: dict[str, Any] = {"image": images.busybox(), "command": ("sh", "-c", script), "rent": RENT}
    return Launch(
        f"sft-0-{rank}-{attempt}", "sft", node=rank, attempt=attempt, spec_hash="a", env=env,
        **{**fields, **more},
    )  # fmt: skip


def start(backend: RentedMachines, wanted: Launch) -> Instance:
    return backend.start(wanted, secrets={}, progress=lambda _: None)


def start_all(backend: Aws, nodes: int = 3, **more: Any) -> list[Instance]:
    with ThreadPoolExecutor(nodes) as pool:
        return list(pool.map(lambda rank: start(backend, node(rank, nodes, **more)), range(nodes)))


def ended(backend: Aws, name: str) -> Instance:
    def find() -> Instance | None:
        return next((i for i in backend.instances() if i.name == name and i.phase is Phase.EXITED), None)

    until(lambda: find() is not None, f"{name} ends")
    found = find()
    assert found is not None
    return found


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_it_says_that_it_spans_machines() -> None:
    assert Can.NODES in Aws.can


# All or none ----------------------------------------------------------------------------------------


@pytest.mark.docker
def test_three_nodes_are_three_machines_in_one_group_that_know_each_other(
    aws: Cloud, options: dict[str, Any]
) -> None:
    images.require_engine()
    script = "echo rank $MODELYARD_NODE_RANK of $MODELYARD_NODES_IPS master $MODELYARD_MASTER_NODE_IP"
    backend = Aws(**options)
    found = start_all(backend, script=script)
    assert len({one.machine for one in found}) == 3
    (group,) = aws.groups
    assert {order["Placement.GroupName"] for order in aws.orders} == {group}
    assert {order["Placement.AvailabilityZone"] for order in aws.orders} == {"us-east-1a"}
    ips = {one.private_ip for one in aws.instances()}
    master = next(one.private_ip for one in aws.of("sft-0-0-0"))
    for rank in range(3):
        ended(backend, f"sft-0-{rank}-0")
        (line,) = [line.text for line in backend.logs(f"sft-0-{rank}-0")]
        words = line.split()
        assert words[:3] == ["rank", str(rank), "of"]
        assert (set(words[3:6]), words[6:]) == (ips, ["master", master])


def test_a_second_machine_that_is_not_to_be_had_leaves_none(aws: Cloud, options: dict[str, Any]) -> None:
    aws.room[SMALL, "us-east-1a"] = 1
    backend = Aws(**options)
    for rank in (1, 0, 2):
        with pytest.raises(NoCapacity):
            start(backend, node(rank))
    assert [how for _, _, how in aws.asked] == ["made", "sold out"]
    assert aws.instances() == []
    assert backend.instances() == []
    assert aws.groups == {}


def test_a_limit_leaves_none_and_is_asked_once(aws: Cloud, options: dict[str, Any]) -> None:
    aws.limited.add("us-east-1")
    backend = Aws(**options)
    for rank in range(2):
        with pytest.raises(Quota):
            start(backend, node(rank))
    assert [how for _, _, how in aws.asked] == ["limited"]
    assert aws.instances() == []


def test_the_next_attempt_goes_elsewhere_in_a_group_of_its_own(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.room[SMALL, "us-east-1a"] = 2
    backend = Aws(**options)
    monkeypatch.setattr(backend, "_booted", die)
    with pytest.raises(NoCapacity):
        start(backend, node(0))
    elsewhere = replace(RENT, zone="us-east-1b")
    with pytest.raises(KeyboardInterrupt):
        start(backend, node(0, attempt=1, rent=elsewhere))
    assert {one.placement["AvailabilityZone"] if isinstance(one.placement, dict) else one.placement.zone
            for one in aws.instances()} == {"us-east-1b"}  # fmt: skip
    assert len(aws.instances()) == 3
    backend.instances()
    assert list(aws.groups) == ["modelyard-d1-sft-0-gang-1"]


@pytest.mark.docker
@pytest.mark.parametrize("point", ["second intent", "second id", "boot", "start"])
def test_killed_at_any_point_there_are_three_machines_and_each_has_its_owner(
    aws: Cloud, options: dict[str, Any], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.require_engine()
    dying = Aws(**options)
    with monkeypatch.context() as patched:
        made, count = type(dying._provider).create, [0]

        def second(self: Any, order: Order) -> Any:
            count[0] += 1
            if count[0] == 2 and point == "second intent":
                die()
            vm = made(self, order)
            if count[0] == 2:
                die()
            return vm

        if point.startswith("second"):
            patched.setattr(type(dying._provider), "create", second)
        elif point == "boot":
            patched.setattr(dying, "_booted", die)
        else:
            patched.setattr("backends.ssh.host.HostDocker.start", die)
        with pytest.raises(KeyboardInterrupt):
            start(dying, node(0))
    there = {"second intent": 1, "second id": 2}.get(point, 3)
    assert len(aws.instances()) == there
    backend = Aws(**options)
    assert [(one.name, one.phase, one.rented) for one in backend.instances()] == [
        (f"sft-0-{rank}-0", Phase.PENDING, True) for rank in range(there)
    ]

    found = start_all(backend)

    assert {one.machine for one in found} == {one.id for one in aws.instances()}
    assert len(aws.instances()) == 3
    assert [one.phase for one in backend.instances()] == [Phase.RUNNING] * 3
    assert len(aws.groups) == 1


@pytest.mark.docker
def test_what_was_rented_for_a_run_that_was_stopped_halfway_is_given_back(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images.require_engine()
    dying = Aws(**options)
    with monkeypatch.context() as patched:
        patched.setattr(dying, "_booted", die)
        with pytest.raises(KeyboardInterrupt):
            start(dying, node(0))
    backend = Aws(**options)
    for rank in range(3):
        backend.stop(f"sft-0-{rank}-0", grace_s=1)
        backend.release(f"sft-0-{rank}-0", keep_s=0)
    assert aws.instances() == []
    assert {one.reason for one in backend.instances()} == {"stopped"}
    assert aws.groups == {}


@pytest.mark.docker
def test_a_node_that_does_not_boot_is_named_and_nobody_rents_its_machine_again(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images.require_engine()
    backend = Aws(**{**options, "boot_timeout": "1s"})
    aws.machines.boots = False
    with pytest.raises(NoCapacity, match="did not answer"):
        start(backend, node(1, 2))
    with pytest.raises(NoCapacity, match="did not answer"):
        start(backend, node(0, 2))
    assert [how for _, _, how in aws.asked] == ["made", "made"]


# Kept for the next ------------------------------------------------------------------------------------


@pytest.mark.docker
def test_idle_machines_of_a_gang_are_taken_by_the_next_one_in_their_group(
    aws: Cloud, options: dict[str, Any]
) -> None:
    images.require_engine()
    backend = Aws(**options)
    first = {one.machine for one in start_all(backend, 2, script="true")}
    for rank in range(2):
        ended(backend, f"sft-0-{rank}-0")
        backend.release(f"sft-0-{rank}-0", keep_s=300)
    found = start_all(Aws(**options), 3, attempt=1)
    assert first < {one.machine for one in found}
    assert len(aws.instances()) == 3
    assert list(aws.groups) == ["modelyard-d1-sft-0-gang-0"]


# What belongs to them ---------------------------------------------------------------------------------


def order(rent: Rent, key: str = "k1", gang: str = "sft-0-gang-0") -> Order:
    tags = {DEPLOYMENT: "d1", LAUNCH: "sft-0-0-0", KEY: key, GANG: gang, "modelyard.dev/run": "sft"}
    return Order(
        key, rent, tags, '#cloud-config\n{"ssh_authorized_keys": [], "bootcmd": [], "runcmd": []}', "", gang
    )


def nics(order: dict[str, str]) -> list[dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for key, value in order.items():
        head, _, rest = key.partition(".")
        if head == "NetworkInterface":
            number, _, field = rest.partition(".")
            found.setdefault(int(number), {})[field] = value
    return [found[number] for number in sorted(found)]


def test_a_group_goes_when_its_last_machine_has_and_not_while_that_ends(
    aws: Cloud, options: dict[str, Any]
) -> None:
    backend = Aws(**options)
    backend._shelf.furnish("sft-0-gang-0")
    vm = backend._provider.create(order(RENT))
    backend.instances()
    assert len(aws.groups) == 1
    backend._provider.terminate(vm)
    aws.ending.add(vm.id)  # EC2 counts it as a member for some minutes
    backend.instances()
    assert len(aws.groups) == 1
    aws.ending.clear()
    Aws(**options).instances()
    assert aws.groups == {}
    calls = len(aws.calls)
    Aws(**options).instances()
    assert aws.calls[calls:] == ["DescribeInstances"]


def test_what_a_lost_record_left_is_listed_and_removed_when_asked(
    aws: Cloud, options: dict[str, Any]
) -> None:
    backend = Aws(**options)
    vm = backend._provider.create(order(RENT))
    backend._provider.create(order(RENT, "k2", "eval-0-gang-0"))
    backend._provider.terminate(vm)
    other = Aws(**{**options, "deployment": "d2"})
    assert [(one.instance_type, one.run, one.state) for one in backend.machines()] == [
        (SMALL, "sft", "pending"), ("placement group", "sft", "unused"),
    ] or [one.instance_type for one in backend.machines()] == [SMALL, "placement group"]  # fmt: skip
    assert other.machines() == []
    (left,) = [one for one in backend.machines() if one.instance_type == "placement group"]
    backend.terminate(left.id)
    assert list(aws.groups) == ["modelyard-d1-eval-0-gang-0"]


def test_a_node_with_one_card_has_efa_on_it_and_its_public_address(
    aws: Cloud, options: dict[str, Any]
) -> None:
    Aws(**options)._provider.create(order(replace(RENT, instance_type=ONE_CARD)))
    (card,) = nics(aws.orders[-1])
    assert (card["InterfaceType"], card["AssociatePublicIpAddress"]) == ("efa", "true")
    assert card["DeleteOnTermination"] == "true"


def test_a_machine_alone_has_neither_efa_nor_a_group(aws: Cloud, options: dict[str, Any]) -> None:
    alone = replace(order(replace(RENT, instance_type=TWO_CARDS)), gang="")
    Aws(**options)._provider.create(alone)
    (card,) = nics(aws.orders[-1])
    assert "InterfaceType" not in card
    assert "Placement.GroupName" not in aws.orders[-1]
    assert aws.groups == {}


def test_every_card_has_efa_and_the_address_comes_and_goes_with_the_machine(
    aws: Cloud, options: dict[str, Any]
) -> None:
    provider = Aws(**options)._provider
    vm = provider.create(order(replace(RENT, instance_type=TWO_CARDS)))
    first, second = nics(aws.orders[-1])
    assert [(each["NetworkCardIndex"], each["DeviceIndex"]) for each in (first, second)] == [
        ("0", "0"), ("1", "1"),
    ]  # fmt: skip
    assert (first["InterfaceType"], second["InterfaceType"]) == ("efa", "efa-only")
    assert first["SubnetId"] == second["SubnetId"]
    assert second["DeleteOnTermination"] == "true"
    (address,) = aws.addresses()
    found = provider.get(vm)
    assert found is not None
    assert found.address == aws.elastic[aws.instances()[0].nics[0].id]
    assert provider.create(order(replace(RENT, instance_type=TWO_CARDS))).id == vm.id
    assert [one.allocation_id for one in aws.addresses()] == [address.allocation_id]
    provider.terminate(vm)
    assert aws.addresses() == []


def test_a_private_machine_with_several_cards_takes_no_address(aws: Cloud, options: dict[str, Any]) -> None:
    provider = Aws(**{**options, "public_address": False})._provider
    vm = provider.create(order(replace(RENT, instance_type=TWO_CARDS)))
    assert vm.address == vm.internal_ip
    assert aws.addresses() == []


def test_an_address_whose_machine_powered_itself_off_goes_with_the_next_look(
    aws: Cloud, options: dict[str, Any]
) -> None:
    backend = Aws(**options)
    backend._shelf.furnish("sft-0-gang-0")
    backend._provider.create(order(replace(RENT, instance_type=TWO_CARDS)))
    (machine,) = aws.instances()
    (address,) = aws.addresses()
    machine.terminate()
    address.eni = address.instance = address.association_id = None  # as EC2 does when a machine ends
    Aws(**options).instances()
    assert (aws.addresses(), aws.groups) == ([], {})


def test_nodes_reach_each_other_and_others_only_by_ssh(aws: Cloud, options: dict[str, Any]) -> None:
    from moto.ec2.models import ec2_backends

    Aws(**options)._provider.create(order(RENT))
    Aws(**options)._provider.create(order(RENT, "k2"))
    known = ec2_backends["123456789012"]["us-east-1"].describe_security_groups()
    groups = [group for group in known if group.name in ("modelyard-d1", "modelyard-d1-nodes")]
    nodes = next(g for g in groups if g.name == "modelyard-d1-nodes")
    for rules in (nodes.ingress_rules, nodes.egress_rules):
        own = [(rule.ip_protocol, rule.source_group["GroupId"]) for rule in rules if rule.source_group]
        assert own == [("-1", nodes.id)]
    assert not [rule for rule in nodes.ingress_rules if rule.ip_range]
    (card,) = nics(aws.orders[-1])
    given = sorted(value for key, value in card.items() if key.startswith("SecurityGroupId"))
    assert given == sorted(group.id for group in groups)


# Reserved ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["", "arn:aws:ec2:us-east-1:1:placement-group/theirs"])
def test_a_reservation_is_close_together_as_it_was_reserved(
    aws: Cloud, options: dict[str, Any], of: str
) -> None:
    aws.groups["theirs"] = {}
    block = {
        "capacityReservationId": "cr-1", "instanceType": SMALL, "availabilityZone": "us-east-1a",
        "state": "active", "availableInstanceCount": "2", "reservationType": "capacity-block",
        **({"placementGroupArn": of} if of else {}),
    }  # fmt: skip
    aws.reservations.append(block)
    Aws(**{**options, "reservations": ["cr-1"]})._provider.create(order(replace(RENT, reservation="cr-1")))
    asked = aws.orders[-1]
    assert asked.get("Placement.GroupName") == ("theirs" if of else None)
    assert asked["InstanceMarketOptions.MarketType"] == "capacity-block"
    assert list(aws.groups) == ["theirs"]


# In the container -------------------------------------------------------------------------------------


@pytest.mark.docker
def test_a_container_of_a_node_gets_the_cards_and_may_pin_memory_where_its_engine_may(
    aws: Cloud, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.require_engine()
    folder = tmp_path / "infiniband"
    folder.mkdir()
    os.mknod(folder / "uverbs0", 0o20666, os.makedev(1, 3))
    monkeypatch.setattr(ssh_host, "FABRIC_FOLDER", str(folder))
    backend = Aws(**options)
    start_all(backend, 2, script=f"ls {folder} && echo into > {folder}/uverbs0 && echo written")
    for rank in range(2):
        ended(backend, f"sft-0-{rank}-0")
        assert [line.text for line in backend.logs(f"sft-0-{rank}-0")] == ["uverbs0", "written"]
    host = next(iter(backend._hosts.values()))
    wanted = replace(node(0, 2), options=((ssh_host.FABRIC, str(folder)),))
    host._raises_limits = True  # the engine of a test may not
    assert host._body(wanted, "x", {})["HostConfig"]["Ulimits"] == [
        {"Name": "memlock", "Soft": -1, "Hard": -1}
    ]
    host._raises_limits = False
    assert "Ulimits" not in host._body(wanted, "x", {})["HostConfig"]


# Planted faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        (("backends.vm.RentedMachines", "_end", lambda self, vm: None),
         test_a_second_machine_that_is_not_to_be_had_leaves_none),
        (("backends.vm.gang", "refuse", lambda claim, error: None),
         test_a_limit_leaves_none_and_is_asked_once),
        (("backends.vm.RentedMachines", "_tidy", lambda self, vms: None),
         test_a_group_goes_when_its_last_machine_has_and_not_while_that_ends),
        (("backends.aws.around.Around", "release", lambda self, region, key: None),
         test_every_card_has_efa_and_the_address_comes_and_goes_with_the_machine),
    ],
)  # fmt: skip
def test_a_twin_is_caught(
    aws: Cloud, options: dict[str, Any], fault: tuple[str, str, Any], caught_by: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(f"{fault[0]}.{fault[1]}", fault[2])
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        caught_by(aws, options)
