"""Who we are to an API server, and the way there: plugins, accounts of pods, proxies, tokens that end."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backends.kubernetes import Kubernetes
from backends.kubernetes.client import Cluster
from orchestrator.errors import AuthFailed, Unreachable
from tests.backends.kubernetes.cluster import (
    admin,
    api_server,
    namespace,
    server_of,
    token_of,
    watched,
    whole_cluster,
    with_token,
    write_config,
)
from tests.backends.kubernetes.test_attach import BOX


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("apiserver")


@pytest.fixture(scope="module")
def config(folder: Path) -> Iterator[str]:
    with api_server(folder) as found:
        yield found


@pytest.fixture(scope="module")
def root(config: str) -> Cluster:
    return admin(config)


@pytest.fixture(scope="module")
def space(config: str) -> Iterator[str]:
    """Have a namespace whose default account may list pods, and nothing else."""
    with namespace(config) as name:
        rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
        group = "rbac.authorization.k8s.io"
        role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "lists"}, "rules": rules}
        binding = {
            "apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": "lists"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": name}],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "lists"},
        }  # fmt: skip
        where = f"/apis/{group}/v1/namespaces/{name}"
        admin(config).send("POST", f"{where}/roles", role)
        admin(config).send("POST", f"{where}/rolebindings", binding)
        yield name


def listed(kubeconfig: str | None, space: str) -> list[Any]:
    """Return what an account of ``space`` sees of its pods."""
    found, _ = Cluster("lab", kubeconfig=kubeconfig, context=None, timeout_s=10.0).list(
        f"/api/v1/namespaces/{space}/pods"
    )
    return found


# --- a program that logs in

PLUGIN = """\
import json, os, pathlib, sys
told = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
with open(sys.argv[1] + ".calls", "a") as calls:
    print("asked", file=calls)
token = pathlib.Path(sys.argv[1])
if not token.exists():
    sys.exit("log in first: cloud login")
status = {"token": token.read_text()}
print(json.dumps({"apiVersion": told["apiVersion"], "kind": "ExecCredential", "status": status}))
"""


def plugin(folder: Path, root: Cluster) -> tuple[str, Path]:
    """Return a kubeconfig whose user asks a program, and the file where that finds its token."""
    (folder / "plugin.py").write_text(PLUGIN)
    token = folder / "token"
    asked = {
        "apiVersion": "client.authentication.k8s.io/v1", "command": sys.executable,
        "args": [str(folder / "plugin.py"), str(token)], "interactiveMode": "Never",
    }  # fmt: skip
    return write_config(folder / "plugin.conf", server_of(root), {"exec": asked}), token


def test_credential_plugin_is_asked_for_a_token(root: Cluster, space: str, tmp_path: Path) -> None:
    kubeconfig, token = plugin(tmp_path, root)
    token.write_text(token_of(root, space))
    assert listed(kubeconfig, space) == []


def test_credential_plugin_is_asked_again_after_its_token_has_ended(
    root: Cluster, space: str, tmp_path: Path
) -> None:
    kubeconfig, token = plugin(tmp_path, root)
    token.write_text("ended")
    cluster = Cluster("lab", kubeconfig=kubeconfig, context=None, timeout_s=10.0)
    path = f"/api/v1/namespaces/{space}/pods"
    with pytest.raises(AuthFailed, match="expired or wrong"):
        cluster.list(path)
    token.write_text(token_of(root, space))
    assert cluster.list(path)[0] == []
    assert cluster.list(path)[0] == []
    assert (tmp_path / "token.calls").read_text().count("asked") == 2  # once for each connection


def test_credential_plugin_that_fails_says_what_to_do(
    root: Cluster, space: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kubeconfig, _ = plugin(tmp_path, root)
    with pytest.raises(AuthFailed, match=r"credential plugin failed.*cloud login") as refused:
        listed(kubeconfig, space)
    assert refused.value.fix
    (check,) = Kubernetes("lab", kubeconfig=kubeconfig).check()
    assert not check.ok
    assert capfd.readouterr().err == ""  # no log line of the client's beside it


def test_credential_plugin_that_is_not_installed_is_named(root: Cluster, space: str, tmp_path: Path) -> None:
    asked = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin"}
    kubeconfig = write_config(tmp_path / "none.conf", server_of(root), {"exec": asked})
    with pytest.raises(AuthFailed, match="no-such-plugin"):
        listed(kubeconfig, space)


# --- a pod's own account


@pytest.fixture
def inside(root: Cluster, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a pod of the default account: its folder and its variables are there, and nothing else is."""
    from urllib.parse import urlsplit

    from kubernetes.config import incluster_config

    server = urlsplit(root.configuration().host)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server.hostname or "")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    (tmp_path / "token").write_text(token_of(root, space))
    (tmp_path / "ca.crt").write_bytes(Path(root.configuration().ssl_ca_cert).read_bytes())
    # where a kubelet mounts it is the client's to know: /var/run/secrets is not a test's to write
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    return tmp_path


def test_pod_of_the_cluster_is_who_its_account_is(inside: Path, space: str) -> None:
    assert listed(None, space) == []
    with pytest.raises(AuthFailed, match="verb list on nodes"):
        Kubernetes("lab", namespace=space).offers()


def test_account_of_a_pod_whose_token_was_renewed_goes_on(inside: Path, root: Cluster, space: str) -> None:
    renewed = (inside / "token").read_text()
    (inside / "token").write_text("ended")
    cluster = Cluster("lab", kubeconfig=None, context=None, timeout_s=10.0)
    path = f"/api/v1/namespaces/{space}/pods"
    with pytest.raises(AuthFailed):
        cluster.list(path)
    (inside / "token").write_text(renewed)
    assert cluster.list(path)[0] == []


# --- tokens that end


def signed(key: Path, space: str, *, ends_s: int) -> str:
    """Return a token of the default account as the server signs it, that ends ``ends_s`` from now."""
    jwt = pytest.importorskip("jwt")
    now = int(time.time())
    claims = {
        "iss": "https://tests", "aud": ["https://tests"], "iat": now - 3600, "nbf": now - 3600,
        "exp": now + ends_s, "sub": f"system:serviceaccount:{space}:default",
        "kubernetes.io": {"namespace": space, "serviceaccount": {"name": "default", "uid": ""}},
    }  # fmt: skip
    return str(jwt.encode(claims, key.read_text(), algorithm="RS256"))


def test_token_that_has_ended_is_told(
    root: Cluster, config: str, space: str, folder: Path, tmp_path: Path
) -> None:
    key = folder / "sa.key"
    if not key.exists():
        pytest.skip("needs the key that signs tokens: a server of this test's own")
    account = root.get(f"/api/v1/namespaces/{space}/serviceaccounts/default")
    assert account is not None

    def with_end(ends_s: int) -> str:
        token = signed(key, space, ends_s=ends_s)
        return with_token(root, tmp_path, _with_uid(key, token, account["metadata"]["uid"]))

    assert listed(with_end(600), space) == []
    ended = with_end(-60)
    with pytest.raises(AuthFailed, match="expired or wrong") as refused:
        listed(ended, space)
    assert refused.value.fix
    (check,) = Kubernetes("lab", kubeconfig=ended, namespace=space).check()
    assert (check.ok, check.detail) == (False, "the credentials are expired or wrong")


def _with_uid(key: Path, token: str, uid: str) -> str:
    jwt = pytest.importorskip("jwt")
    claims = jwt.decode(token, options={"verify_signature": False})
    claims["kubernetes.io"]["serviceaccount"]["uid"] = uid
    return str(jwt.encode(claims, key.read_text(), algorithm="RS256"))


# --- proxies


class Proxy:
    """An HTTP proxy that opens tunnels, and remembers to where."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.asked: list[str] = []
        self.refuses = refuses
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._begin(self._accept)

    def _begin(self, what: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self._open.append(client)
                self._begin(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (piece := client.recv(4096)):
                head += piece
            verb, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            self.asked.append(f"{verb} {target}")
            if self.refuses or verb != "CONNECT":
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                client.close()
                return
            host, _, port = target.rpartition(":")
            server = socket.create_connection((host, int(port)))
            self._open.append(server)
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._begin(self._pass_on, server, client)
            self._pass_on(client, server)

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)
        for each in self._open:
            each.close()


@contextmanager
def proxy(*, refuses: bool = False) -> Iterator[Proxy]:
    made = Proxy(refuses=refuses)
    try:
        yield made
    finally:
        made.close()


def target_of(root: Cluster) -> str:
    return str(root.configuration().host).removeprefix("https://")


def test_proxy_of_the_kubeconfig_is_used(root: Cluster, space: str, tmp_path: Path) -> None:
    with proxy() as between:
        reached = server_of(root, **{"proxy-url": between.url})
        kubeconfig = write_config(tmp_path / "proxy.conf", reached, {"token": token_of(root, space)})
        assert listed(kubeconfig, space) == []
        assert between.asked == [f"CONNECT {target_of(root)}"]


def test_proxy_of_the_environment_is_used_but_not_for_its_exceptions(
    root: Cluster, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = with_token(root, tmp_path, token_of(root, space))
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with proxy() as between:
        monkeypatch.setenv("HTTPS_PROXY", between.url)
        assert listed(kubeconfig, space) == []
        assert between.asked == [f"CONNECT {target_of(root)}"]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert listed(kubeconfig, space) == []
        assert len(between.asked) == 1


def test_proxy_that_refuses_is_said(root: Cluster, space: str, tmp_path: Path) -> None:
    with proxy(refuses=True) as between:
        reached = server_of(root, **{"proxy-url": between.url})
        kubeconfig = write_config(tmp_path / "proxy.conf", reached, {"token": "any"})
        with pytest.raises(Unreachable, match="403") as refused:
            listed(kubeconfig, space)
    assert "proxy" in (refused.value.fix or "")


def test_command_in_a_pod_goes_through_the_proxy(tmp_path: Path) -> None:
    config = whole_cluster()
    root = admin(config)
    settings = root.configuration()
    user = {"client-certificate": settings.cert_file, "client-key": settings.key_file}
    with namespace(config) as name, proxy() as between:
        reached = server_of(root, **{"proxy-url": between.url})
        kubeconfig = write_config(tmp_path / "proxy.conf", reached, user)
        place = Kubernetes("lab", kubeconfig=kubeconfig, namespace=name)
        place.apply_group(BOX, secrets={})
        pods = f"/api/v1/namespaces/{name}/pods"
        watched(root, pods, lambda: any(one.ready for one in place.instances()))
        before = len(between.asked)
        assert place.execute("box-0-0-0", ["true"], tty=False) == 0
        assert len(between.asked) == before + 1
        place.delete_group("box", grace_s=0)
