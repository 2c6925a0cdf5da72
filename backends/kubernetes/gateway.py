"""Ways in by the Gateway API: a route on a Gateway that is there, and a pool of a model's replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backends.kubernetes.settings import Gateway

Json = dict[str, Any]

INFERENCE_POOL = "inferencepools.inference.networking.k8s.io"
HTTP_ROUTE = "httproutes.gateway.networking.k8s.io"

MODEL_HEADER = "X-Gateway-Model-Name"
"""What body-based routing makes of a request's ``model`` (kubernetes-sigs/gateway-api-inference-extension,
``config/charts/body-based-routing``)."""

QUEUED = "inference_extension_flow_control_queue_size|llm_d_epp_flow_control_queue_size"
"""Requests that an endpoint picker with flow control holds back, also while a pool is empty; the second
name since the picker moved to llm-d (llm-d, guide on autoscaling by the picker's metrics)."""


def pool_spec(gateway: Gateway, run: str, chosen: Mapping[str, str], port: int) -> Json:
    """Return an InferencePool of the pods that labels choose, and the service that picks among them."""
    return {
        "selector": {"matchLabels": dict(chosen)},
        "targetPorts": [{"number": port}],
        "endpointPickerRef": {
            "name": picker_of(gateway, run),
            "port": {"number": gateway.picker_port},
            "failureMode": "FailOpen" if gateway.fail_open else "FailClose",
        },
    }


def picker_of(gateway: Gateway, run: str) -> str:
    """Return the Service of the endpoint picker of a run's pool."""
    return gateway.picker.replace("{run}", run)


def waiting(run: str) -> str:
    """Return the requests that wait at a pool's door, as Prometheus is asked for them.

    >>> waiting("chat")[-24:]
    ',inference_pool="chat"})'
    """
    return f'sum({{__name__=~"{QUEUED}",inference_pool="{run}"}})'


def route_spec(gateway: Gateway, run: str, serves: Sequence[str], to: Json) -> Json:
    """Return an HTTPRoute to ``to``: by a host of its own, else below a path and by the models' names.

    The path is the one that Modelyard's own gateway has for a service. A request for a model comes with
    its name in a header where the site routes by the body.
    """
    parent: Json = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway.name}
    if gateway.namespace:
        parent["namespace"] = gateway.namespace
    if gateway.section:
        parent["sectionName"] = gateway.section
    own_host = bool(gateway.host) and "{run}" in gateway.host
    spec: Json = {"parentRefs": [parent], "rules": _rules(run, () if own_host else serves, to, own_host)}
    if gateway.host:
        spec["hostnames"] = [gateway.host.replace("{run}", run)]
    return spec


def _rules(run: str, serves: Sequence[str], to: Json, own_host: bool) -> list[Json]:
    # a stream goes on for as long as its answer is long: 0 is no limit (Gateway API, HTTPRouteTimeouts)
    common: Json = {"backendRefs": [to], "timeouts": {"request": "0s"}}
    if own_host:
        return [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], **common}]
    rewrite = {
        "type": "URLRewrite",
        "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
    }
    below = {"path": {"type": "PathPrefix", "value": f"/services/{run}"}}
    rules = [{"matches": [below], "filters": [rewrite], **common}]
    if serves:
        models = [
            {
                "path": {"type": "PathPrefix", "value": "/v1"},
                "headers": [{"type": "Exact", "name": MODEL_HEADER, "value": name}],
            }
            for name in serves
        ]
        rules.append({"matches": models, **common})
    return rules
