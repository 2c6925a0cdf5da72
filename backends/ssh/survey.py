"""What a host is and how it is: one shell script for the host, and its answer read.

One script, because every command on the host costs a process of its sshd. It needs a POSIX
shell and nothing that would have to be installed; each tool that is there adds to the answer.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

from backends.machine import (
    AMD_SMI,
    NVIDIA_OLD_FIELDS,
    ROCM_SMI,
    Device,
    KfdNode,
    Machine,
    ToolError,
    arch_name,
    find_amd,
    find_nvidia,
    nvidia_query,
    parse_nvidia_minors,
    tpu_devices,
)
from orchestrator.frozen import frozen

TOOL_S = 20
"""How long a vendor's tool may take: without the persistence daemon it wakes every GPU first."""

ECC = ("nvidia-smi", "--query-gpu=uuid,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader")

FATAL_XIDS: Mapping[int, str] = {
    48: "double-bit memory error",
    64: "memory row could not be remapped",
    74: "NVLink error",
    79: "fell off the bus",
    95: "uncontained memory error",
    119: "its firmware does not answer",
    120: "error in its firmware",
}
"""Driver messages after which a GPU needs its machine restarted, or replaced; the others are mostly
of programs (NVIDIA, "XID Errors", r555, tables of causes)."""

_BEGIN = "@@ modelyard survey"


def script() -> str:
    """Return the shell script whose output ``parse`` reads."""
    query, old = shlex.join(nvidia_query()), shlex.join(nvidia_query(NVIDIA_OLD_FIELDS))
    return f"""\
LC_ALL=C; export LC_ALL
PATH="$PATH:/usr/local/bin:/usr/sbin:/sbin:/opt/rocm/bin"; export PATH
s() {{ printf '\\n@@ %s\\n' "$*"; }}
t() {{
  s "tool $*"
  if command -v "$1" >/dev/null 2>&1; then timeout {TOOL_S} "$@" 2>&1; s "status $?"; else s "status 127"; fi
}}
echo '{_BEGIN}'
s clock; date +%s
s connection; echo "$SSH_CONNECTION"
s addresses; ip -o addr show scope global 2>/dev/null || hostname -I 2>/dev/null
s arch; uname -m
s cpus; getconf _NPROCESSORS_ONLN 2>/dev/null || nproc
s memory; cat /proc/meminfo
s disk; df -Pk /var/lib/docker 2>/dev/null || df -Pk /
n=$(t {query}); printf '%s\\n' "$n"
case $n in *'not a valid field'*) t {old} ;; *', Enabled,'*) t nvidia-smi -L; t nvidia-smi -q -x ;; esac
case $n in *GPU-*)
  t {shlex.join(ECC)}
  s kernel
  (dmesg 2>/dev/null || journalctl -kb --no-pager -q 2>/dev/null) | grep -F 'NVRM: Xid' | tail -n 50 ;;
esac
s pci; for d in /sys/bus/pci/devices/*; do
  c=$(cat "$d/class" 2>/dev/null)
  case $c in 0x0300*|0x0302*|0x0380*|0x1200*) echo "$(cat "$d/vendor") $c" ;; esac
done
s tpu; for d in /sys/bus/pci/devices/*; do
  [ "$(cat "$d/vendor" 2>/dev/null)" = 0x1ae0 ] && echo "${{d##*/}} $(cat "$d/device")"
done
ls -d /dev/accel[0-9]* /dev/vfio/[0-9]* /dev/vfio/vfio 2>/dev/null
for f in /proc/driver/nvidia/gpus/*/information; do [ -r "$f" ] && {{ s "minor $f"; cat "$f"; }}; done
if [ -e /dev/kfd ]; then
  t {shlex.join(AMD_SMI)}
  t {shlex.join(ROCM_SMI)}
  s render; ls -d /sys/bus/pci/devices/*/drm/renderD* 2>/dev/null
  s groups; stat -c '%n %g' /dev/kfd /dev/dri/render* 2>/dev/null
  for n in /sys/class/kfd/kfd/topology/nodes/*; do
    s "node ${{n##*/}}"; cat "$n/properties" 2>/dev/null
    for b in "$n"/mem_banks/*/properties; do [ -r "$b" ] && {{ s "bank ${{n##*/}} $b"; cat "$b"; }}; done
    d=/sys/class/drm/renderD$(sed -n 's/^drm_render_minor //p' "$n/properties" 2>/dev/null)/device
    if [ -e "$d" ]; then
      s "name ${{n##*/}}"; cat "$d/product_name" 2>/dev/null || cat "$d/device"
      s "bus ${{n##*/}}"; basename "$(readlink -f "$d")"
    fi
  done
fi
s end
"""


@frozen
class Survey:
    """What a host said of itself.

    ``clock_s`` is its seconds since 1970. ``addresses`` are its own, the one that the connection
    came in by first. ``ill`` says what is wrong with an accelerator, by its key. ``apart_s`` is how far
    its clock is from ours.
    """

    machine: Machine
    clock_s: int = 0
    addresses: tuple[str, ...] = ()
    ill: tuple[tuple[str, str], ...] = ()
    apart_s: float = 0.0

    def ill_devices(self) -> tuple[Device, ...]:
        """Return the accelerators that are not well."""
        keys = {key for key, _ in self.ill}
        return tuple(device for device in self.machine.accelerators if device.key in keys)

    def ills_of(self, device: Device) -> str:
        """Return what is wrong with an accelerator, in words."""
        return "; ".join(what for key, what in self.ill if key == device.key)

    def asked(self, before: float, after: float) -> Survey:
        """Return it with how far its clock is from ours, which read ``before`` and ``after``.

        >>> Survey(Machine(1, 1, 1, "x86"), clock_s=1600).asked(1000.0, 1001.0).apart_s
        599.0
        """
        return replace(self, apart_s=max(0.0, before - self.clock_s - 1, self.clock_s - after))

    def address_in(self, network: IPv4Network | IPv6Network | None) -> str | None:
        """Return its address in ``network``; without one, the address that we reach it by.

        >>> from ipaddress import ip_network
        >>> host = Survey(Machine(1, 1, 1, "x86"), addresses=("192.0.2.7", "10.0.0.7"))
        >>> host.address_in(ip_network("10.0.0.0/24")), host.address_in(None)
        ('10.0.0.7', '192.0.2.7')
        """
        fitting = (one for one in self.addresses if network is None or ip_address(one) in network)
        return next(fitting, None)


def parse(output: str) -> Survey:
    """Return what the output of ``script`` says; what a login shell printed before it is skipped.

    Raises:
        ValueError: it is no such output, or was cut off.
    """
    _, begun, text = output.partition(_BEGIN)
    sections = dict(_sections(text))
    if not begun or "end" not in sections:
        raise ValueError("the host's answer is incomplete")
    memory_bytes = _first_number(r"MemTotal:\s+(\d+)", sections["memory"]) * 1024
    answers = _answers(text)

    def run(command: Sequence[str]) -> str:
        status, said = answers.get(" ".join(command), (127, ""))
        if status == 127:
            raise FileNotFoundError(command[0])
        if status == 124:
            raise ToolError(f"{command[0]} did not answer within {TOOL_S} s")
        if status != 0:
            raise ToolError(f"{command[0]} failed ({status}): {said.strip().partition(chr(10))[0]}")
        return said

    minors = parse_nvidia_minors(text for name, text in sections.items() if name.startswith("minor "))
    nvidia = find_nvidia(run, minors=minors, unified_bytes=memory_bytes)
    amd = find_amd(run, render=_render(sections.get("render", "")), kernel=lambda: _nodes(sections))
    groups = dict(line.split() for line in sections.get("groups", "").splitlines() if line.strip())
    tpus = _tpus(sections.get("tpu", ""))
    devices = (*nvidia.devices, *(_with_groups(device, groups) for device in amd.devices), *tpus)
    return Survey(
        machine=Machine(
            cpu=float(sections["cpus"].strip() or 1),
            memory_bytes=memory_bytes,
            disk_bytes=_first_number(r"\s\d+\s+\d+\s+(\d+)\s+\d+%", sections["disk"]) * 1024,
            arch=arch_name(sections["arch"].strip()),
            accelerators=devices,
            faults=nvidia.faults + amd.faults + tuple(_without_driver(sections.get("pci", ""), devices)),
        ),
        clock_s=int(sections["clock"].strip()),
        addresses=_addresses(sections["connection"], sections["addresses"]),
        ill=tuple(_ill(devices, answers.get(" ".join(ECC), (0, ""))[1], sections.get("kernel", ""))),
    )


def _tpus(listing: str) -> tuple[Device, ...]:
    """Return the TPU chips, from lines of PCI addresses with device ids, and of device files."""
    rows = [line.split() for line in listing.splitlines()]
    chips = [(row[0], row[1]) for row in rows if len(row) == 2]
    return tpu_devices(chips, [row[0] for row in rows if len(row) == 1])


def _without_driver(pci: str, devices: Sequence[Device]) -> Iterator[str]:
    """Say which vendor's accelerators are plugged in and known to no driver.

    Those of AMD are told by their class, processing accelerator (PCI Code and ID Assignment 1.11,
    base class 12h) or other display controller: a plain display is often part of the processor.

    >>> list(_without_driver("0x10de 0x030200\\n0x10de 0x030200\\n0x1002 0x030000", []))
    ['2 NVIDIA GPUs are plugged in and no driver answers for them']
    """
    rows = [line.split() for line in pci.splitlines() if len(line.split()) == 2]
    nvidia = sum(vendor == "0x10de" for vendor, _ in rows)
    amd = sum(vendor == "0x1002" and kind[:6] in ("0x1200", "0x0380") for vendor, kind in rows)
    for name, vendor, count in (("NVIDIA", "nvidia", nvidia), ("AMD", "amd", amd)):
        if count and not any(device.vendor == vendor for device in devices):
            are = "GPU is" if count == 1 else "GPUs are"
            yield f"{count} {name} {are} plugged in and no driver answers for them"


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of the answer that begin with a line ``@@ name``."""
    for part in re.split(r"^@@ ", text, flags=re.MULTILINE)[1:]:
        name, _, content = part.partition("\n")
        yield name.strip(), content.removesuffix("\n")


def _answers(text: str) -> dict[str, tuple[int, str]]:
    """Return each tool's exit status and output, by its command."""
    found: dict[str, tuple[int, str]] = {}
    command = said = ""
    for name, content in _sections(text):
        kind, _, rest = name.partition(" ")
        if kind == "tool":
            command, said = rest, content
        elif kind == "status":
            found[command] = (int(rest), said)
    return found


def _first_number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _addresses(connection: str, listing: str) -> tuple[str, ...]:
    words = re.findall(r"\binet6? (\S+?)/", listing) or listing.split()  # of ip, or of hostname -I
    reached = connection.split()[2:3]
    return tuple(dict.fromkeys(word for word in (*reached, *words) if _is_address(word)))


def _is_address(word: str) -> bool:
    try:
        return not ip_address(word).is_link_local
    except ValueError:
        return False


def _render(listing: str) -> dict[str, str]:
    """Return PCI address to render node, from paths such as ``…/0000:03:00.0/drm/renderD128``."""
    parts = (line.strip().split("/") for line in listing.splitlines() if "/drm/" in line)
    return {path[-3]: f"/dev/dri/{path[-1]}" for path in parts}


def _nodes(sections: Mapping[str, str]) -> Iterable[KfdNode]:
    numbers = (name.removeprefix("node ") for name in sections if name.startswith("node "))
    for number in sorted(filter(str.isdecimal, numbers), key=int):
        banks = (text for name, text in sections.items() if name.startswith(f"bank {number} "))
        name, bus = (sections.get(f"{what} {number}", "").strip() for what in ("name", "bus"))
        yield KfdNode(sections[f"node {number}"], tuple(banks), name, bus)


def _with_groups(device: Device, groups: Mapping[str, str]) -> Device:
    return replace(device, groups=tuple(sorted({groups[path] for path in device.paths if path in groups})))


def _ill(devices: Sequence[Device], ecc: str, kernel: str) -> Iterator[tuple[str, str]]:
    for device in devices:
        for uuid, _, count in (line.partition(",") for line in ecc.splitlines()):
            if uuid.strip() == device.uuid and count.strip().isdecimal() and int(count):
                yield device.key, f"{count.strip()} uncorrected memory errors since its driver started"
        numbers = re.findall(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)[^)]*\): (\d+)", kernel)
        for xid in sorted({int(xid) for bus, xid in numbers if _is_at(device, bus)} & FATAL_XIDS.keys()):
            yield device.key, f"XID {xid} in the kernel's log: {FATAL_XIDS[xid]}"


def _is_at(device: Device, bus: str) -> bool:
    """Say whether the driver's address, which lacks the function, is that of ``device``."""
    return bool(device.bus) and device.bus.rpartition(".")[0] == bus.lower().partition(".")[0]
