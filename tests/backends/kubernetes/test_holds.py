"""What has to hold on a real API server, each as its own test; see the module for what it takes.

Those that start pods need ``MODELYARD_TEST_CLUSTER=full``, those that place pods on nodes that are
not there need a scheduler (``control``), and the others the binaries alone.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

import pytest

from backends.kubernetes import Kubernetes, _Expired
from backends.kubernetes.client import Cluster, names_of, path_of, path_of_object
from backends.kubernetes.rbac import render_rbac
from backends.kubernetes.refusals import Refused
from backends.kubernetes.render import render_group
from backends.kubernetes.settings import Settings
from orchestrator.backend import Group, Resources
from orchestrator.catalog.hardware import accelerator
from orchestrator.errors import BackendError, Unreachable
from tests.backends.kubernetes import rules
from tests.backends.kubernetes.cluster import (
    RESTARTS,
    account,
    admin,
    api_server,
    namespace,
    watched,
    whole_cluster,
)
from tests.backends.kubernetes.configs import TAKEN, objects_of
from tests.backends.kubernetes.samples import INDEXED, JOB, POOLED, SCALED, SERVICE, SPANNING
from tests.backends.kubernetes.test_inventory import SITES
from tests.backends.kubernetes.test_placement import offered

WAIT_S = 90.0
OUTAGE_S = float(os.environ.get("MODELYARD_TEST_OUTAGE_S", "3"))
"""How long the server is away; 120 is what has to hold."""
KNOCKS = 3
"""How often a driver has to have asked in vain before it counts as having seen an outage."""
PODS = int(os.environ.get("MODELYARD_TEST_PODS", "500"))
"""How many pods others have; 5000 is what has to hold."""
POD = {"name": "c", "image": "localhost/none:1"}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as found:
        yield found


@pytest.fixture(scope="module")
def root(config: str) -> Cluster:
    return admin(config)


class Program:
    """A user at a prompt, whose one place is a namespace of a cluster."""

    def __init__(self, folder: Path, kubeconfig: str, space: str) -> None:
        self.folder = folder
        place = {"type": "kubernetes", "name": "lab", "kubeconfig": kubeconfig, "namespace": space}
        (folder / "config.yaml").write_text(json.dumps({"backends": [{**place, "timeout_s": 5}]}))
        self.env = {
            **os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"), "MODELYARD_CONFIG": str(folder / "config.yaml"),
        }  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and go on."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments], env=self.env, cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end and return what it printed, on either stream."""
        started = self.start(*arguments)
        said, _ = started.communicate(timeout=WAIT_S)
        assert started.returncode == code, said
        return said

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def runs(self) -> dict[str, Any]:
        """Return each run as ``ps`` tells it."""
        return {run["name"]: run for run in json.loads(self("ps", "--json"))["runs"]}


WEB = """\
type: service
name: web
image: localhost/busybox:1
commands: ["cd /tmp", "echo hello > index.html", "exec httpd -f -p 8080"]
port: 8080
replicas: 2
"""
TASK = """\
type: task
name: hello
image: localhost/busybox:1
commands: ["echo $((6 * 7))"]
"""


def pods_of(root: Cluster, space: str, run: str) -> dict[str, Any]:
    found, _ = root.list(path_of("v1", "Pod", space), labelSelector=f"modelyard.dev/run={run}")
    return {one["metadata"]["uid"]: one for one in found}


# --- what a namespace admits


@pytest.mark.parametrize("name", [name for name in TAKEN if not name.startswith("volumes/")])
def test_restricted_namespace_admits(config: str, root: Cluster, tmp_path: Path, name: str) -> None:
    with namespace(config) as space:
        templates = list(rules.pod_templates(objects_of(name, tmp_path, namespace=space)))
        assert templates
        for template in templates:
            _create_pod(root, space, template, dry=True)


def test_restricted_namespace_refuses_what_is_not(config: str, root: Cluster, tmp_path: Path) -> None:
    lax = objects_of("tasks/answer.yaml", tmp_path, security="baseline")
    (template,) = rules.pod_templates(lax)
    with namespace(config) as space, pytest.raises(BackendError, match="violates PodSecurity"):
        _create_pod(root, space, template, dry=True)


def _create_pod(root: Cluster, space: str, template: Any, *, dry: bool) -> Any:
    body = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
    body["metadata"] = {"generateName": "admitted-", "labels": template["metadata"].get("labels", {})}
    query = {"dryRun": "All"} if dry else {}
    return root.send("POST", path_of("v1", "Pod", space), body, **query)


# --- what nodes offer


@pytest.fixture(scope="module")
def nodes(root: Cluster) -> Iterator[dict[str, str]]:
    """Have a node of every site, Ready and empty; names by site."""
    names = {site: f"modelyard-{site}" for site in SITES}
    for site, name in names.items():
        _create_node(root, name, *SITES[site][:2])
    try:
        yield names
    finally:
        for name in names.values():
            root.delete(f"/api/v1/nodes/{name}")


def _create_node(root: Cluster, name: str, labels: dict[str, str], counted: str, amount: str = "8") -> None:
    root.delete(f"/api/v1/nodes/{name}")
    told = {**labels, "kubernetes.io/hostname": name, "modelyard.dev/site": name}
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": told}}
    root.send("POST", "/api/v1/nodes", body)
    amounts = {"cpu": "96", "memory": "2Ti", "ephemeral-storage": "4Ti", "pods": "110", counted: amount}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": now, "reason": "KubeletReady"}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
    merge = "application/merge-patch+json"
    root.send("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, merge)
    # admission taints every new node until a controller sees it ready; ours keeps other pods off
    own = {"key": "modelyard.dev/site", "effect": "NoSchedule"}
    root.send("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": [own]}}, merge)


TOLERANT = {"tolerations": ({"key": "modelyard.dev/site", "operator": "Exists"},)}


@pytest.mark.parametrize("site", SITES)
def test_labelled_node_is_offered_as_what_it_is(config: str, nodes: dict[str, str], site: str) -> None:
    place = Kubernetes(
        "lab", kubeconfig=config, node_selector={"modelyard.dev/site": nodes[site]}, **TOLERANT
    )
    (offer,) = place.offers()
    assert offer.accelerator is not None
    known = accelerator(offer.accelerator, memory_bytes=offer.vram_bytes)
    assert known is not None
    assert (known.name, offer.count) == (SITES[site][2], 8)


@pytest.mark.parametrize("site", SITES)
def test_scheduler_puts_a_pod_on_its_own_device(
    config: str, root: Cluster, nodes: dict[str, str], site: str
) -> None:
    if not os.environ.get("MODELYARD_TEST_CLUSTER"):
        pytest.skip("needs a scheduler: MODELYARD_TEST_CLUSTER=control or full, and KUBECONFIG")
    known, resources = offered(site)
    if known.vendor == "google":
        resources = replace(resources, accelerators=8)  # one slice of the topology 2x4
    asked = replace(SERVICE, template=replace(SERVICE.template, resources=replace(resources, cpu=1)))
    (template,) = rules.pod_templates(render_group(asked, Settings(**TOLERANT)).objects[0])
    with namespace(config) as space:
        pod = _create_pod(root, space, template, dry=False)
        path = path_of("v1", "Pod", space, pod["metadata"]["name"])
        seen: Any = pod

        def is_decided() -> bool:
            nonlocal seen
            seen = root.get(path)
            return bool(seen["spec"].get("nodeName") or seen["status"].get("conditions"))

        watched(root, path_of("v1", "Pod", space), is_decided)
        bound = seen["spec"].get("nodeName", "")
        root.delete(path, grace_s=0)
    there = {name for other, name in nodes.items() if SITES[other][2] in _alike(SITES[site][2])}
    assert bound in there, seen["status"]


def _alike(device: str) -> set[str]:
    """Return the devices that no label but a product's name tells apart."""
    pair = {"A100-80GB", "A100-80GB-PCIE"}
    return pair if device in pair else {device}


@pytest.fixture
def zones(root: Cluster) -> Iterator[dict[str, str]]:
    """Have two nodes of eight GPUs in each of three zones; zones by node."""
    # a name of their own: what was on a node that is gone is still there for one that has its name
    own = uuid.uuid4().hex[:6]
    found = {f"modelyard-{own}-{zone}{number}": zone for zone in "abc" for number in (0, 1)}
    for name, zone in found.items():
        labels, counted, _ = SITES["gfd-h100"]
        placed = {"topology.kubernetes.io/zone": zone, "modelyard.dev/zoned": "yes"}
        _create_node(root, name, {**labels, **placed}, counted)
    try:
        yield found
    finally:
        for name in found:
            root.delete(f"/api/v1/nodes/{name}")


def test_nodes_of_a_replica_end_up_in_one_zone(config: str, root: Cluster, zones: dict[str, str]) -> None:
    if not os.environ.get("MODELYARD_TEST_CLUSTER"):
        pytest.skip("needs controllers: MODELYARD_TEST_CLUSTER=control or full, and KUBECONFIG")
    resources = replace(offered("gfd-h100")[1], cpu=1)
    fabrics = [{"topology": "topology.kubernetes.io/zone"}]
    chosen = {"modelyard.dev/zoned": "yes"}
    with namespace(config) as space:
        place = Kubernetes(
            "lab", kubeconfig=config, namespace=space, fabrics=fabrics, node_selector=chosen, **TOLERANT
        )
        # one after the other, for two that start at once may each hold half of a zone: Kueue's to prevent
        for number, run in enumerate(("one", "two", "three"), 1):
            template = replace(INDEXED.template, run=run, resources=resources)
            place.apply_group(replace(INDEXED, name=run, template=template, nodes=2), secrets={})
            pods = path_of("v1", "Pod", space)
            watched(root, pods, lambda wanted=2 * number: len(_bound(root, space)) == wanted)
        bound = _bound(root, space)
        for run in ("one", "two", "three"):
            place.delete_group(run, grace_s=0)  # no kubelet would end them
    assert {run: len({zones[node] for r, node in bound if r == run}) for run, _ in bound} == {
        "one": 1, "two": 1, "three": 1,
    }  # fmt: skip


@pytest.fixture
def slices(root: Cluster) -> Iterator[dict[str, str]]:
    """Have two slices of 4 × 4 chips, on four machines each; slices by node."""
    own = uuid.uuid4().hex[:6]
    found = {f"modelyard-{own}-{pool}{number}": f"{own}-{pool}" for pool in "ab" for number in range(4)}
    for name, pool in found.items():
        labels = {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": "4x4", "cloud.google.com/gke-nodepool": pool,
            "modelyard.dev/sliced": "yes",
        }  # fmt: skip
        _create_node(root, name, labels, "google.com/tpu", "4")
    try:
        yield found
    finally:
        for name in found:
            root.delete(f"/api/v1/nodes/{name}")


def test_nodes_of_a_replica_end_up_in_one_slice(config: str, root: Cluster, slices: dict[str, str]) -> None:
    if not os.environ.get("MODELYARD_TEST_CLUSTER"):
        pytest.skip("needs controllers: MODELYARD_TEST_CLUSTER=control or full, and KUBECONFIG")
    resources = Resources(cpu=1, accelerator="TPU-V5E", vendor="google", accelerators=4, vram_bytes=2**34)
    chosen = {"modelyard.dev/sliced": "yes"}
    with namespace(config) as space:
        place = Kubernetes("lab", kubeconfig=config, namespace=space, node_selector=chosen, **TOLERANT)
        assert [(one.count, one.nodes, one.available) for one in place.offers()] == [(4, 4, 4)] * 2
        for number, run in enumerate(("one", "two"), 1):
            template = replace(INDEXED.template, run=run, resources=resources)
            place.apply_group(replace(INDEXED, name=run, template=template), secrets={})
            pods = path_of("v1", "Pod", space)
            watched(root, pods, lambda wanted=4 * number: len(_bound(root, space)) == wanted)
        bound = _bound(root, space)
        assert [one.available for one in place.offers()] == [0, 0]
        for run in ("one", "two"):
            place.delete_group(run, grace_s=0)  # no kubelet would end them
    assert {run: len({slices[node] for r, node in bound if r == run}) for run, _ in bound} == {
        "one": 1, "two": 1,
    }  # fmt: skip


def _bound(root: Cluster, space: str) -> list[tuple[str, str]]:
    """Return run and node of each pod that has one."""
    found, _ = root.list(path_of("v1", "Pod", space))
    return [
        (one["metadata"]["labels"]["modelyard.dev/run"], one["spec"]["nodeName"])
        for one in found
        if one["spec"].get("nodeName")
    ]


# --- what is watched


def test_watch_from_a_version_that_is_gone_is_begun_anew(config: str, root: Cluster) -> None:
    with namespace(config) as space:
        if config in RESTARTS:
            RESTARTS[config]()  # what it knows begins now: the first version is before that
        elif _knows_its_first_version(root, space):
            pytest.skip("needs a server that keeps no longer what it had at first, or one of this test's own")
        place = Kubernetes("lab", kubeconfig=config, namespace=space)
        with pytest.raises(_Expired):  # the server keeps some minutes only, and says 410
            next(place._events("1", threading.Event()))
        listed, closed = place._cluster.list, threading.Event()
        versions = iter(["1"])
        old = lambda path, **query: (listed(path, **query)[0], next(versions, listed(path, **query)[1]))  # noqa: E731
        place._cluster.list = old  # type: ignore[method-assign]  # the first version is one that is gone
        wakes = place.watch(closed)
        assert [next(wakes), next(wakes)] == ["", ""]
        closed.set()


def _knows_its_first_version(root: Cluster, space: str) -> bool:
    """Return whether a watch from the first version is begun; it ends within a second."""
    query = {"watch": "true", "resourceVersion": "1", "timeoutSeconds": "1"}
    try:
        with root.lines(path_of("v1", "Pod", space), query) as events:
            return all(json.loads(event)["type"] != "ERROR" for event in events)
    except Refused:
        return False


# --- what others have


def test_pods_of_others_cost_little(config: str, root: Cluster, tmp_path: Path) -> None:
    with namespace(config) as space, namespace(config, enforce="privileged") as theirs:
        cost = _cpu_of_ps(tmp_path, config, space)
        spec = {"schedulerName": "nobody", "containers": [{"name": "c", "image": "localhost/none:1"}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "other-"}, "spec": spec}
        with ThreadPoolExecutor(8) as many:
            list(many.map(lambda _: root.send("POST", path_of("v1", "Pod", theirs), body), range(PODS)))
        crowded = _cpu_of_ps(tmp_path, config, space)
        print(f"ps beside {PODS} pods of others: {crowded:.2f} CPU-s, alone {cost:.2f}")
        patient = Cluster("admin", kubeconfig=config, context=None, timeout_s=300.0)
        patient.delete(path_of("v1", "Pod", theirs), grace_s=0)
    assert crowded < 1.0


def _cpu_of_ps(folder: Path, config: str, space: str) -> float:
    program = Program(folder, config, space)
    program("ps")  # the record is made once
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program("ps")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# --- what an account may


def test_rendered_roles_are_enough_for_everything(tmp_path: Path) -> None:
    config = whole_cluster()
    root = admin(config)
    with namespace(config) as space:
        limited = account(root, render_rbac(Settings(namespace=space)), tmp_path)
        program = Program(tmp_path, limited, space)
        assert {line.split()[1] for line in program("backend", "check").splitlines()} == {"ok"}
        program("apply", "-y", "-f", program.write("web.yaml", WEB))
        said = program("apply", "-y", "-f", program.write("task.yaml", TASK))
        assert "42" in said
        assert "42" in program("logs", "hello")
        assert "hello" in program("exec", "web", "--", "cat", "/tmp/index.html")
        assert "lab" in program("offers")
        program("apply", "-y", "-f", program.write("web.yaml", WEB.replace("replicas: 2", "replicas: 1")))
        program("stop", "-y", "web")
        program("delete", "-y", "web", "hello")
        left = pods_of(root, space, "web").values()  # those that are told to end take their time
        assert [one for one in left if "deletionTimestamp" not in one["metadata"]] == []


# --- what controllers say


def test_quota_that_keeps_a_task_from_starting_is_told(tmp_path: Path) -> None:
    config = whole_cluster()
    root = admin(config)
    with namespace(config) as space:
        hard = {"spec": {"hard": {"count/pods": "0"}}}
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, **hard}
        root.send("POST", f"/api/v1/namespaces/{space}/resourcequotas", quota)
        place = Kubernetes("lab", kubeconfig=config, namespace=space)
        quotas = f"/api/v1/namespaces/{space}/resourcequotas"
        watched(root, quotas, lambda: (root.get(f"{quotas}/none") or {}).get("status"))
        place.apply_group(JOB, secrets={})
        events = path_of("v1", "Event", space)
        watched(root, events, lambda: "exceeded quota" in place.groups()[0].message)


@pytest.mark.parametrize(
    ("group", "options"),
    [
        (SPANNING, {}),
        (INDEXED, {"tasks": "jobset"}),
        (SCALED, {"autoscaler": "keda"}),
        (SCALED, {"autoscaler": "hpa"}),
        (POOLED, {"gateway": {"name": "inference", "namespace": "gateways"}}),
        (POOLED, {"gateway": {"name": "inference", "host": "{run}.lan", "pools": False}}),
    ],
    ids=[
        "LeaderWorkerSet",
        "JobSet",
        "ScaledObject",
        "HorizontalPodAutoscaler",
        "InferencePool",
        "HTTPRoute",
    ],
)
def test_server_takes_the_object_as_its_resource_defines_it(config: str, group: Group, options: Any) -> None:
    with namespace(config) as space:
        place = Kubernetes("lab", kubeconfig=config, namespace=space, **options)
        for kind in place.render(group).requires:
            if not place._view.has(kind):
                pytest.skip(f"needs a cluster with {kind}")
        assert all(phrase.endswith(": is made") for phrase in place.rehearse(group))
        strict = {"fieldManager": "modelyard", "dryRun": "All", "fieldValidation": "Strict"}
        for one in place.render(group).objects:
            admin(config).send("PATCH", path_of_object(one), one, "application/apply-patch+yaml", **strict)


# --- what an outage does


class Line:
    """A connection to the API server that can be cut: bytes are passed on as they are.

    While it is cut, whoever comes is turned away, and counted: a test waits for what was tried in vain.
    """

    def __init__(self, host: str, port: int) -> None:
        self.there = host, port
        self.open: set[socket.socket] = set()
        self.is_cut = False
        self.turned = 0
        self._changed = threading.Condition()
        self._lasted = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self._join(client)

    def _join(self, client: socket.socket) -> None:
        """Connect a client, or turn it away."""
        with self._changed:
            if self.is_cut:
                client.close()
                self.turned += 1
                self._changed.notify_all()
                return
            try:
                server = socket.create_connection(self.there)
            except OSError:
                client.close()
                return
            self.open |= {client, server}
        for pair in ((client, server), (server, client)):
            threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self, *, for_s: float = 0.0) -> None:
        """Break every connection, and let nobody through for at least so long."""
        with self._changed:
            self.is_cut = True
            ends, self.open = self.open, set()
        for each in ends:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._lasted.clear()
        alarm = threading.Timer(for_s, self._lasted.set)
        alarm.daemon = True
        alarm.start()

    def until_turned(self, more: int) -> None:
        """Wait until so many more have come in vain."""
        with self._changed:
            wanted = self.turned + more
            assert self._changed.wait_for(lambda: self.turned >= wanted, WAIT_S), "nobody came"

    def mend(self) -> None:
        """Let whoever comes through again, once the line was cut for as long as it had to be."""
        assert self._lasted.wait(OUTAGE_S + WAIT_S)
        with self._changed:
            self.is_cut = False

    def close(self) -> None:
        """Break every connection for good."""
        self.cut()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@contextmanager
def line_to(config: str, folder: Path) -> Iterator[tuple[Line, str]]:
    """Give a line to the server of ``config`` that can be cut, and a kubeconfig that goes over it."""
    server = urlsplit(admin(config).configuration().host)
    line = Line(server.hostname or "", server.port or 443)
    path = folder / "over-the-line.conf"
    text = Path(config).read_text().replace(f"{server.hostname}:{server.port}", f"127.0.0.1:{line.port}")
    path.write_text(text)
    try:
        yield line, str(path)
    finally:
        line.close()


def test_outage_is_unknown_and_changes_nothing(config: str, root: Cluster, tmp_path: Path) -> None:
    with namespace(config) as space, line_to(config, tmp_path) as (line, over):
        place = Kubernetes("lab", kubeconfig=over, namespace=space, timeout_s=5.0)
        place.apply_group(SERVICE, secrets={})
        deployment = path_of("apps/v1", "Deployment", space, SERVICE.name)
        before = (root.get(deployment) or {})["metadata"]["resourceVersion"]
        closed = threading.Event()
        changes = iter(place.watch(closed))
        assert next(changes) == ""
        news: Queue[str] = Queue()
        watcher = threading.Thread(target=lambda: [news.put(wake) for wake in changes], daemon=True)
        watcher.start()
        line.cut()
        for refused in (place.groups, place.instances, lambda: place.apply_group(SERVICE, secrets={})):
            with pytest.raises(Unreachable):
                refused()
        line.until_turned(KNOCKS)  # the watch goes on asking
        assert watcher.is_alive()
        assert news.empty()
        line.mend()
        assert [status.name for status in place.groups()] == [SERVICE.name]
        labels = {"app.kubernetes.io/managed-by": "modelyard", "modelyard.dev/run": SERVICE.name}
        body: Any = {"kind": "Pod", "metadata": {"name": "one", "labels": labels}}
        body["spec"] = {"schedulerName": "nobody", "containers": [POD]}
        allowed = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}
        root.send("PATCH", f"/api/v1/namespaces/{space}", allowed, "application/merge-patch+json")
        root.send("POST", path_of("v1", "Pod", space), body)
        assert news.get(timeout=WAIT_S) == ""
        closed.set()
        place.apply_group(SERVICE, secrets={})
        assert (root.get(deployment) or {})["metadata"]["resourceVersion"] == before


def test_outage_restarts_nothing_and_loses_nothing(tmp_path: Path) -> None:
    config = whole_cluster()
    root = admin(config)
    with namespace(config) as space, line_to(config, tmp_path) as (line, over):
        program = Program(tmp_path, over, space)
        program("apply", "-y", "-f", program.write("web.yaml", WEB))
        before = pods_of(root, space, "web")
        driver = program.start("wait", "web", "--for", "ended", "--timeout", f"{OUTAGE_S + 4 * WAIT_S:.0f}s")
        line.cut(for_s=OUTAGE_S)
        line.until_turned(KNOCKS)  # the driver has seen it, and goes on asking
        assert program.runs()["web"]["state"] == "ready"  # unknown is not failed
        taken = next(iter(before.values()))["metadata"]["name"]
        root.delete(path_of("v1", "Pod", space, taken), grace_s=0)  # what happens meanwhile is seen later
        line.until_turned(KNOCKS)
        line.mend()
        ready = lambda: [one for one in pods_of(root, space, "web").values() if _is_ready(one)]  # noqa: E731
        watched(root, path_of("v1", "Pod", space), lambda: len(ready()) == 2)
        program("wait", "web", "--for", "ready", "--timeout", "60s")
        assert driver.poll() is None  # it went on through all of it
        driver.terminate()
        driver.communicate(timeout=WAIT_S)
        after = pods_of(root, space, "web")
        web = program.runs()["web"]
        events = program("events", "web")
    assert len(set(before) & set(after)) == 1
    assert [sum(c["restartCount"] for c in p["status"]["containerStatuses"]) for p in after.values()] == [
        0,
        0,
    ]
    assert (web["state"], web["ready"]) == ("ready", 2)
    assert "failed" not in events


def _is_ready(pod: Any) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions") or ()}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


# --- what a roll leaves to start again


def _allow_pods(root: Cluster, space: str, most: int) -> None:
    quotas = f"/api/v1/namespaces/{space}/resourcequotas"
    hard = {"hard": {"count/pods": str(most)}}
    root.send("POST", quotas, {"kind": "ResourceQuota", "metadata": {"name": "pods"}, "spec": hard})
    watched(root, quotas, lambda: (root.get(f"{quotas}/pods") or {}).get("status"))


PAGE = """\
type: service
name: web
image: localhost/busybox:1
files: ["page.html:/www/index.html"]
commands: ["exec httpd -f -p 8080 -h /www"]
port: 8080
"""


def test_apply_ends_where_what_it_brought_does_not_come_up_in_its_time(tmp_path: Path) -> None:
    config = whole_cluster()
    root = admin(config)
    with namespace(config) as space:
        program = Program(tmp_path, config, space)
        program("apply", "-y", "-f", program.write("web.yaml", WEB))
        changed = program.write("web.yaml", WEB.replace("localhost/busybox:1", "localhost/none:1"))
        kept, path = path_of("apps/v1", "Deployment", space), path_of("apps/v1", "Deployment", space, "web")
        applying = program.start("apply", "-y", "-f", changed)
        watched(root, kept, lambda: "localhost/none:1" in json.dumps(root.get(path)["spec"]))
        hurry = {"spec": {"progressDeadlineSeconds": 2}}
        root.send("PATCH", path, hurry, "application/merge-patch+json", fieldManager="tests")
        said, _ = applying.communicate(timeout=WAIT_S)
        assert applying.returncode == 1, said
        assert "rollout failed: " in said
        assert "localhost/none:1" in said
        assert program.runs()["web"]["ready"] == 2
        program("apply", "-y", "--force-conflicts", "-f", program.write("web.yaml", WEB))
        assert program.runs()["web"]["state"] == "ready"
        program("delete", "-y", "web")


def test_pod_that_is_evicted_while_its_successor_starts_comes_back_with_its_files(tmp_path: Path) -> None:
    config = whole_cluster()
    root = admin(config)
    with namespace(config) as space:
        program = Program(tmp_path, config, space)
        maps, pods = path_of("v1", "ConfigMap", space), path_of("v1", "Pod", space)
        files = lambda: names_of(root.list(maps, labelSelector="modelyard.dev/run=web")[0])  # noqa: E731
        ready = lambda: [one for one in pods_of(root, space, "web").values() if _is_ready(one)]  # noqa: E731

        def apply(page: str, text: str = PAGE, *more: str) -> None:
            program.write("page.html", page)
            program("apply", "-y", *more, "-f", program.write("web.yaml", text))

        apply("one")
        (first,) = ready()
        (one,) = files()
        apply("two", PAGE.replace("localhost/busybox:1", "localhost/none:1"), "-d")
        # the kubelet gives a successor that comes while the old pod is there the files it still knows
        _allow_pods(root, space, 2)
        root.delete(f"{pods}/{first['metadata']['name']}", grace_s=1)
        watched(root, pods, lambda: [p for p in ready() if p["metadata"]["uid"] != first["metadata"]["uid"]])
        (two,) = files() - {one}
        root.delete(f"/api/v1/namespaces/{space}/resourcequotas/pods")
        apply("one")  # what runs is what ran before
        assert program("exec", "web", "--", "cat", "/www/index.html") == "one"
        sets = path_of("apps/v1", "ReplicaSet", space)
        for past in root.list(sets)[0]:  # its controller keeps ten, and then forgets the eldest
            if two in json.dumps(past):
                root.delete(f"{sets}/{past['metadata']['name']}")
        apply("three")
        assert two not in files()
        assert len(files()) == 2
        program("delete", "-y", "web")
        watched(root, maps, lambda: not files())
