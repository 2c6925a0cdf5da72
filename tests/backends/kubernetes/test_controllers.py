"""What the ecosystem's controllers make of our objects: LeaderWorkerSet, JobSet, Kueue and KEDA.

Each test skips where the cluster that is given does not serve the controller's kind of object; where
it does, the controller has to run.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from backends.kubernetes import Kubernetes
from backends.kubernetes.client import Cluster, path_of
from backends.kubernetes.queue import KUEUE
from backends.kubernetes.rbac import render_rbac
from backends.kubernetes.render import JOB_SET, LEADER_WORKER_SET, SCALED_OBJECT
from orchestrator.backend import Group, GroupStatus, Launch, Phase, Port, Probe, Resources, Scaling
from orchestrator.errors import Busy, Rejected
from tests.backends.kubernetes import rules
from tests.backends.kubernetes.cluster import account, admin, having, namespace, watched

SMALL = Resources(cpu=0.05, memory_bytes=32 * 2**20)
LONG = "sleep 600 & wait"


def shell(*lines: str) -> tuple[str, ...]:
    """Return a command of several lines that ends when it is told to: a shell as process 1 does not."""
    return ("/bin/sh", "-ec", "\n".join(("trap 'exit 143' TERM", *lines)))


def launch(run: str, *lines: str, spec_hash: str = "first", **fields: Any) -> Launch:
    made = Launch(
        f"{run}-0-0-0", run, spec_hash=spec_hash, image="localhost/busybox:1", command=shell(*lines)
    )
    return replace(made, **{"resources": SMALL, "stop_grace_s": 1, **fields})


class Site:
    """A namespace of the cluster, looked at as Modelyard does."""

    def __init__(self, root: Cluster, config: str, space: str, **options: Any) -> None:
        self.root = root
        self.config = config
        self.space = space
        self.place = Kubernetes("lab", kubeconfig=config, namespace=space, **options)

    def apply(self, group: Group) -> None:
        self.place.apply_group(group, secrets={})

    def status(self, run: str) -> GroupStatus:
        (found,) = [one for one in self.place.groups() if one.name == run]
        return found

    def until(self, holds: Any, *, kind: tuple[str, str] = ("v1", "Pod"), path: str = "") -> None:
        """Wait until ``holds``, which is asked whenever a pod changes, or what else it speaks of."""
        watched(self.root, path or path_of(*kind, self.space), holds)

    def pods(self, run: str) -> dict[str, str]:
        """Return the identity of each pod by its name."""
        pods, _ = self.root.list(path_of("v1", "Pod", self.space), labelSelector=f"modelyard.dev/run={run}")
        return {one["metadata"]["name"]: one["metadata"]["uid"] for one in pods}

    def running(self, run: str) -> dict[str, str]:
        """Return the pod of each instance that runs, by the instance's name."""
        return {i.name: i.container for i in self.status(run).instances if i.phase is Phase.RUNNING}

    def output(self, name: str) -> list[str]:
        return [line.text for line in self.place.logs(name)]


Place = Callable[..., Site]


@pytest.fixture
def site() -> Iterator[Place]:
    """Give what makes a namespace on a cluster that serves a custom resource, with options of ours."""
    with ExitStack() as until_the_end:

        def made(*kinds: str, **options: Any) -> Site:
            config = having(*kinds)
            return Site(admin(config), config, until_the_end.enter_context(namespace(config)), **options)

        yield made


# --- LeaderWorkerSet


def spanning(replicas: int = 2, spec_hash: str = "first", **fields: Any) -> Group:
    serve = launch(
        "wide", "cd /tmp", "echo from rank $MODELYARD_NODE_RANK of replica $MODELYARD_REPLICA > index.html",
        "httpd -f -p 8080 & wait", spec_hash=spec_hash, ports=(Port(8080),), restart=True,
        probe=Probe("http", 8080, "/", start_s=60),
    )  # fmt: skip
    follow = launch(
        "wide", "until wget -q -O - http://$MODELYARD_MASTER_NODE_IP:8080/ 2> /dev/null; do sleep 0.2; done",
        LONG, spec_hash=spec_hash, restart=True,
    )  # fmt: skip
    return Group("wide", serve, "service", replicas=replicas, nodes=2, follower=follow, surge=False, **fields)


def test_nodes_of_a_replica_find_their_own_leader(site: Place) -> None:
    lab = site(LEADER_WORKER_SET)
    lab.apply(spanning())
    lab.until(lambda: lab.status("wide").ready_replicas == 2)
    status = lab.status("wide")
    assert [i.name for i in status.instances] == ["wide-0-0-0", "wide-0-1-0", "wide-1-0-0", "wide-1-1-0"]
    lab.until(lambda: all(lab.output(f"wide-{n}-1-0") for n in (0, 1)))
    assert [lab.output(f"wide-{n}-1-0") for n in (0, 1)] == [
        ["from rank 0 of replica 0"], ["from rank 0 of replica 1"],
    ]  # fmt: skip


def test_lost_worker_takes_its_replica_along_and_no_other(site: Place) -> None:
    lab = site(LEADER_WORKER_SET)
    lab.apply(spanning())
    lab.until(lambda: lab.status("wide").ready_replicas == 2)
    before = lab.pods("wide")
    seen: set[int] = set()
    lab.root.delete(path_of("v1", "Pod", lab.space, "wide-0-1"), grace_s=1)

    def is_back() -> bool:
        seen.add(lab.status("wide").ready_replicas)
        now = lab.pods("wide")
        return lab.status("wide").ready_replicas == 2 and now.get("wide-0") not in (None, before["wide-0"])

    lab.until(is_back)
    after = lab.pods("wide")
    assert {name for name in before if before[name] == after[name]} == {"wide-1", "wide-1-1"}
    assert 1 in seen


def test_changed_service_rolls_one_replica_at_a_time(site: Place) -> None:
    lab = site(LEADER_WORKER_SET)
    lab.apply(spanning())
    lab.until(lambda: lab.status("wide").ready_replicas == 2)
    fewest = 2
    lab.apply(spanning(spec_hash="second"))

    def is_over() -> bool:
        nonlocal fewest
        status = lab.status("wide")
        fewest = min(fewest, status.ready_replicas)
        return status.ready_replicas == 2 and {i.spec_hash for i in status.instances} == {"second"}

    lab.until(is_over)
    assert fewest == 1


def test_number_of_replicas_moves_and_the_rest_stays(site: Place) -> None:
    lab = site(LEADER_WORKER_SET)
    lab.apply(spanning(replicas=1))
    lab.until(lambda: lab.status("wide").ready_replicas == 1)
    first = lab.pods("wide")
    lab.apply(spanning(replicas=2))
    lab.until(lambda: lab.status("wide").ready_replicas == 2)
    assert first.items() <= lab.pods("wide").items()
    lab.apply(spanning(replicas=1))
    lab.until(lambda: lab.pods("wide") == first)
    lab.place.delete_group("wide", grace_s=1)
    lab.until(lambda: not lab.pods("wide"))
    assert lab.place.groups() == []


def test_service_that_spans_nodes_no_longer_takes_the_place_of_its_set(site: Place) -> None:
    lab = site(LEADER_WORKER_SET)
    services = path_of("v1", "Service", lab.space)
    headless = lambda: (lab.root.get(f"{services}/wide") or {}).get("metadata")  # noqa: E731
    lab.apply(spanning(replicas=1))
    lab.until(headless, path=services)
    alone = replace(spanning(replicas=1, spec_hash="second"), nodes=1, follower=None)
    assert "Service wide: is made anew" in lab.place.rehearse(alone)
    with pytest.raises(Busy, match="goes with what kept"):
        lab.apply(alone)
    lab.until(lambda: not headless(), path=services)
    lab.apply(alone)
    lab.until(lambda: lab.status("wide").ready_replicas == 1)
    lab.place.delete_group("wide", grace_s=1)


# --- JobSet


JOBS = ("batch/v1", "Job")
SETS = ("jobset.x-k8s.io/v1alpha2", "JobSet")


def training(*lines: str, retries: int = 0, **fields: Any) -> Group:
    return Group("sft", launch("sft", *lines), "task", nodes=2, retries=retries, **fields)


def test_every_node_of_a_set_meets_rank_0_and_ends(site: Place) -> None:
    lab = site(JOB_SET, tasks="jobset")
    meet = (
        'if [ "$MODELYARD_NODE_RANK" = 0 ]; then echo met | nc -l -p 9000; exit 0; fi',
        "until nc $MODELYARD_MASTER_NODE_IP 9000 < /dev/null 2> /dev/null; do sleep 0.2; done",
    )
    lab.apply(training(*meet))
    lab.until(lambda: lab.status("sft").phase is Phase.EXITED, kind=SETS)
    status = lab.status("sft")
    assert (status.exit_code, status.reason) == (0, "")
    assert [(i.name, i.exit_code) for i in status.instances] == [("sft-0-0-0", 0), ("sft-0-1-0", 0)]
    assert lab.output("sft-0-1-0") == ["met"]


def test_set_of_the_longest_name_is_taken(site: Place) -> None:
    lab = site(JOB_SET, tasks="jobset")
    group = replace(training(LONG), template=launch("r" * 41, LONG, spec_hash="0123456789abcdef", attempt=1))
    (made,) = lab.place.rehearse(group)
    assert made.endswith(": is made")


def test_node_that_fails_ends_its_set_with_its_code(site: Place) -> None:
    lab = site(JOB_SET, tasks="jobset")
    fail = '[ "$MODELYARD_NODE_RANK" = 0 ] || { echo "no such data set"; exit 3; }'
    lab.apply(training(fail, LONG))
    lab.until(lambda: lab.status("sft").phase is Phase.EXITED, kind=SETS)
    status = lab.status("sft")
    assert (status.exit_code, status.reason, status.message) == (3, "error", "no such data set")


def test_set_starts_all_of_it_again(site: Place) -> None:
    lab = site(JOB_SET, tasks="jobset")
    nodes: set[str] = set()
    lab.apply(training('[ "$MODELYARD_NODE_RANK" = 0 ] || exit 4', LONG, retries=1))
    lab.until(lambda: nodes.update(lab.pods("sft").values()) or len(nodes) == 4)
    lab.until(lambda: lab.status("sft").phase is Phase.EXITED, kind=SETS)
    status = lab.status("sft")
    assert (status.exit_code, status.reason) == (4, "error")
    assert [i.name for i in status.instances] == ["sft-0-1-1"]  # its peer was deleted with the set's Job


def test_evicted_node_starts_its_set_again_and_costs_no_retry(site: Place) -> None:
    lab = site(JOB_SET, tasks="jobset")
    lab.apply(training(LONG))
    lab.until(lambda: len(lab.running("sft")) == 2)
    before = lab.pods("sft")
    evicted = lab.running("sft")["sft-0-1-0"]
    asked = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": evicted}}
    lab.root.send("POST", path_of("v1", "Pod", lab.space, evicted) + "/eviction", asked)
    lab.until(lambda: lab.running("sft").keys() == {"sft-0-0-1", "sft-0-1-1"})
    assert not before.items() & lab.pods("sft").items()


def test_set_that_had_its_time_is_not_started_again(site: Place) -> None:
    lab = site(JOB_SET, tasks="jobset")
    lab.apply(training(LONG, retries=3, max_duration_s=3))
    lab.until(lambda: lab.status("sft").phase is Phase.EXITED, kind=SETS)
    status = lab.status("sft")
    assert (status.reason, status.message) == ("stopped", "JobSet was active longer than specified deadline")
    sets, _ = lab.root.list(path_of(*SETS, lab.space))
    assert sets[0]["status"].get("restarts", 0) == 0


# --- Kueue


QUEUES = f"clusterqueues.{KUEUE}"
GPU = replace(
    SMALL,
    accelerator="H100-80GB",
    vendor="nvidia",
    accelerators=1,
    shm_bytes=2**20,
    vram_bytes=85_520_809_984,
    compute_capability=(9, 0),
)
_AMOUNT = "nvidia.com~1gpu"


@contextmanager
def gpus(root: Cluster, count: int = 8) -> Iterator[None]:
    """Have the node show GPUs as feature discovery does, where it has none: nothing uses them."""
    node = next(one for one in root.list("/api/v1/nodes")[0] if not one["spec"].get("taints"))
    if int(node["status"]["capacity"].get("nvidia.com/gpu", "0")):
        yield
        return
    path = f"/api/v1/nodes/{node['metadata']['name']}"
    labels = {"product": "NVIDIA-H100-80GB-HBM3", "count": str(count), "memory": "81559"}
    labels |= {"compute.major": "9", "compute.minor": "0"}

    def put(operation: str, **value: str) -> None:
        places = (f"/status/{kind}/{_AMOUNT}" for kind in ("capacity", "allocatable"))
        patch: Any = [{"op": operation, "path": place, **value} for place in places]
        root.send("PATCH", f"{path}/status", patch, "application/json-patch+json")

    def label(on: bool) -> None:
        told = {f"nvidia.com/gpu.{key}": value if on else None for key, value in labels.items()}
        root.send("PATCH", path, {"metadata": {"labels": told}}, "application/merge-patch+json")

    label(True)
    put("add", value=str(count))
    try:
        yield
    finally:
        put("remove")
        label(False)


ANY_NODE = ("kubernetes.io/os", "linux")
"""The label by which the flavor of the queue chooses nodes: Kueue adds it to what it admits."""


class Queue:
    """A LocalQueue of a namespace with a quota of its own, and two priorities of work in it."""

    def __init__(self, root: Cluster, space: str, *, quota: int) -> None:
        self._root = root
        self._api = f"/apis/{root.get(f'/apis/{KUEUE}')['preferredVersion']['groupVersion']}"  # type: ignore[index]  # served: asked before
        self.name = f"modelyard-{uuid.uuid4().hex[:6]}"
        self.low, self.high = f"{self.name}-low", f"{self.name}-high"
        amounts = {"cpu": "10", "memory": "100Gi", "nvidia.com/gpu": str(quota)}
        quotas = [{"name": name, "nominalQuota": amount} for name, amount in amounts.items()]
        flavor = {"name": self.name, "resources": quotas}
        self.path = f"{self._api}/namespaces/{space}/localqueues"
        self.workloads = f"{self._api}/namespaces/{space}/workloads"
        self._made = [
            self._make("resourceflavors", "ResourceFlavor", spec={"nodeLabels": dict([ANY_NODE])}),
            self._make("workloadpriorityclasses", "WorkloadPriorityClass", self.low, value=1),
            self._make("workloadpriorityclasses", "WorkloadPriorityClass", self.high, value=2),
            self._make("clusterqueues", "ClusterQueue", spec={
                "namespaceSelector": {}, "preemption": {"withinClusterQueue": "LowerPriority"},
                "resourceGroups": [{"coveredResources": list(amounts), "flavors": [flavor]}],
            }),
            self._make(f"namespaces/{space}/localqueues", "LocalQueue", spec={"clusterQueue": self.name}),
        ]  # fmt: skip

    def _make(self, plural: str, kind: str, name: str = "", **fields: Any) -> str:
        body = {"apiVersion": self._api.removeprefix("/apis/"), "kind": kind, **fields}
        body["metadata"] = {"name": name or self.name}
        self._root.send("POST", f"{self._api}/{plural}", body)
        return f"{self._api}/{plural}/{body['metadata']['name']}"

    def remove(self) -> None:
        for path in reversed(self._made):
            self._root.delete(path)


@pytest.fixture
def queued(site: Place) -> Iterator[Callable[..., tuple[Site, Queue]]]:
    """Give what makes a namespace with a queue of four GPUs."""
    with ExitStack() as until_the_end:

        def made(*kinds: str, **options: Any) -> tuple[Site, Queue]:
            lab = site(QUEUES, *kinds)
            until_the_end.enter_context(gpus(lab.root))
            queue = Queue(lab.root, lab.space, quota=4)
            until_the_end.callback(queue.remove)
            options = {"queue": queue.name, "queue_priority": queue.low, **options}
            return Site(lab.root, lab.config, lab.space, **options), queue

        yield made


Queued = Callable[..., tuple[Site, Queue]]


def work(run: str, gpus: int, *lines: str, **fields: Any) -> Group:
    return Group(run, launch(run, *lines, resources=replace(GPU, accelerators=gpus)), "task", **fields)


SHORT = "insufficient unused quota for nvidia.com/gpu"


def test_task_waits_for_quota_and_runs_once_there_is_some(queued: Queued) -> None:
    lab, queue = queued()
    lab.apply(work("first", 3, LONG))
    lab.until(lambda: lab.running("first"))
    lab.apply(work("second", 3, "echo ran"))
    lab.until(lambda: SHORT in lab.status("second").message, path=queue.workloads)
    waits = lab.status("second")
    assert (waits.phase, waits.message[: len(queue.name) + 28]) == (
        Phase.PENDING, f"waits for quota in queue {queue.name!r}:",
    )  # fmt: skip
    lab.place.delete_group("first", grace_s=0)
    lab.until(lambda: lab.status("second").phase is Phase.EXITED, kind=JOBS)
    assert lab.output("second-0-0-0") == ["ran"]


def test_work_of_higher_priority_takes_the_place_of_other(queued: Queued) -> None:
    lab, queue = queued()
    urgent = Site(lab.root, lab.config, lab.space, queue=queue.name, queue_priority=queue.high)
    lab.apply(work("patient", 3, LONG))
    lab.until(lambda: lab.running("patient"))
    urgent.apply(work("urgent", 3, LONG))
    lab.until(lambda: lab.running("urgent"))
    lab.until(lambda: lab.status("patient").message.startswith("was preempted"), path=queue.workloads)
    lab.until(lambda: lab.status("patient").phase is Phase.PENDING)  # once its pod has ended
    lab.place.delete_group("urgent", grace_s=0)
    lab.until(lambda: lab.running("patient"))
    assert lab.status("patient").message == ""


def test_queue_that_is_not_there_is_told(queued: Queued, tmp_path: Path) -> None:
    lab, queue = queued(queue="nowhere")
    limited = account(lab.root, render_rbac(lab.place.settings), tmp_path)
    lab = Site(lab.root, limited, lab.space, queue="nowhere")  # the rendered roles let see what a queue says
    lab.apply(work("lost", 1, "true"))
    says = "queue 'nowhere' admits nothing: LocalQueue nowhere doesn't exist"
    lab.until(lambda: lab.status("lost").message == says, path=queue.workloads)
    (told,) = [check for check in lab.place.check() if check.what == "queue"]
    assert (told.ok, told.detail) == (False, f"no LocalQueue 'nowhere' in namespace {lab.space!r}")


def test_queue_that_admits_work_is_found(queued: Queued) -> None:
    lab, queue = queued()
    watched(
        lab.root,
        queue.path,
        lambda: [check.ok for check in lab.place.check() if check.what == "queue"] == [True],
    )


def test_service_starts_in_part_where_quota_is_short(queued: Queued) -> None:
    lab, queue = queued()
    serve = spanning().template
    many = replace(GPU, accelerators=3)
    lab.apply(
        Group("web", replace(serve, run="web", name="web-0-0-0", resources=many), "service", replicas=2)
    )
    lab.until(lambda: SHORT in lab.status("web").message, path=queue.workloads)
    lab.until(lambda: lab.status("web").ready_replicas == 1)
    assert sorted(SHORT in one.message for one in lab.status("web").instances) == [False, True]


def wide_on_gpus(gpus: int, replicas: int) -> Group:
    one = spanning(replicas=replicas)
    assert one.follower is not None
    sized = replace(GPU, accelerators=gpus)
    follower = replace(one.follower, resources=sized)
    return replace(one, template=replace(one.template, resources=sized), follower=follower)


def test_replicas_that_span_nodes_are_admitted_whole(queued: Queued) -> None:
    lab, queue = queued(LEADER_WORKER_SET)
    lab.apply(wide_on_gpus(1, replicas=3))
    lab.until(lambda: SHORT in lab.status("wide").message, path=queue.workloads)
    lab.until(lambda: lab.status("wide").ready_replicas == 2)
    (waits,) = {one.replica for one in lab.status("wide").instances if SHORT in one.message}  # whichever
    assert [one.node for one in lab.status("wide").instances if one.replica == waits and one.message] == [
        0,
        1,
    ]
    with pytest.raises(Rejected, match="field is immutable") as refused:  # admitted by their size
        lab.place.rehearse(wide_on_gpus(2, replicas=1))
    assert refused.value.fix == "stop the run, and apply it again"


@pytest.mark.parametrize(
    ("kind", "options"), [(JOBS, {}), (SETS, {"tasks": "jobset"})], ids=["Job", "JobSet"]
)
def test_what_a_queue_adds_to_a_task_is_left_there(
    queued: Queued, kind: tuple[str, str], options: Any
) -> None:
    lab, _ = queued(*([JOB_SET] if options else []), **options)
    group = work("sft", 1, LONG, nodes=2)
    lab.apply(group)
    lab.until(lambda: len(lab.running("sft")) == 2)

    def admitted() -> tuple[int, bool]:
        ((one,), _) = lab.root.list(path_of(*kind, lab.space))
        (template,) = rules.pod_templates(one)
        return one["metadata"]["generation"], ANY_NODE in template["spec"]["nodeSelector"].items()

    before = admitted()
    assert before[1]
    assert lab.place.rehearse(group) == []
    lab.apply(group)
    assert admitted() == before


def test_set_waits_for_the_quota_of_all_its_nodes(queued: Queued) -> None:
    lab, queue = queued(JOB_SET, tasks="jobset")
    lab.apply(work("sft", 3, "echo ran", nodes=2))
    lab.until(lambda: "maximum capacity" in lab.status("sft").message, path=queue.workloads)
    assert lab.pods("sft") == {}
    lab.apply(work("fits", 2, "echo ran", nodes=2))
    lab.until(lambda: lab.status("fits").phase is Phase.EXITED, kind=SETS)
    assert [lab.output(f"fits-0-{node}-0") for node in (0, 1)] == [["ran"], ["ran"]]


# --- KEDA


HOST = os.environ.get("MODELYARD_TEST_HOST", "127.0.0.1")
"""Where the operator of the cluster reaches this machine."""
DEPLOYMENTS = ("apps/v1", "Deployment")
HPA = ("autoscaling/v2", "HorizontalPodAutoscaler")


class Series:
    """A Prometheus that has one series, with the value that a test gives it; None is no series."""

    def __init__(self) -> None:
        self.value: float | None = None
        self.asked: set[str] = set()
        series = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                series.asked.update(parse_qs(urlsplit(self.path).query).get("query", []))
                found = [] if series.value is None else [{"metric": {}, "value": [0, str(series.value)]}]
                said = {"status": "success", "data": {"resultType": "vector", "result": found}}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("" if HOST != "127.0.0.1" else HOST, 0), Answer)
        self.address = f"http://{HOST}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def series() -> Iterator[Series]:
    with closing(Series()) as made:
        yield made


def scaled() -> Group:
    serve = replace(spanning().template, run="web", name="web-0-0-0")
    return Group("web", serve, "service", scaling=Scaling(0, 3, "vllm:num_requests_waiting", 4.0))


def autoscaled(site: Place, series: Series, *kinds: str) -> Site:
    lab = site(SCALED_OBJECT, *kinds, autoscaler="keda", prometheus=series.address)
    if not lab.root.get("/apis/external.metrics.k8s.io/v1beta1"):
        pytest.skip("needs the metrics server of KEDA")
    return lab


def hurried(lab: Site, run: str) -> None:
    """Have KEDA look every second, by fields that an operator may set and we do not say."""
    quick = {"spec": {"pollingInterval": 1, "cooldownPeriod": 1}}
    path = path_of("keda.sh/v1alpha1", "ScaledObject", lab.space, run)
    lab.root.send("PATCH", path, quick, "application/merge-patch+json", fieldManager="operator")


def test_service_follows_its_queue_from_none_to_many_and_back(site: Place, series: Series) -> None:
    lab = autoscaled(site, series)
    lab.apply(scaled())
    hurried(lab, "web")

    def count() -> int:
        found = lab.root.get(path_of(*DEPLOYMENTS, lab.space, "web"))
        assert found is not None
        return int(found["spec"]["replicas"])

    lab.until(lambda: count() == 0, kind=DEPLOYMENTS)
    series.value = 1
    lab.until(lambda: lab.status("web").ready_replicas == 1)
    series.value = 12
    lab.until(lambda: lab.status("web").ready_replicas == 3)
    lab.apply(scaled())  # says nothing of the number, and of what the operator set
    assert count() == 3
    series.value = None
    lab.until(lambda: count() == 0, kind=DEPLOYMENTS)
    lab.until(lambda: not lab.pods("web"))
    (query,) = series.asked
    assert query.startswith(f'sum(vllm:num_requests_waiting{{namespace="{lab.space}",pod=~"web-')


def test_service_changes_from_one_autoscaler_to_another_and_back(site: Place, series: Series) -> None:
    keda = autoscaled(site, series)
    hpa = Site(keda.root, keda.config, keda.space, autoscaler="hpa")
    series.value = 4
    hpa.apply(scaled())

    def scalers() -> set[str]:
        found, _ = keda.root.list(path_of(*HPA, keda.space))
        return {one["metadata"]["name"] for one in found}

    assert keda.place.rehearse(scaled()) == ["ScaledObject web: is made"]
    keda.apply(scaled())
    watched(keda.root, path_of(*HPA, keda.space), lambda: scalers() == {"keda-hpa-web"})
    hpa.apply(scaled())
    watched(keda.root, path_of(*HPA, keda.space), lambda: scalers() == {"web"})


def test_replicas_that_span_nodes_follow_their_queue(site: Place, series: Series) -> None:
    lab = autoscaled(site, series, LEADER_WORKER_SET)
    series.value = 0
    lab.apply(spanning(scaling=Scaling(1, 2, "vllm:num_requests_waiting", 4.0)))
    hurried(lab, "wide")
    lab.until(lambda: lab.status("wide").ready_replicas == 1)
    series.value = 8
    lab.until(lambda: lab.status("wide").ready_replicas == 2)
    assert len(lab.pods("wide")) == 4
