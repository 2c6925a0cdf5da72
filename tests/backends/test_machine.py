"""What a machine has, from recorded answers of the vendors' tools and kernels.

Sources of the recordings, all public: GB10's row and the H100's from users' reports of
``nvidia-smi --query-gpu`` (driver 550 and 580); the MIG listing from Yandex Cloud's page on
MIG (A100-SXM4-80GB); the XML's shape from GPUStack's detector (driver 575.57.08); the minors
from a user's notes on the driver's /proc files; ``rocm-smi`` from marimo issue 9237 (RX 7900
XT) and ROCm/rocm_smi_lib issue 159 (MI250X); ``amd-smi`` names from ROCm/rocm-systems pull
request 2987 (MI350X) in the JSON of ROCm/amdsmi's CLI; the topology from rocmi's tests (MI100)
and ROCm issue 4750 (MI300X in CPX mode).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backends.machine import (
    AMD_SMI,
    NVIDIA_OLD_FIELDS,
    ROCM_SMI,
    Device,
    Found,
    ToolError,
    cut,
    inventory,
    nvidia_query,
    parse_amd_smi,
    parse_kfd_node,
    parse_mig,
    parse_nvidia,
    parse_nvidia_minors,
    parse_rocm_smi,
    run_tool,
    sliced,
)

MIB = 2**20

H100 = (
    "0, GPU-7518f6b0-991f-ce2b-3d37-c779130d3137, NVIDIA H100 80GB HBM3, 81559,"
    " 00000000:18:00.0, Disabled, 9.0\n"
    "1, GPU-b5169cef-2205-c30e-f2b3-220cfa14bafd, NVIDIA H100 80GB HBM3, 81559,"
    " 00000000:2A:00.0, Disabled, 9.0\n"
)
GB10 = "0, GPU-2f0c1b1e-93a1-4d7c-b5c3-6f7f3d1a9e77, NVIDIA GB10, [N/A], 0000000F:01:00.0, [N/A], 12.1\n"
A100_IN_MIG_MODE = (
    "0, GPU-9c73eb7b-8d6d-6c0e-dc13-97873e2ede40, NVIDIA A100-SXM4-80GB, 81920,"
    " 00000000:07:00.0, Enabled, 8.0\n"
    "1, GPU-c92e2d5d-4a69-f1cd-4df0-305f8606705a, NVIDIA A100-SXM4-80GB, 81920,"
    " 00000000:0B:00.0, Enabled, 8.0\n"
)
MIG_LISTING = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-9c73eb7b-8d6d-6c0e-dc13-97873e2ede40)
  MIG 1g.10gb     Device  0: (UUID: MIG-a686709d-6dc2-542a-8851-0d2508448c10)
  MIG 1g.10gb     Device  1: (UUID: MIG-53864714-0a66-5df2-9007-9268e30d9a72)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-c92e2d5d-4a69-f1cd-4df0-305f8606705a)
"""
MIG_REPORT = """\
<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <gpu id="00000000:07:00.0">
    <mig_devices>
      <mig_device><index>0</index><fb_memory_usage><total>9728 MiB</total></fb_memory_usage></mig_device>
      <mig_device><index>1</index><fb_memory_usage><total>N/A</total></fb_memory_usage></mig_device>
    </mig_devices>
    <uuid>GPU-9c73eb7b-8d6d-6c0e-dc13-97873e2ede40</uuid>
    <fb_memory_usage><total>81920 MiB</total></fb_memory_usage>
  </gpu>
  <gpu id="00000000:0B:00.0">
    <mig_devices>None</mig_devices>
    <uuid>GPU-c92e2d5d-4a69-f1cd-4df0-305f8606705a</uuid>
  </gpu>
</nvidia_smi_log>
"""
DRIVER_FILE = """\
Model:           GeForce GTX TITAN X
IRQ:             64
GPU UUID:        GPU-4ce175fe-a313-4c4a-d620-560e96e8ef2e
Bus Type:        PCIe
Bus Location:    0000:18:00.0
Device Minor:    1
"""
RX_7900 = """\
{
  "card0": {
    "GPU use (%)": "0",
    "VRAM Total Memory (B)": "21458059264",
    "VRAM Total Used Memory (B)": "27856896",
    "Card Series": "Radeon RX 7900 XT",
    "Card Model": "0x744c",
    "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]",
    "GUID": "26967",
    "GFX Version": "gfx1100"
  }
}
"""
MI250X_BEFORE_ROCM_6 = """\
WARNING: something about the driver
{"card0": {"Unique ID": "0x3d4595974090853c", "VRAM Total Memory (B)": "68702699520",
 "Card series": "AMD INSTINCT MI200 (MCM) OAM LC MBA HPE C2", "Card model": "0x7408",
 "PCI Bus": "0000:C9:00.0"}, "system": {"Driver version": "5.16.9"}}
"""
MI350X = {
    "gpu": 0,
    "asic": {
        "market_name": "AMD Instinct MI350X",
        "vendor_id": "0x1002",
        "device_id": "0x75a0",
        "asic_serial": "0xCE5D239FE548AF74",
        "oam_id": 6,
        "num_compute_units": 128,
        "target_graphics_version": "gfx950",
    },
    "bus": {"bdf": "0000:05:00.0", "max_pcie_width": 16},
    "vram": {"type": "HBM3E", "vendor": "N/A", "size": {"value": 294896, "unit": "MB"}, "bit_width": 8192},
}
MI100_NODE = """\
cpu_cores_count 0
simd_count 480
gfx_target_version 90008
vendor_id 4098
device_id 29580
location_id 8960
domain 0
drm_render_minor 128
unique_id 7809984429061111111
"""
MI300X_BANK = "heap_type 1\nsize_in_bytes 25767706624\nflags 0\nwidth 8192\nmem_clk_max 1300\n"
SYSTEM_BANK = "heap_type 0\nsize_in_bytes 540000000000\nflags 0\nwidth 72\nmem_clk_max 4800\n"


# -- NVIDIA --------------------------------------------------------------------------------------


def test_nvidia_row_becomes_a_device() -> None:
    first, second = parse_nvidia(H100).devices
    assert first == Device(
        index=0,
        uuid="GPU-7518f6b0-991f-ce2b-3d37-c779130d3137",
        name="NVIDIA H100 80GB HBM3",
        vram_bytes=81559 * MIB,
        vendor="nvidia",
        compute_capability=(9, 0),
        paths=("/dev/nvidia0",),
        bus="0000:18:00.0",
    )
    assert (second.index, second.bus) == (1, "0000:2a:00.0")


def test_device_file_has_the_driver_s_number_and_not_the_index() -> None:
    minors = parse_nvidia_minors([DRIVER_FILE])
    first, second = parse_nvidia(H100, minors=minors).devices
    assert (first.paths, second.paths) == (("/dev/nvidia1",), ("/dev/nvidia1",))
    assert minors == {"0000:18:00.0": 1}


def test_shared_memory_counts_as_the_machine_s() -> None:
    (device,) = parse_nvidia(GB10, unified_bytes=128 * 10**9).devices
    assert (device.vram_bytes, device.compute_capability, device.bus) == (
        128 * 10**9,
        (12, 1),
        "000f:01:00.0",
    )


def test_old_driver_s_row_has_no_capability() -> None:
    (device,) = parse_nvidia("0, GPU-a, Tesla K80, 11441, 00000000:00:04.0\n").devices
    assert (device.name, device.compute_capability) == ("Tesla K80", None)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1, GPU-b, NVIDIA L4, [GPU requires reset], 00000000:04:00.0, [N/A], 8.9", "GPU requires reset"),
        ("Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.", "GPU is lost"),
    ],
)
def test_broken_gpu_is_a_fault_beside_the_others(line: str, fault: str) -> None:
    found = parse_nvidia(H100 + line)
    assert len(found.devices) == 2
    assert fault in found.faults[0]


def test_slices_stand_for_their_gpu() -> None:
    whole = parse_nvidia(A100_IN_MIG_MODE).devices[0]
    slices = parse_mig(MIG_LISTING, MIG_REPORT)
    assert sliced(A100_IN_MIG_MODE) == {gpu.uuid for gpu in parse_nvidia(A100_IN_MIG_MODE).devices}
    first, second = cut(whole, slices[whole.uuid])
    assert (first.uuid, first.name, first.vram_bytes) == (
        "MIG-a686709d-6dc2-542a-8851-0d2508448c10",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        9728 * MIB,
    )
    assert second.vram_bytes == 0
    assert first.key != second.key


# -- AMD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [[MI350X], {"gpu_data": [MI350X]}], ids=["rocm6", "rocm7"])
def test_amd_smi_entry_becomes_a_device(answer: object) -> None:
    text = "WARNING: User is missing the following required groups: render\n" + json.dumps(answer)
    (device,) = parse_amd_smi(text, render={"0000:05:00.0": "/dev/dri/renderD129"}).devices
    assert device == Device(
        index=0,
        uuid="0xCE5D239FE548AF74",
        name="AMD Instinct MI350X",
        vram_bytes=294896 * MIB,
        vendor="amd",
        paths=("/dev/kfd", "/dev/dri/renderD129"),
        bus="0000:05:00.0",
    )


def test_rocm_smi_card_becomes_a_device() -> None:
    (device,) = parse_rocm_smi(RX_7900).devices
    assert (device.name, device.vram_bytes, device.paths) == ("Radeon RX 7900 XT", 21458059264, ("/dev/kfd",))


def test_rocm_smi_s_older_keys_are_read() -> None:
    (device,) = parse_rocm_smi(MI250X_BEFORE_ROCM_6).devices
    assert (device.name, device.uuid, device.bus) == (
        "AMD INSTINCT MI200 (MCM) OAM LC MBA HPE C2",
        "0x3d4595974090853c",
        "0000:c9:00.0",
    )


@pytest.mark.parametrize("parse", [parse_amd_smi, parse_rocm_smi])
@pytest.mark.parametrize(
    "text",
    ["", "ERROR: driver not loaded", "[1, 2", "null", "[3]", '{"card0": 3}', '{"cards": {}}'],
)
def test_answer_without_devices_is_no_exception(parse: object, text: str) -> None:
    assert callable(parse)
    assert parse(text).devices == ()


def test_partitions_of_one_gpu_have_keys_of_their_own() -> None:
    other = replace(parse_amd_smi(json.dumps([MI350X])).devices[0], bus="0000:05:00.1")
    assert other.key != parse_amd_smi(json.dumps([MI350X])).devices[0].key


def test_kernel_s_bank_of_its_own_counts_and_the_system_s_does_not() -> None:
    properties, vram_bytes = parse_kfd_node(MI100_NODE, [SYSTEM_BANK, MI300X_BANK])
    assert (properties["drm_render_minor"], vram_bytes) == (128, 25767706624)


# -- the machine ---------------------------------------------------------------------------------


class Tools:
    """Vendors' tools that answer from a recording."""

    def __init__(self, answers: dict[Sequence[str], str | Exception]) -> None:
        self.answers = answers

    def __call__(self, command: Sequence[str]) -> str:
        answer = self.answers.get(command, FileNotFoundError(command[0]))
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Lend a root with the kernel's files of a machine of four CPUs and 16 GiB."""
    write(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    write(tmp_path, "proc/self/status", "Name: x\nCpus_allowed_list:\t0-2,5\n")
    write(tmp_path, "proc/self/cgroup", "0::/user.slice/job\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    """Write a file of the kernel's."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_machine_without_tools_has_no_accelerators_and_no_faults(root: Path) -> None:
    seen = inventory(run=Tools({}), root=root)
    assert (seen.cpu, seen.memory_bytes, seen.accelerators, seen.faults) == (4.0, 16 * 2**30, (), ())
    assert seen.disk_bytes > 0


def test_tightest_cgroup_above_us_limits_the_machine(root: Path) -> None:
    write(root, "sys/fs/cgroup/user.slice/memory.max", f"{2**30}\n")
    write(root, "sys/fs/cgroup/user.slice/job/memory.max", "max\n")
    write(root, "sys/fs/cgroup/user.slice/job/cpu.max", "150000 100000\n")
    seen = inventory(run=Tools({}), root=root)
    assert (seen.cpu, seen.memory_bytes) == (1.5, 2**30)


def test_first_version_of_cgroups_limits_the_machine(root: Path) -> None:
    write(root, "proc/self/cgroup", "8:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a\n")
    write(root, "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes", "536870912\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root, "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us", "50000\n")
    write(root, "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us", "100000\n")
    (root / "sys/fs/cgroup/cpu").symlink_to("cpu,cpuacct")  # as distributions do
    seen = inventory(run=Tools({}), root=root)
    assert (seen.cpu, seen.memory_bytes) == (0.5, 536870912)


def test_machine_with_both_vendors_has_both(root: Path) -> None:
    tools = Tools({nvidia_query(): H100, AMD_SMI: json.dumps([MI350X])})
    names = [device.name for device in inventory(run=tools, root=root).accelerators]
    assert names == ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", "AMD Instinct MI350X"]


def test_driver_that_does_not_know_a_field_is_asked_for_less(root: Path) -> None:
    refusal = ToolError('nvidia-smi failed (2): Field "compute_cap" is not a valid field to query.')
    old = nvidia_query(NVIDIA_OLD_FIELDS)
    tools = Tools({nvidia_query(): refusal, old: "0, GPU-a, Tesla K80, 11441, 00000000:00:04.0\n"})
    seen = inventory(run=tools, root=root)
    assert ([device.name for device in seen.accelerators], seen.faults) == (["Tesla K80"], ())


def test_driver_without_gpus_is_no_fault(root: Path) -> None:
    tools = Tools({nvidia_query(): ToolError("nvidia-smi failed (6): No devices were found")})
    assert inventory(run=tools, root=root).faults == ()


def test_driver_that_fails_is_a_fault(root: Path) -> None:
    words = "Failed to initialize NVML: Driver/library version mismatch"
    tools = Tools({nvidia_query(): ToolError(f"nvidia-smi failed (18): {words}")})
    seen = inventory(run=tools, root=root)
    assert seen.accelerators == ()
    assert words in seen.faults[0]


def test_gpus_without_their_tool_are_a_fault(root: Path) -> None:
    write(root, "proc/driver/nvidia/gpus/0000:18:00.0/information", DRIVER_FILE)
    (fault,) = inventory(run=Tools({}), root=root).faults
    assert "1 NVIDIA GPU(s) but no nvidia-smi" in fault


def test_gpu_in_mig_mode_without_slices_is_a_fault(root: Path) -> None:
    tools = Tools(
        {
            nvidia_query(): A100_IN_MIG_MODE,
            ("nvidia-smi", "-L"): MIG_LISTING,
            ("nvidia-smi", "-q", "-x"): MIG_REPORT,
        }
    )
    seen = inventory(run=tools, root=root)
    assert [device.name for device in seen.accelerators] == ["NVIDIA A100-SXM4-80GB MIG 1g.10gb"] * 2
    assert "GPU 1" in seen.faults[0]


def test_older_tool_answers_where_the_newer_fails(root: Path) -> None:
    tools = Tools({AMD_SMI: ToolError("amd-smi failed (1)"), ROCM_SMI: RX_7900})
    (device,) = inventory(run=tools, root=root).accelerators
    assert device.name == "Radeon RX 7900 XT"


def test_kernel_answers_where_no_tool_does(root: Path) -> None:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    write(root, f"{nodes}/0/properties", "cpu_cores_count 64\nsimd_count 0\ndrm_render_minor 0\n")
    write(root, f"{nodes}/1/properties", MI100_NODE)
    write(root, f"{nodes}/1/mem_banks/0/properties", MI300X_BANK)
    pci = root / "sys/devices/pci0000:20/0000:23:00.0"
    write(root, "sys/devices/pci0000:20/0000:23:00.0/device", "0x738c\n")
    (root / "sys/class/drm/renderD128").mkdir(parents=True)
    (root / "sys/class/drm/renderD128/device").symlink_to(pci)
    (device,) = inventory(run=Tools({}), root=root).accelerators
    assert device == Device(
        index=0,
        uuid=f"0x{7809984429061111111:x}",
        name="0x738c",
        vram_bytes=25767706624,
        vendor="amd",
        paths=("/dev/kfd", "/dev/dri/renderD128"),
        bus="0000:23:00.0",
    )


def test_render_node_follows_from_the_bus(root: Path) -> None:
    (root / "sys/bus/pci/devices/0000:05:00.0/drm/renderD130").mkdir(parents=True)
    (device,) = inventory(run=Tools({AMD_SMI: json.dumps([MI350X])}), root=root).accelerators
    assert device.paths == ("/dev/kfd", "/dev/dri/renderD130")


# -- tools ---------------------------------------------------------------------------------------


def test_tool_s_output_is_returned() -> None:
    assert run_tool((sys.executable, "-c", "print(6 * 7)")) == "42\n"


def test_tool_that_hangs_is_given_up() -> None:
    with pytest.raises(ToolError, match=r"did not answer within 0\.2 s"):
        run_tool(("sleep", "60"), timeout_s=0.2)


def test_tool_whose_child_keeps_its_output_open_is_given_up() -> None:
    with pytest.raises(ToolError, match="did not answer"):
        run_tool(("sh", "-c", "sleep 60 & exit 0"), timeout_s=0.2)


def test_tool_that_fails_says_its_first_line() -> None:
    with pytest.raises(ToolError, match=r"sh failed \(9\): no driver"):
        run_tool(("sh", "-c", "echo; echo no driver >&2; echo more; exit 9"))


def test_tool_that_is_missing_is_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        run_tool(("/nonexistent/nvidia-smi",))


def test_tool_that_may_not_be_run_is_a_fault(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("no program")
    tool.chmod(0o755)
    with pytest.raises(ToolError, match="cannot be run"):
        run_tool((str(tool),))


def test_report_that_is_no_xml_is_a_fault(root: Path) -> None:
    tools = Tools(
        {
            nvidia_query(): A100_IN_MIG_MODE,
            ("nvidia-smi", "-L"): MIG_LISTING,
            ("nvidia-smi", "-q", "-x"): "Segmentation fault",
        }
    )
    seen = inventory(run=tools, root=root)
    assert seen.accelerators == ()
    assert "nvidia-smi -q -x" in seen.faults[0]


def test_nothing_found_is_nothing_wrong() -> None:
    assert parse_nvidia("No devices were found\n") == Found()
