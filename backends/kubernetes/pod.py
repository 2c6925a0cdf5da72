"""The pod of a launch: a container that a restricted namespace admits."""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from backends.kubernetes.names import fitting, literal
from backends.kubernetes.placement import placement
from backends.kubernetes.questions import question
from backends.kubernetes.settings import Settings
from orchestrator.backend import SCRATCH_BYTES, File, Launch, Mount
from orchestrator.errors import Rejected
from orchestrator.frozen import frozen
from orchestrator.units import format_bytes

Json = dict[str, Any]

CONTAINER = "main"
HOME = "/home/modelyard"
"""Where programs write that think they own the machine: images made for root lack a home for others."""

WORKSPACE = "/workspace"
"""Where a launch with relative files works when it names no folder: an image's may not be writable."""

SHM_PER_ACCELERATOR = 2 * 2**30
"""NCCL and data loaders fail in the runtime's 64 MiB; KServe gives 1 GiB, LWS's example 15."""

DRAIN_S = 5
"""An endpoint takes a moment to leave every proxy; requests that still come must find someone."""

LONGEST_GRACE_S = 10 * 365 * 86_400

MOST_FILE_BYTES = 900_000
"""A ConfigMap holds 1 MiB with everything (Kubernetes docs, "ConfigMaps")."""

_CACHES = {
    "HF_HOME": "huggingface",
    "NUMBA_CACHE_DIR": "numba",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "VLLM_CACHE_ROOT": "vllm",
    "XDG_CACHE_HOME": "",
}
"""What engines write beside their output; each is moved to a place that is writable."""


@frozen
class Needs:
    """A key of a Secret that a pod refers to, and what belongs there."""

    secret: str
    key: str
    reference: str


@frozen
class Pod:
    """A pod's spec, the files it mounts by ConfigMap, and the Secrets it refers to."""

    spec: Json
    files: Mapping[str, bytes]
    files_name: str
    needs: tuple[Needs, ...]


def pod(
    launch: Launch,
    settings: Settings,
    *,
    kind: str,
    nodes: int = 1,
    variables: Sequence[Json] = (),
    drains: bool = False,
) -> Pod:
    """Return the pod that runs ``launch``.

    Args:
        launch: What runs.
        settings: What the operator says of the cluster.
        kind: ``task``, ``service`` or ``dev-environment``.
        nodes: How many such pods make one replica.
        variables: What the place knows of rank and addresses, as entries of ``env``.
        drains: Whether requests may be on their way when it is told to end.

    Raises:
        Rejected: this cluster never runs it as it is.
    """
    _refuse(launch, settings)
    volumes = _Volumes(launch, settings)
    where = placement(launch.resources, settings, nodes=nodes)
    fabric = settings.fabric_of(launch.resources.accelerator, nodes=nodes)
    extended = dict(where.resources)
    if fabric and fabric.resource and launch.resources.accelerators:
        extended[fabric.resource] = str(fabric.count)
    container: Json = {
        "name": CONTAINER,
        "image": image_of(launch, settings),
        "env": _env(launch, settings, variables, fabric_env=fabric.env if fabric else {}),
        "resources": _resources(launch, settings, extended, volumes.shm_bytes),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": volumes.mounts,
        **_command(launch),
        **_ports(launch),
        **_probes(launch),
        **_container_security(launch, settings, fabric.capabilities if fabric else ()),
    }
    working_dir = launch.working_dir or (WORKSPACE if volumes.has_workspace else None)
    if working_dir:
        container["workingDir"] = working_dir
    if drains:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": DRAIN_S}}}
    grace_s = min(LONGEST_GRACE_S, launch.stop_grace_s) + (DRAIN_S if drains else 0)
    pull = [*settings.pull_secrets, *([registry_secret(launch.run)] if launch.registry_secret else [])]
    spec: Json = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [container],
        "terminationGracePeriodSeconds": max(1, math.ceil(grace_s)),
        "volumes": volumes.sources,
        **_pod_security(launch, settings),
        **({"restartPolicy": "Never"} if kind == "task" else {}),
        **({"hostNetwork": True} if launch.host_network or (fabric and fabric.host_network) else {}),
        **({"imagePullSecrets": [{"name": name} for name in pull]} if pull else {}),
        **({"priorityClassName": settings.priority_class} if settings.priority_class else {}),
        **({"nodeSelector": dict(where.node_selector)} if where.node_selector else {}),
        **({"affinity": where.affinity} if where.affinity else {}),
        **({"tolerations": list(where.tolerations)} if where.tolerations else {}),
    }
    needs = tuple(_needs(launch, settings))
    return Pod(spec, volumes.contents, volumes.files_name, needs)


def secret_name(run: str) -> str:
    """Return the name of the Secret that holds a run's variables."""
    return fitting(f"{run}-secrets")


def registry_secret(run: str) -> str:
    """Return the name of the Secret with which a run's image is pulled."""
    return fitting(f"{run}-registry")


def image_of(launch: Launch, settings: Settings) -> str:
    """Return the image as the cluster is to pull it, by the longest prefix that the operator moved.

    >>> mirrored = Settings(images={"docker.io": "reg.lan/hub"})
    >>> image_of(Launch("a-0-0-0", "a", image="vllm/vllm-openai:v0.33.0"), mirrored)
    'reg.lan/hub/vllm/vllm-openai:v0.33.0'
    """
    image = launch.image or settings.default_image
    if image is None:
        raise Rejected(f"run {launch.run!r} names no image", fix="add image, or default_image to the backend")
    if not settings.images:
        return image
    whole = whole_image(image)
    for prefix in sorted(settings.images, key=len, reverse=True):
        if whole == prefix or whole.startswith((prefix + "/", prefix + ":", prefix + "@")):
            return settings.images[prefix] + whole[len(prefix) :]
    return image


def whole_image(image: str) -> str:
    """Return an image with the registry that a short name leaves out.

    >>> whole_image("python:3.12-slim"), whole_image("reg:5000/a")
    ('docker.io/library/python:3.12-slim', 'reg:5000/a')
    """
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


def quantity(size_bytes: int) -> str:
    """Return bytes as Kubernetes writes them, in the largest unit that is exact.

    >>> quantity(8 * 2**30), quantity(1536 * 2**20), quantity(1000)
    ('8Gi', '1536Mi', '1000')
    """
    for unit, scale in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size_bytes and size_bytes % scale == 0:
            return f"{size_bytes // scale}{unit}"
    return str(size_bytes)


_SYSTEM = ("/bin", "/etc", "/lib", "/opt", "/sbin", "/usr", "/var/lib")
"""Where an image keeps its programs: a folder laid over them would hide them."""


def _is_cache(folder: str) -> bool:
    """Return whether a folder holds what can be fetched again, such as NIM's ``/opt/nim/.cache``."""
    return folder.rpartition("/")[2] == ".cache"


def _refuse(launch: Launch, settings: Settings) -> None:
    profile = f"Pod Security {settings.security!r}"
    if settings.security != "image-default" and (launch.privileged or launch.host_network):
        what = "privileged containers" if launch.privileged else "the host's network"
        raise Rejected(
            f"{profile} refuses {what}", fix="set security: image-default for this backend, where admitted"
        )
    if settings.security == "restricted" and _user(launch)[0] == 0:
        raise Rejected(f"{profile} refuses user {launch.user!r}", fix="leave user out, or security: baseline")
    installs = next((w for w in launch.writable if w.startswith(_SYSTEM) and not _is_cache(w)), None)
    if settings.security == "restricted" and installs:
        raise Rejected(
            f"{profile} lets nobody install into {installs!r}, as run {launch.run!r} does at its start",
            fix="set security: baseline for this backend, or image with everything in it",
        )
    folder = next((m for m in launch.mounts if m.kind == "folder"), None)
    if folder:
        raise Rejected(
            f"Kubernetes does not mount the folder {folder.source!r} of this machine", fix="use a volume"
        )
    if launch.more_probes:
        raise Rejected("Kubernetes asks one probe for readiness", fix="keep one of 'probes'")


def _command(launch: Launch) -> Json:
    found: Json = {}
    if launch.entrypoint is not None:
        found["command"] = [literal(word) for word in launch.entrypoint]
    if launch.command:
        found["args"] = [literal(word) for word in launch.command]
    return found


def _user(launch: Launch) -> tuple[int | None, int | None]:
    """Return the numbers of user and group, None where the launch gives none."""
    if not launch.user:
        return None, None
    user, _, group = launch.user.partition(":")
    if user == "root":
        user = "0"
    if not user.isdigit() or (group and not group.isdigit()):
        raise Rejected(f"Kubernetes knows users by number, not {launch.user!r}", fix="write user as a number")
    return int(user), int(group) if group else None


def _pod_security(launch: Launch, settings: Settings) -> Json:
    user, group = _user(launch)
    wanted: Json = {}
    if settings.security == "restricted":
        user = settings.user_id if user is None else user
        wanted = {"runAsNonRoot": True}
        if user is not None:
            wanted |= {"fsGroup": user if group is None else group, "fsGroupChangePolicy": "OnRootMismatch"}
            group = user if group is None else group
    if settings.security != "image-default":
        wanted["seccompProfile"] = {"type": "RuntimeDefault"}
    if user is not None:
        wanted["runAsUser"] = user
    if group is not None:
        wanted["runAsGroup"] = group
    return {"securityContext": wanted} if wanted else {}


def _container_security(launch: Launch, settings: Settings, capabilities: Iterable[str]) -> Json:
    if settings.security == "restricted":
        return {"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    wanted: Json = {"allowPrivilegeEscalation": False} if settings.security == "baseline" else {}
    if launch.privileged:
        wanted["privileged"] = True
    if added := sorted(capabilities):
        wanted["capabilities"] = {"add": added}
    return {"securityContext": wanted} if wanted else {}


def _resources(launch: Launch, settings: Settings, extended: Mapping[str, str], shm_bytes: int) -> Json:
    given = launch.resources
    requests: Json = dict(extended)
    limits: Json = dict(extended)
    if given.cpu is not None:
        requests["cpu"] = _cores(given.cpu)
        if not given.accelerators:  # a throttled host thread leaves its accelerator idle
            limits["cpu"] = requests["cpu"]
    if given.memory_bytes is not None:
        # pages of /dev/shm are counted as the container's memory
        requests["memory"] = limits["memory"] = quantity(given.memory_bytes + shm_bytes)
    if disk_bytes := _disk_bytes(launch, settings):
        requests["ephemeral-storage"] = quantity(disk_bytes)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _disk_bytes(launch: Launch, settings: Settings) -> int:
    """Return what a pod writes on its node's disk; 0 where nobody knows.

    A pod that asks for less than it writes is the first to be evicted, in the middle of its download
    (Kubernetes docs, "Node-pressure Eviction").
    """
    if launch.resources.disk_bytes is not None:
        return launch.resources.disk_bytes
    if not launch.fetch_bytes:
        return 0
    fetched = launch.fetch_bytes if settings.cache_claim is None else 0
    return -(-(SCRATCH_BYTES + fetched) // 2**20) * 2**20


def _cores(cpu: float) -> str:
    """Return processors as Kubernetes writes them.

    >>> _cores(8), _cores(0.25)
    ('8', '250m')
    """
    milli = round(cpu * 1000)
    return f"{milli}m" if milli % 1000 else str(milli // 1000)


def _env(
    launch: Launch, settings: Settings, variables: Sequence[Json], *, fabric_env: Mapping[str, str]
) -> list[Json]:
    plain: dict[str, str] = {}
    if settings.security == "restricted":
        plain |= {"HOME": HOME, "USER": "modelyard", "LOGNAME": "modelyard"}
        plain |= {
            name: posixpath.join(HOME, ".cache", folder).rstrip("/") for name, folder in _CACHES.items()
        }
    if not launch.resources.accelerators:
        # images made for CUDA ask for every GPU, and get them where NVIDIA's runtime is the default
        plain["NVIDIA_VISIBLE_DEVICES"] = "void"
    given = {k: _redirected(v, settings) for k, v in launch.env}
    plain |= {**settings.env, **fabric_env, **given}
    # an apply refuses a variable that is there twice: ours stand below, and so does what a secret says
    others = {name for name, _ in launch.secrets}
    plain = {k: v for k, v in plain.items() if not k.startswith("MODELYARD_") and k not in others}
    found: list[Json] = [{"name": name, "value": literal(value)} for name, value in sorted(plain.items())]
    found += [_secret_variable(launch.run, name, settings) for name, _ in sorted(launch.secrets)]
    own = {
        "MODELYARD_RUN_NAME": launch.run,
        "MODELYARD_GPUS_PER_NODE": str(launch.resources.accelerators),
    }
    found += [{"name": name, "value": value} for name, value in own.items()]
    return [*found, *variables]


def _secret_place(run: str, variable: str, settings: Settings) -> tuple[str, str]:
    if variable in settings.secrets:
        name, _, key = settings.secrets[variable].partition("/")
        return name, key
    return secret_name(run), variable


def _secret_variable(run: str, variable: str, settings: Settings) -> Json:
    name, key = _secret_place(run, variable, settings)
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}


def _needs(launch: Launch, settings: Settings) -> Iterable[Needs]:
    for variable, reference in sorted(launch.secrets):
        yield Needs(*_secret_place(launch.run, variable, settings), reference)
    if launch.registry_secret:
        yield Needs(registry_secret(launch.run), ".dockerconfigjson", "registry_auth of the spec")


def _ports(launch: Launch) -> Json:
    ports = [{"name": port_name(number), "containerPort": number} for number in port_numbers(launch)]
    return {"ports": ports} if ports else {}


def port_numbers(launch: Launch) -> list[int]:
    """Return the ports of a container, each once: a machine's own ports for one of them are not asked for."""
    return list(dict.fromkeys(port.container for port in launch.ports))


def port_name(number: int) -> str:
    """Return what a port is called in the cluster."""
    return f"port-{number}"


def _probes(launch: Launch) -> Json:
    probe = launch.probe
    if probe is None:
        return {}
    asked = question(probe)
    period_s = max(1, round(probe.interval_s))
    common = {**asked, "periodSeconds": period_s, "timeoutSeconds": max(1, math.ceil(probe.timeout_s))}
    found: Json = {
        "startupProbe": {**common, "failureThreshold": max(1, math.ceil(probe.start_s / period_s))},
    }
    if not probe.until_ready:
        found["readinessProbe"] = {
            **common, "failureThreshold": probe.failures, "successThreshold": probe.ready_after,
        }  # fmt: skip
        # ten times as patient: a busy server that answers late must not be restarted for it
        found["livenessProbe"] = {**common, "failureThreshold": 10 * probe.failures}
    return found


class _Volumes:
    """What a pod mounts, collected: folders that are writable, shared memory, files, claims."""

    def __init__(self, launch: Launch, settings: Settings) -> None:
        self.sources: list[Json] = []
        self.mounts: list[Json] = []
        self.contents: dict[str, bytes] = {}
        self.files_name = ""
        self.has_workspace = launch.working_dir is None and any(
            not file.target.startswith("/") for file in launch.files
        )
        self._taken = {posixpath.normpath(mount.target) for mount in launch.mounts}
        self.shm_bytes = self._shared_memory(launch)
        self._writable("tmp", "/tmp")
        if settings.security == "restricted":
            self._writable("home", HOME)
        if self.has_workspace:
            self._writable("workspace", WORKSPACE)
        for mount in launch.mounts:
            self._mount(mount, settings)
        if settings.security == "restricted":
            self._opened(launch)
        if launch.files:
            self._files(launch)

    def _writable(self, name: str, target: str, **limits: str) -> None:
        if target in self._taken:  # by a volume of the spec
            return
        self.sources.append({"name": name, "emptyDir": limits})
        self.mounts.append({"name": name, "mountPath": target})

    def _opened(self, launch: Launch) -> None:
        """Lay a writable folder over each that the program writes to and nothing is mounted at."""
        for target in launch.writable:
            held = [m["mountPath"] for m in self.mounts] + ["/root"]  # root's own are moved to HOME
            if not any(target == path or target.startswith(path + "/") for path in held):
                self._writable(fitting(f"writable-{target.strip('/')}", 60), target)

    def _shared_memory(self, launch: Launch) -> int:
        given = launch.resources
        size = given.shm_bytes or SHM_PER_ACCELERATOR * given.accelerators
        if "/dev/shm" in self._taken:
            return 0
        if size:
            self._writable("shm", "/dev/shm", medium="Memory", sizeLimit=quantity(size))
        return size

    def _mount(self, mount: Mount, settings: Settings) -> None:
        target = _redirected(mount.target, settings) if mount.kind == "cache" else mount.target
        name = fitting(f"{mount.kind}-{mount.source}", 60)
        mounted: Json = {"name": name, "mountPath": target}
        source: Json = {"name": name}
        if mount.kind == "cache" and settings.cache_claim is None:
            source["emptyDir"] = {}
        elif mount.kind == "cache":
            source = {"name": "cache", "persistentVolumeClaim": {"claimName": settings.cache_claim}}
            mounted |= {"name": "cache", "subPath": mount.source}
        else:
            source["persistentVolumeClaim"] = {"claimName": fitting(mount.source)}
        if mount.read_only:
            mounted["readOnly"] = True
        if source not in self.sources:
            self.sources.append(source)
        self.mounts.append(mounted)

    def _files(self, launch: Launch) -> None:
        size = sum(len(file.content) for file in launch.files)
        if size > MOST_FILE_BYTES:
            raise Rejected(
                f"files of run {launch.run!r} take {format_bytes(size)}, and a ConfigMap holds 1 MiB",
                fix="put them in a volume or in the image",
            )
        base = launch.working_dir or WORKSPACE
        items: list[Json] = []
        for file in sorted(launch.files, key=lambda f: f.target):
            key = _key(file)
            self.contents[key] = file.content
            items.append({"key": key, "path": key, "mode": file.mode})
            self.mounts.append(
                {
                    "name": "files",
                    "mountPath": posixpath.normpath(posixpath.join(base, file.target)),
                    "subPath": key,
                    "readOnly": True,
                }
            )
        digest = hashlib.sha256(repr(sorted(self.contents.items())).encode()).hexdigest()[:8]
        self.files_name = fitting(f"{launch.run}-files-{digest}", 63)
        self.sources.append({"name": "files", "configMap": {"name": self.files_name, "items": items}})


def mounted(one: Json) -> set[str]:
    """Return the ConfigMaps that a pod mounts, or the pods of a ReplicaSet or a ControllerRevision.

    >>> volumes = [{"name": "files", "configMap": {"name": "web-files-1"}}, {"name": "tmp", "emptyDir": {}}]
    >>> mounted({"kind": "Pod", "spec": {"volumes": volumes}})
    {'web-files-1'}
    >>> mounted({"kind": "ReplicaSet", "spec": {"template": {"spec": {"volumes": volumes}}}})
    {'web-files-1'}
    """
    said = one["data"]["spec"] if one["kind"] == "ControllerRevision" else one["spec"]
    spec = said["template"]["spec"] if "template" in said else said
    volumes = spec.get("volumes") or ()
    return {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}


def taken(one: Json) -> set[tuple[str, str]]:
    """Return the keys of Secrets that a pod's variables are taken from, and ``.dockerconfigjson`` to pull by.

    >>> token = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "web-secrets", "key": "A"}}}
    >>> taken({"spec": {"containers": [{"env": [token]}], "imagePullSecrets": [{"name": "reg"}]}}) == {
    ...     ("web-secrets", "A"), ("reg", ".dockerconfigjson")}
    True
    """
    spec = one["spec"]
    variables = (each for container in spec["containers"] for each in container.get("env") or ())
    found = [(each.get("valueFrom") or {}).get("secretKeyRef") for each in variables]
    pulls = {(each["name"], ".dockerconfigjson") for each in spec.get("imagePullSecrets") or ()}
    return {(each["name"], each["key"]) for each in found if each} | pulls


def _key(file: File) -> str:
    """Return the key of a file: its name to be read, and a hash because two may share it."""
    digest = hashlib.sha256(file.target.encode()).hexdigest()[:6]
    return fitting(f"{posixpath.basename(file.target)}-{digest}", 63)


def _redirected(target: str, settings: Settings) -> str:
    """Return where a cache of root's is mounted: nobody else may enter ``/root``."""
    if settings.security == "restricted" and (target == "/root" or target.startswith("/root/")):
        return HOME + target.removeprefix("/root")
    return target
