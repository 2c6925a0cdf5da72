"""From a group to the objects of a cluster; pure, so that a repository can hold the result."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from backends.kubernetes.gateway import HTTP_ROUTE, INFERENCE_POOL, picker_of, pool_spec, route_spec, waiting
from backends.kubernetes.names import (
    ATTEMPT,
    DIGEST,
    HASH,
    LONGEST,
    MANAGER,
    NODES,
    VOLUME,
    fitting,
    label_value,
    labels,
    selector,
)
from backends.kubernetes.placement import SLICE, is_slice
from backends.kubernetes.pod import Needs, Pod, pod, port_name, port_numbers, quantity
from backends.kubernetes.settings import Settings
from orchestrator.backend import Group, Launch
from orchestrator.errors import Rejected
from orchestrator.frozen import frozen

Json = dict[str, Any]

LEADER_WORKER_SET = "leaderworkersets.leaderworkerset.x-k8s.io"
JOB_SET = "jobsets.jobset.x-k8s.io"
SCALED_OBJECT = "scaledobjects.keda.sh"

INSTALL: Mapping[str, str] = {
    LEADER_WORKER_SET: "https://lws.sigs.k8s.io/docs/installation/",
    JOB_SET: "https://jobset.sigs.k8s.io/docs/installation/",
    SCALED_OBJECT: "https://keda.sh/docs/latest/deploy/",
    HTTP_ROUTE: "https://gateway-api.sigs.k8s.io/guides/getting-started/",
    INFERENCE_POOL: "https://gateway-api-inference-extension.sigs.k8s.io/guides/",
}
"""Where an operator reads how to install what a group takes."""


@frozen
class Rendered:
    """The objects of one group.

    The first object owns the others: deleting it deletes all. ``needs`` names the keys of Secrets
    that have to be in the namespace, ``requires`` the custom resources of the cluster, ``notes`` what
    else has to be there.
    """

    objects: tuple[Json, ...]
    needs: tuple[Needs, ...] = ()
    requires: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def render_group(group: Group, settings: Settings) -> Rendered:
    """Return the objects that keep ``group``.

    ================  ==========================  ==========================================
    kind              one node                    several nodes
    ================  ==========================  ==========================================
    service           Deployment                  LeaderWorkerSet, or StatefulSets
    task              Job                         Indexed Job, or JobSet
    dev-environment   StatefulSet                 refused
    ================  ==========================  ==========================================

    Raises:
        Rejected: no object keeps such a group, or this cluster's settings refuse it.
    """
    made = _Making(group, settings)
    if group.kind == "task":
        return made.task()
    if group.nodes > 1:
        if group.kind == "dev-environment":
            raise Rejected("a dev environment has one node", fix="set nodes: 1")
        return made.leader_workers() if settings.multinode == "leader-worker-set" else made.stateful_pairs()
    return made.service() if group.kind == "service" else made.dev_environment()


def render_volume(name: str, settings: Settings, *, size_bytes: int | None) -> Json:
    """Return the claim of a named volume."""
    spec: Json = {
        "accessModes": [settings.volume_access],
        "resources": {"requests": {"storage": quantity(size_bytes or settings.volume_bytes)}},
    }
    if settings.storage_class is not None:
        spec["storageClassName"] = settings.storage_class
    metadata = {
        "name": fitting(name),
        "namespace": settings.namespace,
        "labels": {"app.kubernetes.io/managed-by": MANAGER, VOLUME: label_value(name)},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def to_yaml(objects: Sequence[Json]) -> str:
    """Return objects as one stream of YAML documents, keys sorted, the same for the same objects."""
    import yaml  # 20 ms of CPU: only where text is wanted

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    # copied, because parts that two places share would become anchors
    copies = [json.loads(json.dumps(one)) for one in objects]
    return "".join(
        "---\n" + yaml.dump(one, Dumper=dumper, sort_keys=True, width=110, allow_unicode=True)
        for one in copies
    )


class _Making:
    """One group on its way to objects; every method returns something new."""

    def __init__(self, group: Group, settings: Settings) -> None:
        self.group = group
        self.settings = settings
        self.launch = group.template
        self.run = group.template.run
        self.name = fitting(self.run)
        ours = labels(self.run, spec_hash=self.launch.spec_hash, kind=group.kind)
        self.labels = dict(self.launch.tags) | ours

    # -- what runs to an end ---------------------------------------------------------------------

    def task(self) -> Rendered:
        """Return a Job; its name carries the spec's hash, because a Job's template never changes."""
        jobset = self.group.nodes > 1 and self.settings.tasks == "jobset"
        whole = "-".join([self.run, *filter(None, [self.launch.spec_hash[:8], self._attempt()])])
        name = fitting(whole, _longest_set(self.group.nodes) if jobset else LONGEST)
        leader = f"{name}-node-0-0.{name}" if jobset else f"{name}-0.{name}"
        rank = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        made = self._pod(self.launch, _ranks(rank, leader) if self.group.nodes > 1 else _ALONE)
        template = self._template(made)
        job = self._job(template)
        if jobset:
            return self._jobset(name, job, made)
        owner = self._object("batch/v1", "Job", name, job, queued=True)
        objects = [owner]
        if self.group.nodes > 1:
            template["spec"]["subdomain"] = name
            objects.append(self._rendezvous(name))
        return self._whole(objects, made)

    def _attempt(self) -> str:
        """Return what tells a task that is run again from the one before."""
        return str(self.launch.attempt) if self.launch.attempt else ""

    def _job(self, template: Json) -> Json:
        group = self.group
        spec: Json = {
            "backoffLimit": group.retries,
            "parallelism": group.nodes,
            "completions": group.nodes,
            "template": template,
            # a pod that was evicted or preempted did nothing wrong, and costs no retry
            "podFailurePolicy": {"rules": [_disrupted("Ignore")]},
            # the successor waits until the accelerators are free
            "podReplacementPolicy": "Failed",
        }
        if group.nodes > 1:
            spec["completionMode"] = "Indexed"
            if group.ends_with_master:  # on by default since Kubernetes 1.31
                spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
        if group.max_duration_s is not None:
            spec["activeDeadlineSeconds"] = group.max_duration_s
        return spec

    def _jobset(self, name: str, job: Json, made: Pod) -> Rendered:
        # the set starts all of it again, not one pod: peers of one that was evicted wait for it in vain
        job = {**job, "backoffLimit": 0, "podFailurePolicy": {"rules": [_disrupted("FailJob")]}}
        template = {"metadata": {"labels": self.labels}, "spec": job}
        spec = {
            "failurePolicy": {
                "maxRestarts": self.group.retries,
                "rules": [
                    _when("PodFailurePolicy", "RestartJobSetAndIgnoreMaxRestarts"),  # costs no retry
                    _when("DeadlineExceeded", "FailJobSet"),  # or each restart would have its time anew
                ],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": template}],
        }
        owner = self._object("jobset.x-k8s.io/v1alpha2", "JobSet", name, spec, queued=True)
        self._slices(owner, "alpha.jobset.sigs.k8s.io/exclusive-topology")
        return replace(self._whole([owner], made), requires=(JOB_SET,))

    # -- what is kept up -------------------------------------------------------------------------

    def service(self) -> Rendered:
        """Return a Deployment with a Service, and what scales it and keeps it from being drained."""
        made = self._pod(self.launch, _ALONE, drains=True)
        start_s = self.launch.probe.start_s if self.launch.probe else 0
        rolling = (
            {"maxSurge": 1, "maxUnavailable": 0} if self.group.surge else {"maxSurge": 0, "maxUnavailable": 1}
        )
        spec: Json = {
            "selector": {"matchLabels": selector(self.run)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            # the default of 10 minutes would call a large model's start a failure
            "progressDeadlineSeconds": int(start_s) + 600,
            "template": self._template(made),
            **self._replicas(),
        }
        owner = self._object("apps/v1", "Deployment", self.name, spec, queued=True)
        objects = [owner, *self._service(selector(self.run))]
        return self._kept_up(objects, made, "apps/v1", "Deployment", leaders=selector(self.run))

    def dev_environment(self) -> Rendered:
        """Return a StatefulSet of one pod, which keeps its name."""
        made = self._pod(self.launch, _ALONE)
        spec = self._stateful(made, replicas=1, chosen=selector(self.run))
        owner = self._object("apps/v1", "StatefulSet", self.name, spec, queued=True)
        return self._whole([owner, self._rendezvous(self.name)], made)

    def leader_workers(self) -> Rendered:
        """Return a LeaderWorkerSet: each replica is a group of pods that starts and ends together."""
        prefix = "leaderworkerset.sigs.k8s.io/"
        replica = _field("MODELYARD_REPLICA", f"metadata.labels['{prefix}group-index']")
        leader = f"{self.name}-$(MODELYARD_REPLICA).{self.name}"
        ranks = (replica, *_ranks(f"metadata.labels['{prefix}worker-index']", leader))
        made = self._pod(self.launch, ranks, drains=True)
        follower = replace(self.group.follower or self.launch, probe=None)
        workers = self._pod(follower, ranks)
        spec = {
            **self._replicas(),
            "startupPolicy": "LeaderCreated",
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"maxSurge": 0, "maxUnavailable": 1},
            },
            "networkConfig": {"subdomainPolicy": "Shared"},
            "leaderWorkerTemplate": {
                "size": self.group.nodes,
                # a rank that is gone takes its collective with it
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": self._template(made, replica_key=prefix + "group-index"),
                "workerTemplate": self._template(workers, replica_key=prefix + "group-index"),
            },
        }
        version = "leaderworkerset.x-k8s.io/v1"
        owner = self._object(version, "LeaderWorkerSet", self.name, spec, queued=True)
        self._slices(owner, "leaderworkerset.sigs.k8s.io/exclusive-topology")
        # the controller makes a headless service of the set's own name
        chosen = {**selector(self.run), prefix + "worker-index": "0"}
        objects = [owner, *self._service(chosen, name=fitting(f"{self.run}-leaders"))]
        rendered = self._kept_up(objects, made, version, "LeaderWorkerSet", leaders=chosen, others=(workers,))
        return replace(rendered, requires=(LEADER_WORKER_SET, *rendered.requires))

    def stateful_pairs(self) -> Rendered:
        """Return two StatefulSets a replica, leader and workers, for clusters without LeaderWorkerSet.

        A pod that fails is restarted alone; the engine has to notice that its peers are gone.
        """
        role = "modelyard.dev/role"
        leaders = {**selector(self.run), role: "leader"}
        # a Service may own others: here no single object of the replicas can
        objects = [self._rendezvous(self.name), *self._service(leaders, fitting(f"{self.run}-leaders"))]
        pods: list[Pod] = []
        for replica in range(self.group.replicas):
            leader, workers = (fitting(f"{self.run}-{replica}-{role}") for role in ("leader", "workers"))
            known = {"name": "MODELYARD_REPLICA", "value": str(replica)}
            pod_index = "metadata.labels['apps.kubernetes.io/pod-index']"
            ranks = (known, *_ranks(pod_index, f"{leader}-0.{self.name}"))
            if is_slice(self.launch.resources, nodes=self.group.nodes):
                pods_of = [f"{leader}-0", *(f"{workers}-{rank}" for rank in range(1, self.group.nodes))]
                ranks = (*ranks, *_tpu_workers(pod_index, [f"{pod}.{self.name}" for pod in pods_of]))
            follower = replace(self.group.follower or self.launch, probe=None)
            for name, launch, first, many in (
                (leader, self.launch, 0, 1),
                (workers, follower, 1, self.group.nodes - 1),
            ):
                made = self._pod(launch, ranks, drains=not first)
                pods.append(made)
                mark = {"modelyard.dev/replica": str(replica), role: "worker" if first else "leader"}
                spec = self._stateful(made, replicas=many, chosen={**selector(self.run), **mark}, first=first)
                objects.append(self._object("apps/v1", "StatefulSet", name, spec, queued=True))
        ways, requires, notes = self._ways_in(leaders, fitting(f"{self.run}-leaders"))
        return replace(self._whole([*objects, *ways], *pods), requires=requires, notes=notes)

    def _stateful(self, made: Pod, *, replicas: int, chosen: Mapping[str, str], first: int = 0) -> Json:
        replica = {key: value for key, value in chosen.items() if key == "modelyard.dev/replica"}
        template = self._template(made, replica=replica)
        template["metadata"]["labels"] = {**template["metadata"]["labels"], **chosen}
        return {
            "replicas": replicas,
            "serviceName": self.name,
            "selector": {"matchLabels": dict(chosen)},
            "podManagementPolicy": "Parallel",
            "template": template,
            **({"ordinals": {"start": first}} if first else {}),
        }

    def _kept_up(
        self,
        objects: list[Json],
        made: Pod,
        version: str,
        kind: str,
        *,
        leaders: Mapping[str, str],
        others: Sequence[Pod] = (),
    ) -> Rendered:
        """Return objects with what drains, scales and leads to them; ``leaders`` are who answers."""
        group = self.group
        many = group.scaling.most if group.scaling else group.replicas
        if self.settings.disruption_budget and many > 1 and group.nodes == 1:
            budget = {"maxUnavailable": 1, "selector": {"matchLabels": selector(self.run)}}
            objects.append(self._object("policy/v1", "PodDisruptionBudget", self.name, budget))
        requires: tuple[str, ...] = ()
        if group.scaling and self.settings.autoscaler != "none":
            scaled = {"apiVersion": version, "kind": kind, "name": self.name}
            objects.append(self._hpa(scaled) if self.settings.autoscaler == "hpa" else self._keda(scaled))
            requires = (SCALED_OBJECT,) if self.settings.autoscaler == "keda" else ()
        service = self.name if group.nodes == 1 else fitting(f"{self.run}-leaders")
        ways, more, notes = self._ways_in(leaders, service)
        whole = self._whole([*objects, *ways], made, *others)
        return replace(whole, requires=(*requires, *more), notes=notes)

    @property
    def _is_pooled(self) -> bool:
        """Return whether replicas are chosen by an endpoint picker."""
        gateway = self.settings.gateway
        return bool(gateway and gateway.pools and self.group.serves and self.launch.ports)

    def _ways_in(
        self, leaders: Mapping[str, str], service: str
    ) -> tuple[list[Json], tuple[str, ...], tuple[str, ...]]:
        """Return the route and the pool of a service, what defines them, and what else they take."""
        gateway = self.settings.gateway
        if gateway is None or not self.launch.ports:
            return [], (), ()
        port = self.launch.ports[0].container
        if not self._is_pooled:
            to: Json = {"group": "", "kind": "Service", "name": service, "port": port}
            return [self._route(to)], (HTTP_ROUTE,), ()
        pool = self._object(
            "inference.networking.k8s.io/v1", "InferencePool", self.name,
            pool_spec(gateway, self.name, leaders, port),
        )  # fmt: skip
        to = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": self.name}
        picker = picker_of(gateway, self.name)
        note = f"Service {picker!r} is the endpoint picker of InferencePool {self.name!r}"
        return [pool, self._route(to)], (INFERENCE_POOL, HTTP_ROUTE), (note,)

    def _route(self, to: Json) -> Json:
        gateway = self.settings.gateway
        assert gateway is not None
        spec = route_spec(gateway, self.name, self.group.serves, to)
        return self._object("gateway.networking.k8s.io/v1", "HTTPRoute", self.name, spec)

    @property
    def _is_exclusive(self) -> bool:
        """Return whether a controller gives each replica a TPU slice of its own."""
        sets = self.settings.tasks == "jobset" if self.group.kind == "task" else not self._is_paired
        return sets and is_slice(self.launch.resources, nodes=self.group.nodes)

    @property
    def _is_paired(self) -> bool:
        return self.settings.multinode == "statefulset"

    def _slices(self, owner: Json, annotation: str) -> None:
        """Have each replica's nodes be one TPU slice, and no other replica's."""
        if self._is_exclusive and not self.settings.queue:
            owner["metadata"]["annotations"][annotation] = SLICE

    def _hpa(self, scaled: Json) -> Json:
        scaling = self._scaling()
        metric = {
            # a series' colon is not allowed in the name of a metric (prometheus-adapter's own rule)
            "metric": {"name": scaling.series.replace(":", "_")},
            "target": {"type": "AverageValue", "averageValue": _number(scaling.target)},
        }
        spec = {
            "scaleTargetRef": scaled,
            "minReplicas": max(1, scaling.least),
            "maxReplicas": scaling.most,
            "metrics": [{"type": "Pods", "pods": metric}],
        }
        hpa = self._object("autoscaling/v2", "HorizontalPodAutoscaler", self.name, spec)
        # else KEDA's webhook refuses the ScaledObject that takes this one's place: it is deleted after that
        hpa["metadata"]["annotations"] = {"validations.keda.sh/hpa-ownership": "false"}
        return hpa

    def _keda(self, scaled: Json) -> Json:
        scaling = self._scaling()
        chosen = f'namespace="{self.settings.namespace}",pod=~"{self._pods_that_answer()}"'
        trigger: Json = {
            "type": "prometheus",
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": self.settings.prometheus,
                "query": f"sum({scaling.series}{{{chosen}}})",
                "threshold": _number(scaling.target),
            },
        }
        triggers = [trigger]
        if self._is_pooled:
            # the series of a service at zero is gone; its pool's door is where requests wait then
            door = {**trigger["metadata"], "query": waiting(self.name), "threshold": "1"}
            triggers.append({**trigger, "metadata": door})
        spec = {
            "scaleTargetRef": scaled,
            "minReplicaCount": scaling.least,
            "maxReplicaCount": scaling.most,
            "triggers": triggers,
        }
        return self._object("keda.sh/v1alpha1", "ScaledObject", self.name, spec)

    def _pods_that_answer(self) -> str:
        """Return what matches the names of this run's leaders and of no other run's pods.

        A run may be called ``chat`` and another ``chat-long``: ``chat-.*`` would count both their requests.
        """
        if self.group.nodes > 1:
            return f"{self.name}-[0-9]+"
        # name, hash and five characters; of a long name the hash is cut, and its dash with it
        return f"{self.name}-[a-z0-9]+(-[a-z0-9]{{5}})?"

    def _scaling(self) -> Any:
        assert self.group.scaling is not None
        return self.group.scaling

    # -- parts -----------------------------------------------------------------------------------

    def _replicas(self) -> Json:
        """Return the number of replicas, unless another controller writes it."""
        scaled = self.group.scaling is not None and self.settings.autoscaler != "none"
        return {} if scaled else {"replicas": self.group.replicas}

    def _pod(self, launch: Launch, variables: Sequence[Json], *, drains: bool = False) -> Pod:
        many = {"name": "MODELYARD_NODES_NUM", "value": str(self.group.nodes)}
        gpus = launch.resources.accelerators * self.group.nodes
        counted = (many, {"name": "MODELYARD_GPUS_NUM", "value": str(gpus)})
        return pod(
            launch, self.settings, kind=self.group.kind, nodes=self.group.nodes,
            variables=(*counted, *variables), drains=drains and bool(launch.ports),
        )  # fmt: skip

    def _template(
        self, made: Pod, *, replica: Mapping[str, str] = MappingProxyType({}), replica_key: str = ""
    ) -> Json:
        """Return the template of a pod.

        Args:
            made: The pod.
            replica: Labels that the pods of one replica have in common, beside the run's.
            replica_key: The label that its controller gives each replica a value of.
        """
        counted = {NODES: str(self.group.nodes), ATTEMPT: str(self.launch.attempt)}
        resources = self.launch.resources
        fabric = self.settings.fabric_of(resources.accelerator, nodes=self.group.nodes)
        # whole here: a label holds 63 characters, and a hash may have 64
        annotations = {HASH: self.launch.spec_hash, **(fabric.annotations if fabric else {})}
        if self.group.kind != "service":
            annotations |= _STAYS
        spec = made.spec
        topology, together = (fabric.topology, fabric.together) if fabric else ("", "required")
        if is_slice(resources, nodes=self.group.nodes):
            topology, together = SLICE, "required"
        if topology and self.settings.queue:
            # the queue knows what is free where, and places all of a set or none
            annotations[f"kueue.x-k8s.io/podset-{together}-topology"] = topology
            if replica_key:
                annotations["kueue.x-k8s.io/podset-group-name"] = self.name
        elif topology and not self._is_exclusive:
            term: Json = {
                "labelSelector": {"matchLabels": {**selector(self.run), **replica}},
                "topologyKey": topology,
                **({"matchLabelKeys": [replica_key]} if replica_key else {}),
            }
            near: Json = (
                {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
                if together == "required"
                else {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 100, "podAffinityTerm": term}
                    ]
                }
            )
            spec = {**spec, "affinity": {**spec.get("affinity", {}), "podAffinity": near}}
        metadata = {"labels": {**self.labels, **counted}, "annotations": annotations}
        return {"metadata": metadata, "spec": spec}

    def _object(self, version: str, kind: str, name: str, spec: Json, *, queued: bool = False) -> Json:
        found = dict(self.labels)
        if queued and self.settings.queue:
            found["kueue.x-k8s.io/queue-name"] = self.settings.queue
            if self.settings.queue_priority:
                found["kueue.x-k8s.io/priority-class"] = self.settings.queue_priority
        metadata: Json = {"name": name, "namespace": self.settings.namespace, "labels": found}
        if queued:
            metadata["annotations"] = {DIGEST: self.group.digest(), HASH: self.launch.spec_hash}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}

    def _service(self, chosen: Mapping[str, str], name: str | None = None) -> list[Json]:
        ports = _service_ports(self.launch)
        if not ports:
            return []
        spec = {"type": "ClusterIP", "selector": dict(chosen), "ports": ports}
        return [self._object("v1", "Service", name or self.name, spec)]

    def _rendezvous(self, name: str) -> Json:
        """Return a headless Service that names pods before they are ready: ranks meet to become so."""
        spec: Json = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector(self.run)}
        if ports := _service_ports(self.launch):
            spec["ports"] = ports
        return self._object("v1", "Service", name, spec)

    def _whole(self, objects: list[Json], *pods: Pod) -> Rendered:
        files = {made.files_name: made.files for made in pods if made.files}
        maps = [self._config_map(name, contents) for name, contents in sorted(files.items())]
        needs = dict.fromkeys(need for made in pods for need in made.needs)
        return Rendered((*objects, *maps), tuple(needs))

    def _config_map(self, name: str, contents: Mapping[str, bytes]) -> Json:
        texts: dict[str, str] = {}
        binaries: dict[str, str] = {}
        for key, content in contents.items():
            try:
                texts[key] = content.decode()
            except UnicodeDecodeError:
                binaries[key] = base64.b64encode(content).decode()
        made = self._object("v1", "ConfigMap", name, {})
        del made["spec"]
        return {
            **made,
            "immutable": True,
            **({"data": texts} if texts else {}),
            **({"binaryData": binaries} if binaries else {}),
        }


def _longest_set(nodes: int) -> int:
    """Return how long a JobSet's name may be: its webhook refuses pods of more than 63 characters.

    >>> _longest_set(2), _longest_set(100)
    (48, 47)
    """
    return 63 - len(f"-node-0-{nodes - 1}-abcde")


_ALONE: tuple[Json, ...] = ({"name": "MODELYARD_NODE_RANK", "value": "0"},)


def _disrupted(action: str) -> Json:
    """Return what becomes of a Job whose pod was evicted or preempted."""
    return {"action": action, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def _when(reason: str, action: str) -> Json:
    """Return what becomes of a JobSet whose Job failed for a reason of the Job's controller."""
    return {"name": reason.lower(), "action": action, "onJobFailureReasons": [reason]}


def _field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _ranks(rank_path: str, leader: str) -> tuple[Json, ...]:
    """Return how a pod of several learns its rank, its address and where rank 0 is."""
    return (
        _field("MODELYARD_NODE_RANK", rank_path),
        {"name": "MODELYARD_MASTER_NODE_IP", "value": leader},
        _field("MODELYARD_NODE_IP", "status.podIP"),
    )


_STAYS = MappingProxyType(
    {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
)
"""Keeps autoscalers from moving what works to an end, or somebody works in, off a node to save it
(Karpenter docs, "Disruption"; kubernetes/autoscaler, cluster-autoscaler FAQ). A service is moved: it has
replicas, a budget and a drain."""


def _tpu_workers(rank_path: str, names: Sequence[str]) -> tuple[Json, ...]:
    """Return what libtpu has to know of a slice, where no controller says it.

    LeaderWorkerSet's own webhook does (kubernetes-sigs/lws, ``pkg/utils/accelerators/tpu.go``), and
    GKE's for Jobs and JobSets (GKE docs, "TPU environment variables").
    """
    return (
        _field("TPU_WORKER_ID", rank_path),
        {"name": "TPU_WORKER_HOSTNAMES", "value": ",".join(names)},
    )


def _service_ports(launch: Launch) -> list[Json]:
    return [
        {"name": port_name(number), "port": number, "targetPort": port_name(number)}
        for number in port_numbers(launch)
    ]


def _number(value: float) -> str:
    """Return a number as a quantity: whole where it is.

    >>> _number(4.0), _number(0.25)
    ('4', '0.25')
    """
    return f"{value:g}"
