"""A real API server for tests: one that is given, or one made of ``etcd`` and ``kube-apiserver``.

``MODELYARD_TEST_CLUSTER`` is ``full`` or ``control`` where ``KUBECONFIG`` names a cluster that
tests may use; without it, whoever runs the tests would find them in the cluster of their shell.
Otherwise the binaries are looked for under ``KUBEBUILDER_ASSETS``, as envtest does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes.client import Cluster
from orchestrator.errors import Busy, ModelyardError

START_S = 60.0


def whole_cluster() -> str:
    """Return the kubeconfig of a cluster with nodes, or skip."""
    config = os.environ.get("KUBECONFIG")
    if os.environ.get("MODELYARD_TEST_CLUSTER") != "full" or not config:
        pytest.skip("needs a whole cluster: MODELYARD_TEST_CLUSTER=full and KUBECONFIG")
    pytest.importorskip("kubernetes")
    return config


@contextmanager
def api_server(folder: Path) -> Iterator[str]:
    """Give the kubeconfig of an API server that tests may write to, or skip."""
    pytest.importorskip("kubernetes")
    if os.environ.get("MODELYARD_TEST_CLUSTER") and os.environ.get("KUBECONFIG"):
        yield os.environ["KUBECONFIG"]
        return
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    server = shutil.which("kube-apiserver", path=assets) if assets else None
    etcd = shutil.which("etcd", path=assets) or shutil.which("etcd")
    if server is None or etcd is None:
        pytest.skip("needs kube-apiserver under KUBEBUILDER_ASSETS, and etcd")
    with _running(folder, etcd, server) as config:
        yield config


@contextmanager
def _running(folder: Path, etcd: str, server: str) -> Iterator[str]:
    client, peer, port = _free_port(), _free_port(), _free_port()
    store = f"http://127.0.0.1:{client}"
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    _service_account_key(folder / "sa.key")
    commands = (
        [
            etcd, "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync",
            "--listen-client-urls", store, "--advertise-client-urls", store,
            "--listen-peer-urls", f"http://127.0.0.1:{peer}",
        ],
        [
            server, f"--etcd-servers={store}", "--bind-address=127.0.0.1", f"--secure-port={port}",
            f"--cert-dir={folder}", f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://tests", f"--service-account-key-file={folder / 'sa.key'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            # nobody makes the accounts of namespaces here, and no pod runs
            "--disable-admission-plugins=ServiceAccount",
        ],
    )  # fmt: skip
    with (folder / "log").open("wb") as log:
        made = [subprocess.Popen(c, stdout=log, stderr=log, start_new_session=True) for c in commands]
        try:
            config = _kubeconfig(folder, port, token)
            _wait(config, made)
            yield config
        finally:
            for process in reversed(made):
                process.send_signal(signal.SIGKILL)  # the folder is temporary: nothing is lost
                process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _service_account_key(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))


def _kubeconfig(folder: Path, port: int, token: str) -> str:
    path = folder / "kubeconfig"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: tests\n"
        f"clusters: [{{name: tests, cluster: {{server: 'https://127.0.0.1:{port}', "
        f"certificate-authority: {folder / 'apiserver.crt'}}}}}]\n"
        "contexts: [{name: tests, context: {cluster: tests, user: tests}}]\n"
        f"users: [{{name: tests, user: {{token: {token}}}}}]\n"
    )
    return str(path)


def _wait(config: str, made: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in made), "etcd or kube-apiserver ended"
        try:
            if admin(config).get("/api/v1/namespaces/default"):
                return
        except (ModelyardError, OSError):
            time.sleep(0.2)  # nothing tells that a server is up but its answer
    pytest.fail("kube-apiserver is not ready")


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
    _with_account(cluster, name)
    try:
        yield name
    finally:
        cluster.delete(f"/api/v1/namespaces/{name}")


def _with_account(cluster: Cluster, name: str) -> None:
    """Make the account that pods get; the controller that makes it may be quicker, or absent."""
    account: dict[str, Any] = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    try:
        cluster.send("POST", f"/api/v1/namespaces/{name}/serviceaccounts", account)
    except Busy:
        return
