"""Kubernetes: groups as the cluster's own objects, kept by its own controllers."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from threading import Event as Flag
from typing import Any

from backends.kubernetes.client import Cluster, parse_time, path_of, path_of_object
from backends.kubernetes.compare import changes
from backends.kubernetes.devices import NO_DEVICES, Devices
from backends.kubernetes.gateway import HTTP_ROUTE, INFERENCE_POOL
from backends.kubernetes.inventory import Inventory, amount_of, inventory
from backends.kubernetes.names import HASH, LAUNCH, MANAGER, RUN, VOLUME, fitting, label_value, selector
from backends.kubernetes.pod import (
    CONTAINER,
    image_of,
    mounted,
    registry_secret,
    secret_name,
    taken,
    whole_image,
)
from backends.kubernetes.queue import KUEUE, QUEUE, held_back
from backends.kubernetes.rbac import missing_rules, render_rbac
from backends.kubernetes.refusals import GOING, Refused, grant, is_by_scaler
from backends.kubernetes.render import (
    INSTALL,
    JOB_SET,
    LEADER_WORKER_SET,
    SCALED_OBJECT,
    Rendered,
    render_group,
    render_volume,
    to_yaml,
)
from backends.kubernetes.settings import (
    PROMETHEUS,
    Access,
    Autoscaler,
    Mig,
    Multinode,
    Security,
    Tasks,
    read_settings,
    typed,
)
from backends.kubernetes.status import SCALABLE, STOPPED, World, condition, labels_of, without_name
from orchestrator.backend import (
    LABEL,
    Can,
    Check,
    Group,
    GroupStatus,
    Instance,
    Launch,
    LogLine,
    Offer,
    Phase,
    Progress,
    Rendering,
    Volume,
)
from orchestrator.errors import (
    AuthFailed,
    BackendError,
    Busy,
    ConfigError,
    ModelyardError,
    NoCapacity,
    NotFound,
    Rejected,
    Unreachable,
)
from orchestrator.units import parse_bytes

Json = dict[str, Any]

MANAGED = f"app.kubernetes.io/managed-by={MANAGER},{RUN}"
"""Selects what runs belong to; other installations may manage by the same name without runs."""

OWNERS = (
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
    ("jobset.x-k8s.io/v1alpha2", "JobSet"),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"),
)
SCALERS = (("autoscaling/v2", "HorizontalPodAutoscaler"), ("keda.sh/v1alpha1", "ScaledObject"))
DEPENDENTS = (
    *SCALERS,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("inference.networking.k8s.io/v1", "InferencePool"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "Service"),
)

REVISIONS = (("apps/v1", "ReplicaSet"), ("apps/v1", "ControllerRevision"))
"""What controllers keep of the templates before: ten of each owner, which go with it."""

GITOPS = {
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
    "meta.helm.sh/release-name": "Helm",
}
"""Marks of those who would write the same object again."""

WATCH_S = 300
"""After this long the server ends a watch, and it is begun again where it ended."""

_OWN: Mapping[str, Any] = {
    "kubeconfig": str | None, "context": str | None, "force_conflicts": bool, "pod_network": bool,
    "timeout_s": float, "volume_size": str,
}  # fmt: skip
"""What the options take that are not of :class:`backends.kubernetes.settings.Settings`."""

LOG_PAUSE_S = 0.3
LOG_TRIES = 10
END_PAUSE_S = 0.1


class Kubernetes:
    """Runs groups as objects of one namespace.

    Args:
        name: The backend's name in the configuration.
        kubeconfig: The file with address and credentials; None for ``KUBECONFIG``, the user's
            own, or the service account of the pod we run in.
        context: The context of that file; None for its current one.
        force_conflicts: Whether fields that others hold are taken from them.
        pod_network: Whether this machine reaches pods by their addresses; readiness does not
            depend on it, because the cluster probes.
        timeout_s: How long one answer of the API server may take.
        namespace: Where the objects go; this and what follows are told in
            :class:`backends.kubernetes.settings.Settings`.

    Raises:
        ConfigError: an option has no such value.
    """

    def __init__(
        self,
        name: str = "kubernetes",
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        force_conflicts: bool = False,
        pod_network: bool = True,
        timeout_s: float = 30.0,
        namespace: str = "default",
        security: Security = "restricted",
        user_id: int | None = 1000,
        multinode: Multinode = "leader-worker-set",
        tasks: Tasks = "job",
        mig: Mig = "mixed",
        autoscaler: Autoscaler = "none",
        gateway: Mapping[str, Any] | None = None,
        prometheus: str = PROMETHEUS,
        disruption_budget: bool = True,
        queue: str | None = None,
        queue_priority: str | None = None,
        priority_class: str | None = None,
        default_image: str | None = None,
        cache_claim: str | None = None,
        storage_class: str | None = None,
        volume_access: Access = "ReadWriteOnce",
        volume_size: str = "10GiB",
        images: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        pull_secrets: Sequence[str] = (),
        node_selector: Mapping[str, str] | None = None,
        tolerations: Sequence[Mapping[str, Any]] = (),
        fabrics: Sequence[Mapping[str, Any]] = (),
        pools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        own = {
            "kubeconfig": kubeconfig, "context": context, "force_conflicts": force_conflicts,
            "pod_network": pod_network, "timeout_s": timeout_s, "volume_size": volume_size,
        }  # fmt: skip
        typed(f"backend {name!r}: ", own, _OWN)
        try:
            volume_bytes = parse_bytes(volume_size)
        except ValueError as error:
            raise ConfigError(f"backend {name!r}: volume_size: {error}") from None
        self.name = name
        self.settings = read_settings(
            name,
            {
                "namespace": namespace, "security": security, "user_id": user_id, "multinode": multinode,
                "tasks": tasks, "mig": mig, "autoscaler": autoscaler, "gateway": gateway,
                "prometheus": prometheus, "disruption_budget": disruption_budget,
                "queue": queue, "queue_priority": queue_priority,
                "priority_class": priority_class, "default_image": default_image,
                "cache_claim": cache_claim, "storage_class": storage_class, "volume_access": volume_access,
                "volume_bytes": volume_bytes, "images": images or {}, "env": env or {},
                "secrets": secrets or {}, "pull_secrets": pull_secrets or (),
                "node_selector": node_selector or {}, "tolerations": tolerations or (),
                "fabrics": fabrics or (), "pools": pools or (),
            },
        )  # fmt: skip
        self._cluster = Cluster(name, kubeconfig=kubeconfig, context=context, timeout_s=timeout_s)
        self._force = force_conflicts
        self._pod_network = pod_network
        self.can = frozenset(
            {Can.IMAGES, Can.PORTS, Can.VOLUMES, Can.EXEC, Can.LIMITS, Can.NODES, Can.GROUPS}
            | ({Can.BARE} if default_image else set())
            | ({Can.SCALES} if autoscaler != "none" else set())
            | ({Can.PRIVILEGED} if security == "image-default" else set())
        )

    # -- offers ----------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return what the nodes have free and what declared pools can grow to; the rest with the reason."""
        found = self.inventory()
        return [*found.offers, *(offer for one in found.left_out for offer in one.offers)]

    def inventory(self) -> Inventory:
        """Return the offers with the nodes that were left out, and why."""
        nodes, _ = self._cluster.list("/api/v1/nodes")
        pods, _ = self._cluster.list(
            "/api/v1/pods", fieldSelector="status.phase!=Succeeded,status.phase!=Failed"
        )
        return inventory(nodes, pods, self.settings, backend=self.name, devices=self._devices())

    def _devices(self) -> Devices:
        """Return what dynamic resource allocation says, where we are let see it."""
        root = "/apis/resource.k8s.io/v1"
        try:
            slices, _ = self._cluster.list(f"{root}/resourceslices")
            if not slices:
                return NO_DEVICES
            classes, _ = self._cluster.list(f"{root}/deviceclasses")
            claims, _ = self._cluster.list(f"{root}/resourceclaims")
        except AuthFailed:
            return NO_DEVICES
        return Devices.of(slices, classes, claims)

    # -- groups ----------------------------------------------------------------------------------

    def render(self, group: Group) -> Rendered:
        """Return the objects that would keep ``group``; asks nobody."""
        return render_group(group, self.settings)

    def manifest(self, group: Group) -> Rendering:
        """Return the objects that would keep ``group`` as YAML, and what has to be there for them."""
        rendered = self.render(group)
        notes = [f"Secret {n.secret!r} holds {n.key!r}: {_told(n.reference)}" for n in rendered.needs]
        notes += [f"the cluster has {kind}: {INSTALL[kind]}" for kind in rendered.requires]
        notes += rendered.notes
        return Rendering(to_yaml(rendered.objects), tuple(notes))

    def volume_manifest(self, name: str, *, size_bytes: int | None) -> Rendering:
        """Return the claim of a named volume as YAML."""
        return Rendering(to_yaml([render_volume(name, self.settings, size_bytes=size_bytes)]))

    def access_manifest(self) -> Rendering:
        """Return a service account and the roles that Modelyard takes, as YAML."""
        return Rendering(to_yaml(render_rbac(self.settings)))

    def apply_group(self, group: Group, *, secrets: Mapping[str, str]) -> GroupStatus:
        """Make the cluster's objects say ``group``; repeatable, and an update where it exists."""
        rendered = self.render(group)
        run = group.template.run
        self._require(rendered.requires)
        made = [*rendered.objects, *self._secrets(group.template, secrets)]
        there = [self._require_ours(one, run) for one in made]
        self._clear(run, made, there)
        used: set[tuple[str, str]] = set()
        if group.kind == "task":
            self._delete_others(run, made[:1], OWNERS)  # what it holds, its successor needs
        # before anything new: what comes after takes what is made now, or what its controller keeps
        living = self._living(run)
        if group.kind != "task":
            used = {key for pod in living for key in taken(pod)}
            made = [
                _with_number(_with_used(one, live, used), live) for one, live in zip(made, there, strict=True)
            ]
        self._write(run, rendered, made)
        if group.kind != "task":
            self._delete_others(run, made, OWNERS)
        kept = [{"kind": "Secret", "metadata": {"name": name}} for name in sorted({n for n, _ in used})]
        self._delete_others(run, [*made, *kept, *self._still_mounted(run, living)], DEPENDENTS)
        found = next((status for status in self.groups() if status.name == label_value(run)), None)
        if found is None:  # somebody deletes it as we write it
            raise Busy(f"what was applied of run {run!r} is gone again", backend=self.name)
        return found

    def rehearse(self, group: Group) -> Sequence[str]:
        """Return what the cluster says that applying ``group`` would change; nothing is written."""
        rendered = self.render(group)
        self._require(rendered.requires)
        found: list[str] = []
        refused: list[BackendError] = []
        for one in rendered.objects:
            live = self._require_ours(one, group.template.run)
            if live and _is_in_the_way(one, live):
                found.append(f"{one['kind']} {one['metadata']['name']}: is made anew")
                continue
            planned, held = self._cluster.rehearse(_with_number(one, live), force=self._force)
            if is_by_scaler(held) and not self._scalers(one, group.template.run)[1]:
                held = None  # ours, which goes with the apply, or gone before
            phrases = changes(live, planned)
            found += phrases
            if held:
                what = f"{held.what} ({'; '.join(phrases)})" if phrases else held.what
                refused.append(Rejected(what, backend=self.name, fix=held.fix))
        for one in self._secrets(group.template, _unsaid(group.template)):
            self._require_ours(one, group.template.run)
        if refused:
            raise Rejected("; ".join(one.what for one in refused), backend=self.name, fix=refused[0].fix)
        return found

    def groups(self) -> Sequence[GroupStatus]:
        """Return every group of our namespace, ordered by name."""
        return [
            replace(status, instances=tuple(map(self._reached, status.instances)))
            for status in self._world(explained=True).groups()
        ]

    def delete_group(self, name: str, *, grace_s: float) -> None:
        """Delete a group and all it owns; unknown is no error."""
        deleted = self._delete_others(name, [], (*OWNERS, *DEPENDENTS))
        if deleted:
            chosen = ",".join(f"{k}={v}" for k, v in selector(name).items())
            self._cluster.delete(self._path("v1", "Pod"), grace_s=grace_s, labelSelector=chosen)

    # -- single launches -------------------------------------------------------------------------

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        """Create a Job for ``launch``, or find it."""
        found = self._job(launch.name)
        if found is None:
            progress("starting")
            self._start(launch, secrets)
        return self._instance(launch.name)

    def instances(self) -> Sequence[Instance]:
        """Return every pod of a group and every single launch, ordered by name."""
        return [self._reached(one) for one in self._world().instances()]

    def stop(self, name: str, *, grace_s: float) -> None:
        """Ask the launch to end, and have it killed after ``grace_s``; it stays listed as exited."""
        job = self._job(name)
        if job is None or STOPPED in job["metadata"]["annotations"] or _is_over(job):
            return
        seen = self._instance(name)
        if seen.phase is Phase.EXITED:
            return
        path = path_of_object(self._whole(job, "batch/v1", "Job"))
        self._annotate(path, "asked")
        code = self._end(seen.container, grace_s) if seen.container else None
        self._annotate(path, "" if code is None else str(code), suspend=True)

    def remove(self, name: str) -> None:
        """Forget a launch and its output; one that runs is killed first."""
        job = self._job(name)
        if job is None:
            return
        self._cluster.delete(path_of_object(self._whole(job, "batch/v1", "Job")))
        chosen = f"{LAUNCH}={label_value(name)}"
        self._cluster.delete(self._path("v1", "Pod"), grace_s=0, labelSelector=chosen)
        self._wait_until_gone(chosen)

    def logs(
        self, name: str, *, follow: bool = False, since: datetime | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Yield the output of a pod; with ``follow`` until its container ends."""
        seen = self._instance(name)
        while not seen.container or (seen.phase is Phase.PENDING and follow):
            if not follow or seen.phase is Phase.EXITED:
                return
            time.sleep(LOG_PAUSE_S)
            seen = self._instance(name)
        query = {"container": CONTAINER, "timestamps": "true", "follow": str(follow).lower()}
        if since is not None:  # the server counts whole seconds; the rest is cut off here
            query["sinceTime"] = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        if tail is not None:
            query["tailLines"] = str(tail)
        for line in self._output(seen, query):
            stamp, _, text = line.decode("utf-8", "replace").partition(" ")
            at = parse_time(stamp)
            if since is None or at is None or at >= since:
                yield LogLine(text.removesuffix("\r"), at)

    def _output(self, seen: Instance, query: Mapping[str, str]) -> Iterator[bytes]:
        path = self._path("v1", "Pod", seen.container) + "/log"
        for _ in range(LOG_TRIES):
            try:
                with self._cluster.lines(path, query) as lines:
                    yield from lines
                    return
            except Refused as refusal:
                if seen.phase is Phase.PENDING or refusal.status != 400:
                    return  # it has not begun, or its pod is gone and its output with it
            # the kubelet has not heard yet of what the server knows already
            time.sleep(LOG_PAUSE_S)

    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:
        """Run ``command`` in a running pod on this process's terminal; return its exit code."""
        from backends.kubernetes.attach import execute  # terminals and sockets: only here

        return execute(self._cluster, self._pod_of(name), command, tty=tty)

    def forwarded(self, name: str, port: int) -> AbstractContextManager[tuple[str, int]]:
        """Give an address of this machine that leads to a port of a running pod, until left."""
        from backends.kubernetes.attach import forwarded

        return forwarded(self._cluster, self._pod_of(name), port)

    def _pod_of(self, name: str) -> str:
        """Return the path of a launch's pod, which has to run."""
        seen = self._instance(name)
        if seen.phase is not Phase.RUNNING:
            raise Rejected(f"launch {name!r} is not running", backend=self.name, fix=f"see: logs {name}")
        return self._path("v1", "Pod", seen.container)

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield "" whenever a pod of ours changes; goes on where it was after any silence."""
        version = ""
        pause_s = 0.5
        while not closed.is_set():
            try:
                if not version:
                    _, version = self._cluster.list(self._path("v1", "Pod"), labelSelector=MANAGED)
                    yield ""
                pause_s = 0.5
                for event in self._events(version, closed):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield ""
            except _Expired:
                version = ""  # too old for the server to go on from: look at everything again
            except Unreachable:
                closed.wait(pause_s)
                pause_s = min(10.0, pause_s * 2)

    # -- volumes ---------------------------------------------------------------------------------

    def create_volume(self, name: str, *, size_bytes: int | None) -> None:
        """Make a claim, or find it."""
        claim = render_volume(name, self.settings, size_bytes=size_bytes)
        found = self._cluster.get(path_of_object(claim))
        if found is None:
            self._cluster.apply(claim, force=self._force)
        elif labels_of(found).get(VOLUME) != label_value(name):
            raise self._not_ours("PersistentVolumeClaim", claim["metadata"]["name"])

    def volumes(self) -> Sequence[Volume]:
        """Return the claims that carry our label, ordered by name."""
        claims, _ = self._cluster.list(self._path("v1", "PersistentVolumeClaim"), labelSelector=VOLUME)
        users = self._users() if claims else {}
        claims = [claim for claim in claims if "deletionTimestamp" not in claim["metadata"]]
        found = [
            Volume(
                name=labels_of(claim)[VOLUME],
                size_bytes=int(_storage(claim)),
                used_by=tuple(sorted(users.get(claim["metadata"]["name"], ()))),
            )
            for claim in claims
        ]
        return sorted(found, key=lambda volume: volume.name)

    def delete_volume(self, name: str) -> None:
        """Delete a claim and what it holds; one that a pod mounts is refused."""
        claim = fitting(name)
        path = self._path("v1", "PersistentVolumeClaim", claim)
        found = self._cluster.get(path)
        if found is None:
            return
        if labels_of(found).get(VOLUME) != label_value(name):
            raise self._not_ours("PersistentVolumeClaim", claim)
        if who := _keeper(found):
            raise Rejected(
                f"PersistentVolumeClaim {claim!r} is kept by {who}", backend=self.name, fix="delete it there"
            )
        if users := self._users().get(claim):
            raise Rejected(
                f"volume {name!r} is in use by {', '.join(sorted(users))}", backend=self.name,
                fix="delete the runs that mount it first",
            )  # fmt: skip
        self._cluster.delete(path)

    # -- check -----------------------------------------------------------------------------------

    def check(self) -> Sequence[Check]:
        """Look at the server, the namespace, our permissions and what the settings take."""
        try:
            version = self._cluster.get("/version") or {}
        except ModelyardError as error:
            return [Check.failed("API server answers", error, fix="check the kubeconfig")]
        checks = [Check("API server answers", True, f"Kubernetes {version.get('gitVersion', '')}")]
        looks = [
            ("permissions", self._check_rules),
            ("namespace", self._check_namespace),
            ("nodes", self._check_nodes),
            ("LeaderWorkerSet", self._check_kinds),
            *self._check_named(),
            *([("queue", self._check_queue)] if self.settings.queue else []),
        ]
        for what, look in looks:
            try:
                checks.append(look())
            except ModelyardError as error:
                checks.append(Check.failed(what, error, fix="see the reference"))
        return checks

    def _check_namespace(self) -> Check:
        namespace = self.settings.namespace
        found = self._cluster.get(f"/api/v1/namespaces/{namespace}")
        if found is None:
            return Check(
                "namespace", False, f"no namespace {namespace!r}", f"kubectl create namespace {namespace}"
            )
        if found.get("status", {}).get("phase") == "Terminating":
            return Check("namespace", False, f"namespace {namespace!r} is being deleted", GOING)
        enforced = labels_of(found).get("pod-security.kubernetes.io/enforce", "privileged")
        order = ("restricted", "baseline", "image-default")
        admits = order.index("image-default" if enforced == "privileged" else enforced)
        ok = order.index(self.settings.security) <= admits
        fix = f"set security: {enforced} for this backend"
        return Check("Pod Security", ok, f"the namespace enforces {enforced}", "" if ok else fix)

    def _check_rules(self) -> Check:
        body = {"spec": {"namespace": self.settings.namespace}}
        answer = self._cluster.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body)
        missing = missing_rules(answer["status"]["resourceRules"])
        if not missing:
            return Check("permissions", True, "all")
        return Check("permissions", False, "; ".join(missing), grant(self.name), denied=True)

    def _check_nodes(self) -> Check:
        """What is left out is no fault, and is told: nothing is planned for it."""
        names: dict[str, list[str]] = {}
        for one in self.inventory().left_out:
            if one.offers:
                names.setdefault(one.why, []).append(one.node)
        told = [f"{_some(nodes)}: {why}" for why, nodes in sorted(names.items())]
        return Check("nodes", True, f"left out: {'; '.join(told)}" if told else "all are offered")

    def _check_kinds(self) -> Check:
        """Only services that span nodes take it, so that its absence is no fault."""
        there = self.settings.multinode != "leader-worker-set" or self._has(LEADER_WORKER_SET)
        found = "there, or not needed" if there else f"not here: {INSTALL[LEADER_WORKER_SET]}"
        return Check("LeaderWorkerSet", True, found)

    def _check_named(self) -> Iterator[tuple[str, Callable[[], Check]]]:
        """Yield the looks at custom resources that the settings ask for by name."""
        gateway = self.settings.gateway
        asked = {
            JOB_SET: self.settings.tasks == "jobset",
            SCALED_OBJECT: self.settings.autoscaler == "keda",
            HTTP_ROUTE: gateway is not None,
            INFERENCE_POOL: gateway is not None and gateway.pools,
        }
        for kind in (kind for kind, is_asked in asked.items() if is_asked):
            yield kind, partial(self._check_kind, kind)

    def _check_kind(self, kind: str) -> Check:
        there = self._has(kind)
        return Check(kind, there, "there" if there else "not here", "" if there else INSTALL[kind])

    def _check_queue(self) -> Check:
        """What is put in a queue that is not there, or is stopped, waits for ever."""
        name = self.settings.queue or ""
        found = next(iter(self._queued("localqueues", name)), None)
        if found is None:
            what = f"no LocalQueue {name!r} in namespace {self.settings.namespace!r}"
            return Check("queue", False, what, "make it, or set another queue for this backend")
        if active := condition(found, "Active"):
            return Check("queue", True, active.get("message") or name)
        told = [c.get("message") for c in found.get("status", {}).get("conditions") or ()]
        why = next(filter(None, told), "is not active")
        return Check("queue", False, f"LocalQueue {name!r}: {why}", "look at its ClusterQueue")

    # -- inside ----------------------------------------------------------------------------------

    def _path(self, version: str, kind: str, name: str = "") -> str:
        return path_of(version, kind, self.settings.namespace, name)

    def _whole(self, one: Json, version: str, kind: str) -> Json:
        """Return an item of a list with what lists leave out."""
        return {**one, "apiVersion": version, "kind": kind}

    def _listed(self, version: str, kind: str, chosen: str) -> list[Json]:
        items, _ = self._cluster.list(self._path(version, kind), labelSelector=chosen)
        return [self._whole(one, version, kind) for one in items]

    def _world(self, *, explained: bool = False) -> World:
        """Return what is there; ``explained``: also what keeps controllers from making pods."""
        owners = [one for version, kind in OWNERS for one in self._listed(version, kind, MANAGED)]
        owners = [o for o in owners if not _is_controlled(o) and "deletionTimestamp" not in o["metadata"]]
        owners = [o for o in owners if not _keeper(o)]  # rendered, and another's to write and to delete
        world = World(owners, self._listed("v1", "Pod", MANAGED))
        if not explained:
            return world
        held = {one["metadata"]["uid"]: self._obstacle(one, "FailedCreate") for one in world.bare()}
        held |= {one["metadata"]["uid"]: self._obstacle(one, "RecreateGroup") for one in world.unsettled()}
        return replace(world, obstacles={**held, **self._held_back(owners)})

    def _obstacle(self, owner: Json, reason: str) -> str:
        """Return what a controller last said of pods that it could not make, or had to make anew."""
        meta = owner["metadata"]
        chosen = f"reason={reason},involvedObject.uid={meta['uid']}"
        try:
            events, _ = self._cluster.list(self._path("v1", "Event"), fieldSelector=chosen)
        except AuthFailed:
            return ""  # an older role: the pods are waited for without a word
        newest = max(events, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "", default=None)
        return without_name(newest["message"]) if newest else ""

    def _held_back(self, owners: Sequence[Json]) -> dict[str, str]:
        """Return what a queue says of the work that it holds back; asked where something is in one."""
        if not any(QUEUE in labels_of(one) and not _is_over(one) for one in owners):
            return {}
        try:
            return held_back(self._queued("workloads"))
        except AuthFailed:
            return {}  # an older role: it is waited for without a word

    def _queued(self, plural: str, name: str = "") -> list[Json]:
        """Return the objects of the queue's own kind, of the version that its server prefers."""
        served = self._cluster.get(f"/apis/{KUEUE}")
        if served is None:
            return []
        version = served["preferredVersion"]["groupVersion"]
        path = f"/apis/{version}/namespaces/{self.settings.namespace}/{plural}"
        if name:
            found = self._cluster.get(f"{path}/{name}")
            return [found] if found else []
        return self._cluster.list(path)[0]

    def _reached(self, one: Instance) -> Instance:
        """Return an instance with its ports where this machine can reach them."""
        return one if self._pod_network or not one.ports else replace(one, ports={})

    def _instance(self, name: str) -> Instance:
        for one in self.instances():
            if one.name == name:
                return one
        raise NotFound(f"no launch {name!r} on backend {self.name!r}")

    def _require(self, kinds: Sequence[str]) -> None:
        for kind in kinds:
            if not self._has(kind):
                raise Rejected(
                    f"the cluster has no {kind}", backend=self.name, fix=f"install it: {INSTALL[kind]}"
                )

    def _has(self, kind: str) -> bool:
        """Return whether the cluster serves a custom resource; discovery is open to everybody."""
        plural, _, group = kind.partition(".")
        found = self._cluster.get(f"/apis/{group}")
        if found is None:
            return False
        version = found["preferredVersion"]["groupVersion"]
        served = self._cluster.get(f"/apis/{version}") or {"resources": []}
        return any(one["name"] == plural for one in served["resources"])

    def _require_ours(self, one: Json, run: str) -> Json | None:
        """Return the object as it is, None where there is none; refuse one that is not ours."""
        found = self._cluster.get(path_of_object(one))
        if found is None:
            return None
        if who := _keeper(found):
            raise Rejected(
                f"{one['kind']} {one['metadata']['name']!r} is kept by {who}", backend=self.name,
                fix="change it there, or choose another name",
            )  # fmt: skip
        if labels_of(found).get(RUN) != label_value(run) and not self._is_of_our_set(found, run):
            raise self._not_ours(one["kind"], one["metadata"]["name"])
        return found

    def _is_of_our_set(self, found: Json, run: str) -> bool:
        """Return whether an object was made by the controller of a run's LeaderWorkerSet."""
        version, kind = OWNERS[-1]
        names = [
            owner["name"]
            for owner in found["metadata"].get("ownerReferences") or ()
            if owner.get("controller") and owner["kind"] == kind
        ]
        owner = self._cluster.get(self._path(version, kind, names[0])) if names else None
        return bool(names) and (owner is None or labels_of(owner).get(RUN) == label_value(run))

    def _clear(self, run: str, made: Sequence[Json], there: Sequence[Json | None]) -> None:
        """Take away the Services of a run that cannot become those that are made.

        Raises:
            Busy: one goes with its owner, and is not gone yet.
        """
        for one, live in zip(made, there, strict=True):
            if live is None or not _is_in_the_way(one, live):
                continue
            if not _is_controlled(live):
                self._cluster.delete(path_of_object(one))
                continue
            self._delete_others(run, made, OWNERS)
            if self._cluster.get(path_of_object(one)):
                what = f"Service {one['metadata']['name']!r} goes with what kept run {run!r} before"
                raise Busy(what, backend=self.name)

    def _not_ours(self, kind: str, name: str) -> Rejected:
        return Rejected(
            f"{kind} {name!r} exists in {self.settings.namespace!r} and is not ours", backend=self.name,
            fix="choose another name, or another namespace for this backend",
        )  # fmt: skip

    def _write(self, run: str, rendered: Rendered, objects: Sequence[Json]) -> None:
        """Apply objects, the owner first: the others carry its identity, and go with it."""
        try:
            owner = self._cluster.apply(objects[0], force=self._force)
        except Rejected as error:
            if not is_by_scaler(error) or self._is_scaled(objects, run):
                raise
            owner = self._cluster.apply(objects[0], force=True)
        reference = {
            "apiVersion": rendered.objects[0]["apiVersion"],
            "kind": rendered.objects[0]["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
        }
        for one in objects[1:]:
            owned = {**one, "metadata": {**one["metadata"], "ownerReferences": [reference]}}
            self._cluster.apply(owned, force=self._force)

    def _is_scaled(self, objects: Sequence[Json], run: str) -> bool:
        """Return whether an autoscaler of somebody else scales the first object; take ours away.

        What one wrote stays its own in the server's eyes when it is gone.

        Raises:
            Busy: ours is not gone yet.
        """
        self._delete_others(run, objects, SCALERS)
        ours, theirs = self._scalers(objects[0], run)
        if ours and not theirs:
            raise Busy(f"the autoscaler of run {run!r} is not gone yet", backend=self.name)
        return bool(theirs)

    def _scalers(self, one: Json, run: str) -> tuple[list[Json], list[Json]]:
        """Return what scales an object: our own, which KEDA's are too, and those of others."""
        target = (one["kind"], one["metadata"]["name"])
        found, _ = self._cluster.list(self._path(*SCALERS[0]))
        to = [(hpa, hpa["spec"]["scaleTargetRef"]) for hpa in found]
        scaling = [hpa for hpa, ref in to if (ref["kind"], ref["name"]) == target]
        ours = [hpa for hpa in scaling if labels_of(hpa).get(RUN) == label_value(run)]
        return ours, [hpa for hpa in scaling if hpa not in ours]

    def _delete_others(self, run: str, keep: Sequence[Json], kinds: Sequence[tuple[str, str]]) -> bool:
        """Delete objects of a run that are not in ``keep``; return whether there were any."""
        kept = {(one["kind"], one["metadata"]["name"]) for one in keep}
        chosen = ",".join([MANAGED.partition(",")[0], *(f"{k}={v}" for k, v in selector(run).items())])
        found = False
        for version, kind in kinds:
            for one in self._listed(version, kind, f"{chosen},!{LAUNCH}"):
                is_kept = (kind, one["metadata"]["name"]) in kept or _keeper(one)
                if not is_kept and not _is_controlled(one):
                    found = self._cluster.delete(path_of_object(one)) or found
        return found

    def _still_mounted(self, run: str, living: Sequence[Json]) -> list[Json]:
        """Return the ConfigMaps that pods of a run mount, or that a controller would mount again.

        While a service rolls, a pod of the revision before may be evicted and has to start again; so may
        those of a revision that ``kubectl rollout undo`` leads back to.
        """
        chosen = ",".join(f"{k}={v}" for k, v in selector(run).items())
        held = [*living]
        with suppress(AuthFailed):  # an older role: the pods that are there are looked at
            held += [one for version, kind in REVISIONS for one in self._listed(version, kind, chosen)]
        names = {name for one in held for name in mounted(one)}
        return [{"kind": "ConfigMap", "metadata": {"name": name}} for name in sorted(names)]

    def _living(self, run: str) -> list[Json]:
        """Return the pods of a run that nobody told to go."""
        pods = self._listed("v1", "Pod", ",".join(f"{k}={v}" for k, v in selector(run).items()))
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def _secrets(self, launch: Launch, values: Mapping[str, str]) -> list[Json]:
        """Return the Secrets of a run: those variables that the operator keeps nowhere else."""
        given = {v: values[v] for v, _ in launch.secrets if v in values and v not in self.settings.secrets}
        found: list[Json] = []
        if given:
            found.append(self._secret(launch, secret_name(launch.run), "Opaque", given))
        if launch.registry_secret and "registry" in values:
            docker = _docker_config(image_of(launch, self.settings), values["registry"])
            kind = "kubernetes.io/dockerconfigjson"
            found.append(
                self._secret(launch, registry_secret(launch.run), kind, {".dockerconfigjson": docker})
            )
        return found

    def _secret(self, launch: Launch, name: str, kind: str, values: Mapping[str, str]) -> Json:
        encoded = {k: base64.b64encode(v.encode()).decode() for k, v in values.items()}
        labels = {
            "app.kubernetes.io/managed-by": MANAGER,
            **selector(launch.run),
            HASH: launch.spec_hash[:16],
        }
        metadata = {"name": name, "namespace": self.settings.namespace, "labels": labels}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": encoded}

    # -- single launches, inside -----------------------------------------------------------------

    def _job(self, name: str) -> Json | None:
        found = self._cluster.get(self._path("batch/v1", "Job", fitting(name)))
        if found is None or "deletionTimestamp" in found["metadata"]:
            return None
        return found if labels_of(found).get(LAUNCH) == label_value(name) else None

    def _start(self, launch: Launch, secrets: Mapping[str, str]) -> None:
        apart = replace(launch, run=launch.name, name=launch.name, restart=False)
        rendered = render_group(Group(launch.name, apart, "task"), self.settings)
        mark = {
            LAUNCH: label_value(launch.name),
            RUN: label_value(launch.run),
            LABEL + "replica": str(launch.replica),
            LABEL + "node": str(launch.node),
            LABEL + "attempt": str(launch.attempt),
        }
        self._require_room(launch)
        for one in rendered.objects:
            one["metadata"]["labels"].update(mark)
        (job, *others) = rendered.objects
        job["metadata"]["name"] = fitting(launch.name)
        job["metadata"]["annotations"][LAUNCH] = launch.name
        template = job["spec"]["template"]
        template["metadata"]["labels"] = {**template["metadata"]["labels"], **mark}
        made = self._secrets(apart, secrets)
        for one in made:
            one["metadata"]["labels"].update(mark)
        for one in (job, *others, *made):
            found = self._cluster.get(path_of_object(one))
            if found is not None and labels_of(found).get(LAUNCH) != mark[LAUNCH]:
                raise self._not_ours(one["kind"], one["metadata"]["name"])
        self._write(launch.run, rendered, [job, *others, *made])

    def _require_room(self, launch: Launch) -> None:
        """Refuse what no node could hold were it empty of others: a pod would wait for ever."""
        wanted = launch.resources.accelerators
        if wanted and not any(o.count >= wanted for o in self.inventory().offers):
            raise NoCapacity(
                f"no node has {wanted} × {launch.resources.accelerator or 'accelerator'} free",
                backend=self.name, fix="stop a run, wait for one, or declare a pool",
            )  # fmt: skip

    def _annotate(self, path: str, stopped: str, *, suspend: bool = False) -> None:
        body: Json = {"metadata": {"annotations": {STOPPED: stopped}}}
        if suspend:
            body["spec"] = {"suspend": True}  # no successor for the pod that was ended
        self._cluster.send("PATCH", path, body, "application/merge-patch+json")

    def _end(self, pod: str, grace_s: float) -> int | None:
        """Delete a pod and wait for its end; return its exit code, None where nobody tells."""
        path = self._path("v1", "Pod", pod)
        self._cluster.delete(path, grace_s=grace_s)
        code: int | None = None
        deadline = time.monotonic() + grace_s + 60.0
        while (found := self._cluster.get(path)) is not None and time.monotonic() < deadline:
            for status in found["status"].get("containerStatuses") or ():
                ended = (status.get("state") or {}).get("terminated")
                code = ended["exitCode"] if ended else code
            time.sleep(END_PAUSE_S)
        return code

    def _wait_until_gone(self, chosen: str) -> None:
        deadline = time.monotonic() + 30.0
        while self._listed("v1", "Pod", chosen) and time.monotonic() < deadline:
            time.sleep(END_PAUSE_S)

    # -- watching, volumes -----------------------------------------------------------------------

    def _events(self, version: str, closed: Flag) -> Iterator[Json]:
        query = {
            "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version,
            "labelSelector": MANAGED, "timeoutSeconds": str(WATCH_S),
        }  # fmt: skip
        try:
            with self._cluster.lines(self._path("v1", "Pod"), query, closed=closed) as lines:
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _Expired
                    yield event
        except Refused as refusal:
            raise _Expired from refusal

    def _users(self) -> dict[str, set[str]]:
        """Return which pods, of everybody, mount each claim; ours by their launch's name."""
        pods, _ = self._cluster.list(self._path("v1", "Pod"))
        ours = {one.container: one.name for one in self._world().instances()}
        found: dict[str, set[str]] = {}
        for pod in pods:
            for volume in pod["spec"].get("volumes") or ():
                claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
                if claim:
                    name = pod["metadata"]["name"]
                    found.setdefault(claim, set()).add(ours.get(name, name))
        return found


def _some(names: Sequence[str]) -> str:
    """Return a few names, and how many there are beside them.

    >>> _some(["n1", "n2"]), _some(["n1", "n2", "n3", "n4", "n5"])
    ('n1, n2', 'n1, n2, n3 and 2 more')
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _told(reference: str) -> str:
    """Return a reference as one would say it: the name of a secret, and no syntax.

    >>> _told("${{ secrets.HF_TOKEN }}")
    'secret HF_TOKEN'
    """
    return re.sub(r"\$\{\{\s*secrets\.([^\s}]+)\s*\}\}", r"secret \1", reference)


class _Expired(Exception):
    """The server cannot go on from where a watch was."""


def _is_over(job: Json) -> bool:
    return any(condition(job, kind) for kind in ("Complete", "Completed", "Failed"))


def _is_controlled(one: Json) -> bool:
    """Return whether a controller made the object: it is deleted with its owner."""
    return any(owner.get("controller") for owner in one["metadata"].get("ownerReferences") or ())


def _with_used(one: Json, live: Json | None, used: Collection[tuple[str, str]]) -> Json:
    """Return an object, a Secret with the keys that it has and that pods are started with.

    While a service rolls, a container of the revision before may end and has to start again.
    """
    if one["kind"] != "Secret" or live is None:
        return one
    name = one["metadata"]["name"]
    before = {k: v for k, v in (live.get("data") or {}).items() if (name, k) in used}
    return {**one, "data": {**before, **one["data"]}}


def _with_number(one: Json, live: Json | None) -> Json:
    """Return an object that says no number of replicas, with the one it has while that is still ours.

    The server would make it one the moment that nobody says any; an autoscaler's number is its own.
    """
    if live is None or one["kind"] not in SCALABLE or "replicas" in one["spec"]:
        return one
    held = (e for e in live["metadata"].get("managedFields") or () if e.get("operation") == "Apply")
    ours = (e["fieldsV1"].get("f:spec", {}) for e in held if e.get("manager") == MANAGER)
    if not any("f:replicas" in fields for fields in ours):
        return one
    return {**one, "spec": {**one["spec"], "replicas": live["spec"]["replicas"]}}


def _is_in_the_way(one: Json, live: Json) -> bool:
    """Return whether what is there cannot become ``one``: a Service has addresses, or has none, for good."""
    if one["kind"] != "Service":
        return False
    headless = (each["spec"].get("clusterIP") == "None" for each in (one, live))
    return _is_controlled(live) or len(set(headless)) > 1


def _keeper(one: Json) -> str:
    """Return who else writes an object again, "" where nobody does."""
    marks = {**(one["metadata"].get("annotations") or {}), **labels_of(one)}
    return next((who for mark, who in GITOPS.items() if mark in marks), "")


def _storage(claim: Json) -> float:
    return amount_of(claim["spec"]["resources"]["requests"]["storage"])


def _unsaid(launch: Launch) -> dict[str, str]:
    """Return a value for each secret of a launch that says nothing of it, to see what would be written."""
    return {variable: "" for variable, _ in launch.secrets} | {"registry": ":"}


def _docker_config(image: str, login: str) -> str:
    """Return the file with which an image is pulled, as ``docker login`` writes it.

    >>> list(json.loads(_docker_config("python:3.12-slim", "me:secret"))["auths"])
    ['https://index.docker.io/v1/']
    >>> list(json.loads(_docker_config("localhost/mine", "me:secret"))["auths"])
    ['localhost']
    """
    first = whole_image(image).partition("/")[0]
    registry = "https://index.docker.io/v1/" if first == "docker.io" else first
    user, _, password = login.partition(":")
    auth = base64.b64encode(login.encode()).decode()
    return json.dumps({"auths": {registry: {"username": user, "password": password, "auth": auth}}})
