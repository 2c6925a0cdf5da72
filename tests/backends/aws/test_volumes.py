"""Volumes of EBS: kept after the run, in their zone, at one machine at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.aws import Aws
from backends.vm import disks
from backends.vm.disks import FORMATTED
from orchestrator.backend import Can, Launch, Mount, Phase, Rent
from orchestrator.errors import Busy, NoCapacity, Rejected
from tests import images
from tests.backends.aws.cloud import Cloud
from tests.backends.aws.test_gang import ended, node, start
from tests.backends.ssh.conftest import sweep
from tests.backends.ssh.farm import MAIN_SOCKET

RENT = Rent("t3.micro", "us-east-1", "us-east-1a")
MOUNTS = (Mount("data", "/data"),)


def require_loop_devices() -> None:
    if os.geteuid() != 0 or not shutil.which("losetup") or not shutil.which("mkfs.ext4"):
        pytest.skip("a disk of a machine is a loop device here: that takes root, losetup and mkfs.ext4")
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no loop devices")


@pytest.fixture
def options(aws: Cloud) -> Iterator[dict[str, Any]]:
    namespace = f"modelyard-test-{os.urandom(4).hex()}"
    yield aws.options(namespace=namespace, deployment="d1")
    if Path(MAIN_SOCKET).exists():
        sweep(MAIN_SOCKET, namespace)


@pytest.fixture
def on_disk(options: dict[str, Any]) -> dict[str, Any]:
    images.require_engine()
    require_loop_devices()
    return options


def launch(name: str, script: str, mounts: tuple[Mount, ...] = MOUNTS, rent: Rent = RENT) -> Launch:
    command = ("sh", "-c", script)
    return Launch(
        name, "sft", attempt=int(name[-1]), spec_hash="a", image=images.busybox(), command=command,
        rent=rent, mounts=mounts,
    )  # fmt: skip


def tags(volume: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in volume.get_tags()}


def test_a_volume_is_made_once_in_its_zone(aws: Cloud, options: dict[str, Any]) -> None:
    assert Can.VOLUMES in Aws.can
    for _ in range(2):
        Aws(**options).create_volume_in("data", size_bytes=5 * 10**9, zone="us-east-1c")
    (made,) = aws.volumes()
    assert (made.zone.name, made.size, made.volume_type) == ("us-east-1c", 5, "gp3")
    assert [(one.name, one.size_bytes, one.used_by) for one in Aws(**options).volumes()] == [
        ("data", 5 * 2**30, ()),
    ]
    assert Aws(**{**options, "deployment": "d2"}).volumes() == []
    Aws(**options).delete_volume("data")
    Aws(**options).delete_volume("data")
    assert aws.volumes() == []


def test_of_two_that_were_made_at_once_one_stays(
    aws: Cloud, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Aws(**options).create_volume("data", size_bytes=None)
    with monkeypatch.context() as patched:
        patched.setattr(disks.Disks, "_find", lambda self, name: None)  # it looked a moment before
        Aws(**options).create_volume("data", size_bytes=None)
    assert len(aws.volumes()) == 1


def test_of_two_the_one_that_was_written_to_counts(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**options)
    kept = backend._disks
    assert kept is not None
    made = [
        kept._provider.make_disk(size_bytes=10**9, zone=None, tags={**backend._ours(), disks.VOLUME: "data"})
        for _ in range(2)
    ]
    last = max(made, key=lambda disk: disk.id)
    kept._provider.tag_disk(last, {FORMATTED: "ext4"})
    found = kept._find("data")
    assert found is not None
    assert found.id == last.id


def test_a_zone_of_no_configured_region_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="us-west-2a is in no configured region") as caught:
        Aws(**options).create_volume_in("data", size_bytes=None, zone="us-west-2a")
    assert "us-east-1" in (caught.value.fix or "")


def test_a_launch_that_cannot_have_its_volume_rents_nothing(aws: Cloud, options: dict[str, Any]) -> None:
    backend = Aws(**options)
    with pytest.raises(Rejected, match="no volume 'data'"):
        start(backend, launch("sft-0-0-0", "true"))
    backend.create_volume_in("data", size_bytes=None, zone="us-east-1b")
    with pytest.raises(NoCapacity, match="'data' is in us-east-1b"):
        start(backend, launch("sft-0-0-0", "true"))
    with pytest.raises(Rejected, match="several nodes"):
        start(backend, node(0, mounts=MOUNTS))
    with pytest.raises(Rejected, match="folder '/data'"):
        start(backend, launch("sft-0-0-0", "true", (Mount("/data", "/data", "folder"),)))
    assert aws.asked == []


@pytest.mark.docker
def test_what_was_written_is_there_on_the_next_machine_and_after_the_run(
    aws: Cloud, on_disk: dict[str, Any]
) -> None:
    backend = Aws(**on_disk)
    backend.create_volume_in("data", size_bytes=None, zone="us-east-1a")
    first = start(backend, launch("sft-0-0-0", "echo kept > /data/word; grep ' /data ' /proc/mounts"))
    assert ended(backend, "sft-0-0-0").exit_code == 0
    (line,) = [line.text for line in backend.logs("sft-0-0-0")]
    assert line.split()[:3] == [line.split()[0], "/data", "ext4"]
    (volume,) = aws.volumes()
    assert tags(volume)[FORMATTED] == "ext4"
    second = start(Aws(**on_disk), launch("sft-0-0-1", "cat /data/word"))  # the first is not given back yet
    assert second.machine != first.machine
    ended(backend, "sft-0-0-1")
    assert [line.text for line in backend.logs("sft-0-0-1")] == ["kept"]
    for attempt in range(2):
        backend.release(f"sft-0-0-{attempt}", keep_s=0)
    assert aws.instances() == []
    assert [one.name for one in Aws(**on_disk).volumes()] == ["data"]
    third = start(backend, launch("sft-0-0-2", "cat /data/word; sleep 60"))
    assert third.phase is not Phase.EXITED
    assert [one.used_by for one in backend.volumes()] == [("sft-0-0-2",)]
    with pytest.raises(Rejected, match="in use by launch 'sft-0-0-2'"):
        backend.delete_volume("data")
    count = len(aws.asked)
    with pytest.raises(Busy, match="in use by launch 'sft-0-0-2'"):
        start(Aws(**on_disk), launch("sft-1-0-0", "true"))
    assert len(aws.asked) == count
    backend.remove("sft-0-0-2")
    backend.delete_volume("data")
    assert aws.volumes() == []


@pytest.mark.docker
@pytest.mark.parametrize("point", ["attach_disk", "tag_disk"])
def test_killed_on_the_way_it_is_at_its_machine_with_what_it_held(
    aws: Cloud, on_disk: dict[str, Any], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Aws(**on_disk)
    backend.create_volume_in("data", size_bytes=None, zone="us-east-1a")
    start(backend, launch("sft-0-0-0", "echo kept > /data/word"))
    ended(backend, "sft-0-0-0")
    backend.release("sft-0-0-0", keep_s=0)
    with monkeypatch.context() as patched:
        done: Callable[..., None] = getattr(type(backend._disks._provider), point)  # type: ignore[union-attr]

        def die(self: Any, *arguments: Any, **more: Any) -> None:
            done(self, *arguments, **more)
            raise KeyboardInterrupt

        patched.setattr(type(backend._disks._provider), point, die)  # type: ignore[union-attr]
        with pytest.raises(KeyboardInterrupt):
            start(backend, launch("sft-0-0-1", "cat /data/word"))
    (left,) = aws.instances()
    found = start(Aws(**on_disk), launch("sft-0-0-1", "cat /data/word"))
    assert (found.machine, len(aws.instances())) == (left.id, 1)
    ended(backend, "sft-0-0-1")
    assert [line.text for line in backend.logs("sft-0-0-1")] == ["kept"]


@pytest.mark.docker
def test_one_that_is_given_a_file_system_each_time_is_caught(
    aws: Cloud, on_disk: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "_ready", lambda device, *, make: f"mkfs.ext4 -q -F {device}\n")
    with pytest.raises(AssertionError):
        test_what_was_written_is_there_on_the_next_machine_and_after_the_run(aws, on_disk)


@pytest.mark.docker
def test_one_that_does_not_look_who_has_it_is_caught(
    aws: Cloud, on_disk: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks.Disks, "_require_free", lambda self, disk: None)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_what_was_written_is_there_on_the_next_machine_and_after_the_run(aws, on_disk)


def test_another_zone_is_named_by_the_volume_that_is_not_there(options: dict[str, Any]) -> None:
    backend = Aws(**options)
    backend.create_volume_in("data", size_bytes=None, zone="us-east-1b")
    with pytest.raises(NoCapacity) as caught:
        start(backend, launch("sft-0-0-0", "true", rent=replace(RENT, zone="us-east-1c")))
    assert caught.value.fix == "availability_zones: [us-east-1b]"
