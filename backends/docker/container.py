"""A launch as the engine's JSON, and the engine's JSON as an instance; pure."""

from __future__ import annotations

import io
import math
import re
import signal
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from backends.docker.engine import Json
from backends.machine import Device
from orchestrator.backend import LABEL, File, Instance, Launch, Mount, Phase, Reason

NAMESPACE = LABEL + "namespace"
LAUNCH = LABEL + "launch"
DEVICES = LABEL + "devices"
CPU = LABEL + "cpu"
MEMORY = LABEL + "memory-bytes"
VOLUME = LABEL + "volume"

STOPPED = ".stopped"
"""Ends the name of a container that we asked to stop.

The engine keeps no record of who ended a container, labels cannot change, and an exit code of
143 may as well be the program's own. A container's name can change while it runs, in one step,
and is there in every listing.
"""

RESTARTS = 5
"""How often the engine restarts a service's container before the loop has to look at it."""

LOG_LIMITS = {"max-size": "50m", "max-file": "3"}

MEMLOCK = {"Name": "memlock", "Soft": -1, "Hard": -1}

GPU_ULIMITS = (
    MEMLOCK,
    {"Name": "stack", "Soft": 67_108_864, "Hard": 67_108_864},
)
"""What NVIDIA asks for its frameworks' containers: pinned memory without a limit, 64 MiB stacks
(NVIDIA Deep Learning Frameworks, "Running a container", --ulimit)."""


def container_name(namespace: str, launch: str) -> str:
    """Return the name of the container that runs ``launch``.

    >>> container_name("modelyard", "hello-0-0-0")
    'modelyard-hello-0-0-0'
    """
    return f"{namespace}-{launch}"


def create_body(
    launch: Launch,
    *,
    image: str,
    namespace: str,
    secrets: Mapping[str, str],
    devices: Sequence[Device] = (),
    groups: Sequence[str] = (),
    bind: str = "127.0.0.1",
    memory_bytes: int = 0,
    raise_limits: bool = True,
) -> dict[str, Any]:
    """Return the body of ``POST /containers/create`` (Engine API 1.41) for ``launch``.

    Args:
        launch: What to run.
        image: What it runs in; the launch's own, or the backend's default.
        namespace: Begins the names of all that is created.
        secrets: Values by variable name.
        devices: The accelerators it gets.
        groups: Ids of the groups that may open their device files.
        bind: The address that ports are published on.
        memory_bytes: The engine's memory; half of it bounds /dev/shm for accelerator work.
        raise_limits: Whether the engine may raise limits for accelerator work.
    """
    host = _host_config(launch, namespace, bind) | _limits(launch, devices, memory_bytes)
    if devices:
        host |= _accelerators(devices, groups) | ({"Ulimits": list(GPU_ULIMITS)} if raise_limits else {})
    body: dict[str, Any] = {
        "Image": image,
        "Env": _environment(launch, secrets, devices),
        "Labels": _labels(launch, namespace, devices),
        "StopTimeout": math.ceil(launch.stop_grace_s),
        "ExposedPorts": {f"{port.container}/tcp": {} for port in launch.ports},
        "HostConfig": host,
    }
    if launch.command:
        body["Cmd"] = list(launch.command)
    if launch.entrypoint is not None:
        body["Entrypoint"] = list(launch.entrypoint)
    if launch.working_dir:
        body["WorkingDir"] = launch.working_dir
    if launch.user:
        body["User"] = launch.user
    if launch.probe:  # the launch's own probe decides, not one that came with the image
        body["Healthcheck"] = {"Test": ["NONE"]}
    return body


def _environment(launch: Launch, secrets: Mapping[str, str], devices: Sequence[Device]) -> list[str]:
    values = dict(launch.env)
    values |= {variable: secrets[variable] for variable, _ in launch.secrets if variable in secrets}
    if not any(device.vendor == "nvidia" for device in devices):
        # Images made for CUDA ask for every GPU, and get them where NVIDIA's runtime is the default.
        values.setdefault("NVIDIA_VISIBLE_DEVICES", "void")
    return [f"{key}={value}" for key, value in values.items()]


def _labels(launch: Launch, namespace: str, devices: Sequence[Device]) -> dict[str, str]:
    labels = launch.labels() | {NAMESPACE: namespace}
    if devices:
        labels[DEVICES] = ",".join(device.key for device in devices)
    if launch.resources.cpu:
        labels[CPU] = f"{launch.resources.cpu:g}"
    if launch.resources.memory_bytes:
        labels[MEMORY] = str(launch.resources.memory_bytes)
    return labels


def _host_config(launch: Launch, namespace: str, bind: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "Init": True,  # as process 1 a program without a handler ignores SIGTERM
        "Privileged": launch.privileged,
        "LogConfig": {"Type": "json-file", "Config": LOG_LIMITS},
        "Mounts": [mount_body(mount, namespace) for mount in launch.mounts],
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": RESTARTS}
        if launch.restart
        else {"Name": "no"},
    }
    if launch.host_network:
        config["NetworkMode"] = "host"
    else:
        config["PortBindings"] = {
            f"{port.container}/tcp": [{"HostIp": bind, "HostPort": str(port.host or "")}]
            for port in launch.ports
        }
    return config


def _limits(launch: Launch, devices: Sequence[Device], memory_bytes: int) -> dict[str, Any]:
    wanted = launch.resources
    limits: dict[str, Any] = {}
    if wanted.cpu:
        limits["NanoCpus"] = round(wanted.cpu * 1e9)
    if wanted.memory_bytes:
        limits["Memory"] = limits["MemorySwap"] = wanted.memory_bytes  # equal: no swap on top
    if wanted.shm_bytes:
        limits["ShmSize"] = wanted.shm_bytes
    elif devices and (memory := wanted.memory_bytes or memory_bytes):
        # NCCL and data loaders fail in the engine's 64 MiB; half is what Linux gives /dev/shm itself.
        limits["ShmSize"] = memory // 2
    return limits


def _accelerators(devices: Sequence[Device], groups: Sequence[str]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if nvidia := [device.uuid for device in devices if device.vendor == "nvidia"]:
        config["DeviceRequests"] = [{"Driver": "nvidia", "DeviceIDs": nvidia, "Capabilities": [["gpu"]]}]
    paths = dict.fromkeys(path for one in devices if one.vendor != "nvidia" for path in one.paths)
    if paths:
        config["Devices"] = [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"} for path in paths
        ]
        config["GroupAdd"] = list(groups)
    return config


def mount_body(mount: Mount, namespace: str) -> dict[str, Any]:
    """Return the engine's spelling of a mount.

    >>> mount_body(Mount("data", "/data"), "modelyard")["Source"]
    'modelyard-data'
    """
    is_volume = mount.kind != "folder"
    return {
        "Type": "volume" if is_volume else "bind",
        "Source": f"{namespace}-{mount.source}" if is_volume else mount.source,
        "Target": mount.target,
        "ReadOnly": mount.read_only,
    }


def archive(files: Sequence[File], *, working_dir: str | None, user: str | None) -> bytes:
    """Return a tar, to be unpacked at ``/``, with ``files`` owned by ``user`` where it is a number."""
    import tarfile  # only launches with files pay for it

    uid, _, gid = (user or "").partition(":")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            path = PurePosixPath("/", working_dir or "", file.target)
            entry = tarfile.TarInfo(str(path.relative_to("/")))
            entry.size, entry.mode = len(file.content), file.mode
            entry.uid = int(uid) if uid.isdecimal() else 0
            entry.gid = int(gid) if gid.isdecimal() else 0
            tar.addfile(entry, io.BytesIO(file.content))
    return packed.getvalue()


# -- what the engine says ----------------------------------------------------------------------


def was_asked_to_stop(container: Json) -> bool:
    """Say whether we asked a container to stop, from its name in an inspection or a listing."""
    names = container.get("Names") or [container.get("Name") or ""]
    return any(name.endswith(STOPPED) for name in names)


def failed_to_start(container: Json) -> bool:
    """Say whether a container was created, and could not be started."""
    state = container["State"]
    return state["Status"] == "created" and bool(state.get("Error") or state.get("ExitCode"))


def as_started(container: Json) -> Json:
    """Return what an inspection before the start says once the engine has said that it started."""
    return {**container, "State": {**container["State"], "Status": "running"}}


def is_active(container: Json) -> bool:
    """Say whether an inspected container has not ended yet."""
    return container["State"]["Status"] in ("created", "running", "paused", "restarting")


def active_labels(listing: Sequence[Json]) -> list[Mapping[str, str]]:
    """Return the labels of those containers of a listing that hold what their labels say."""
    return [
        container["Labels"]
        for container in listing
        if container["State"] in ("running", "paused", "restarting")
        or (container["State"] == "created" and not was_asked_to_stop(container))
    ]


def held(listing: Sequence[Json]) -> tuple[float, int, frozenset[str]]:
    """Return CPUs, bytes of memory and accelerators that the containers of a listing hold."""
    active = active_labels(listing)
    return (
        sum(float(labels.get(CPU, 0)) for labels in active),
        sum(int(labels.get(MEMORY, 0)) for labels in active),
        frozenset(key for labels in active for key in labels.get(DEVICES, "").split(",") if key),
    )


def to_instance(container: Json, *, address: str = "127.0.0.1") -> Instance:
    """Return the instance that an inspected container is.

    Args:
        container: The answer of ``GET /containers/<id>/json``.
        address: Where clients of this machine reach the ports the engine publishes.
    """
    labels, state = container["Config"]["Labels"], container["State"]
    phase, reason, message = _phase(container)
    ended = phase is Phase.EXITED and reason != "no-start" and state["Status"] != "created"
    started_at, finished_at = parse_time(state.get("StartedAt", "")), parse_time(state.get("FinishedAt", ""))
    if started_at and finished_at:
        # The engine stamps a start when it hears of it: a short program may have ended before.
        finished_at = max(started_at, finished_at)
    return Instance(
        name=labels[LAUNCH],
        run=labels[LABEL + "run"],
        replica=int(labels[LABEL + "replica"]),
        node=int(labels[LABEL + "node"]),
        attempt=int(labels[LABEL + "attempt"]),
        spec_hash=labels[LABEL + "spec-hash"],
        phase=phase,
        exit_code=state["ExitCode"] if ended else None,
        reason=reason,
        message=message,
        started_at=started_at,
        finished_at=finished_at if ended else None,
        address=_address(container),
        ports=_ports(container, address) if phase is Phase.RUNNING else {},
        ready=_ready(state),
        devices=tuple(labels[DEVICES].split(",")) if DEVICES in labels else (),
        restarts=container.get("RestartCount", 0),
        container=container["Name"].removeprefix("/"),
        image=container.get("Image", ""),
    )


_OUT_OF_MEMORY = "killed: out of memory"


def _phase(container: Json) -> tuple[Phase, Reason, str]:
    state = container["State"]
    status, code = state["Status"], state["ExitCode"]
    asked = was_asked_to_stop(container)
    if status == "created":
        if failed_to_start(container):
            return Phase.EXITED, "no-start", state.get("Error", "")
        return (Phase.EXITED, "stopped", "") if asked else (Phase.PENDING, "", "created")
    if status == "restarting":
        ended = _OUT_OF_MEMORY if state.get("OOMKilled") else exit_text(code)
        return Phase.RUNNING, "", f"restarting after {ended}"
    if status in ("running", "paused"):
        return Phase.RUNNING, "", "paused" if status == "paused" else ""
    if asked:
        return Phase.EXITED, "stopped", ""
    if status == "dead":
        return Phase.EXITED, "lost", "the engine could not clean it up"
    if code == 0:
        return Phase.EXITED, "", ""
    if state.get("OOMKilled"):
        return Phase.EXITED, "oom", _OUT_OF_MEMORY
    return Phase.EXITED, "error", state.get("Error") or exit_text(code)


def exit_text(code: int) -> str:
    """Say what an exit code means.

    >>> exit_text(3), exit_text(137), exit_text(127)
    ('exit code 3', 'exit code 137 (SIGKILL)', 'exit code 127 (no such command)')
    """
    if code in (126, 127):  # the container's init and every shell agree on these two
        return f"exit code {code} ({'not executable' if code == 126 else 'no such command'})"
    try:
        return f"exit code {code} ({signal.Signals(code - 128).name})"
    except ValueError:
        return f"exit code {code}"


def _ready(state: Json) -> bool | None:
    """Return what the image's own health check says, where it has one."""
    health = (state.get("Health") or {}).get("Status", "none")
    if state["Status"] == "restarting":
        return False
    return None if health == "none" or state["Status"] != "running" else health == "healthy"


def _address(container: Json) -> str | None:
    if container["HostConfig"].get("NetworkMode") == "host":
        return "127.0.0.1"
    networks = (container.get("NetworkSettings") or {}).get("Networks") or {}
    return next((net["IPAddress"] for net in networks.values() if net.get("IPAddress")), None)


def _ports(container: Json, address: str) -> dict[int, tuple[str, int]]:
    if container["HostConfig"].get("NetworkMode") == "host":
        exposed = container["Config"].get("ExposedPorts") or {}
        return {number: (address, number) for number in sorted(map(_port_number, exposed))}
    published = (container.get("NetworkSettings") or {}).get("Ports") or {}
    found: dict[int, tuple[str, int]] = {}
    for port, bindings in sorted(published.items()):
        for binding in bindings or ():
            host = binding["HostIp"]
            if ":" in host:  # with 0.0.0.0 the engine publishes on [::] as well
                continue
            reached = address if host in ("0.0.0.0", "") else host
            found[_port_number(port)] = (reached, int(binding["HostPort"]))
    return found


def _port_number(port: str) -> int:
    return int(port.partition("/")[0])


def parse_time(text: str) -> datetime | None:
    """Return an engine's time stamp, to the microsecond; its zero is None.

    >>> parse_time("2026-11-25T17:27:01.123456789Z").isoformat()
    '2026-11-25T17:27:01.123456+00:00'
    >>> parse_time("0001-01-01T00:00:00Z")
    """
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", text)
    if not found or text.startswith("0001-"):
        return None
    fraction = (found[2] or "").ljust(6, "0")[:6]
    return datetime.fromisoformat(f"{found[1]}.{fraction}{found[3]}").astimezone(UTC)
