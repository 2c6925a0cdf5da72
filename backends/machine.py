"""What a machine has: CPU, memory, disk, and the accelerators its vendors' tools report.

Reading a machine is split in two. The ``parse_*`` functions turn the text of one tool into
devices and touch nothing, so that text fetched from another host goes through the same ones;
``inventory`` fetches the text of this machine. A tool that hangs or fails is a fault in the
answer and never an exception: a machine with a broken driver still runs CPU work.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from orchestrator.frozen import frozen

MIB = 2**20
TOOL_TIMEOUT_S = 20.0
"""``nvidia-smi`` without the persistence daemon wakes every GPU first: seconds on eight of them."""

NVIDIA_FIELDS = ("index", "uuid", "name", "memory.total", "pci.bus_id", "mig.mode.current", "compute_cap")
NVIDIA_OLD_FIELDS = NVIDIA_FIELDS[:5]
"""Drivers before 510 refuse the whole query for one field they do not know."""

AMD_SMI = ("amd-smi", "static", "--asic", "--bus", "--vram", "--json")
ROCM_SMI = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showuniqueid", "--showbus", "--json")


@frozen
class Device:
    """One accelerator, named as its vendor's tool spells it.

    ``vram_bytes`` is what the driver shows. ``paths`` are the device files a container needs,
    ``groups`` the ids of the groups that may open them, known where the machine is another one.
    ``bus`` is the PCI address, lower case, ``0000:18:00.0``.
    """

    index: int
    uuid: str
    name: str
    vram_bytes: int
    vendor: str
    compute_capability: tuple[int, int] | None = None
    paths: tuple[str, ...] = ()
    bus: str = ""
    groups: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return what tells this device from the others of its machine, across restarts.

        NVIDIA's slices share an address and have UUIDs of their own; AMD's partitions share a
        serial number and have addresses of their own.
        """
        names = (self.uuid, self.bus) if self.vendor == "nvidia" else (self.bus, self.uuid)
        return next(filter(None, names), f"{self.vendor}-{self.index}")


@frozen
class Found:
    """The devices in one tool's answer, and what was wrong with it."""

    devices: tuple[Device, ...] = ()
    faults: tuple[str, ...] = ()


@frozen
class Machine:
    """What a machine has for us, inside the limits that this process runs under.

    ``disk_bytes`` is what is free. ``faults`` are tools that did not answer, in words for a user.
    """

    cpu: float
    memory_bytes: int
    disk_bytes: int
    arch: str
    accelerators: tuple[Device, ...] = ()
    faults: tuple[str, ...] = field(default=())


class ToolError(Exception):
    """A vendor's tool hung or failed; the text says how."""


Run = Callable[[Sequence[str]], str]
"""Runs a command and returns its output; raises FileNotFoundError or ``ToolError``."""


def run_tool(command: Sequence[str], *, timeout_s: float = TOOL_TIMEOUT_S) -> str:
    """Return what ``command`` writes to stdout.

    Raises:
        FileNotFoundError: the tool is not installed.
        ToolError: it failed, or did not answer within ``timeout_s``.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ToolError(f"{command[0]} cannot be run: {error.strerror}") from error
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _abandon(process)
        raise ToolError(f"{command[0]} did not answer within {timeout_s:g} s") from None
    if process.returncode != 0:
        first = next((line.strip() for line in output.splitlines() if line.strip()), "")
        raise ToolError(f"{command[0]} failed ({process.returncode}): {first}".removesuffix(": "))
    return output


def _abandon(process: subprocess.Popen[str]) -> None:
    """Kill a tool without waiting for ever: one stuck in the driver cannot be killed."""
    os.killpg(process.pid, signal.SIGKILL)
    if process.stdout:
        process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def inventory(*, run: Run = run_tool, root: Path = Path("/")) -> Machine:
    """Return what this machine has.

    Args:
        run: Runs a vendor's tool.
        root: Where ``/proc`` and ``/sys`` are found.
    """
    memory_bytes = min(_memory_total(root), *_cgroup_memory(root))
    nvidia = find_nvidia(run, minors=_nvidia_minors(root), unified_bytes=memory_bytes)
    amd = find_amd(run, render=_render_nodes(root), kernel=lambda: _kfd_nodes(root))
    disk = os.statvfs(root)
    return Machine(
        cpu=min(float(_cpus_allowed(root)), *_cgroup_cpu(root)),
        memory_bytes=memory_bytes,
        disk_bytes=disk.f_bavail * disk.f_frsize,
        arch=arch_name(os.uname().machine),
        accelerators=nvidia.devices + amd.devices,
        faults=nvidia.faults + amd.faults,
    )


def arch_name(machine: str) -> str:
    """Return our word for what ``uname -m`` and ``docker info`` call a processor.

    >>> arch_name("x86_64"), arch_name("aarch64"), arch_name("riscv64")
    ('x86', 'arm', 'riscv64')
    """
    known = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
    return known.get(machine.lower(), machine.lower())


# -- NVIDIA ----------------------------------------------------------------------------------


def nvidia_query(fields: Sequence[str] = NVIDIA_FIELDS) -> tuple[str, ...]:
    """Return the command whose output ``parse_nvidia`` reads."""
    return ("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")


def parse_nvidia(text: str, *, unified_bytes: int = 0, minors: Mapping[str, int] | None = None) -> Found:
    """Return the GPUs in the output of ``nvidia_query``, with new or old fields.

    Args:
        text: One line per GPU.
        unified_bytes: Memory of the machine, for GPUs that share it and report ``[N/A]`` (GB10).
        minors: PCI address to the number in ``/dev/nvidia<number>``; the index where missing.

    >>> line = "0, GPU-5fd4f087, NVIDIA L4, 23034, 00000000:00:03.0, [N/A], 8.9"
    >>> [(d.name, d.vram_bytes // 2**20, d.compute_capability) for d in parse_nvidia(line).devices]
    [('NVIDIA L4', 23034, (8, 9))]
    """
    devices, faults = [], []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line == "No devices were found":
            continue
        parts = [part.strip() for part in line.split(",")]
        if len(parts) not in (len(NVIDIA_FIELDS), len(NVIDIA_OLD_FIELDS)) or not parts[0].isdecimal():
            faults.append(f"nvidia-smi: {line}")
            continue
        index, uuid, name, memory, bus, *rest = parts
        bus = _pci_address(bus)
        if not memory.isdecimal() and memory not in ("[N/A]", "[Not Supported]"):
            faults.append(f"nvidia-smi: GPU {index} ({name}): {memory.strip('[]')}")
            continue
        devices.append(
            Device(
                index=int(index),
                uuid=uuid,
                name=name,
                vram_bytes=int(memory) * MIB if memory.isdecimal() else unified_bytes,
                vendor="nvidia",
                compute_capability=_capability(rest[1]) if rest else None,
                paths=(f"/dev/nvidia{(minors or {}).get(bus, int(index))}",),
                bus=bus,
            )
        )
    return Found(tuple(devices), tuple(faults))


def sliced(text: str) -> frozenset[str]:
    """Return the UUIDs of the GPUs in the output of ``nvidia_query`` that are in MIG mode.

    >>> sliced("0, GPU-a, NVIDIA H100 80GB HBM3, 81559, 00000000:18:00.0, Enabled, 9.0")
    frozenset({'GPU-a'})
    """
    rows = ([part.strip() for part in line.split(",")] for line in text.splitlines())
    return frozenset(row[1] for row in rows if len(row) == len(NVIDIA_FIELDS) and row[5] == "Enabled")


def parse_mig(listing: str, report: str) -> dict[str, tuple[tuple[str, str, int], ...]]:
    """Return the MIG slices of each GPU: its UUID to ``(slice UUID, profile, bytes)``.

    Only ``nvidia-smi -L`` prints the UUIDs of slices and only ``nvidia-smi -q -x`` their
    memory; both number them alike within a GPU.

    Raises:
        ToolError: the report is no XML.
    """
    from xml.etree import ElementTree  # only machines with slices pay for it

    try:
        gpus = ElementTree.fromstring(report).iter("gpu")
    except ElementTree.ParseError as error:
        raise ToolError(f"nvidia-smi -q -x: {error}") from error
    memory: dict[tuple[str, int], int] = {}
    for gpu in gpus:
        for piece in gpu.iter("mig_device"):
            total = piece.findtext("fb_memory_usage/total", "").partition(" ")[0]
            size = int(total) * MIB if total.isdecimal() else 0
            memory[gpu.findtext("uuid", ""), int(piece.findtext("index", "0"))] = size
    slices: dict[str, tuple[tuple[str, str, int], ...]] = {}
    uuid = ""
    for line in listing.splitlines():
        if whole := re.match(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)", line):
            uuid = whole[1]
        elif part := re.match(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)]+)\)", line):
            found = (part[3], part[1], memory.get((uuid, int(part[2])), 0))
            slices[uuid] = (*slices.get(uuid, ()), found)
    return slices


def cut(device: Device, slices: Sequence[tuple[str, str, int]]) -> tuple[Device, ...]:
    """Return the MIG slices of ``device`` as devices of their own.

    >>> gpu = Device(0, "GPU-a", "NVIDIA A100-SXM4-80GB", 80 * 2**30, "nvidia")
    >>> [d.name for d in cut(gpu, [("MIG-b", "1g.10gb", 9728 * 2**20)])]
    ['NVIDIA A100-SXM4-80GB MIG 1g.10gb']
    """
    return tuple(
        replace(device, uuid=uuid, name=f"{device.name} MIG {profile}", vram_bytes=size)
        for uuid, profile, size in slices
    )


def parse_nvidia_minors(files: Iterable[str]) -> dict[str, int]:
    """Return PCI address to device number from ``/proc/driver/nvidia/gpus/*/information``."""
    minors = {}
    for text in files:
        bus = re.search(r"^Bus Location:\s*(\S+)", text, re.MULTILINE)
        minor = re.search(r"^Device Minor:\s*(\d+)", text, re.MULTILINE)
        if bus and minor:
            minors[_pci_address(bus[1])] = int(minor[1])
    return minors


def find_nvidia(run: Run, *, minors: Mapping[str, int], unified_bytes: int) -> Found:
    """Return the GPUs that ``nvidia-smi`` reports through ``run``, cut into slices where they are.

    Args:
        run: Runs the tool, or has its answers ready.
        minors: What ``parse_nvidia_minors`` found.
        unified_bytes: Memory of the machine, for GPUs that share it.
    """
    try:
        text = _nvidia_text(run)
        found = parse_nvidia(text, unified_bytes=unified_bytes, minors=minors)
        in_mig_mode = sliced(text)
        if not in_mig_mode:
            return found
        slices = parse_mig(run(("nvidia-smi", "-L")), run(("nvidia-smi", "-q", "-x")))
    except FileNotFoundError:
        missing = f"{len(minors)} NVIDIA GPU(s) but no nvidia-smi: install the driver's utilities"
        return Found(faults=(missing,) if minors else ())
    except ToolError as fault:
        return Found(faults=(str(fault),))
    return _with_slices(found, in_mig_mode, slices)


def _nvidia_minors(root: Path) -> dict[str, int]:
    files = sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
    return parse_nvidia_minors(text for path in files if (text := _read(path)))


def _with_slices(
    found: Found, in_mig_mode: frozenset[str], slices: Mapping[str, Sequence[tuple[str, str, int]]]
) -> Found:
    """Put slices in the place of the GPUs they are cut from; CUDA cannot use the whole then."""
    devices: list[Device] = []
    faults = list(found.faults)
    for whole in found.devices:
        pieces = cut(whole, slices.get(whole.uuid, ())) if whole.uuid in in_mig_mode else (whole,)
        if not pieces:
            faults.append(f"nvidia-smi: GPU {whole.index} ({whole.name}) is in MIG mode and has no slices")
        devices += pieces
    return Found(tuple(devices), tuple(faults))


def _nvidia_text(run: Run) -> str:
    try:
        return run(nvidia_query())
    except ToolError as fault:
        text = str(fault)
        if "No devices were found" in text:  # exit code 6: the driver is there, the GPUs are not
            return ""
        if "not a valid field" not in text:
            raise
        return run(nvidia_query(NVIDIA_OLD_FIELDS))


def _capability(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _pci_address(text: str) -> str:
    """Return the kernel's spelling: ``nvidia-smi`` writes the domain with eight digits."""
    return re.sub(r"^0000(?=[0-9a-f]{4}:)", "", text.strip().lower())


# -- AMD -------------------------------------------------------------------------------------


def parse_amd_smi(text: str, *, render: Mapping[str, str] | None = None) -> Found:
    """Return the GPUs in the output of ``amd-smi static --asic --bus --vram --json``.

    Before ROCm 7 the answer is a list, since then an object with ``gpu_data``. ``render`` maps
    PCI addresses to render nodes.
    """
    found = _json_after_warnings(text)
    entries = found.get("gpu_data", []) if isinstance(found, dict) else found
    if not isinstance(entries, list):
        return Found(faults=("amd-smi: no JSON in its answer",))
    devices = []
    for position, entry in enumerate(filter(lambda entry: isinstance(entry, dict), entries)):
        asic, vram = entry.get("asic", {}), entry.get("vram", {})
        bus = _pci_address(str(entry.get("bus", {}).get("bdf", "")))
        devices.append(
            Device(
                index=int(entry.get("gpu", position)),
                uuid=_known(asic.get("asic_serial")),
                name=_known(asic.get("market_name")) or _known(asic.get("device_id")),
                vram_bytes=_amd_bytes(vram.get("size", vram.get("vram_size"))),
                vendor="amd",
                paths=_amd_paths(bus, render or {}),
                bus=bus,
            )
        )
    return Found(tuple(devices))


def parse_rocm_smi(text: str, *, render: Mapping[str, str] | None = None) -> Found:
    """Return the GPUs in the JSON of ``rocm-smi``; its keys changed their case with ROCm 6."""
    found = _json_after_warnings(text)
    if not isinstance(found, dict):
        return Found(faults=("rocm-smi: no JSON in its answer",))
    devices = []
    for card, raw in found.items():
        if not re.fullmatch(r"card\d+", card) or not isinstance(raw, dict):
            continue  # "system" carries the driver's version
        entry = {key.lower(): _known(value) for key, value in raw.items()}
        bus, vram = _pci_address(entry.get("pci bus", "")), entry.get("vram total memory (b)", "")
        devices.append(
            Device(
                index=int(card.removeprefix("card")),
                uuid=entry.get("unique id", ""),
                name=entry.get("card series") or entry.get("device name") or entry.get("card model", ""),
                vram_bytes=int(vram) if vram.isdecimal() else 0,
                vendor="amd",
                paths=_amd_paths(bus, render or {}),
                bus=bus,
            )
        )
    return Found(tuple(devices))


def parse_kfd_node(properties: str, banks: Iterable[str]) -> tuple[dict[str, int], int]:
    """Return a node's properties and its device memory, from the kernel's compute topology.

    Heap types 1 and 2 are the device's own memory, visible to the CPU or not
    (linux/include/uapi/linux/kfd_sysfs.h).
    """
    own = (bank for bank in map(_numbers, banks) if bank.get("heap_type") in (1, 2))
    return _numbers(properties), sum(bank.get("size_in_bytes", 0) for bank in own)


@frozen
class KfdNode:
    """One node of the kernel's compute topology, as texts of its files, and its device's address."""

    properties: str
    banks: tuple[str, ...] = ()
    name: str = ""
    bus: str = ""


def kfd_devices(nodes: Iterable[KfdNode]) -> tuple[Device, ...]:
    """Return the GPUs among ``nodes``, numbered in their order; the CPU is a node too.

    >>> node = KfdNode("simd_count 304\\ndrm_render_minor 128", ("heap_type 1\\nsize_in_bytes 64",), "MI210")
    >>> [(d.name, d.vram_bytes, d.paths[-1]) for d in kfd_devices([KfdNode("simd_count 0"), node])]
    [('MI210', 64, '/dev/dri/renderD128')]
    """
    devices: list[Device] = []
    for node in nodes:
        properties, vram_bytes = parse_kfd_node(node.properties, node.banks)
        minor = properties.get("drm_render_minor", 0)
        if not properties.get("simd_count") or not minor:
            continue
        unique = properties.get("unique_id", 0)
        devices.append(
            Device(
                index=len(devices),
                uuid=f"0x{unique:x}" if unique else "",
                name=node.name,
                vram_bytes=vram_bytes,
                vendor="amd",
                paths=("/dev/kfd", f"/dev/dri/renderD{minor}"),
                bus=node.bus,
            )
        )
    return tuple(devices)


TPUS: Mapping[str, tuple[str, int]] = {
    "0x005e": ("tpu-v4", 32), "0x0062": ("tpu-v5p", 95), "0x0063": ("tpu-v5e", 16), "0x006f": ("tpu-v6e", 32),
}  # fmt: skip
"""Google's TPU chips by PCI device id, with their GiB (jax-ml/jax, jax/_src/hardware_utils.py)."""


def tpu_devices(chips: Iterable[tuple[str, str]], files: Iterable[str]) -> tuple[Device, ...]:
    """Return the TPU chips of a machine.

    Args:
        chips: PCI address and device id of everything of Google's.
        files: Device files: ``/dev/accel0`` and so on, or VFIO groups, which share ``/dev/vfio/vfio``.

    >>> plugged = [("0000:00:05.0", "0x0063"), ("0000:00:01.0", "0x0042")]
    >>> found = tpu_devices(plugged, ["/dev/vfio/0", "/dev/vfio/vfio"])
    >>> [(each.name, each.vram_bytes // 2**30, each.paths) for each in found]
    [('tpu-v5e', 16, ('/dev/vfio/0', '/dev/vfio/vfio'))]
    """
    known = sorted((bus, *TPUS[kind]) for bus, kind in chips if kind in TPUS)
    named = [file for file in files if re.search(r"/(accel|vfio/)\d+$", file)]
    own = sorted(named, key=lambda file: int(re.findall(r"\d+", file)[-1]))
    shared = tuple(file for file in files if file.endswith("/vfio/vfio"))
    return tuple(
        Device(
            index=index, uuid="", name=name, vram_bytes=gib * 2**30, vendor="google", bus=bus,
            paths=(file, *shared),
        )
        for index, ((bus, name, gib), file) in enumerate(zip(known, own, strict=False))
    )  # fmt: skip


def find_amd(run: Run, *, render: Mapping[str, str], kernel: Callable[[], Iterable[KfdNode]]) -> Found:
    """Return AMD's GPUs: its tools are asked through ``run``, newest first, then the kernel.

    Args:
        run: Runs a tool, or has its answers ready.
        render: PCI address to render node.
        kernel: Reads the compute topology, where no tool knows a GPU.
    """
    faults: list[str] = []
    tools = ((AMD_SMI, parse_amd_smi), (ROCM_SMI, parse_rocm_smi))
    for command, parse in tools:
        try:
            found = parse(run(command), render=render)
        except FileNotFoundError:
            continue
        except ToolError as fault:
            faults.append(str(fault))
            continue
        if found.devices:
            return found
        faults += found.faults
    return Found(kfd_devices(kernel()), tuple(faults))


def _kfd_nodes(root: Path) -> Iterator[KfdNode]:
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    for node in sorted(nodes.glob("*"), key=lambda path: int(path.name)):
        properties = _read(node / "properties")
        minor = _numbers(properties).get("drm_render_minor", 0)
        device = root / f"sys/class/drm/renderD{minor}/device"
        yield KfdNode(
            properties,
            tuple(_read(path) for path in sorted(node.glob("mem_banks/*/properties"))),
            _read(device / "product_name").strip() or _read(device / "device").strip(),
            device.resolve().name if device.exists() else "",
        )


def _render_nodes(root: Path) -> dict[str, str]:
    """Return PCI address to ``/dev/dri/renderD…``."""
    return {
        path.parent.parent.name: f"/dev/dri/{path.name}"
        for path in sorted(root.glob("sys/bus/pci/devices/*/drm/renderD*"))
    }


def _amd_paths(bus: str, render: Mapping[str, str]) -> tuple[str, ...]:
    return ("/dev/kfd", *((render[bus],) if bus in render else ()))


def _amd_bytes(size: object) -> int:
    """Return bytes from ``{"value": 196592, "unit": "MB"}``; the tool's MB are 2^20 bytes."""
    if not isinstance(size, dict) or not str(size.get("value", "")).isdecimal():
        return 0
    return int(size["value"]) * {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}[size.get("unit", "MB")]


def _known(value: object) -> str:
    text = str(value or "").strip()
    return "" if text in ("N/A", "None") else text


def _json_after_warnings(text: str) -> object:
    """Return the JSON that follows the warnings these tools print before it, or None."""
    for start in (match.start() for match in re.finditer(r"^[\[{]", text, re.MULTILINE)):
        try:
            found: object = json.JSONDecoder().raw_decode(text, start)[0]
        except ValueError:
            continue
        return found
    return None


# -- the kernel's files ------------------------------------------------------------------------


def _read(path: Path) -> str:
    """Return a file's text; a file the kernel does not have reads as empty."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _numbers(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _memory_total(root: Path) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _cpus_allowed(root: Path) -> int:
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", _read(root / "proc/self/status"), re.MULTILINE)
    return count_cpus(found[1]) if found else os.cpu_count() or 1


def count_cpus(ranges: str) -> int:
    """Return how many CPUs a kernel list names.

    >>> count_cpus("0-3,8"), count_cpus("0")
    (5, 1)
    """
    ends = (part.partition("-") for part in ranges.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Return our cgroup and those above it, for version 2 and for version 1's ``controller``."""
    folders: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if names else "")
        own = Path(path.lstrip("/"))
        folders += [top / own, *(top / above for above in own.parents)]
    return folders


def _cgroup_memory(root: Path) -> list[int]:
    texts = (
        _read(folder / name).strip()
        for folder in _cgroup_folders(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    )
    return [int(text) for text in texts if text.isdecimal()] or [2**63 - 1]


def _cgroup_cpu(root: Path) -> list[float]:
    limits = [float("inf")]
    for folder in _cgroup_folders(root, "cpu"):
        quota, period = [*_read(folder / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota = _read(folder / "cpu.cfs_quota_us").strip()
            period = _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal():  # "max" and -1 are no limit
            limits.append(int(quota) / int(period))
    return limits
