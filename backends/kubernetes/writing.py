"""Making a namespace hold the objects of a group, and no others of its run."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from backends.kubernetes.client import Cluster, path_of_object
from backends.kubernetes.compare import changes
from backends.kubernetes.names import HASH, LAUNCH, MANAGER, RUN, label_value, selector
from backends.kubernetes.pod import image_of, mounted, registry_secret, secret_name, taken, whole_image
from backends.kubernetes.refusals import is_by_scaler
from backends.kubernetes.render import INSTALL, Rendered
from backends.kubernetes.status import SCALABLE, is_controlled, keeper_of, labels_of
from backends.kubernetes.view import MANAGED, OWNERS, View
from orchestrator.backend import Group, Launch
from orchestrator.errors import AuthFailed, BackendError, Busy, Rejected

Json = dict[str, Any]

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


class Writer:
    """Writes the objects of groups, by server-side apply.

    Args:
        view: The namespace.
        name: The backend's name, for errors.
        force: Whether fields that others hold are taken from them.
    """

    def __init__(self, view: View, name: str, *, force: bool) -> None:
        self._view = view
        self._cluster: Cluster = view.cluster
        self._name = name
        self._force = force

    def apply(self, group: Group, rendered: Rendered, secrets: Mapping[str, str]) -> None:
        """Make the cluster's objects say ``group``, which is rendered; repeatable."""
        run = group.template.run
        self._require(rendered.requires)
        made = [*rendered.objects, *self.secrets(group.template, secrets)]
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
        self.write(run, rendered, made)
        if group.kind != "task":
            self._delete_others(run, made, OWNERS)
        kept = [{"kind": "Secret", "metadata": {"name": name}} for name in sorted({n for n, _ in used})]
        self._delete_others(run, [*made, *kept, *self._still_mounted(run, living)], DEPENDENTS)

    def rehearse(self, group: Group, rendered: Rendered) -> Sequence[str]:
        """Return what the cluster says that applying ``group`` would change; nothing is written."""
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
                refused.append(Rejected(what, backend=self._name, fix=held.fix))
        for one in self.secrets(group.template, _unsaid(group.template)):
            self._require_ours(one, group.template.run)
        if refused:
            raise Rejected("; ".join(one.what for one in refused), backend=self._name, fix=refused[0].fix)
        return found

    def delete(self, name: str, grace_s: float) -> None:
        """Delete a group and all it owns; unknown is no error."""
        deleted = self._delete_others(name, [], (*OWNERS, *DEPENDENTS))
        if deleted:
            chosen = ",".join(f"{k}={v}" for k, v in selector(name).items())
            self._cluster.delete(self._view.path("v1", "Pod"), grace_s=grace_s, labelSelector=chosen)

    def not_ours(self, kind: str, name: str) -> Rejected:
        """Return the refusal of an object of that name which somebody else made."""
        what = f"{kind} {name!r} exists in {self._view.settings.namespace!r} and is not ours"
        fix = "choose another name, or another namespace for this backend"
        return Rejected(what, backend=self._name, fix=fix)

    def write(self, run: str, rendered: Rendered, objects: Sequence[Json]) -> None:
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

    def secrets(self, launch: Launch, values: Mapping[str, str]) -> list[Json]:
        """Return the Secrets of a run: those variables that the operator keeps nowhere else."""
        given = {
            v: values[v] for v, _ in launch.secrets if v in values and v not in self._view.settings.secrets
        }
        found: list[Json] = []
        if given:
            found.append(self._secret(launch, secret_name(launch.run), "Opaque", given))
        if launch.registry_secret and "registry" in values:
            docker = _docker_config(image_of(launch, self._view.settings), values["registry"])
            kind = "kubernetes.io/dockerconfigjson"
            found.append(
                self._secret(launch, registry_secret(launch.run), kind, {".dockerconfigjson": docker})
            )
        return found

    def _require(self, kinds: Sequence[str]) -> None:
        for kind in kinds:
            if not self._view.has(kind):
                raise Rejected(
                    f"the cluster has no {kind}", backend=self._name, fix=f"install it: {INSTALL[kind]}"
                )

    def _require_ours(self, one: Json, run: str) -> Json | None:
        """Return the object as it is, None where there is none; refuse one that is not ours."""
        found = self._cluster.get(path_of_object(one))
        if found is None:
            return None
        if who := keeper_of(found):
            raise Rejected(
                f"{one['kind']} {one['metadata']['name']!r} is kept by {who}", backend=self._name,
                fix="change it there, or choose another name",
            )  # fmt: skip
        if labels_of(found).get(RUN) != label_value(run) and not self._is_of_our_set(found, run):
            raise self.not_ours(one["kind"], one["metadata"]["name"])
        return found

    def _is_of_our_set(self, found: Json, run: str) -> bool:
        """Return whether an object was made by the controller of a run's LeaderWorkerSet."""
        version, kind = OWNERS[-1]
        names = [
            owner["name"]
            for owner in found["metadata"].get("ownerReferences") or ()
            if owner.get("controller") and owner["kind"] == kind
        ]
        owner = self._cluster.get(self._view.path(version, kind, names[0])) if names else None
        return bool(names) and (owner is None or labels_of(owner).get(RUN) == label_value(run))

    def _clear(self, run: str, made: Sequence[Json], there: Sequence[Json | None]) -> None:
        """Take away the Services of a run that cannot become those that are made.

        Raises:
            Busy: one goes with its owner, and is not gone yet.
        """
        for one, live in zip(made, there, strict=True):
            if live is None or not _is_in_the_way(one, live):
                continue
            if not is_controlled(live):
                self._cluster.delete(path_of_object(one))
                continue
            self._delete_others(run, made, OWNERS)
            if self._cluster.get(path_of_object(one)):
                what = f"Service {one['metadata']['name']!r} goes with what kept run {run!r} before"
                raise Busy(what, backend=self._name)

    def _is_scaled(self, objects: Sequence[Json], run: str) -> bool:
        """Return whether an autoscaler of somebody else scales the first object; take ours away.

        What one wrote stays its own in the server's eyes when it is gone.

        Raises:
            Busy: ours is not gone yet.
        """
        self._delete_others(run, objects, SCALERS)
        ours, theirs = self._scalers(objects[0], run)
        if ours and not theirs:
            raise Busy(f"the autoscaler of run {run!r} is not gone yet", backend=self._name)
        return bool(theirs)

    def _scalers(self, one: Json, run: str) -> tuple[list[Json], list[Json]]:
        """Return what scales an object: our own, which KEDA's are too, and those of others."""
        target = (one["kind"], one["metadata"]["name"])
        found, _ = self._cluster.list(self._view.path(*SCALERS[0]))
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
            for one in self._view.listed(version, kind, f"{chosen},!{LAUNCH}"):
                is_kept = (kind, one["metadata"]["name"]) in kept or keeper_of(one)
                if not is_kept and not is_controlled(one):
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
            held += [one for version, kind in REVISIONS for one in self._view.listed(version, kind, chosen)]
        names = {name for one in held for name in mounted(one)}
        return [{"kind": "ConfigMap", "metadata": {"name": name}} for name in sorted(names)]

    def _living(self, run: str) -> list[Json]:
        """Return the pods of a run that nobody told to go."""
        pods = self._view.listed("v1", "Pod", ",".join(f"{k}={v}" for k, v in selector(run).items()))
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def _secret(self, launch: Launch, name: str, kind: str, values: Mapping[str, str]) -> Json:
        encoded = {k: base64.b64encode(v.encode()).decode() for k, v in values.items()}
        labels = {
            **dict(launch.tags),
            "app.kubernetes.io/managed-by": MANAGER,
            **selector(launch.run),
            HASH: launch.spec_hash[:16],
        }
        metadata = {"name": name, "namespace": self._view.settings.namespace, "labels": labels}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": encoded}


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
    return is_controlled(live) or len(set(headless)) > 1


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
