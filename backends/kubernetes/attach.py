"""A command inside a pod, on this process's terminal, and a pod's port on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial

from backends.kubernetes.channels import Channels
from backends.kubernetes.client import Cluster
from backends.kubernetes.pod import CONTAINER
from orchestrator import terminal
from orchestrator.errors import ModelyardError, Rejected, Unreachable

_STDIN, _STDOUT, _STDERR, _STATUS, _RESIZE = range(5)
"""Channels of ``exec`` (kubernetes/kubernetes, staging/src/k8s.io/apimachinery/pkg/util/remotecommand)."""

_LOOK_S = 0.2
"""A window that changes its size wakes nobody: it is looked for this often."""

_READ = 32_768


def execute(cluster: Cluster, pod_path: str, command: Sequence[str], *, tty: bool) -> int:
    """Run ``command`` in the pod at ``pod_path``; return its exit code.

    Raises:
        BackendError: the server refused, or went away, or there is no such program.
    """
    keyboard = terminal.keyboard()
    query = [("container", CONTAINER), ("stdout", "true"), ("stderr", str(not tty).lower())]
    query += [("stdin", str(keyboard is not None).lower()), ("tty", str(tty).lower())]
    query += [("command", word) for word in command]
    with (
        Channels(cluster, f"{pod_path}/exec", query) as channels,
        terminal.raw_terminal(partial(_resize, channels)) if tty else contextlib.nullcontext(),
    ):
        said = _carry(channels, keyboard, wait_s=_LOOK_S if tty else None)
    return _exit_code(said, cluster.backend)


def _resize(channels: Channels, rows: int, columns: int) -> None:
    channels.send(_RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())


def _carry(channels: Channels, keyboard: int | None, *, wait_s: float | None) -> bytes:
    """Carry bytes between the terminal and a pod until the other side ends; return its last word."""
    said = b""
    while channels.is_open:
        # what is typed waits while the other side is behind, and is never dropped
        typed_on = [] if keyboard is None or channels.is_behind else [keyboard]
        if channels.wait(typed_on, wait_s) and keyboard is not None:
            typed = os.read(keyboard, _READ)
            if typed:
                channels.send(_STDIN, typed)
            else:
                channels.end(_STDIN)
                keyboard = None
        for channel, data in channels.received():
            if channel == _STDOUT:
                terminal.write(sys.stdout.buffer, data)
            elif channel == _STDERR:
                terminal.write(sys.stderr.buffer, data)
            elif channel == _STATUS:
                said += data
    return said


def _exit_code(said: bytes, backend: str) -> int:
    """Return what the server's last word says of the command's end.

    >>> _exit_code(b'{"details": {"causes": [{"reason": "ExitCode", "message": "7"}]}}', "lab")
    7
    """
    if not said:
        raise Unreachable("the connection ended before the command did", backend=backend)
    status = json.loads(said)
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    why = str(status.get("message", "")).rpartition("exec: ")[2].removesuffix(": unknown")
    raise Rejected(f"the command did not start: {why}", backend=backend, fix="check its name and path")


@contextlib.contextmanager
def forwarded(cluster: Cluster, pod_path: str, port: int) -> Iterator[tuple[str, int]]:
    """Give an address of this machine that leads to a port of the pod at ``pod_path``.

    Every connection is one of the pod's own; a client that says that it is done ends both ways.

    Raises:
        BackendError: the server does not let us.
    """
    with Channels(cluster, f"{pod_path}/portforward", [("ports", str(port))]):
        pass  # a refusal is told here, and not to whoever connects
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve = threading.Thread(target=_serve, args=(listener, cluster, pod_path, port), daemon=True)
        serve.start()
        try:
            yield "127.0.0.1", listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which close() does not
            serve.join()


def _serve(listener: socket.socket, cluster: Cluster, pod_path: str, port: int) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_pass_on, args=(client, cluster, pod_path, port), daemon=True).start()


def _pass_on(client: socket.socket, cluster: Cluster, pod_path: str, port: int) -> None:
    """Carry one connection; a pod that went away is one that hangs up."""
    data, error = 0, 1
    told = {data: False, error: False}  # the first frame of each repeats the port
    with (
        client,
        contextlib.suppress(OSError, ModelyardError),
        Channels(cluster, f"{pod_path}/portforward", [("ports", str(port))]) as channels,
    ):
        while channels.is_open:
            if channels.wait([] if channels.is_behind else [client]):
                sent = client.recv(_READ)
                if not sent:
                    return
                channels.send(data, sent)
            for channel, content in channels.received():
                if told.get(channel) is False:
                    told[channel] = True
                elif channel == data:
                    client.sendall(content)
                else:
                    return  # nobody listens on the port
