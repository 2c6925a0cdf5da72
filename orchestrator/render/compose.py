"""Plans as a Docker Compose file: what would run on Docker, for whoever keeps it there themselves."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from textwrap import indent
from typing import Any, TypeAlias

from orchestrator.apply import Plan, RunPlan, VolumePlan
from orchestrator.backend import Can, File, Launch, Mount, Probe
from orchestrator.errors import Problem, SpecError
from orchestrator.planner.compose import fixed_port
from orchestrator.spec.load import Document
from orchestrator.spec.models import Service, Work

COMPOSE_CAN = frozenset(
    {Can.IMAGES, Can.PORTS, Can.VOLUMES, Can.MOUNTS, Can.EXEC, Can.LIMITS, Can.PRIVILEGED, Can.RESTART}
)
"""What one machine with Docker Compose is able to do."""
COMPOSE_VENDORS = ("nvidia", "amd")
"""Whose accelerators a compose file can ask for: by device requests, and by device files."""
Json: TypeAlias = dict[str, Any]

_SECRET = re.compile(r"\$\{\{\s*secrets\.([A-Za-z_][A-Za-z0-9_-]*)\s*\}\}")
_AMD = ("/dev/kfd", "/dev/dri")
_NAMESPACE = "modelyard"
"""Begins the names of volumes, as it does on Docker, so that both see the same data."""


def compose_text(plans: Sequence[Plan]) -> str:
    """Return the compose file of ``plans``; the same plans give the same text, and no secret's value.

    Needs Docker Compose 2.23.1, which takes files from ``configs.content``.

    Raises:
        SpecError: something of a spec has no form there, such as a relative file without a folder.
    """
    runs = [plan for plan in plans if isinstance(plan, RunPlan)]
    volumes = {plan.name: None for plan in plans if isinstance(plan, VolumePlan)}
    files: Json = {}
    services = []
    for plan in runs:
        launch = _launch(plan)
        volumes |= {mount.source: None for mount in launch.mounts if mount.kind != "folder"}
        services.append(_remark(plan) + _yaml({plan.name: _service(plan, launch)}))
        files |= {f"{plan.name}-{at}": _content(file) for at, file in enumerate(launch.files)}
    parts = ["services:\n" + indent("".join(services), "  ")] if services else ["services: {}\n"]
    if volumes:
        named = {name: {"name": f"{_NAMESPACE}-{name}"} for name in volumes}
        parts.append(_yaml({"volumes": named}))
    if files:
        parts.append(_yaml({"configs": files}))
    return "\n".join(parts)


def compose_notes(plans: Sequence[Plan]) -> tuple[Problem, ...]:
    """Return what the specs say and compose has no word for, at its place."""
    found: list[Problem] = []
    for plan in plans:
        if isinstance(plan, RunPlan):
            found += [plan.document.problem(path, what, fix) for path, what, fix in _unsaid(plan.spec)]
    return tuple(sorted(found, key=lambda problem: problem.at))


def _unsaid(spec: Work) -> Iterator[tuple[str, str, str | None]]:
    if spec.schedule:
        yield "schedule", "compose starts nothing by the clock", "start it with cron"
    if spec.max_duration is not None:
        yield "max_duration", "compose ends nothing by itself", "put timeout before the command"
    if spec.registry_auth:
        yield "registry_auth", "compose keeps no credentials", "docker login before docker compose up"
    if isinstance(spec, Service) and spec.scaling:
        yield "scaling", "compose does not scale: the least number of replicas is written", None
    if isinstance(spec, Service) and spec.rate_limits:
        yield "rate_limits", "there is no gateway: ports are reached as they are", None


# --- one service ----------------------------------------------------------------------------


def _launch(plan: RunPlan) -> Launch:
    """Return what the run is made of.

    Raises:
        SpecError: it spans machines, or more than one replica is to have the same port.
    """
    template = plan.template
    assert template is not None, "a plan against no record starts everything"
    if template.nodes > 1:
        what = f"{plan.name!r} needs {template.nodes} machines, and compose runs on one"
        raise SpecError([plan.document.problem("", what, "render it for kubernetes")])
    least = plan.spec.replicas.min or 0 if isinstance(plan.spec, Service) else 1
    fixed = fixed_port(plan.spec, template.launch)
    if least > 1 and fixed and not template.launch.host_network:
        what = f"{least} replicas cannot all have port {fixed.number}, and compose runs on one machine"
        raise SpecError([plan.document.problem(fixed.path, what, fixed.fix)])
    return template.launch


def _remark(plan: RunPlan) -> str:
    held = _launch(plan).resources
    if not (plan.served or plan.trained) or not held.accelerators:
        return ""
    return f"# planned for {held.accelerators} × {held.accelerator}: give it no less\n"


def _service(plan: RunPlan, launch: Launch) -> Json:
    body: Json = {"image": launch.image}
    if launch.entrypoint is not None:
        body["entrypoint"] = _escaped_all(launch.entrypoint)
    if launch.command:
        body["command"] = _escaped_all(launch.command)
    if launch.working_dir:
        body["working_dir"] = launch.working_dir
    if launch.user:
        body["user"] = launch.user
    if launch.privileged:
        body["privileged"] = True
    if launch.tags:
        body["labels"] = dict(launch.tags)
    if environment := _environment(launch):
        body["environment"] = environment
    body |= _network(launch)
    if launch.mounts:
        body["volumes"] = [_mount(mount) for mount in launch.mounts]
    if launch.files:
        body["configs"] = [_file(plan, launch, at) for at in range(len(launch.files))]
    body |= _resources(launch, replicas=plan.template.replicas if plan.template else 1)
    if (probe := launch.probe) and probe.kind == "http":
        body["healthcheck"] = _healthcheck(probe)
    body["init"] = True  # as process 1 a program without a handler ignores SIGTERM
    body["restart"] = _restart(plan, launch)
    if launch.stop_grace_s < 365 * 86_400:  # without a limit in the spec, compose's own is as good
        body["stop_grace_period"] = f"{launch.stop_grace_s:.0f}s"
    return body


def _restart(plan: RunPlan, launch: Launch) -> str:
    if launch.restart:
        return "unless-stopped"
    retries = plan.template is not None and "error" in plan.template.retry.on
    return "on-failure" if retries else "no"


def _environment(launch: Launch) -> Json:
    """Return the variables; a secret is a reference, and compose refuses to start without it."""
    plain = {name: _escaped(value) for name, value in launch.env}
    return plain | {name: _reference(value) for name, value in launch.secrets}


def _reference(text: str) -> str:
    """Return a text with its secrets as compose asks for them.

    >>> _reference("Bearer ${{ secrets.API }}")
    'Bearer ${API:?set API}'
    """
    parts = _SECRET.split(text)  # text and names in turn
    return "".join(f"${{{part}:?set {part}}}" if at % 2 else _escaped(part) for at, part in enumerate(parts))


def _escaped(text: str) -> str:
    """Return ``text`` so that compose puts no variable into it."""
    return text.replace("$", "$$")


def _escaped_all(words: Sequence[str]) -> list[str]:
    return [_escaped(word) for word in words]


def _network(launch: Launch) -> Json:
    if launch.host_network:
        return {"network_mode": "host"}
    ports: list[Json] = []
    for port in launch.ports:
        published = {"published": str(port.host)} if port.host else {}
        ports.append({"target": port.container, **published, "host_ip": "127.0.0.1"})
    return {"ports": ports} if ports else {}


def _mount(mount: Mount) -> Json:
    kind = "bind" if mount.kind == "folder" else "volume"
    body: Json = {"type": kind, "source": _escaped(mount.source), "target": _escaped(mount.target)}
    return {**body, "read_only": True} if mount.read_only else body


def _file(plan: RunPlan, launch: Launch, at: int) -> Json:
    """Return where a file goes.

    Raises:
        SpecError: its path is relative and the launch's folder is the image's, or it is no text.
    """
    file = launch.files[at]
    if not file.target.startswith("/") and not launch.working_dir:
        raise _refused(plan.document, f"compose needs the whole path of {file.target!r}", "set working_dir")
    try:
        file.content.decode()
    except UnicodeDecodeError:
        raise _refused(plan.document, f"{file.target!r} is no text", "put it into a volume") from None
    target = PurePosixPath("/", launch.working_dir or "", file.target)
    return {"source": f"{plan.name}-{at}", "target": _escaped(str(target)), "mode": file.mode}


def _refused(document: Document, what: str, fix: str) -> SpecError:
    return SpecError([document.problem("files", what, fix)])


def _content(file: File) -> Json:
    return {"content": _escaped(file.content.decode())}


def _resources(launch: Launch, *, replicas: int) -> Json:
    wanted = launch.resources
    limits: Json = {}
    if wanted.cpu:
        limits["cpus"] = f"{wanted.cpu:g}"
    if wanted.memory_bytes:
        limits["memory"] = f"{wanted.memory_bytes}b"
    nvidia = wanted.accelerators and wanted.vendor == "nvidia"
    device = {"driver": "nvidia", "count": wanted.accelerators, "capabilities": ["gpu"]}
    said = {"limits": limits} | ({"reservations": {"devices": [device]}} if nvidia else {})
    deploy: Json = {"replicas": replicas} if replicas != 1 else {}
    if held := {key: value for key, value in said.items() if value}:
        deploy["resources"] = held
    body: Json = {"deploy": deploy} if deploy else {}
    if wanted.memory_bytes:
        body["memswap_limit"] = f"{wanted.memory_bytes}b"  # the same: no swap on top
    if wanted.shm_bytes:
        body["shm_size"] = f"{wanted.shm_bytes}b"
    elif wanted.accelerators:
        body["ipc"] = "host"  # NCCL and data loaders fail in the engine's 64 MiB
    if wanted.accelerators:
        body["ulimits"] = {"memlock": -1, "stack": 67_108_864}  # as NVIDIA asks for its containers
    if wanted.accelerators and wanted.vendor == "amd":
        body |= {"devices": [f"{path}:{path}" for path in _AMD], "group_add": ["video", "render"]}
    return body


def _healthcheck(probe: Probe) -> Json:
    """Return a probe as a command inside the container, by whichever of curl and wget it has."""
    url = f"http://127.0.0.1:{probe.port}{probe.path}"
    curl = ["curl", "-fsS", "-o", "/dev/null", *_request(probe), url]
    wget = ["wget", "-q", "-O", "/dev/null", url]
    plain = curl if _request(probe) else [*curl, "||", *wget]
    command = " ".join(word if word == "||" else shlex.quote(word) for word in plain)
    return {
        "test": ["CMD-SHELL", _escaped(command)],
        "interval": f"{probe.interval_s:g}s",
        "timeout": f"{probe.timeout_s:g}s",
        "retries": probe.failures,
        "start_period": f"{probe.start_s:g}s",
    }


def _request(probe: Probe) -> list[str]:
    """Return curl's options for what is more than a GET."""
    words = [] if probe.method == "GET" else ["-X", probe.method]
    words += [word for name, value in probe.headers for word in ("-H", f"{name}: {value}")]
    return words + ([] if probe.body is None else ["-d", probe.body])


def _yaml(value: Mapping[str, Any]) -> str:
    from orchestrator.importers.draft import dump  # brings PyYAML: only where text is wanted

    return dump(value)
