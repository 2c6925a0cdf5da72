"""A real API server for tests: one that is given, or one made of ``etcd`` and ``kube-apiserver``.

``MODELYARD_TEST_CLUSTER`` is ``full`` or ``control`` where ``KUBECONFIG`` names a cluster that
tests may use; without it, whoever runs the tests would find them in the cluster of their shell.
Otherwise the binaries are looked for under ``KUBEBUILDER_ASSETS``, as envtest does.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes.client import Cluster
from orchestrator.errors import Busy, ModelyardError

START_S = 60.0
LOOK_S = 5.0


def whole_cluster() -> str:
    """Return the kubeconfig of a cluster with nodes, or skip."""
    config = os.environ.get("KUBECONFIG")
    if os.environ.get("MODELYARD_TEST_CLUSTER") != "full" or not config:
        pytest.skip("needs a whole cluster: MODELYARD_TEST_CLUSTER=full and KUBECONFIG")
    pytest.importorskip("kubernetes")
    return config


def having(*kinds: str) -> str:
    """Return the kubeconfig of a whole cluster that serves custom resources, or skip."""
    config = whole_cluster()
    for kind in kinds:
        plural, _, group = kind.partition(".")
        served = admin(config).get(f"/apis/{group}") or {"versions": []}
        paths = [f"/apis/{one['groupVersion']}" for one in served["versions"]]
        found = [one["name"] for path in paths for one in (admin(config).get(path) or {})["resources"]]
        if plural not in found:
            pytest.skip(f"needs a cluster with {kind}, and what keeps them")
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
    authority = Authority(folder)
    served, served_key = authority.signed("apiserver", "kube-apiserver")
    _service_account_key(folder / "sa.key")
    commands = (
        [
            etcd, "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync",
            "--listen-client-urls", store, "--advertise-client-urls", store,
            "--listen-peer-urls", f"http://127.0.0.1:{peer}",
        ],
        [
            server, f"--etcd-servers={store}", "--bind-address=127.0.0.1", f"--secure-port={port}",
            f"--tls-cert-file={served}", f"--tls-private-key-file={served_key}",
            f"--client-ca-file={authority.certificate}",
            "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://tests", f"--service-account-key-file={folder / 'sa.key'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            # nobody makes the accounts of namespaces here, and no pod runs
            "--disable-admission-plugins=ServiceAccount",
        ],
    )  # fmt: skip
    with (folder / "log").open("wb") as log:
        made = [subprocess.Popen(c, stdout=log, stderr=log, start_new_session=True) for c in commands]
        config = _kubeconfig(folder, port, authority)

        def restart() -> None:
            _kill(made.pop())
            made.append(subprocess.Popen(commands[1], stdout=log, stderr=log, start_new_session=True))
            _wait(config, made)

        RESTARTS[config] = restart
        try:
            _wait(config, made)
            yield config
        finally:
            del RESTARTS[config]
            for process in reversed(made):
                _kill(process)


RESTARTS: dict[str, Callable[[], None]] = {}
"""What starts the API server of a kubeconfig again, where it is one of ours."""


def _kill(process: subprocess.Popen[bytes]) -> None:
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


class Authority:
    """Who signs the certificates of a server and of its users: made for one test run, kept in its folder."""

    def __init__(self, folder: Path) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
        own = self._certificate(self._name, self._key.public_key(), is_authority=True)
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(own)

    def signed(self, file: str, name: str, group: str = "") -> tuple[Path, Path]:
        """Return a certificate and its key for ``name``, who may be a user in a group of users."""
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = ec.generate_private_key(ec.SECP256R1())
        parts = [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
        if group:
            parts.append(x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, group))
        certificate, private = self._folder / f"{file}.crt", self._folder / f"{file}.key"
        certificate.write_bytes(self._certificate(x509.Name(parts), key.public_key()))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
        return certificate, private

    def _certificate(self, subject: Any, key: Any, *, is_authority: bool = False) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding

        now = dt.datetime.now(dt.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(Encoding.PEM)


def _kubeconfig(folder: Path, port: int, authority: Authority) -> str:
    certificate, key = authority.signed("admin", "admin", "system:masters")
    user = {"client-certificate": str(certificate), "client-key": str(key)}
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(authority.certificate)}
    return write_config(folder / "kubeconfig", cluster, user)


def write_config(path: Path, cluster: Any, user: Any) -> str:
    """Write a kubeconfig of one server and one user; JSON, which is YAML as well."""
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "users": [{"name": "tests", "user": user}],
    }  # fmt: skip
    path.write_text(json.dumps(config))
    return str(path)


def server_of(root: Cluster, **more: Any) -> dict[str, Any]:
    """Return how the server of ``root`` is reached, for another kubeconfig."""
    settings = root.configuration()
    return {"server": settings.host, "certificate-authority": settings.ssl_ca_cert, **more}


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


@contextmanager
def disks(config: str, folder: Path, *, count: int = 2) -> Iterator[None]:
    """Have folders of this machine, which is the cluster's node, as disks where nothing makes any."""
    cluster = admin(config)
    classes, _ = cluster.list("/apis/storage.k8s.io/v1/storageclasses")
    default = "storageclass.kubernetes.io/is-default-class"
    if any((c["metadata"].get("annotations") or {}).get(default) == "true" for c in classes):
        yield
        return
    names = [f"modelyard-{uuid.uuid4().hex[:8]}" for _ in range(count)]
    for name in names:
        (folder / name).mkdir()
        (folder / name).chmod(0o777)  # the group of a claim is not given to folders of a machine
        spec = {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"},
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": str(folder / name)},
        }  # fmt: skip
        body = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
        cluster.send("POST", "/api/v1/persistentvolumes", body)
    try:
        yield
    finally:
        for name in names:
            cluster.delete(f"/api/v1/persistentvolumes/{name}")


def account(root: Cluster, roles: Sequence[Any], folder: Path) -> str:
    """Return a kubeconfig of the account that ``roles`` begin with; the rest of them is granted."""
    first, *others = roles
    space = first["metadata"]["namespace"]
    accounts = f"/api/v1/namespaces/{space}/serviceaccounts"
    root.send("POST", accounts, first)
    for one in others:
        root.send("POST", rbac_path(one), one)
    return with_token(root, folder, token_of(root, space, first["metadata"]["name"]))


def rbac_path(one: Any) -> str:
    """Return where a role or a binding is created."""
    plural = one["kind"].lower() + "s"
    space = one["metadata"].get("namespace")
    root = "/apis/rbac.authorization.k8s.io/v1"
    return f"{root}/namespaces/{space}/{plural}" if space else f"{root}/{plural}"


def with_token(root: Cluster, folder: Path, token: str) -> str:
    """Return a kubeconfig of the same server for whoever holds ``token``."""
    return write_config(folder / "account.conf", server_of(root), {"token": token})


def token_of(root: Cluster, space: str, name: str = "default") -> str:
    """Return a token of a service account, as the server gives it."""
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    path = f"/api/v1/namespaces/{space}/serviceaccounts/{name}/token"
    return str(root.send("POST", path, asked)["status"]["token"])


def watched(
    root: Cluster, path: str, holds: Callable[[], object], *, wait_s: float = 90.0, **query: str
) -> None:
    """Wait until ``holds``, which is asked whenever something at ``path`` changes, and every few seconds.

    What it speaks of may be said by other objects too, after the last change of these.
    """
    deadline = time.monotonic() + wait_s
    while True:
        _, version = root.list(path, **query)
        if holds():
            return
        left = deadline - time.monotonic()
        assert left > 0, f"nothing at {path} made it so in {wait_s:g} s"
        look_s = f"{math.ceil(min(left, LOOK_S))}"
        asked = {**query, "watch": "true", "resourceVersion": version, "timeoutSeconds": look_s}
        with root.lines(path, asked) as events:
            for _ in events:
                if holds():
                    return
