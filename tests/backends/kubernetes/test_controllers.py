"""What the ecosystem's controllers make of our objects: LeaderWorkerSet and JobSet.

Each test skips where the cluster that is given does not serve the controller's kind of object; where
it does, the controller has to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from backends.kubernetes import Kubernetes
from backends.kubernetes.client import Cluster, path_of
from backends.kubernetes.render import JOB_SET, LEADER_WORKER_SET
from orchestrator.backend import Group, GroupStatus, Launch, Phase, Port, Probe, Resources
from tests.backends.kubernetes.cluster import admin, having, namespace, watched

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
        self.space = space
        self.place = Kubernetes("lab", kubeconfig=config, namespace=space, **options)

    def apply(self, group: Group) -> None:
        self.place.apply_group(group, secrets={})

    def status(self, run: str) -> GroupStatus:
        (found,) = [one for one in self.place.groups() if one.name == run]
        return found

    def until(self, holds: Any, *, kind: tuple[str, str] = ("v1", "Pod")) -> None:
        """Wait until ``holds``, which is asked whenever a pod changes."""
        watched(self.root, path_of(*kind, self.space), holds)

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
    lab.root.delete(path_of("v1", "Pod", lab.space, "wide-0-1"), grace_s=0)

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


# --- JobSet


def training(*lines: str, retries: int = 0, **fields: Any) -> Group:
    return Group("sft", launch("sft", *lines), "task", nodes=2, retries=retries, **fields)


def test_every_node_of_a_set_meets_rank_0_and_ends(site: Place) -> None:
    lab = site(JOB_SET, tasks="jobset")
    meet = (
        'if [ "$MODELYARD_NODE_RANK" = 0 ]; then echo met | nc -l -p 9000; exit 0; fi',
        "until nc $MODELYARD_MASTER_NODE_IP 9000 < /dev/null; do sleep 0.2; done",
    )
    lab.apply(training(*meet))
    lab.until(lambda: lab.status("sft").phase is Phase.EXITED, kind=("jobset.x-k8s.io/v1alpha2", "JobSet"))
    status = lab.status("sft")
    assert (status.exit_code, status.reason) == (0, "")
    assert [(i.name, i.exit_code) for i in status.instances] == [("sft-0-0-0", 0), ("sft-0-1-0", 0)]
    assert lab.output("sft-0-1-0") == ["met"]


def test_node_that_fails_ends_its_set_with_its_code(site: Place) -> None:
    lab = site(JOB_SET, tasks="jobset")
    fail = '[ "$MODELYARD_NODE_RANK" = 0 ] || { echo "no such data set"; exit 3; }'
    lab.apply(training(fail, LONG))
    lab.until(lambda: lab.status("sft").phase is Phase.EXITED, kind=("jobset.x-k8s.io/v1alpha2", "JobSet"))
    status = lab.status("sft")
    assert (status.exit_code, status.reason, status.message) == (3, "error", "no such data set")


def test_set_starts_all_of_it_again(site: Place) -> None:
    lab = site(JOB_SET, tasks="jobset")
    nodes: set[str] = set()
    lab.apply(training('[ "$MODELYARD_NODE_RANK" = 0 ] || exit 4', LONG, retries=1))

    def is_over() -> bool:
        nodes.update(lab.pods("sft").values())
        return lab.status("sft").phase is Phase.EXITED

    lab.until(is_over)
    assert len(nodes) == 4
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
    lab.until(lambda: lab.status("sft").phase is Phase.EXITED, kind=("jobset.x-k8s.io/v1alpha2", "JobSet"))
    status = lab.status("sft")
    assert (status.reason, status.message) == ("stopped", "JobSet was active longer than specified deadline")
    sets, _ = lab.root.list(path_of("jobset.x-k8s.io/v1alpha2", "JobSet", lab.space))
    assert sets[0]["status"].get("restarts", 0) == 0
