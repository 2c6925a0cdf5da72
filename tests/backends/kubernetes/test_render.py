"""What a cluster is handed: valid, restricted, the same every time, and what the group says."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from backends.kubernetes import Kubernetes
from backends.kubernetes.names import fitting, literal
from backends.kubernetes.pod import HOME, image_of
from backends.kubernetes.render import LEADER_WORKER_SET, render_group, render_volume, to_yaml
from backends.kubernetes.settings import Fabric, Gateway, Pool, Settings, read_settings
from orchestrator.backend import File, Group, Mount, Port, Probe, Resources
from orchestrator.errors import ConfigError, Rejected
from tests.backends.kubernetes import rules
from tests.backends.kubernetes.samples import (
    GROUPS,
    H100,
    INDEXED,
    JOB,
    SCALED,
    SERVE,
    SERVICE,
    SPANNING,
    TASK,
    TRAIN,
    WORKPLACE,
)

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = tuple(f"1.{minor}" for minor in range(30, 38))
SETTINGS = {
    "plain": Settings(),
    "site": Settings(
        namespace="ml",
        queue="team-a",
        queue_priority="high",
        autoscaler="keda",
        tasks="jobset",
        multinode="statefulset",
        cache_claim="models",
        images={"docker.io": "registry.lan/hub"},
        env={"HF_ENDPOINT": "http://hub.lan"},
        secrets={"HF_TOKEN": "hugging-face/token"},
        pull_secrets=("pull",),
        node_selector={"pool": "gpu"},
        tolerations=({"key": "team", "operator": "Equal", "value": "a"},),
        fabrics=(Fabric(resource="rdma/ib", env={"NCCL_IB_HCA": "mlx5"}),),
        gateway=Gateway("inference", namespace="gateways"),
    ),
    "hpa": Settings(autoscaler="hpa"),
    "near": Settings(fabrics=(Fabric(resource="rdma/ib", topology="topology.kubernetes.io/zone"),)),
}


def container(one: Any) -> Any:
    (template, *_) = rules.pod_templates(one)
    return template["spec"]["containers"][0]


def env(one: Any) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container(one)["env"]}


@pytest.fixture(params=[(g, s) for g in GROUPS for s in SETTINGS], ids="-".join)
def rendered(request: Any) -> Any:
    group, settings = request.param
    return render_group(GROUPS[group], SETTINGS[settings])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_in_every_version(version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for group in GROUPS.values():
        for settings in SETTINGS.values():
            for one in render_group(group, settings).objects:
                if rules.is_built_in(one):
                    validate(one, version, strict=True)


def test_custom_resources_have_the_keys_of_their_crd(rendered: Any) -> None:
    for one in rendered.objects:
        if not rules.is_built_in(one):
            assert rules.custom_violations(one) == []


def test_every_pod_is_admitted_by_restricted(rendered: Any) -> None:
    templates = list(rules.pod_templates(list(rendered.objects)))
    assert templates
    assert [rules.restricted_violations(t) for t in templates] == [[] for _ in templates]


def test_first_object_owns_and_every_object_is_found(rendered: Any) -> None:
    for one in rendered.objects:
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "modelyard"
        assert labels["modelyard.dev/run"] in GROUPS or labels["modelyard.dev/run"]
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered.objects]
    assert len(set(names)) == len(names)


TAGS = (("app.kubernetes.io/name", "theirs"), ("example.com/team", "a"), ("modelyard.dev/kind", "theirs"))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", GROUPS)
def test_tags_stand_on_every_object_and_pod_and_ours_win(name: str, settings: str) -> None:
    plain = GROUPS[name]
    tagged = replace(plain, template=replace(plain.template, tags=TAGS))
    before = render_group(plain, SETTINGS[settings]).objects
    for one, untagged in zip(render_group(tagged, SETTINGS[settings]).objects, before, strict=True):
        metas = [one["metadata"], *(made["metadata"] for made in rules.pod_templates(one))]
        assert [meta["labels"].pop("example.com/team", None) for meta in metas] == ["a"] * len(metas)
        for each in (one, untagged):
            each["metadata"].get("annotations", {}).pop("modelyard.dev/group", None)
        assert {**one, "spec": None} == {**untagged, "spec": None}
        assert "theirs" not in str(one)


def test_tags_stand_on_the_secrets_of_a_run() -> None:
    place = Kubernetes("lab", kubeconfig=str(Path(__file__).parent / "none"), namespace="ml")
    made = place._writer.secrets(replace(SERVE, tags=TAGS), {"HF_TOKEN": "x"})
    (labels,) = [one["metadata"]["labels"] for one in made]
    assert (labels["example.com/team"], labels["modelyard.dev/run"]) == ("a", "llama-70b")


@pytest.mark.parametrize("name", GROUPS)
def test_tags_stand_in_no_selector(name: str) -> None:
    tagged = replace(GROUPS[name], template=replace(GROUPS[name].template, tags=TAGS))
    for one in render_group(tagged, SETTINGS["plain"]).objects:
        assert "example.com/team" not in str(one.get("spec", {}).get("selector", {}))


def test_selectors_are_ours_alone_and_match_the_pods(rendered: Any) -> None:
    for one in rendered.objects:
        chosen = one.get("spec", {}).get("selector", {})
        chosen = chosen.get("matchLabels", chosen)
        assert all(k.startswith(("modelyard.dev/", "leaderworkerset.sigs.k8s.io/")) for k in chosen)
        for template in rules.pod_templates(one):
            if one["kind"] in {"Deployment", "StatefulSet"}:
                assert chosen.items() <= template["metadata"]["labels"].items()


@pytest.mark.parametrize("case", [f"{g}-{s}" for g in GROUPS for s in ("plain", "site")])
def test_golden(case: str) -> None:
    group, settings = case.rsplit("-", 1)
    text = to_yaml(render_group(GROUPS[group], SETTINGS[settings]).objects)
    # the digest is of everything a group may say, whether it is written here or not
    text = text.replace(GROUPS[group].digest(), "DIGEST")
    path = GOLDEN / f"{case}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_text_is_the_same_every_time() -> None:
    once, again = (to_yaml(render_group(SERVICE, SETTINGS["site"]).objects) for _ in range(2))
    assert once == again


def test_no_value_of_a_secret_is_written(rendered: Any) -> None:
    assert "${{" not in to_yaml(rendered.objects)


def test_secret_is_referred_to_where_the_operator_keeps_it() -> None:
    service = render_group(SERVICE, SETTINGS["site"])
    assert env(service.objects[0])["HF_TOKEN"] == {"secretKeyRef": {"name": "hugging-face", "key": "token"}}
    assert [(n.secret, n.key) for n in service.needs] == [("hugging-face", "token")]
    plain = render_group(SERVICE, Settings())
    assert [(n.secret, n.key) for n in plain.needs] == [("llama-70b-secrets", "HF_TOKEN")]


def test_image_moves_to_the_mirror() -> None:
    (owner, *_) = render_group(JOB, SETTINGS["site"]).objects
    assert container(owner)["image"] == "registry.lan/hub/library/python:3.12-slim"


def test_command_is_run_as_it_is() -> None:
    (owner, *_) = render_group(JOB, Settings()).objects
    assert container(owner)["args"] == ["/bin/sh", "-ec", "echo $HOME $$(date) $$$"]
    assert "command" not in container(owner)


@pytest.mark.parametrize("text", ["$(A)", "$$(A)", "$$", "$$$", "$A", "a$", "$$$$(B)$(", "plain"])
def test_what_the_kubelet_makes_of_literal_text_is_the_text(text: str) -> None:
    assert kubelet_expands(literal(text), {"A": "wrong", "B": "wrong"}) == text


def kubelet_expands(text: str, values: dict[str, str]) -> str:
    """Expand as ``k8s.io/kubernetes/third_party/forked/golang/expansion`` does."""
    out, at = "", 0
    while at < len(text):
        if text[at] == "$" and at + 1 < len(text):
            following = text[at + 1]
            if following == "$":
                out, at = out + "$", at + 2
                continue
            end = text.find(")", at)
            if following == "(" and end != -1:
                name = text[at + 2 : end]
                out, at = out + values.get(name, f"$({name})"), end + 1
                continue
        out, at = out + text[at], at + 1
    return out


def test_task_with_another_hash_is_another_job() -> None:
    other = replace(JOB, template=replace(JOB.template, spec_hash="ffff"))
    names = [render_group(g, Settings()).objects[0]["metadata"]["name"] for g in (JOB, other)]
    assert names == ["answer-aabbccdd", "answer-ffff"]


@pytest.mark.parametrize(
    ("group", "stays"), [(JOB, True), (INDEXED, True), (WORKPLACE, True), (SERVICE, False), (SPANNING, False)]
)
def test_autoscaler_leaves_a_node_with_a_task_on_it(group: Group, stays: bool) -> None:
    for template in rules.pod_templates(group_objects(group)):
        told = template["metadata"]["annotations"]
        assert ("karpenter.sh/do-not-disrupt" in told) == stays
        assert (told.get("cluster-autoscaler.kubernetes.io/safe-to-evict") == "false") == stays


def test_disruption_costs_a_task_no_retry() -> None:
    spec = render_group(JOB, Settings()).objects[0]["spec"]
    assert spec["backoffLimit"] == 2
    assert spec["activeDeadlineSeconds"] == 3600
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "Ignore"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_disruption_starts_a_set_again_and_its_deadline_ends_it() -> None:
    (owner,) = render_group(replace(INDEXED, max_duration_s=60), Settings(tasks="jobset")).objects
    (jobs,) = owner["spec"]["replicatedJobs"]
    rules = owner["spec"]["failurePolicy"]["rules"]
    assert jobs["template"]["spec"]["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
    assert {(*rule["onJobFailureReasons"], rule["action"]) for rule in rules} == {
        ("PodFailurePolicy", "RestartJobSetAndIgnoreMaxRestarts"),
        ("DeadlineExceeded", "FailJobSet"),
    }


def _counted(group: Group) -> str:
    """Return what matches the pods whose queue KEDA adds up."""
    (scaled,) = (
        one
        for one in render_group(group, Settings(autoscaler="keda", namespace="ml")).objects
        if one["kind"] == "ScaledObject"
    )
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    return str(query.partition('pod=~"')[2].partition('"')[0])


OF_CHAT = ["chat-6d746f87db-fdtj9", "chat-7c9f4-x2x2x"]
OF_OTHERS = ["chat-long-6d746f87db-fdtj9", "chat-x-0", "chat-x-0-1", "chatter-6d746f87db-fdtj9"]


@pytest.mark.parametrize(
    ("run", "nodes", "ours", "others"),
    [
        ("chat", 1, OF_CHAT, OF_OTHERS),
        ("chat", 2, ["chat-0", "chat-12"], [*OF_OTHERS, "chat-0-1", "chat-1-0"]),
        # names that the server cuts at 58 characters before it adds five of its own
        ("c" * 47, 1, ["c" * 47 + "-6d746f87dbfdtj9"], ["c" * 47 + "-x-0"]),
        ("c" * 52, 1, ["c" * 52 + "-6d746fdtj9"], ["c" * 52 + "-x-0"]),
    ],
)
def test_autoscaler_counts_the_requests_of_its_own_run(
    run: str, nodes: int, ours: list[str], others: list[str]
) -> None:
    pattern = _counted(replace(SCALED, template=replace(SCALED.template, run=run), nodes=nodes))
    assert [name for name in [*ours, *others] if re.fullmatch(pattern, name)] == ours


def test_ranks_of_a_task_meet_at_rank_0() -> None:
    job, service = render_group(INDEXED, Settings()).objects
    assert (job["spec"]["completions"], job["spec"]["completionMode"]) == (4, "Indexed")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert env(job)["MODELYARD_MASTER_NODE_IP"] == "sft-aabbccdd-0.sft-aabbccdd"
    assert env(job)["MODELYARD_GPUS_NUM"] == "32"


def test_nothing_is_there_twice_whatever_spec_and_operator_say() -> None:
    """An apply refuses a list with two items of one name, and a pod two mounts at one path."""
    launch = replace(
        SERVICE.template, ports=(Port(8000), Port(8000, 80), Port(9000)),
        mounts=tuple(Mount(f"v{n}", t) for n, t in enumerate(["/tmp", "/dev/shm", HOME, "/workspace"])),
        files=(File("contract.txt", b"x"),), env=(("HF_TOKEN", "plain"), ("MODELYARD_REPLICA", "9")),
    )  # fmt: skip
    settings = Settings(env={"HF_TOKEN": "theirs", "MODELYARD_NODES_NUM": "7", "MODELYARD_RUN_NAME": "x"})
    for nodes in (1, 2):
        objects = render_group(replace(SERVICE, template=launch, nodes=nodes), settings).objects
        for template in rules.pod_templates(list(objects)):
            (one,) = template["spec"]["containers"]
            mounts = [mount["mountPath"] for mount in one["volumeMounts"]]
            lists = [[item["name"] for item in one[key]] for key in ("env", "ports")]
            for names in (mounts, *lists, [v["name"] for v in template["spec"]["volumes"]]):
                assert sorted(set(names)) == sorted(names)
            assert {"name": "MODELYARD_NODES_NUM", "value": str(nodes)} in one["env"]
            (token,) = (v for v in one["env"] if v["name"] == "HF_TOKEN")
            assert "secretKeyRef" in token["valueFrom"]
            sources = {v["name"]: v for v in template["spec"]["volumes"]}
            shm = next(m["name"] for m in one["volumeMounts"] if m["mountPath"] == "/dev/shm")
            assert "persistentVolumeClaim" in sources[shm]
        for service in (one for one in objects if one["kind"] == "Service"):
            assert [port["port"] for port in service["spec"]["ports"]] == [8000, 9000]


def test_replica_that_spans_nodes_is_a_leader_worker_set() -> None:
    made = render_group(SPANNING, Settings())
    spec = made.objects[0]["spec"]
    assert made.requires == (LEADER_WORKER_SET,)
    assert (spec["replicas"], spec["leaderWorkerTemplate"]["size"]) == (2, 2)
    leader, worker = rules.pod_templates(made.objects[0])
    assert "startupProbe" in leader["spec"]["containers"][0]
    assert "startupProbe" not in worker["spec"]["containers"][0]


def test_stateful_pairs_number_their_ranks_on() -> None:
    made = render_group(SPANNING, Settings(multinode="statefulset"))
    sets = [one for one in made.objects if one["kind"] == "StatefulSet"]
    assert [s["spec"].get("ordinals", {}).get("start", 0) for s in sets] == [0, 1, 0, 1]
    assert env(sets[3])["MODELYARD_MASTER_NODE_IP"] == "llama-405b-1-leader-0.llama-405b"


def test_replicas_are_left_out_when_another_controller_writes_them() -> None:
    for settings, kind in (("hpa", "HorizontalPodAutoscaler"), ("site", "ScaledObject")):
        made = {one["kind"]: one for one in render_group(SCALED, SETTINGS[settings]).objects}
        assert "replicas" not in made["Deployment"]["spec"]
        assert made[kind]["spec"]["scaleTargetRef"]["name"] == "llama-70b"
    assert render_group(SCALED, Settings()).objects[0]["spec"]["replicas"] == 2


def test_autoscaler_of_ours_does_not_keep_a_scaled_object_out() -> None:
    """KEDA's webhook refuses one beside a HorizontalPodAutoscaler without this mark (its verifyHpas)."""
    hpa = next(one for one in render_group(SCALED, SETTINGS["hpa"]).objects if "Autoscaler" in one["kind"])
    assert hpa["metadata"]["annotations"] == {"validations.keda.sh/hpa-ownership": "false"}


@pytest.mark.parametrize("nodes", [2, 16, 128])
def test_pods_of_the_longest_run_in_a_set_have_names(nodes: int) -> None:
    """JobSet's webhook adds rank and five characters to its own name, and refuses more than a label holds."""
    template = replace(TRAIN, run="r" * 41, attempt=1)
    group = replace(INDEXED, template=template, nodes=nodes)
    (owner,) = render_group(group, Settings(tasks="jobset")).objects
    name = owner["metadata"]["name"]
    assert len(f"{name}-node-0-{nodes - 1}-abcde") <= 63
    assert owner["spec"]["network"]["subdomain"] == name
    assert env(owner)["MODELYARD_MASTER_NODE_IP"] == f"{name}-node-0-0.{name}"


def test_start_may_take_as_long_as_the_probe_says() -> None:
    (owner, *_) = render_group(SERVICE, Settings()).objects
    probe = container(owner)["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 1234
    assert owner["spec"]["progressDeadlineSeconds"] > 1234


def test_successor_waits_where_it_would_not_fit_beside() -> None:
    rolling = [
        render_group(replace(SERVICE, surge=surge), Settings()).objects[0]["spec"]["strategy"][
            "rollingUpdate"
        ]
        for surge in (True, False)
    ]
    assert rolling == [{"maxSurge": 1, "maxUnavailable": 0}, {"maxSurge": 0, "maxUnavailable": 1}]


def test_shared_memory_is_counted_as_memory() -> None:
    (owner, *_) = render_group(SERVICE, Settings()).objects
    (shm,) = [v for v in owner["spec"]["template"]["spec"]["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    assert container(owner)["resources"]["limits"]["memory"] == "68Gi"


def test_caches_of_root_move_to_a_home_that_is_writable() -> None:
    (owner, *_) = render_group(SERVICE, Settings()).objects
    mounts = {m["mountPath"] for m in container(owner)["volumeMounts"]}
    assert f"{HOME}/.cache/huggingface" in mounts
    assert not any(path.startswith("/root") for path in mounts)
    assert env(owner)["TRITON_CACHE_DIR"] == f"{HOME}/.cache/triton"
    baseline = render_group(SERVICE, Settings(security="baseline")).objects[0]
    assert "/root/.cache/huggingface" in {m["mountPath"] for m in container(baseline)["volumeMounts"]}


def test_variable_that_names_a_folder_of_root_moves_with_it() -> None:
    home = replace(SERVE, env=(("HF_HOME", "/root/.cache/huggingface"), ("NOTE", "/rooted")))
    made = env(render_group(replace(SERVICE, template=home), Settings()).objects[0])
    assert made["HF_HOME"] == f"{HOME}/.cache/huggingface"
    assert made["NOTE"] == "/rooted"
    kept = render_group(replace(SERVICE, template=home), Settings(security="baseline")).objects[0]
    assert env(kept)["HF_HOME"] == "/root/.cache/huggingface"


def test_folder_that_the_program_writes_to_is_writable() -> None:
    trains = replace(JOB.template, files=(), writable=("/workspace/data", "/root/.cache", "/tmp"))
    (owner, *_) = render_group(replace(JOB, template=trains), Settings()).objects
    mounts = {m["mountPath"]: m["name"] for m in container(owner)["volumeMounts"]}
    assert mounts["/workspace/data"].startswith("writable-workspace-data")
    assert "/root/.cache" not in mounts


def test_program_that_installs_itself_asks_for_baseline() -> None:
    installs = replace(JOB, template=replace(JOB.template, writable=("/usr/local",)))
    with pytest.raises(Rejected, match="install into '/usr/local'") as refused:
        render_group(installs, Settings())
    assert "security: baseline" in (refused.value.fix or "")
    assert render_group(installs, Settings(security="baseline")).objects


def test_cpu_pod_sees_no_accelerator_and_tolerates_no_taint() -> None:
    (owner, *_) = render_group(JOB, Settings()).objects
    assert env(owner)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "tolerations" not in owner["spec"]["template"]["spec"]
    (service, *_) = render_group(SERVICE, Settings()).objects
    assert service["spec"]["template"]["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"}
    ]


NODES = {
    "H100-80GB": {"memory": 81559, "compute.major": 9, "compute.minor": 0},
    "A100-80GB": {"memory": 81920, "compute.major": 8, "compute.minor": 0},
    "A100-40GB": {"memory": 40960, "compute.major": 8, "compute.minor": 0},
    "H200-141GB": {"memory": 143771, "compute.major": 9, "compute.minor": 0},
    "L40S-48GB": {"memory": 46068, "compute.major": 8, "compute.minor": 9},
    "RTX-A6000-48GB": {"memory": 49140, "compute.major": 8, "compute.minor": 6},
}
WANTED = {
    "H100-80GB": (85_029_027_840, (9, 0)),
    "A100-80GB": (84_986_036_224, (8, 0)),
    "A100-40GB": (42_304_798_720, (8, 0)),
    "H200-141GB": (150_216_900_608, (9, 0)),
    "L40S-48GB": (47_673_507_840, (8, 9)),
    "RTX-A6000-48GB": (50_989_105_152, (8, 6)),
}


@pytest.mark.parametrize("wanted", WANTED)
def test_affinity_admits_the_planned_device_and_no_other(wanted: str) -> None:
    vram, capability = WANTED[wanted]
    resources = replace(H100, accelerator=wanted, vram_bytes=vram, compute_capability=capability)
    group = replace(SERVICE, template=replace(SERVE, resources=resources))
    spec = render_group(group, Settings()).objects[0]["spec"]["template"]["spec"]
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    admitted = [
        name
        for name, facts in NODES.items()
        if rules.term_admits(required, {f"nvidia.com/gpu.{k}": str(v) for k, v in facts.items()})
    ]
    assert admitted == [wanted]


def test_pool_at_zero_is_reached_by_the_labels_its_operator_declared() -> None:
    pool = Pool("h100", {"pool": "h100"}, 96, 2**40, "H100-80GB", "nvidia", 8, 85_029_027_840)
    spec = render_group(SERVICE, Settings(pools=(pool,))).objects[0]["spec"]["template"]["spec"]
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rules.term_admits(required, {"pool": "h100"})
    assert not rules.term_admits(required, {"pool": "a100"})


def test_tpu_is_asked_for_by_slice() -> None:
    tpu = Resources(accelerator="TPU-V5E", vendor="google", accelerators=4, vram_bytes=2**34)
    group = replace(INDEXED, template=replace(INDEXED.template, resources=tpu))
    spec = render_group(group, Settings()).objects[0]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container(group_objects(group))["resources"]["limits"]["google.com/tpu"] == "4"
    with pytest.raises(Rejected, match="no slice"):
        render_group(replace(group, nodes=3), Settings())


@pytest.mark.parametrize(("nodes", "each"), [(1, 16), (2, 8), (8, 2)])
def test_machine_of_a_slice_has_the_chips_it_has(nodes: int, each: int) -> None:
    tpu = Resources(accelerator="TPU-V5E", vendor="google", accelerators=each, vram_bytes=2**34)
    group = replace(INDEXED, nodes=nodes, template=replace(INDEXED.template, resources=tpu))
    with pytest.raises(Rejected, match="no machine of such a slice") as refused:
        render_group(group, Settings())
    assert "set nodes" in (refused.value.fix or "")


TPU = Resources(accelerator="TPU-V5E", vendor="google", accelerators=4, vram_bytes=2**34)
POOL = "cloud.google.com/gke-nodepool"


def test_nodes_of_a_replica_are_one_slice() -> None:
    job = replace(INDEXED, template=replace(INDEXED.template, resources=TPU))
    (plain, *_) = render_group(job, Settings()).objects
    near = plain["spec"]["template"]["spec"]["affinity"]["podAffinity"]
    (term,) = near["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == POOL
    (jobset, *_) = render_group(job, Settings(tasks="jobset")).objects
    assert jobset["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"] == POOL
    assert [t["spec"].get("affinity") for t in rules.pod_templates(jobset)] == [None]
    service = replace(SPANNING, nodes=4, template=replace(SERVE, run="v5e", resources=TPU))
    (leaders, *_) = render_group(service, Settings()).objects
    assert leaders["metadata"]["annotations"]["leaderworkerset.sigs.k8s.io/exclusive-topology"] == POOL
    (queued, *_) = render_group(job, Settings(queue="team-a")).objects
    told = queued["spec"]["template"]["metadata"]["annotations"]
    assert told["kueue.x-k8s.io/podset-required-topology"] == POOL


SLICED = replace(SPANNING, nodes=4, template=replace(SERVE, run="v5e", resources=TPU))


def test_service_on_a_slice_is_a_group_of_its_machines() -> None:
    rendered = render_group(SLICED, Settings())
    (leaders, service, *_) = rendered.objects
    spec = leaders["spec"]["leaderWorkerTemplate"]
    assert (leaders["kind"], spec["size"], leaders["spec"]["replicas"]) == ("LeaderWorkerSet", 4, 2)
    assert spec["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert leaders["spec"]["networkConfig"] == {"subdomainPolicy": "Shared"}
    for template in (spec["leaderTemplate"], spec["workerTemplate"]):
        pod = template["spec"]
        assert pod["nodeSelector"] == {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": "4x4",
        }
        assert container(template)["resources"]["limits"]["google.com/tpu"] == "4"
        assert {"key": "google.com/tpu", "operator": "Exists"} in pod["tolerations"]
        # its webhook gives them only to containers that have none of them
        assert not [one for one in container(template)["env"] if one["name"].startswith("TPU_WORKER")]
    assert service["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    assert rules.custom_violations(leaders) == []


def test_service_on_a_slice_without_a_controller_tells_its_workers() -> None:
    rendered = render_group(SLICED, Settings(multinode="statefulset"))
    sets = [one for one in rendered.objects if one["kind"] == "StatefulSet"]
    leader = "v5e-0-leader-0.v5e"
    for one in sets[:2]:
        env = {each["name"]: each for each in container(one)["env"]}
        workers = ",".join([leader, *(f"v5e-0-workers-{rank}.v5e" for rank in (1, 2, 3))])
        assert env["TPU_WORKER_HOSTNAMES"]["value"] == workers
        path = env["TPU_WORKER_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert path == "metadata.labels['apps.kubernetes.io/pod-index']"
    assert sets[1]["spec"]["ordinals"] == {"start": 1}
    spans = render_group(SPANNING, Settings(multinode="statefulset")).objects
    assert "TPU_WORKER_ID" not in str(spans)


@pytest.mark.parametrize(
    ("fetch_bytes", "options", "asked"),
    [
        (140 * 10**9, {}, "137611Mi"),
        (140 * 10**9, {"cache_claim": "models"}, "4Gi"),
        (0, {}, None),
    ],
)
def test_disk_of_the_node_is_asked_for_what_a_pod_downloads(
    fetch_bytes: int, options: Any, asked: str | None
) -> None:
    fetches = replace(SERVICE, template=replace(SERVE, fetch_bytes=fetch_bytes))
    requests = container(render_group(fetches, Settings(**options)).objects[0])["resources"]["requests"]
    assert requests.get("ephemeral-storage") == asked


def test_disk_that_a_spec_names_is_asked_for_as_it_is() -> None:
    resources = replace(H100, disk_bytes=50 * 2**30)
    names = replace(SERVICE, template=replace(SERVE, resources=resources, fetch_bytes=2**40))
    requests = container(render_group(names, Settings()).objects[0])["resources"]["requests"]
    assert requests["ephemeral-storage"] == "50Gi"


def group_objects(group: Group) -> Any:
    return render_group(group, Settings()).objects[0]


def test_fabric_is_given_to_replicas_that_span_nodes_only() -> None:
    made = {name: render_group(GROUPS[name], SETTINGS["site"]).objects[0] for name in ("service", "indexed")}
    assert "rdma/ib" not in container(made["service"])["resources"]["limits"]
    assert container(made["indexed"])["resources"]["limits"]["rdma/ib"] == "1"
    assert env(made["indexed"])["NCCL_IB_HCA"] == "mlx5"


SITE = Settings(
    fabrics=(
        Fabric(("A100-80GB",), resource="vpc.amazonaws.com/efa", count=4, env={"FI_PROVIDER": "efa"}),
        Fabric(("H100-80GB",), {"fabric": "ib"}, "rdma/ib", topology="rack", together="preferred"),
    )
)


@pytest.mark.parametrize(
    ("accelerator", "resource", "selector"),
    [
        ("A100-80GB", {"vpc.amazonaws.com/efa": "4"}, None),
        ("H100-80GB", {"rdma/ib": "1"}, {"fabric": "ib"}),
        ("H200-141GB", {}, None),
    ],
)
def test_fabric_is_that_of_the_accelerator(accelerator: str, resource: Any, selector: Any) -> None:
    template = replace(INDEXED.template, resources=replace(H100, accelerator=accelerator))
    (job, *_) = render_group(replace(INDEXED, template=template), SITE).objects
    limits = container(job)["resources"]["limits"]
    assert {k: v for k, v in limits.items() if "/" in k and k != "nvidia.com/gpu"} == resource
    assert job["spec"]["template"]["spec"].get("nodeSelector") == selector


def test_nodes_are_rather_near_each_other_than_have_to_be() -> None:
    (job, *_) = render_group(INDEXED, SITE).objects
    near = job["spec"]["template"]["spec"]["affinity"]["podAffinity"]
    (term,) = near["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "rack"
    (queued, *_) = render_group(INDEXED, replace(SITE, queue="team-a")).objects
    told = queued["spec"]["template"]["metadata"]["annotations"]
    assert told["kueue.x-k8s.io/podset-preferred-topology"] == "rack"


NEAR = Fabric(resource="rdma/ib", topology="topology.kubernetes.io/zone")


@pytest.mark.parametrize(
    ("name", "options", "selects", "by"),
    [
        ("indexed", {}, {"modelyard.dev/run": "sft"}, None),
        ("spanning", {}, {"modelyard.dev/run": "llama-405b"}, ["leaderworkerset.sigs.k8s.io/group-index"]),
        (
            "spanning", {"multinode": "statefulset"},
            {"modelyard.dev/run": "llama-405b", "modelyard.dev/replica": "0"}, None,
        ),
    ],
)  # fmt: skip
def test_nodes_of_a_replica_are_near_each_other(name: str, options: Any, selects: Any, by: Any) -> None:
    made = render_group(GROUPS[name], Settings(fabrics=(NEAR,), **options))
    (template, *_) = rules.pod_templates(list(made.objects))
    affinity = template["spec"]["affinity"]
    (term,) = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == selects
    assert selects.items() <= template["metadata"]["labels"].items()
    assert (term["topologyKey"], term.get("matchLabelKeys")) == (NEAR.topology, by)
    assert "nodeAffinity" in affinity


def test_queue_is_told_the_topology_instead() -> None:
    made = render_group(SPANNING, Settings(fabrics=(NEAR,), queue="team-a"))
    for template in rules.pod_templates(made.objects[0]):
        assert template["metadata"]["annotations"].items() >= {
            ("kueue.x-k8s.io/podset-required-topology", NEAR.topology),
            ("kueue.x-k8s.io/podset-group-name", "llama-405b"),
        }
        assert "podAffinity" not in template["spec"]["affinity"]


def test_one_node_is_near_itself() -> None:
    assert render_group(SERVICE, Settings(fabrics=(NEAR,))) == render_group(SERVICE, Settings())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"privileged": True}, "privileged"),
        ({"user": "root"}, "user 'root'"),
        ({"user": "alice"}, "by number"),
        ({"mounts": (Mount("/srv", "/srv", "folder"),)}, "folder"),
        ({"image": None}, "no image"),
        ({"probe": Probe(port=1), "more_probes": (Probe(port=2),)}, "one probe"),
    ],
)
def test_what_a_cluster_never_takes_is_rejected_with_a_fix(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(Rejected, match=says) as refused:
        render_group(replace(JOB, template=replace(JOB.template, **fields)), Settings())
    assert refused.value.fix


def test_dev_environment_has_one_node() -> None:
    with pytest.raises(Rejected):
        render_group(replace(WORKPLACE, nodes=2), Settings())


@pytest.mark.parametrize(
    "options",
    [
        {"security": "lax"},
        {"autoscaler": "magic"},
        {"fabrics": [{"resource": "rdma/ib", "capabilities": ["IPC_LOCK"]}]},
        {"fabrics": [{"resorce": "rdma/ib"}]},
        {"fabrics": [{"topology": "zone", "together": "maybe"}]},
        {"gateway": {"nme": "inference"}},
        {"gateway": {"namespace": "gateways"}},
        {"pools": [{"name": "x"}]},
        {"secrets": {"HF_TOKEN": "no-key"}},
        {"user_id": 0},
        {"user_id": "1000"},
        {"namespace": None},
        {"pull_secrets": "registry-lan"},
        {"tolerations": {"key": "gpu", "operator": "Exists"}},
        {"tolerations": ["gpu"]},
        {"env": ["HF_ENDPOINT"]},
        {"node_selector": {"version": 1.10}},
        {"disruption_budget": "no"},
        {"fabrics": {"resource": "rdma/ib"}},
        {"fabrics": [{"resource": "rdma/ib", "count": "8"}]},
        {"pools": [{"name": "x", "labels": {"pool": "x"}, "cpu": 8, "memory_bytes": "64GiB"}]},
    ],
)
def test_settings_that_contradict_are_refused_with_a_fix(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings("lab", options)
    assert refused.value.fix


@pytest.mark.parametrize("option", [{"timeout_s": "30"}, {"pod_network": "no"}, {"volume_size": 10}])
def test_an_option_of_another_kind_is_refused_with_a_fix(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        Kubernetes("lab", **option)
    assert refused.value.fix


def test_types_of_options_are_read_once() -> None:
    read = 0

    def note(frame: Any, event: str, _: Any) -> None:
        nonlocal read
        read += event == "call" and frame.f_code is get_type_hints.__code__

    Kubernetes("lab")
    sys.setprofile(note)
    try:
        Kubernetes("other")
    finally:
        sys.setprofile(None)
    assert read == 0


def test_words_need_no_quotes_and_prefixes_no_exact_end() -> None:
    read = read_settings(
        "lab",
        {
            "node_selector": {"gpu": True, "generation": 3},
            "env": {"HF_HUB_OFFLINE": 1},
            "images": {"docker.io/": "reg.lan/hub/"},
        },
    )
    assert read.node_selector == {"gpu": "true", "generation": "3"}
    assert read.env == {"HF_HUB_OFFLINE": "1"}
    assert image_of(TASK, read) == "reg.lan/hub/library/python:3.12-slim"


@pytest.mark.parametrize("run", ["x" * 41, "y" * 80, "A_b", "ok"])
def test_names_fit_and_stay_apart(run: str) -> None:
    name = fitting(run)
    assert len(name) <= 52
    assert fitting(run + "z") != name


def test_volume_is_a_claim() -> None:
    claim = render_volume("pip-cache", Settings(storage_class="fast"), size_bytes=10 * 10**9)
    assert claim["spec"]["resources"]["requests"]["storage"] == "9765625Ki"
    assert claim["spec"]["storageClassName"] == "fast"


def test_a_task_that_ends_with_its_master_says_so_to_its_controller() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    ends = replace(INDEXED, ends_with_master=True)
    job, *_ = render_group(ends, Settings()).objects
    validate(job, "1.33", strict=True)
    assert job["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert "successPolicy" not in render_group(INDEXED, Settings()).objects[0]["spec"]
