"""Kubernetes: groups as the cluster's own objects, kept by its own controllers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from threading import Event as Flag
from typing import Any

from backends.kubernetes.checks import Checks
from backends.kubernetes.client import Cluster, parse_time, path_of_object
from backends.kubernetes.devices import NO_DEVICES, Devices
from backends.kubernetes.inventory import Inventory, amount_of, inventory
from backends.kubernetes.names import LAUNCH, RUN, VOLUME, fitting, label_value
from backends.kubernetes.pod import CONTAINER
from backends.kubernetes.rbac import render_rbac
from backends.kubernetes.refusals import Refused
from backends.kubernetes.render import INSTALL, Rendered, render_group, render_volume, to_yaml
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
from backends.kubernetes.status import STOPPED, is_over, keeper_of, labels_of
from backends.kubernetes.view import MANAGED, View, whole
from backends.kubernetes.writing import Writer
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
    Busy,
    ConfigError,
    NoCapacity,
    NotFound,
    Rejected,
    Unreachable,
)
from orchestrator.units import parse_bytes

Json = dict[str, Any]

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
        self._view = View(self._cluster, self.settings)
        self._writer = Writer(self._view, name, force=force_conflicts)
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
        self._writer.apply(group, self.render(group), secrets)
        run = group.template.run
        found = next((status for status in self.groups() if status.name == label_value(run)), None)
        if found is None:  # somebody deletes it as we write it
            raise Busy(f"what was applied of run {run!r} is gone again", backend=self.name)
        return found

    def rehearse(self, group: Group) -> Sequence[str]:
        """Return what the cluster says that applying ``group`` would change; nothing is written."""
        return self._writer.rehearse(group, self.render(group))

    def groups(self) -> Sequence[GroupStatus]:
        """Return every group of our namespace, ordered by name."""
        return [
            replace(status, instances=tuple(map(self._reached, status.instances)))
            for status in self._view.world(explained=True).groups()
        ]

    def delete_group(self, name: str, *, grace_s: float) -> None:
        """Delete a group and all it owns; unknown is no error."""
        self._writer.delete(name, grace_s)

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
        return [self._reached(one) for one in self._view.world().instances()]

    def stop(self, name: str, *, grace_s: float) -> None:
        """Ask the launch to end, and have it killed after ``grace_s``; it stays listed as exited."""
        job = self._job(name)
        if job is None or STOPPED in job["metadata"]["annotations"] or is_over(job):
            return
        seen = self._instance(name)
        if seen.phase is Phase.EXITED:
            return
        path = path_of_object(whole(job, "batch/v1", "Job"))
        self._annotate(path, "asked")
        code = self._end(seen.container, grace_s) if seen.container else None
        self._annotate(path, "" if code is None else str(code), suspend=True)

    def remove(self, name: str) -> None:
        """Forget a launch and its output; one that runs is killed first."""
        job = self._job(name)
        if job is None:
            return
        self._cluster.delete(path_of_object(whole(job, "batch/v1", "Job")))
        chosen = f"{LAUNCH}={label_value(name)}"
        self._cluster.delete(self._view.path("v1", "Pod"), grace_s=0, labelSelector=chosen)
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
        path = self._view.path("v1", "Pod", seen.container) + "/log"
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
        return self._view.path("v1", "Pod", seen.container)

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield "" whenever a pod of ours changes; goes on where it was after any silence."""
        version = ""
        pause_s = 0.5
        while not closed.is_set():
            try:
                if not version:
                    _, version = self._cluster.list(self._view.path("v1", "Pod"), labelSelector=MANAGED)
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
            raise self._writer.not_ours("PersistentVolumeClaim", claim["metadata"]["name"])

    def volumes(self) -> Sequence[Volume]:
        """Return the claims that carry our label, ordered by name."""
        claims, _ = self._cluster.list(self._view.path("v1", "PersistentVolumeClaim"), labelSelector=VOLUME)
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
        path = self._view.path("v1", "PersistentVolumeClaim", claim)
        found = self._cluster.get(path)
        if found is None:
            return
        if labels_of(found).get(VOLUME) != label_value(name):
            raise self._writer.not_ours("PersistentVolumeClaim", claim)
        if who := keeper_of(found):
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
        return Checks(self._view, self.name, self.inventory).run()

    # -- inside ----------------------------------------------------------------------------------

    def _reached(self, one: Instance) -> Instance:
        """Return an instance with its ports where this machine can reach them."""
        return one if self._pod_network or not one.ports else replace(one, ports={})

    def _instance(self, name: str) -> Instance:
        for one in self.instances():
            if one.name == name:
                return one
        raise NotFound(f"no launch {name!r} on backend {self.name!r}")

    # -- single launches, inside -----------------------------------------------------------------

    def _job(self, name: str) -> Json | None:
        found = self._cluster.get(self._view.path("batch/v1", "Job", fitting(name)))
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
        made = self._writer.secrets(apart, secrets)
        for one in made:
            one["metadata"]["labels"].update(mark)
        for one in (job, *others, *made):
            found = self._cluster.get(path_of_object(one))
            if found is not None and labels_of(found).get(LAUNCH) != mark[LAUNCH]:
                raise self._writer.not_ours(one["kind"], one["metadata"]["name"])
        self._writer.write(launch.run, rendered, [job, *others, *made])

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
        path = self._view.path("v1", "Pod", pod)
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
        while self._view.listed("v1", "Pod", chosen) and time.monotonic() < deadline:
            time.sleep(END_PAUSE_S)

    # -- watching, volumes -----------------------------------------------------------------------

    def _events(self, version: str, closed: Flag) -> Iterator[Json]:
        query = {
            "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version,
            "labelSelector": MANAGED, "timeoutSeconds": str(WATCH_S),
        }  # fmt: skip
        try:
            with self._cluster.lines(self._view.path("v1", "Pod"), query, closed=closed) as lines:
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _Expired
                    yield event
        except Refused as refusal:
            raise _Expired from refusal

    def _users(self) -> dict[str, set[str]]:
        """Return which pods, of everybody, mount each claim; ours by their launch's name."""
        pods, _ = self._cluster.list(self._view.path("v1", "Pod"))
        ours = {one.container: one.name for one in self._view.world().instances()}
        found: dict[str, set[str]] = {}
        for pod in pods:
            for volume in pod["spec"].get("volumes") or ():
                claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
                if claim:
                    name = pod["metadata"]["name"]
                    found.setdefault(claim, set()).add(ours.get(name, name))
        return found


def _told(reference: str) -> str:
    """Return a reference as one would say it: the name of a secret, and no syntax.

    >>> _told("${{ secrets.HF_TOKEN }}")
    'secret HF_TOKEN'
    """
    return re.sub(r"\$\{\{\s*secrets\.([^\s}]+)\s*\}\}", r"secret \1", reference)


class _Expired(Exception):
    """The server cannot go on from where a watch was."""


def _storage(claim: Json) -> float:
    return amount_of(claim["spec"]["resources"]["requests"]["storage"])
