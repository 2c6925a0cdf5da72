"""What a plan for a cluster is told by it, before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes import Kubernetes
from orchestrator.api import Local
from orchestrator.api.protocol import Rehearsal
from orchestrator.api.rehearsal import is_kept, rehearse, rehearsed, to_rehearse
from orchestrator.apply.imagined import imagined_world
from orchestrator.apply.placing import _with_back
from orchestrator.apply.planning import plan_documents
from orchestrator.apply.plans import RunPlan
from orchestrator.apply.recording import record
from orchestrator.apply.templates import updated
from orchestrator.backend import Can, Group, Scaling
from orchestrator.engines.job import Metrics
from orchestrator.errors import (
    AuthFailed,
    ModelyardError,
    NothingFits,
    Quota,
    Rejected,
    SpecError,
    Unreachable,
)
from orchestrator.facts import resolve
from orchestrator.places import Place, Places
from orchestrator.reconcile import Run, RunState, Template
from orchestrator.reconcile.values import group_from
from orchestrator.render.plans import diff_text
from orchestrator.spec.load import load, read
from tests.backends.kubernetes.test_inventory import SITES, SLICE, gpu_node, offers

NOW = datetime(2026, 11, 29, tzinfo=UTC)
WEB = "type: service\nname: web\nimage: busybox:1.37\ncommands: [sleep 1d]\nport: 8080\n"


class Rehearsing(Kubernetes):
    """A cluster whose answer to every rehearsal is known beforehand."""

    def __init__(self, answer: Sequence[str] | ModelyardError) -> None:
        super().__init__("lab")
        self.answer = answer
        self.asked: list[Group] = []

    def rehearse(self, group: Group) -> Sequence[str]:
        self.asked.append(group)
        if isinstance(self.answer, ModelyardError):
            raise self.answer
        return self.answer


def planned(folder: Path) -> RunPlan:
    (folder / "web.yaml").write_text(WEB)
    documents = load([str(folder / "web.yaml")], env={})
    world = imagined_world("lab", Kubernetes("lab").can, vendor="nvidia", facts=pytest.fail)
    (plan,) = plan_documents(documents, world)
    assert isinstance(plan, RunPlan)
    return plan


def told(folder: Path, answer: Any) -> RunPlan:
    plans = [planned(folder)]
    (plan,) = rehearsed(plans, rehearse(plans, {"lab": Rehearsing(answer)}))
    assert isinstance(plan, RunPlan)
    return plan


def test_what_would_change_is_noted_and_what_is_made_is_not(tmp_path: Path) -> None:
    plan = told(tmp_path, ["Service web: is made", "Deployment web: spec.replicas 7 -> 1"])
    assert plan.notes == ("lab: Deployment web: spec.replicas 7 -> 1",)
    assert plan.problems == ()


@pytest.mark.parametrize(
    "refusal",
    [
        Rejected("fields are held by others: .spec.replicas by hand", fix="apply --force-conflicts"),
        AuthFailed("not allowed: verb patch on deployments of apps", fix="modelyard render rbac"),
        Quota("exceeded quota", fix="raise it"),
    ],
)
def test_what_would_be_refused_is_a_problem_of_the_document(tmp_path: Path, refusal: Any) -> None:
    (problem,) = told(tmp_path, refusal).problems
    assert problem.what == f"backend 'lab' refuses it: {refusal.what}"
    assert problem.fix == refusal.fix
    assert problem.at.line == 1


def test_silence_is_no_refusal(tmp_path: Path) -> None:
    assert told(tmp_path, Unreachable("no answer", backend="lab")) == planned(tmp_path)


def test_only_what_a_cluster_keeps_is_said_to_it(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    cluster, other = Kubernetes("lab").can, frozenset({Can.IMAGES})
    assert to_rehearse([plan], {"lab": cluster}) == (plan,)
    assert to_rehearse([plan], {"lab": other}) == ()
    assert to_rehearse([replace(plan, template=None)], {"lab": cluster}) == ()


def test_rehearsal_says_its_changes_or_why_it_is_refused() -> None:
    assert Rehearsal("lab", ("a", "b")).phrases() == ("lab: a", "lab: b")
    assert Rehearsal("lab", refusal="held by hand").phrases() == ("lab: refuses it: held by hand",)


def local(folder: Path, answer: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Local, Rehearsing]:
    """Return the api of a record with ``web`` on a cluster whose answer is known."""
    place = Rehearsing(answer)
    api = Local(f"sqlite:///{folder / 'record.db'}", config=None, environ={})
    places = Places([Place("lab", "kubernetes")])
    monkeypatch.setattr(api, "places", places)
    monkeypatch.setattr("orchestrator.places.build", lambda _: place)
    record([planned(folder)], api.store, environ={}, now=NOW, new_id=lambda: "one")
    return api, place


@pytest.mark.parametrize(
    ("text", "action"), [(WEB, "unchanged"), (WEB.replace("port", "replicas: 2\nport"), "update")]
)
def test_diff_tells_what_the_cluster_has_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, action: str
) -> None:
    api, _ = local(tmp_path, ["Deployment web: spec.replicas 7 -> 2"], monkeypatch)
    (tmp_path / "web.yaml").write_text(text)
    (found,) = api.diff(load([str(tmp_path / "web.yaml")], env={}))
    api.close()
    assert found.action == action
    assert found.places == ("lab: Deployment web: spec.replicas 7 -> 2",)
    assert found.is_change
    assert "  ~ lab: Deployment web: spec.replicas 7 -> 2" in diff_text([found])


def test_diff_of_what_is_as_it_should_be_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, place = local(tmp_path, [], monkeypatch)
    (found,) = api.diff(load([str(tmp_path / "web.yaml")], env={}))
    api.close()
    assert not found.is_change
    assert [group.name for group in place.asked] == ["web"]


def test_diff_of_what_is_not_on_record_asks_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, place = local(tmp_path, ["x"], monkeypatch)
    (tmp_path / "other.yaml").write_text(WEB.replace("web", "other"))
    (found,) = api.diff(load([str(tmp_path / "other.yaml")], env={}))
    api.close()
    assert (found.action, found.places, place.asked) == ("create", (), [])


CHAT = """\
type: service
name: chat
model: Qwen/Qwen2.5-7B-Instruct
replicas: 1..4
scaling: {metric: queue, target: 4}
"""


def chat(text: str = CHAT, **options: Any) -> Template:
    """Return the template of a service on a cluster with these options."""
    place = Kubernetes("lab", **options)
    facts = lambda model: resolve(model.id, revision=model.revision, hub=None, offline=True)  # noqa: E731
    world = imagined_world("lab", place.can, vendor="nvidia", facts=facts)
    (plan,) = plan_documents(read(text), world)
    assert isinstance(plan, RunPlan)
    assert plan.template is not None
    return plan.template


@pytest.mark.parametrize("autoscaler", ["hpa", "keda"])
def test_cluster_that_scales_is_told_between_what_and_by_what(autoscaler: str) -> None:
    template = chat(autoscaler=autoscaler)
    assert template.scaling == Scaling(1, 4, "vllm:num_requests_waiting", 4.0)
    assert group_from(template, name="chat", kind="service").scaling == template.scaling
    assert template.serves == ("Qwen/Qwen2.5-7B-Instruct",)


@pytest.mark.parametrize("metric", ["rps", "ttft"])
def test_what_no_replica_tells_is_scaled_by_our_gateway(metric: str) -> None:
    assert chat(CHAT.replace("queue", metric), autoscaler="keda").scaling is None


def test_cluster_without_an_autoscaler_leaves_the_number_to_us() -> None:
    assert chat().scaling is None


def test_scaling_that_changes_in_place_reaches_the_cluster() -> None:
    before = chat(autoscaler="keda")
    (document,) = read(CHAT.replace("1..4", "0..8").replace("target: 4", "target: 2"))
    metrics = Metrics(queue=("vllm:num_requests_waiting",))
    after = updated(before, document.spec, metrics=metrics)
    assert after.scaling == Scaling(0, 8, "vllm:num_requests_waiting", 2.0)
    assert after.launch.command == before.launch.command


SLICED = """\
type: task
name: tune
image: python:3.12-slim
commands: [python tune.py]
resources: {gpu: "tpu:TPU-V5E:4"}
nodes: 4
"""


def on_a_slice(text: str, facts: Any = pytest.fail) -> RunPlan:
    """Return the plan of a spec for a cluster with one slice of 4 × 4 chips."""
    place = Kubernetes("lab")
    world = replace(
        imagined_world("lab", place.can, vendor="google", facts=facts),
        offers=lambda: [replace(one, backend="lab", accelerator="TPU-V5E") for one in offers(*SLICE)],
    )
    (plan,) = plan_documents(read(text), world)
    assert isinstance(plan, RunPlan)
    return plan


def test_slice_is_planned_whole_and_asked_for_by_its_topology() -> None:
    plan = on_a_slice(SLICED)
    assert plan.template is not None
    group = group_from(plan.template, name="tune", kind="task")
    job = Kubernetes("lab").render(group).objects[0]["spec"]
    assert (group.nodes, job["completions"]) == (4, 4)
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (container,) = job["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}


SERVED_ON_A_SLICE = """\
type: service
name: wide
model: {id: meta-llama/Llama-3.1-70B-Instruct, context: 4096}
traffic: {concurrency: 4, input_tokens: 1000, output_tokens: 200}
resources: {gpu: v5litepod-16}
env: [HF_TOKEN]
"""


@pytest.mark.parametrize("gpu", ["v5litepod-16", "tpu:16", "TPU-V5E:16"])
def test_a_model_is_served_on_a_whole_slice(gpu: str) -> None:
    plan = on_a_slice(SERVED_ON_A_SLICE.replace("v5litepod-16", gpu), facts=known)
    assert plan.template is not None
    assert plan.served is not None
    assert (str(plan.served.layout), plan.served.layout.nodes) == ("tensor 16", 4)
    group = group_from(plan.template, name="wide", kind="service")
    (leaders, *_) = Kubernetes("lab").render(group).objects
    template = leaders["spec"]["leaderWorkerTemplate"]
    assert (leaders["kind"], template["size"]) == ("LeaderWorkerSet", 4)
    (leader, worker) = (template[f"{role}Template"]["spec"] for role in ("leader", "worker"))
    assert leader["containers"][0]["args"] == worker["containers"][0]["args"]
    assert "--distributed-executor-backend" in leader["containers"][0]["args"]
    assert "readinessProbe" in leader["containers"][0]
    assert "readinessProbe" not in worker["containers"][0]


@pytest.mark.parametrize("gpu", ["v5litepod-4", "TPU-V5E:4", "TPU-V5E:8"])
def test_a_part_of_a_slice_serves_nothing(gpu: str) -> None:
    small = SERVED_ON_A_SLICE.replace("v5litepod-16", gpu).replace("3.1-70B", "3.1-8B")
    with pytest.raises(NothingFits) as refused:
        on_a_slice(small, facts=known)
    assert [r.reason for r in refused.value.refused] == ["another count than asked for"]


def known(model: Any) -> Any:
    return resolve(model.id, revision=model.revision, hub=None, offline=True)


def test_part_of_a_slice_is_no_offer_and_the_whole_is_named() -> None:
    with pytest.raises(NothingFits) as refused:
        on_a_slice(SLICED.replace("nodes: 4", "nodes: 1"))
    assert [r.reason for r in refused.value.refused] == ["one of 4 machines"]
    assert refused.value.fix == "set nodes: 4, which are one slice"


LARGE = """\
type: service
name: large
model: {id: meta-llama/Llama-3.1-405B-Instruct, precision: bf16, context: 8192}
traffic: {concurrency: 4, input_tokens: 2000, output_tokens: 500}
resources: {gpu: "H100:8"}
env: [HF_TOKEN]
"""


def on_nodes(text: str, count: int, *, busy: int = 0) -> RunPlan:
    """Return the plan of a spec for ``count`` nodes of 8 × H100, of which ``busy`` have two left."""
    labels, resource, _ = SITES["gfd-h100"]
    found = [gpu_node(labels, 2 if at < busy else 8, resource) for at in range(count)]
    for at, one in enumerate(found):
        one["metadata"]["name"] = f"n{at}"
    facts = lambda model: resolve(model.id, revision=model.revision, hub=None, offline=True)  # noqa: E731
    world = replace(
        imagined_world("lab", Kubernetes("lab").can, vendor="nvidia", facts=facts),
        offers=lambda: [replace(one, backend="lab", accelerator="H100-80GB") for one in offers(*found)],
    )
    (plan,) = plan_documents(read(text), world)
    assert isinstance(plan, RunPlan)
    return plan


def test_a_model_spans_nodes_that_are_an_offer_each() -> None:
    plan = on_nodes(LARGE, 2)
    assert plan.template is not None
    group = group_from(plan.template, name="large", kind="service")
    (leaders, *_) = Kubernetes("lab").render(group).objects
    assert (group.nodes, leaders["kind"]) == (2, "LeaderWorkerSet")
    assert leaders["spec"]["leaderWorkerTemplate"]["size"] == 2


@pytest.mark.parametrize(("count", "busy"), [(1, 0), (2, 1)])
def test_a_model_spans_no_more_nodes_than_have_room(count: int, busy: int) -> None:
    with pytest.raises(NothingFits) as refused:
        on_nodes(LARGE, count, busy=busy)
    assert sum(r.offers for r in refused.value.refused) == count


# --- a run that a cluster keeps, and whose spec did not change


def test_what_others_changed_is_an_update_that_says_the_group_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, place = local(
        tmp_path, ["Deployment web: spec.replicas 7 -> 1", "Service web: is made"], monkeypatch
    )
    documents = load([str(tmp_path / "web.yaml")], env={})
    (plan,) = plans = api.plan(documents)
    assert isinstance(plan, RunPlan)
    assert plan.drift == ("lab: Deployment web: spec.replicas 7 -> 1", "lab: Service web: is made")
    assert (plan.action, plan.changes, plan.notes, plan.problems) == ("update", (), (), ())
    before = group_from(api.recorded("web").run.template, name="web", kind="service")
    assert api.apply(plans) == ("web",)
    after = group_from(api.recorded("web").run.template, name="web", kind="service")
    assert before.digest() != after.digest()
    place.answer = []
    (settled,) = api.plan(documents)
    api.close()
    assert settled.action == "unchanged"
    said = [place.render(group).objects for group in (before, after)]
    assert [one["spec"] for one in said[0]] == [one["spec"] for one in said[1]]  # no pod is another


def test_what_others_hold_is_refused_and_the_record_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Rejected("fields are held by others: .spec.replicas by hand", fix="apply --force-conflicts")
    api, _ = local(tmp_path, held, monkeypatch)
    (plan,) = plans = api.plan(load([str(tmp_path / "web.yaml")], env={}))
    assert isinstance(plan, RunPlan)
    assert plan.action == "unchanged"  # whoever applies without asking, as a sync does, takes nothing
    assert plan.drift == (f"lab: refuses it: {held.what}",)
    assert [problem.exit_code for problem in plan.problems] == [65]
    assert api.apply(plans) == ()
    api.close()


@pytest.mark.parametrize(("refusal", "code"), [(AuthFailed("not allowed"), 77), (Quota("too much"), 75)])
def test_what_lacks_a_permission_or_a_quota_ends_so(tmp_path: Path, refusal: Any, code: int) -> None:
    problems = told(tmp_path, refusal).problems
    assert SpecError(problems).exit_code == code
    wrong = replace(problems[0], what="unknown key", exit_code=65)
    assert SpecError([*problems, wrong]).exit_code == 65


def test_cluster_that_is_silent_leaves_an_unchanged_run_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, _ = local(tmp_path, Unreachable("no answer", backend="lab"), monkeypatch)
    (plan,) = api.plan(load([str(tmp_path / "web.yaml")], env={}))
    api.close()
    assert isinstance(plan, RunPlan)
    assert (plan.action, plan.drift) == ("unchanged", ())


@pytest.mark.parametrize("ended", [RunState.STOPPED, RunState.FAILED])
def test_a_run_that_has_ended_is_not_asked_for(tmp_path: Path, ended: RunState) -> None:
    plan = planned(tmp_path)
    assert plan.template is not None
    run = Run("one", "web", "service", "{}", plan.spec_hash, plan.template, NOW, created_at=NOW, state=ended)
    unchanged = replace(plan, action="unchanged", template=None, run=run)
    assert not is_kept(unchanged)
    assert is_kept(replace(unchanged, run=replace(run, state=RunState.READY)))
    assert not is_kept(replace(unchanged, run=replace(run, state=RunState.RUNNING, type="task")))


# --- a disk that is too small


def on_a_disk(text: str, disk: str, *, pods: Sequence[Any] = (), **options: Any) -> RunPlan:
    """Return the plan of a spec for one node of 8 × H100 with this much ephemeral storage."""
    labels, resource, _ = SITES["gfd-h100"]
    node = gpu_node(labels, 8, resource)
    node["status"]["allocatable"]["ephemeral-storage"] = disk
    settings = Kubernetes("lab", **options).settings
    facts = lambda model: resolve(model.id, revision=model.revision, hub=None, offline=True)  # noqa: E731
    world = replace(
        imagined_world("lab", Kubernetes("lab").can, vendor="nvidia", facts=facts),
        offers=lambda: [
            replace(one, backend="lab", accelerator="H100-80GB")
            for one in offers(node, pods=pods, settings=settings)
        ],
    )
    (plan,) = plan_documents(read(text), world)
    assert isinstance(plan, RunPlan)
    return plan


SERVED = "type: service\nname: chat\nmodel: {id: Qwen/Qwen2.5-72B-Instruct, precision: bf16, context: 8192}\n"
TUNED = """\
type: task
name: tune
train:
  method: sft
  model: Qwen/Qwen2.5-72B-Instruct
  dataset: trl-lib/Capybara
  adapter: {type: lora, rank: 8}
  sequence_length: 1024
  batch_size: 8
  output: s3://results/tune
"""


@pytest.mark.parametrize("text", [SERVED, TUNED], ids=["served", "tuned"])
def test_disk_that_image_and_model_would_fill_is_refused(text: str) -> None:
    with pytest.raises(NothingFits) as refused:
        on_a_disk(text, "160Gi")  # the files take 135 GiB, the image 27, the rest 4
    assert [r.reason for r in refused.value.refused] == ["too little disk for image and model (166.1 GiB)"]
    assert "cache_claim" in (refused.value.fix or "")
    assert on_a_disk(text, "170Gi").template is not None


def test_disk_that_other_pods_ask_for_is_not_there() -> None:
    other = pod_of("n1", {"ephemeral-storage": "100Gi"})
    with pytest.raises(NothingFits, match="no offer fits"):
        on_a_disk(SERVED, "200Gi", pods=[other])


def test_models_on_a_claim_take_no_disk_of_a_node() -> None:
    assert on_a_disk(SERVED, "60Gi", cache_claim="models").template is not None


def test_model_that_is_replaced_gives_its_disk_back() -> None:
    before = on_a_disk(SERVED, "200Gi")
    assert before.template is not None
    (offer,) = offers(gpu_node(SITES["gfd-h100"][0]), pods=[])
    held = replace(offer, backend="lab", disk_bytes=50 * 2**30)
    back = _with_back(held, before.template)
    launch = before.template.launch
    assert back.disk_bytes == 50 * 2**30 + launch.fetch_bytes + 4 * 2**30


def test_disk_of_a_spec_without_a_model_is_what_it_says() -> None:
    plain = "type: task\nname: hello\nimage: busybox:1.37\ncommands: [ls]\n"
    assert on_a_disk(plain, "1Gi").template is not None
    with pytest.raises(NothingFits) as refused:
        on_a_disk(plain + "resources: {disk: 2GB}\n", "1Gi")
    assert [r.reason for r in refused.value.refused] == ["too little disk"]


def pod_of(node: str, requests: dict[str, str]) -> dict[str, Any]:
    return {
        "metadata": {"name": "p"}, "status": {"phase": "Running"},
        "spec": {"nodeName": node, "containers": [{"resources": {"requests": requests}}]},
    }  # fmt: skip
