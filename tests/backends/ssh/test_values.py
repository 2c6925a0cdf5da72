"""What needs no host: options, what a host says, what ssh says, where launches go, what is kept."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.machine import Device, Machine
from backends.ssh import Ssh
from backends.ssh.host import _check_clock, fell_with, troubles
from backends.ssh.memory import Memory
from backends.ssh.options import Host, Login, Reader
from backends.ssh.placement import Room, candidates, spread
from backends.ssh.refusals import explained
from backends.ssh.survey import Survey, parse, script
from orchestrator.backend import Instance, Phase, Resources
from orchestrator.errors import AuthFailed, ConfigError, Unreachable

# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hosts": "gpu-1"}, "hosts: expected a list of names"),
        ({"hosts": [3]}, "hosts[0]: expected a name, or a mapping with its hostname"),
        ({"hosts": ["-oProxyCommand=id"]}, "hosts[0].hostname: expected an address or a name"),
        ({"hosts": ["a", "a"]}, "'a' is there twice"),
        ({"hosts": ["A", {"hostname": "a", "port": 22}]}, "'a' is there twice"),
        ({"hosts": ["a"], "user": "-l"}, "hosts[0].user: expected a user's name"),
        ({"hosts": ["a"], "port": "22"}, "hosts[0].port: expected a number from 1 to 65535, got '22'"),
        ({"hosts": [{"hostname": "a", "prot": 22}]}, "hosts[0]: unknown key 'prot'"),
        ({"hosts": [{"hostname": "a", "internal_ip": "x"}]}, "hosts[0].internal_ip: expected an IP address"),
        ({"hosts": ["a"], "blocks": 0}, "blocks: expected a whole number from 1, got 0"),
        ({"hosts": ["a"], "network": "10.0.0.1/24"}, "network: expected a network such as 10.0.0.0/24"),
        ({"hosts": ["a"], "host_keys": "no"}, "host_keys: expected strict or accept-new, got 'no'"),
        ({"hosts": ["a"], "engine_socket": "docker.sock"}, "engine_socket: expected the absolute path"),
        ({"hosts": ["a"], "proxy_jump": {"user": "x"}}, "proxy_jump: expected a name, or a mapping"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        Ssh("rack", **options)
    assert error.value.what.startswith("backend 'rack': ")
    assert words in error.value.what


def test_host_overrides_what_all_share() -> None:
    shared = {"user": "ops", "port": 22, "proxy_jump": "jim@gate:2200"}
    one, two = Reader("rack").hosts(["a", {"hostname": "b", "user": "root", "blocks": 2}], shared)
    assert (one.login.user, two.login.user, two.login.port, two.blocks) == ("ops", "root", 22, 2)
    assert one.jump == two.jump == Login("gate", 2200, "jim")


def test_hosts_that_share_an_address_are_told_apart_by_their_ports() -> None:
    hosts = Reader("rack").hosts([{"hostname": "gate", "port": port} for port in (2201, 2202)], {})
    assert [host.name for host in hosts] == ["gate:2201", "gate:2202"]


# -- what ssh says -------------------------------------------------------------------------------

HOST = Host("gpu-1", Login("gpu-1", 2222, "ops", "/keys/ops"))


@pytest.mark.parametrize(
    ("text", "kind", "fix"),
    [
        ("ssh: connect to host gpu-1 port 2222: Connection refused", Unreachable, "start sshd"),
        ("ssh: connect to host gpu-1 port 2222: Connection timed out", Unreachable, "ssh gpu-1 true"),
        ("ssh: Could not resolve hostname gpu-1: Name or service not known", Unreachable, "spelling"),
        ("", Unreachable, "ssh gpu-1 true"),
        ("No ED25519 host key is known for gpu-1\nHost key verification failed.", AuthFailed, "accept-new"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", AuthFailed,
         "ssh-keygen -R '[gpu-1]:2222'"),
        ("@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\nops@gpu-1: Permission denied (publickey).", AuthFailed,
         "chmod 600 /keys/ops"),
        ("ops@gpu-1: Permission denied (publickey,password).", AuthFailed, "authorized_keys"),
    ],
)  # fmt: skip
def test_each_failure_of_ssh_has_its_fix(text: str, kind: type, fix: str) -> None:
    error = explained(text, HOST, backend="rack")
    assert type(error) is kind
    assert "gpu-1" in error.what or "/keys/ops" in error.what
    assert fix in str(error.fix)


# -- what a host says ----------------------------------------------------------------------------

SAID = """\
Welcome to gpu-1, it is Friday
@@ modelyard survey

@@ clock
1764100000

@@ connection
192.0.2.9 50000 192.0.2.7 22

@@ addresses
2: eth0    inet 192.0.2.7/24 brd 192.0.2.255 scope global eth0
3: ib0    inet 10.0.0.7/24 brd 10.0.0.255 scope global ib0

@@ arch
x86_64

@@ cpus
64

@@ memory
MemTotal:       1056000000 kB

@@ disk
Filesystem     1024-blocks      Used Available Capacity Mounted on
/dev/nvme0n1p1   959786032 123456789 500000000      20% /
{tools}
@@ end
"""
NVIDIA = """
@@ tool nvidia-smi --query-gpu=index,uuid,name,memory.total,pci.bus_id,mig.mode.current,compute_cap \
--format=csv,noheader,nounits
0, GPU-a, NVIDIA H100 80GB HBM3, 81559, 00000000:18:00.0, Disabled, 9.0
1, GPU-b, NVIDIA H100 80GB HBM3, 81559, 00000000:2A:00.0, Disabled, 9.0

@@ status 0

@@ tool nvidia-smi --query-gpu=uuid,ecc.errors.uncorrected.volatile.total --format=csv,noheader
GPU-a, 0
GPU-b, 3

@@ status 0

@@ kernel
[  12.3] NVRM: Xid (PCI:0000:18:00): 79, pid=1234, name=python, GPU has fallen off the bus.
[  12.9] NVRM: Xid (PCI:0000:18:00): 31, pid=1234, name=python, MMU fault
"""
AMD = """
@@ tool amd-smi static --asic --bus --vram --json

@@ status 127

@@ tool rocm-smi --showproductname --showmeminfo vram --showuniqueid --showbus --json
ERROR: no driver

@@ status 2

@@ render
/sys/bus/pci/devices/0000:03:00.0/drm/renderD128

@@ groups
/dev/kfd 109
/dev/dri/renderD128 110

@@ node 0
simd_count 0

@@ node 1
simd_count 304
drm_render_minor 128
unique_id 4660

@@ bank 1 /sys/class/kfd/kfd/topology/nodes/1/mem_banks/0/properties
heap_type 1
size_in_bytes 206141652992

@@ name 1
AMD Instinct MI300X

@@ bus 1
0000:03:00.0
"""


def test_survey_reads_the_machine_after_what_a_login_shell_prints() -> None:
    survey = parse(SAID.format(tools=""))
    machine = survey.machine
    assert (machine.cpu, machine.arch, machine.memory_bytes) == (64, "x86", 1056000000 * 1024)
    assert machine.disk_bytes == 500000000 * 1024
    assert (survey.clock_s, survey.addresses) == (1764100000, ("192.0.2.7", "10.0.0.7"))
    assert (machine.accelerators, machine.faults) == ((), ())


def test_survey_tells_ill_accelerators_and_leaves_faults_of_programs_out() -> None:
    survey = parse(SAID.format(tools=NVIDIA))
    assert [device.uuid for device in survey.machine.accelerators] == ["GPU-a", "GPU-b"]
    assert dict(survey.ill) == {
        "GPU-a": "XID 79 in the kernel's log: fell off the bus",
        "GPU-b": "3 uncorrected memory errors since its driver started",
    }


def test_survey_asks_the_kernel_where_no_tool_knows_a_gpu() -> None:
    machine = parse(SAID.format(tools=AMD)).machine
    (device,) = machine.accelerators
    assert (device.name, device.vram_bytes) == ("AMD Instinct MI300X", 206141652992)
    assert (device.paths, device.groups) == (("/dev/kfd", "/dev/dri/renderD128"), ("109", "110"))
    assert machine.faults == ("rocm-smi failed (2): ERROR: no driver",)


@pytest.mark.parametrize(
    ("files", "paths"),
    [
        ("/dev/accel0\n/dev/accel1", [("/dev/accel0",), ("/dev/accel1",)]),
        ("/dev/vfio/0\n/dev/vfio/1\n/dev/vfio/vfio", [(f"/dev/vfio/{n}", "/dev/vfio/vfio") for n in (0, 1)]),
    ],
)
def test_survey_finds_tpu_chips_and_no_other_device_of_google(
    files: str, paths: list[tuple[str, ...]]
) -> None:
    said = f"@@ tpu\n0000:00:06.0 0x0063\n0000:00:04.0 0x0042\n0000:00:05.0 0x0063\n{files}\n"
    found = parse(SAID.format(tools=said)).machine.accelerators
    assert [(one.vendor, one.name, one.key) for one in found] == [
        ("google", "tpu-v5e", "0000:00:05.0"), ("google", "tpu-v5e", "0000:00:06.0"),
    ]  # fmt: skip
    assert [one.paths for one in found] == paths
    assert {one.vram_bytes for one in found} == {16 * 2**30}


@pytest.mark.parametrize("length", [0, 40, 400])
def test_answer_that_was_cut_off_is_no_survey(length: int) -> None:
    with pytest.raises(ValueError, match="incomplete"):
        parse(SAID.format(tools=NVIDIA)[:length])


def test_script_runs_in_a_plain_shell_and_sees_a_tool_on_the_path(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        "case $* in *compute_cap*) echo 'Field is not a valid field to query'; exit 2;; esac\n"
        "echo '0, GPU-a, NVIDIA L4, 23034, 00000000:00:03.0'\n"
    )
    tool.chmod(0o755)
    shell = shutil.which("dash") or "sh"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SSH_CONNECTION": "192.0.2.9 50000 192.0.2.7 22"}
    done = subprocess.run([shell, "-s"], input=script(), env=env, capture_output=True, text=True, check=True)
    survey = parse(done.stdout)
    assert done.stderr == ""
    assert [device.name for device in survey.machine.accelerators] == ["NVIDIA L4"]
    assert survey.addresses[0] == "192.0.2.7"
    assert abs(survey.clock_s - time.time()) < 60
    assert survey.machine.memory_bytes > 0
    assert survey.machine.disk_bytes > 0


def test_clock_that_is_ten_minutes_off_is_told() -> None:
    now = 1764100000.0
    said = Survey(Machine(1, 1, 1, "x86"))
    right, wrong = (
        _check_clock(replace(said, clock_s=int(now) + off).asked(now, now + 2)) for off in (1, -600)
    )
    assert (right.ok, wrong.ok) == (True, False)
    assert wrong.detail.startswith("599 s")


BOOT = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("started_s", "finished_s", "code", "fell"),
    [
        (-600, -20, 143, True),  # the engine stopped it on its way down
        (-600, 2, 255, True),  # the engine found it dead when it came up
        (-600, -400, 3, False),  # it had failed long before
        (-600, 900, 3, False),  # it lived through the restart, and failed by itself
        (5, 9, 255, False),  # it began after the restart
    ],
)
def test_launch_that_fell_with_its_host_is_told_from_one_that_failed(
    started_s: int, finished_s: int, code: int, fell: bool
) -> None:
    ended = replace(
        SEEN,
        phase=Phase.EXITED,
        exit_code=code,
        started_at=BOOT + timedelta(seconds=started_s),
        finished_at=BOOT + timedelta(seconds=finished_s),
    )
    assert fell_with(ended, BOOT) is fell
    assert not fell_with(ended, None)


# -- how a host is -------------------------------------------------------------------------------


WELL = Machine(1, 1, 2**40, "x86")


@pytest.mark.parametrize(
    ("survey", "why", "fix"),
    [
        (Survey(WELL, apart_s=600.0), "600 s from", "NTP"),
        (Survey(replace(WELL, faults=("no driver",))), "no driver", "install the vendor's driver"),
        (Survey(WELL, ill=(("GPU-a", "XID 79"),)), "GPU-a: XID 79", "restart the machine"),
    ],
    ids=["clock", "driver", "accelerator"],
)
def test_trouble_of_a_host_is_told_with_its_fix(survey: Survey, why: str, fix: str) -> None:
    (found,) = troubles(survey)
    assert why in found.why
    assert fix in found.fix


# -- where launches go ---------------------------------------------------------------------------

GPUS = tuple(Device(n, f"gpu-{n}", "Test One", 2**30, "test") for n in range(4))


def room(host: str, *, taken: int = 0, cpu: float = 8, **fields: Any) -> Room:
    """Return the room of a host with four accelerators."""
    held = frozenset(device.key for device in GPUS[:taken])
    whole = Room(host, 8, 2**33, cpu, 2**33, devices=GPUS, held=held)
    return replace(whole, **fields)


def test_fullest_host_with_room_comes_first() -> None:
    rooms = [room("a"), room("b", taken=3), room("c", taken=2)]
    assert candidates(rooms, Resources(accelerators=1)) == ["b", "c", "a"]
    assert candidates(rooms, Resources(accelerators=2)) == ["c", "a"]


def test_launch_without_accelerators_leaves_machines_with_them_alone() -> None:
    assert candidates([room("a"), room("b", devices=())], Resources(cpu=1)) == ["b", "a"]


def test_equal_hosts_come_in_the_order_of_the_configuration() -> None:
    assert candidates([room("b"), room("a")], Resources(cpu=1)) == ["b", "a"]


wanted = st.builds(
    Resources,
    cpu=st.sampled_from([None, 1.0, 4.0]),
    accelerators=st.integers(0, 4),
    accelerator=st.sampled_from([None, "Test One"]),
)
rooms_of_a_rack = st.lists(
    st.builds(
        room,
        st.just("x"),
        taken=st.integers(0, 4),
        cpu=st.sampled_from([0.0, 1.0, 8.0]),
        blocks=st.sampled_from([None, 1, 2, 4]),
        blocks_held=st.integers(0, 4),
    ),
    min_size=1,
    max_size=4,
).map(lambda rooms: [replace(one, host=f"h{n}") for n, one in enumerate(rooms)])


@settings(max_examples=60, deadline=None)
@given(rooms_of_a_rack, wanted)
def test_chosen_hosts_have_room_and_no_other_host_has(rooms: Sequence[Room], asked: Resources) -> None:
    chosen = candidates(rooms, asked)
    for one in rooms:
        free = sum(device.key not in one.held for device in one.devices)
        has = (asked.cpu or 0) <= one.free_cpu and asked.accelerators <= free
        if one.blocks is not None:
            parts = max(asked.accelerators / 4, (asked.cpu or 0) / one.cpu, 1 / one.blocks)
            has = has and parts <= (one.blocks - one.blocks_held) / one.blocks
        assert (one.host in chosen) == has
    assert len(set(chosen)) == len(chosen)


def test_volumes_move_little_when_a_host_joins() -> None:
    names = [f"data-{n}" for n in range(200)]
    before = {name: spread(name, ["a", "b", "c"])[0] for name in names}
    after = {name: spread(name, ["a", "b", "c", "d"])[0] for name in names}
    moved = [name for name in names if before[name] != after[name]]
    assert {after[name] for name in moved} == {"d"}
    assert 20 < len(moved) < 90


# -- what is kept --------------------------------------------------------------------------------

SEEN = Instance(
    "job-0-0-0", "job", 0, 0, 0, "abc", Phase.RUNNING,
    started_at=datetime(2026, 11, 25, 17, 27, 1, 123456, tzinfo=UTC),
    ports={8080: ("127.0.0.1", 40001)}, devices=("test-0",), machine="gpu-1",
)  # fmt: skip


def test_last_word_of_a_host_is_kept_as_it_was(tmp_path: Path) -> None:
    Memory(tmp_path).keep("gpu-1:22/x", [SEEN])
    assert Memory(tmp_path).last("gpu-1:22/x") == (SEEN,)
    assert Memory(tmp_path).last("gpu-2") is None


def test_silent_host_may_hold_what_it_listed_and_what_was_sent_there(
    tmp_path: Path,
) -> None:
    memory = Memory(tmp_path)
    assert not memory.may_hold("gpu-1", "job-0-0-0")
    memory.keep("gpu-1", [SEEN])
    with memory.claim("job-1-0-0") as claim:
        claim.write("gpu-1")
    assert memory.may_hold("gpu-1", "job-0-0-0")
    assert memory.may_hold("gpu-1", "job-1-0-0")
    assert not memory.may_hold("gpu-1", "job-2-0-0")
    with memory.claim("job-1-0-0") as claim:
        claim.forget()
    assert not memory.may_hold("gpu-1", "job-1-0-0")
