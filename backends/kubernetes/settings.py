"""How a cluster wants its objects: security, queues, fabrics, mirrors, caches."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from orchestrator.errors import ConfigError
from orchestrator.frozen import frozen

Security = Literal["restricted", "baseline", "image-default"]
Multinode = Literal["leader-worker-set", "statefulset"]
Tasks = Literal["job", "jobset"]
Autoscaler = Literal["none", "hpa", "keda"]
Mig = Literal["mixed", "single"]
Access = Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]
Together = Literal["required", "preferred"]


PROMETHEUS = "http://prometheus-operated.monitoring:9090"
"""Where the Prometheus operator of kube-prometheus-stack answers."""


@frozen
class Fabric:
    """A fast network between the nodes of one replica, as this site's device plugin names it.

    Args:
        accelerators: The accelerators whose nodes have it, by catalog name; none: whatever they have.
        node_selector: Labels of the nodes that have it, where not all with these accelerators do.
        resource: The extended resource, such as ``rdma/ib`` or ``vpc.amazonaws.com/efa``.
        count: How many a pod asks for.
        env: Variables that a pod gets with it, such as ``NCCL_IB_HCA``.
        capabilities: Linux capabilities it takes, such as ``IPC_LOCK``.
        host_network: Whether the pod uses the network of its machine.
        annotations: Annotations that attach networks, such as those of Multus.
        topology: The label of nodes whose value all nodes of one replica have in common, such as
            ``topology.kubernetes.io/zone``.
        together: Whether that is ``required``, or only ``preferred`` over nodes that are further apart.
    """

    accelerators: Sequence[str] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    resource: str = ""
    count: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    capabilities: Sequence[str] = ()
    host_network: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)
    topology: str = ""
    together: Together = "required"

    def joins(self, accelerator: str | None) -> bool:
        """Return whether nodes with this accelerator have the network.

        >>> Fabric(["H100-80GB"]).joins("H100-80GB"), Fabric(["H100-80GB"]).joins(None), Fabric().joins(None)
        (True, False, True)
        """
        return not self.accelerators or accelerator in self.accelerators


@frozen
class Gateway:
    """A Gateway of the cluster that leads to services, beside or instead of Modelyard's own.

    Args:
        name: The Gateway's name.
        namespace: Its namespace, where it is not that of the runs.
        section: Which of its listeners; none: all that admit the route.
        host: The host that a service answers to; with ``{run}`` in it each has one of its own, without
            they share it by path and model.
        pools: Whether replicas of a model are an InferencePool, whose endpoint picker chooses among them;
            without, the Service spreads requests.
        picker: The Service of the endpoint picker of a run's pool.
        picker_port: Its port.
        fail_open: Whether requests go to any replica while the picker is away.
    """

    name: str
    namespace: str = ""
    section: str = ""
    host: str = ""
    pools: bool = True
    picker: str = "{run}-epp"
    picker_port: int = 9002
    fail_open: bool = False


@frozen
class Pool:
    """Machines that an autoscaler makes on demand, which no node shows while there are none.

    ``accelerator``, ``vram_bytes``, ``cpu`` and ``memory_bytes`` are those of one machine; ``labels``
    are on its nodes from the start, and a pod that is sent here selects them.
    """

    name: str
    labels: Mapping[str, str]
    cpu: float
    memory_bytes: int
    accelerator: str | None = None
    vendor: str | None = None
    count: int = 0
    vram_bytes: int = 0
    most: int | None = None
    price_usd_hour: float = 0.0
    boot_s: int = 300
    spot: bool = False


@frozen
class Settings:
    """What an operator says of a cluster, for every object that is written there.

    Args:
        namespace: Where the objects go.
        security: The Pod Security profile that pods keep: ``restricted`` runs as ``user_id``,
            ``baseline`` as the user of the image, ``image-default`` sets nothing at all.
        user_id: The user, and the group of volumes, under ``restricted``; None where the
            namespace gives one out, as on OpenShift.
        multinode: What keeps a service that spans nodes.
        tasks: What runs a task that spans nodes; a JobSet starts all of it again when one fails.
        mig: How NVIDIA's device plugin counts slices of GPUs: each by its profile, or as a GPU.
        autoscaler: What moves a service's replicas; the number is left out of its object then.
        gateway: A Gateway of the cluster that leads to services.
        prometheus: Where KEDA finds the series, for ``keda``.
        disruption_budget: Whether a service of several replicas gets one.
        queue: Kueue's LocalQueue for every run.
        queue_priority: Kueue's WorkloadPriorityClass.
        priority_class: The PriorityClass of pods.
        default_image: Runs commands of specs that name no image.
        cache_claim: A PersistentVolumeClaim that holds models and compiled kernels for all runs.
        storage_class: The class of volumes that are made; None for the cluster's default.
        volume_access: How volumes that are made may be mounted.
        volume_bytes: The size of a volume that names none.
        images: Prefixes of images and what they become, for a registry of one's own.
        env: Variables of every container, such as ``HF_ENDPOINT``.
        secrets: Where a variable's value is in the cluster, as ``secret/key``; others come from
            a Secret that is written for the run.
        pull_secrets: Secrets with which images are pulled.
        node_selector: Labels of the nodes that may be used.
        tolerations: Taints of the nodes that may be used, as Kubernetes writes them.
        fabrics: The networks of replicas that span nodes; the first that has their accelerator is used.
        pools: Machines that exist on demand.
    """

    namespace: str = "default"
    security: Security = "restricted"
    user_id: int | None = 1000
    multinode: Multinode = "leader-worker-set"
    tasks: Tasks = "job"
    mig: Mig = "mixed"
    autoscaler: Autoscaler = "none"
    gateway: Gateway | None = None
    prometheus: str = PROMETHEUS
    disruption_budget: bool = True
    queue: str | None = None
    queue_priority: str | None = None
    priority_class: str | None = None
    default_image: str | None = None
    cache_claim: str | None = None
    storage_class: str | None = None
    volume_access: Access = "ReadWriteOnce"
    volume_bytes: int = 10 * 2**30
    images: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    pull_secrets: Sequence[str] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    fabrics: Sequence[Fabric] = ()
    pools: Sequence[Pool] = ()

    def fabric_of(self, accelerator: str | None, *, nodes: int) -> Fabric | None:
        """Return the network between ``nodes`` nodes with this accelerator; None where there is none.

        >>> site = Settings(fabrics=[Fabric(["A100-80GB"], resource="efa"), Fabric(resource="ib")])
        >>> [site.fabric_of(name, nodes=2).resource for name in ("A100-80GB", "H100-80GB")]
        ['efa', 'ib']
        >>> site.fabric_of("H100-80GB", nodes=1)
        """
        if nodes == 1:
            return None
        return next((fabric for fabric in self.fabrics if fabric.joins(accelerator)), None)


_Part = TypeVar("_Part", Fabric, Gateway, Pool)


def read_settings(name: str, options: Mapping[str, Any]) -> Settings:
    """Return the settings that the options of backend ``name`` say, as ``config.yaml`` has them.

    Raises:
        ConfigError: an option has no such value, or two contradict each other.

    >>> read_settings("lab", {"namespace": "ml", "fabrics": [{"resource": "rdma/ib"}]}).fabrics[0].count
    1
    """
    given = typed(f"backend {name!r}: ", options, hints_of(Settings))
    # a prefix ends where a part of an image's name does
    given["images"] = {k.rstrip("/"): v.rstrip("/") for k, v in given.get("images", {}).items()}
    if given.get("fabrics"):
        given["fabrics"] = tuple(_part(name, "fabrics", Fabric, fabric) for fabric in given["fabrics"])
    if given.get("gateway") is not None:
        given["gateway"] = _part(name, "gateway", Gateway, given["gateway"])
    if given.get("pools"):
        given["pools"] = tuple(_part(name, "pools", Pool, pool) for pool in given["pools"])
    settings = Settings(**given)
    if settings.security == "restricted" and settings.user_id == 0:
        raise ConfigError(
            f"backend {name!r}: user_id is 0, and Pod Security 'restricted' refuses it",
            fix="name another user, or set security: baseline",
        )
    for fabric in settings.fabrics:
        _check_fabric(name, fabric, settings.security)
    for variable, place in settings.secrets.items():
        if place.count("/") != 1:
            raise ConfigError(
                f"backend {name!r}: secrets.{variable} is {place!r}", fix="write it as secret/key"
            )
    return settings


def _part(name: str, option: str, kind: type[_Part], given: Any) -> _Part:
    known = [f.name for f in fields(kind)]
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"backend {name!r}: {option} takes keys and values", fix=f"known: {', '.join(known)}"
        )
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"backend {name!r}: {option} has no {key!r}", fix=fix)
    given = typed(f"backend {name!r}: {option}.", given, hints_of(kind))
    try:
        return kind(**given)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise ConfigError(f"backend {name!r}: {option} lacks {missing}", fix="give each of them") from None


_SAID: Mapping[Any, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false",
}  # fmt: skip


hints_of: Callable[[Any], Mapping[str, Any]] = cache(get_type_hints)
"""Returns what the fields of a class take; reading that takes longer than holding options to it."""


def typed(where: str, given: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as their types say: what YAML reads in a table of words as a number is a word.

    Raises:
        ConfigError: one is another kind of value than it takes.

    >>> typed("lab: ", {"env": {"A": 1, "B": True}}, {"env": Mapping[str, str]})
    {'env': {'A': '1', 'B': 'true'}}
    """
    return {option: _typed(f"{where}{option}", value, hints[option]) for option, value in given.items()}


def _typed(what: str, value: Any, hint: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return None if value is None else _typed(what, value, inner[0])
    if origin is Literal:
        if value not in inner:
            raise ConfigError(f"{what} is {value!r}", fix=f"one of {', '.join(inner)}")
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{what} takes keys and values, not {value!r}", fix="write {key: value}")
        return {str(k): _word(f"{what}.{k}", v) if inner[1] is str else v for k, v in value.items()}
    if origin is Sequence:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{what} takes a list, not {value!r}", fix="write it in brackets: [...]")
        return tuple(_typed(f"{what}[{number}]", one, inner[0]) for number, one in enumerate(value))
    is_other = hint in _SAID and not isinstance(value, (int, float) if hint is float else hint)
    if is_other or (isinstance(value, bool) and hint in (int, float)):
        raise ConfigError(
            f"{what} takes {_SAID[hint]}, not {value!r}", fix="see the reference of the backend"
        )
    return value


def _word(what: str, value: Any) -> str:
    """Return what stands in a table of words as one: ``true`` and ``1`` need no quotes there."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int):
        raise ConfigError(f"{what} takes text, not {value!r}", fix="write it in quotes")
    return str(value)


def _check_fabric(name: str, fabric: Fabric, security: Security) -> None:
    if (fabric.capabilities or fabric.host_network) and security != "image-default":
        what = "capabilities" if fabric.capabilities else "the host's network"
        raise ConfigError(
            f"backend {name!r}: a fabric that takes {what} is refused by Pod Security {security!r}",
            fix="set security: image-default, in a namespace that admits it",
        )
