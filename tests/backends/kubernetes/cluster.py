"""A real API server for tests: one that is given, or one made of ``etcd`` and ``kube-apiserver``.

``MODELYARD_TEST_CLUSTER`` is ``full`` or ``control`` where ``KUBECONFIG`` names a cluster that
tests may use; without it whoever runs the tests would find them in the cluster of their shell.
Otherwise the binaries are looked for under ``KUBEBUILDER_ASSETS``, as envtest does.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backends.kubernetes.client import Cluster


def whole_cluster() -> str:
    """Return the kubeconfig of a cluster with nodes, or skip."""
    config = os.environ.get("KUBECONFIG")
    if os.environ.get("MODELYARD_TEST_CLUSTER") != "full" or not config:
        pytest.skip("needs a whole cluster: MODELYARD_TEST_CLUSTER=full and KUBECONFIG")
    pytest.importorskip("kubernetes")
    return config


def admin(config: str) -> Cluster:
    """Return a client with every right."""
    return Cluster("admin", kubeconfig=config, context=None, timeout_s=30.0)


@contextmanager
def namespace(config: str, *, enforce: str = "restricted") -> Iterator[str]:
    """Make a namespace of its own that enforces a Pod Security profile, and delete it afterwards."""
    name = f"modelyard-{uuid.uuid4().hex[:8]}"
    cluster = admin(config)
    labels = {"pod-security.kubernetes.io/enforce": enforce}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    cluster.send("POST", "/api/v1/namespaces", body)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    if not cluster.get(f"/api/v1/namespaces/{name}/serviceaccounts/default"):
        with_account(cluster, name, account)
    try:
        yield name
    finally:
        cluster.delete(f"/api/v1/namespaces/{name}")


def with_account(cluster: Cluster, name: str, account: dict[str, object]) -> None:
    """Make the account that pods get; the controller that makes it may be quicker, or absent."""
    from orchestrator.errors import Busy

    try:
        cluster.send("POST", f"/api/v1/namespaces/{name}/serviceaccounts", account)
    except Busy:
        return
