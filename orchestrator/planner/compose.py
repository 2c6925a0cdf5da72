"""From a spec to the launch that every replica and node of it is made from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from orchestrator.backend import MODEL, File, Launch, Mount, Offer, Port, Probe, Resources
from orchestrator.frozen import frozen
from orchestrator.planner.ask import Work
from orchestrator.planner.demand import Demand
from orchestrator.spec.models import DevEnvironment, MountPoint, Service
from orchestrator.spec.models import Probe as ProbeSpec

DEFAULT_START_S = 600
"""How long a service may take to its first answer where its spec says nothing."""


@frozen
class Inputs:
    """What was read from this machine for a spec: its local files, and the digest of them."""

    files: tuple[File, ...] = ()
    digest: str = ""
    clones: tuple[str, ...] = ()
    """Shell commands that put repositories in place."""


def compose(spec: Work, *, spec_hash: str, inputs: Inputs, offer: Offer, demand: Demand) -> Launch:
    """Return the first launch of ``spec``: replica 0, node 0, attempt 0, on ``offer``."""
    env, secrets = environment(spec.env)
    probes = _probes(spec)
    entrypoint, command = _program(spec, inputs.clones)
    return Launch(
        name=f"{spec.name}-0-0-0",
        run=spec.name,
        spec_hash=spec_hash,
        image=spec.image,
        entrypoint=entrypoint,
        command=command,
        env=env,
        secrets=secrets,
        registry_secret=_registry(spec),
        working_dir=spec.working_dir,
        user=spec.user,
        privileged=spec.privileged,
        resources=_resources(spec, offer, demand),
        ports=_ports(spec),
        mounts=tuple(_mount(m) for m in spec.volumes),
        files=inputs.files,
        probe=next(iter(probes), None),
        more_probes=probes[1:],
        restart=isinstance(spec, Service | DevEnvironment),
        stop_grace_s=float("inf") if spec.stop_duration is None else float(spec.stop_duration),
        tags=tuple(sorted(spec.tags.items())),
    )


def _program(spec: Work, clones: Sequence[str]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return entrypoint and command: one shell that stops at the first failure.

    Commands take the place of an image's entrypoint, as in dstack: an engine's image would take
    the shell for its own argument. A dev environment stays up after its ``init``. Without any
    commands the image decides.
    """
    lines = [*clones, *spec.setup]
    if isinstance(spec, DevEnvironment):
        # A shell as PID 1 leaves SIGTERM alone unless told: a stop would wait for the kill.
        lines += [*spec.init, "trap 'exit 0' TERM INT", "while :; do sleep 86400 & wait $!; done"]
    else:
        lines += spec.commands
    if not lines:
        return spec.entrypoint, ()
    shell, script = (spec.shell or "/bin/sh", "-ec"), "\n".join(lines)
    if not spec.entrypoint:
        return shell, (script,)
    return spec.entrypoint, (*shell, script)


def environment(
    env: Mapping[str, str | None],
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Split variables into plain ones and those whose values come from the secret store."""
    plain: list[tuple[str, str]] = []
    secret: list[tuple[str, str]] = []
    for name, value in env.items():
        if value is None:
            secret.append((name, secret_reference(name)))
        elif "${{" in value:
            secret.append((name, value))
        else:
            plain.append((name, value))
    return tuple(plain), tuple(secret)


def secret_reference(name: str) -> str:
    """Return how the value of a bare variable is written: as a reference to a secret of its name."""
    return "${{ secrets." + name + " }}"


def _registry(spec: Work) -> tuple[str, str] | None:
    auth = spec.registry_auth
    return ("registry", f"{auth.username}:{auth.password}") if auth else None


def _resources(spec: Work, offer: Offer, demand: Demand) -> Resources:
    """Return what a launch is given: of a shared machine what was asked for, of a rented one all."""
    accelerators = demand.takes(offer)
    low = demand.cpu.low, demand.memory_bytes.low, demand.disk_bytes.low
    cpu, memory, disk = low if offer.divisible else (None, None, None)
    return Resources(
        cpu=cpu,
        memory_bytes=None if memory is None else int(memory),
        disk_bytes=None if disk is None else int(disk),
        shm_bytes=spec.resources.shm_size,
        accelerator=offer.accelerator if accelerators else None,
        vendor=offer.vendor if accelerators else None,
        accelerators=accelerators,
        vram_bytes=offer.vram_bytes if accelerators else 0,
        compute_capability=offer.compute_capability if accelerators else None,
    )


def _ports(spec: Work) -> tuple[Port, ...]:
    ports = [Port(p.container_port, p.local_port) for p in spec.ports]
    if isinstance(spec, Service) and spec.port:
        ports.insert(0, Port(spec.port.container_port, spec.port.local_port))
    return tuple(ports)


@frozen
class FixedPort:
    """A port of the machine that is asked for by number: where in the spec, and how to leave it open."""

    number: int
    path: str
    fix: str


def fixed_port(spec: Work, launch: Launch) -> FixedPort | None:
    """Return the first port of a machine that ``launch`` takes by number, and no second replica beside it.

    >>> web = Service(name="a", port="8080:80", commands=["serve"])
    >>> fixed_port(web, Launch("a-0-0-1", "a", ports=(Port(80, 8080),))).fix
    'write port: 80, which leads there from any free port'
    """
    taken = next((port for port in launch.ports if port.host), None)
    if taken is None or not taken.host:
        return None
    leads = "which leads there from any free port"
    if isinstance(spec, Service) and spec.port and spec.port.local_port == taken.host:
        return FixedPort(taken.host, "port", f"write port: {taken.container}, {leads}")
    if any(port.local_port == taken.host for port in spec.ports):
        return FixedPort(taken.host, "ports", f'write "*:{taken.container}", {leads}')
    return FixedPort(taken.host, "replicas", "run one replica, or name a place with more machines")


def opens_itself(spec: Work) -> bool | None:
    """Return whether a program opens a port of its own choice, and not the one it is given.

    None where the commands say neither: what they start may look at ``MODELYARD_PORT``. That
    matters where launches share the machine's ports, and only one of them can have a number.

    >>> serve = Service(name="a", port=8000, commands=["serve --port 8000"])
    >>> opens_itself(serve), opens_itself(serve.model_copy(update={"commands": ("serve :$MODELYARD_PORT",)}))
    (True, False)
    """
    if not isinstance(spec, Service) or not spec.port or not spec.commands:
        return None
    text = "\n".join((*spec.setup, *(spec.entrypoint or ()), *spec.commands))
    if re.search(r"\b(MODELYARD_)?PORT\b", text):
        return False
    return True if re.search(rf"(?<!\d){spec.port.container_port}(?!\d)", text) else None


def _mount(mount: MountPoint) -> Mount:
    if mount.name:
        return Mount(mount.name, mount.path, "volume", mount.read_only)
    return Mount(mount.instance_path or "", mount.path, "folder", mount.read_only)


def _probes(spec: Work) -> tuple[Probe, ...]:
    """Return what decides whether a service is ready; without probes, that its port answers."""
    if not isinstance(spec, Service):
        return ()
    serves = spec.model is not None and not spec.commands
    port = spec.port.container_port if spec.port else 0
    if not port and not serves:
        return ()
    if spec.probes:  # of an engine that is not known yet: it fills in its port, and how long it starts
        return tuple(_probe_of(each, port, start_s=0 if serves else DEFAULT_START_S) for each in spec.probes)
    if serves:
        return ()  # its engine knows better than a port that answers
    return (Probe("tcp", port, start_s=DEFAULT_START_S),)


TOKEN_PATH = "/v1/completions"
"""What every engine answers that serves a model by OpenAI's API; a chat takes a template of the model."""


def _probe_of(probe: ProbeSpec, port: int, *, start_s: float) -> Probe:
    headers = tuple((h.name, h.value) for h in probe.headers)
    path, method, body = probe.url, probe.method.upper(), probe.body
    if probe.type == "token":
        path, method = TOKEN_PATH, "POST"
        headers = (("content-type", "application/json"), *headers)
        body = json.dumps({"model": MODEL, "prompt": "1", "max_tokens": 1})
    return Probe(
        kind="tcp" if probe.type == "tcp" else "http",
        port=port,
        path=path,
        method=method,
        headers=headers,
        body=body,
        timeout_s=probe.timeout,
        interval_s=probe.interval,
        start_s=start_s if probe.start_duration is None else probe.start_duration,
        failures=probe.failures,
        ready_after=probe.ready_after,
        until_ready=probe.until_ready,
        silent_s=None if probe.replace_after is None else float(probe.replace_after),
    )
