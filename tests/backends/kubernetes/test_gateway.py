"""Ways in to a service: a route on the site's Gateway, and a pool of a model's replicas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backends.kubernetes import Kubernetes
from backends.kubernetes.gateway import HTTP_ROUTE, INFERENCE_POOL
from backends.kubernetes.render import LEADER_WORKER_SET, render_group
from backends.kubernetes.settings import Gateway, Settings
from orchestrator.backend import Group, Scaling
from tests.backends.kubernetes.samples import JOB, SCALED, SERVICE, SPANNING

SHARED = Settings(gateway=Gateway("inference", namespace="gateways", section="https"))
SERVES = ("meta-llama/Llama-3.1-70B-Instruct", "sql")
MODEL = replace(SERVICE, serves=SERVES)


def made(group: Group, settings: Settings = SHARED) -> dict[str, Any]:
    return {one["kind"]: one for one in render_group(group, settings).objects}


def test_replicas_of_a_model_are_a_pool_that_its_picker_chooses_from() -> None:
    pool = made(MODEL)["InferencePool"]["spec"]
    assert pool["selector"]["matchLabels"] == {"modelyard.dev/run": "llama-70b"}
    assert pool["targetPorts"] == [{"number": 8000}]
    assert pool["endpointPickerRef"] == {
        "name": "llama-70b-epp", "port": {"number": 9002}, "failureMode": "FailClose",
    }  # fmt: skip


def test_route_leads_to_the_pool_below_the_path_of_our_own_gateway_and_by_model() -> None:
    route = made(MODEL)["HTTPRoute"]["spec"]
    assert route["parentRefs"] == [
        {
            "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "inference",
            "namespace": "gateways", "sectionName": "https",
        }
    ]  # fmt: skip
    below, by_model = route["rules"]
    assert below["matches"] == [{"path": {"type": "PathPrefix", "value": "/services/llama-70b"}}]
    assert below["filters"][0]["urlRewrite"]["path"]["replacePrefixMatch"] == "/"
    assert [match["headers"][0]["value"] for match in by_model["matches"]] == list(SERVES)
    for rule in route["rules"]:
        assert [to["kind"] for to in rule["backendRefs"]] == ["InferencePool"]
        assert rule["timeouts"]["request"] == "0s"  # an answer may stream for longer than any default


def test_service_without_a_model_is_reached_by_its_service() -> None:
    found = made(SERVICE)
    assert "InferencePool" not in found
    (rule,) = found["HTTPRoute"]["spec"]["rules"]
    assert rule["backendRefs"] == [{"group": "", "kind": "Service", "name": "llama-70b", "port": 8000}]


def test_pools_may_be_left_out() -> None:
    found = made(MODEL, Settings(gateway=Gateway("g", pools=False)))
    assert "InferencePool" not in found
    assert found["HTTPRoute"]["spec"]["rules"][1]["backendRefs"][0]["kind"] == "Service"


def test_host_of_its_own_takes_everything() -> None:
    route = made(MODEL, Settings(gateway=Gateway("g", host="{run}.models.lan")))["HTTPRoute"]["spec"]
    assert route["hostnames"] == ["llama-70b.models.lan"]
    (rule,) = route["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]


def test_replicas_that_span_nodes_are_reached_at_their_leaders() -> None:
    group = replace(SPANNING, serves=SERVES)
    rendered = render_group(group, SHARED)
    assert rendered.requires == (LEADER_WORKER_SET, INFERENCE_POOL, HTTP_ROUTE)
    chosen = made(group)["InferencePool"]["spec"]["selector"]["matchLabels"]
    assert chosen["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    pairs = replace(SHARED, multinode="statefulset")
    assert made(group, pairs)["InferencePool"]["spec"]["selector"]["matchLabels"] == {
        "modelyard.dev/run": "llama-405b", "modelyard.dev/role": "leader",
    }  # fmt: skip


def test_service_at_zero_is_woken_by_what_waits_at_its_pool() -> None:
    group = replace(SCALED, serves=SERVES, scaling=Scaling(0, 4, "vllm:num_requests_waiting", 4.0))
    spec = made(group, replace(SHARED, autoscaler="keda"))["ScaledObject"]["spec"]
    engine, door = (trigger["metadata"] for trigger in spec["triggers"])
    assert spec["minReplicaCount"] == 0
    assert "vllm:num_requests_waiting" in engine["query"]
    assert 'inference_pool="llama-70b"' in door["query"]
    assert door["threshold"] == "1"


def test_nothing_leads_to_what_has_no_port() -> None:
    assert render_group(JOB, SHARED) == render_group(JOB, Settings())


def test_what_has_to_be_there_is_told() -> None:
    notes = Kubernetes("lab", gateway={"name": "g"}).manifest(MODEL).notes
    assert "Service 'llama-70b-epp' is the endpoint picker of InferencePool 'llama-70b'" in notes
    assert any(note.startswith(f"the cluster has {INFERENCE_POOL}: https://") for note in notes)
