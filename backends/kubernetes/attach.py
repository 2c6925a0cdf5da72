"""A command inside a pod, on this process's terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from backends import terminal
from backends.kubernetes.client import Cluster
from backends.kubernetes.pod import CONTAINER
from backends.kubernetes.refusals import Refused, explained
from orchestrator.errors import Unreachable

_PAUSE_S = 0.05
_RESIZE_CHANNEL = 4
"""Of the protocol ``v4.channel.k8s.io``: where the size of a terminal is told."""


def execute(cluster: Cluster, pod_path: str, command: Sequence[str], *, tty: bool) -> int:
    """Run ``command`` in the pod at ``pod_path``; return its exit code.

    Raises:
        BackendError: the server refused, or went away.
    """
    # the official client's websockets: 0.3 CPU-seconds, only where something is executed
    from kubernetes.client.exceptions import ApiException
    from kubernetes.stream.ws_client import WSClient, get_websocket_url

    keyboard = terminal.keyboard()
    configuration = cluster.configuration()
    query = [("container", CONTAINER), ("stdout", "true"), ("stderr", str(not tty).lower())]
    query += [("stdin", str(keyboard is not None).lower()), ("tty", str(tty).lower())]
    query += [("command", word) for word in command]
    url = get_websocket_url(f"{configuration.host}{pod_path}/exec", query)  # type: ignore[no-untyped-call]  # no types
    try:
        socket = WSClient(  # type: ignore[no-untyped-call]  # it has no types
            configuration, url, cluster.headers(), capture_all=False, binary=True
        )
    except ApiException as refusal:
        said = Refused(int(refusal.status or 0), "", str(refusal.reason))
        raise explained(said, cluster.backend) from refusal
    except OSError as error:
        raise Unreachable(f"cannot open a connection: {error}", backend=cluster.backend) from error
    try:
        with terminal.raw_terminal(partial(_resize, socket)) if tty else contextlib.nullcontext():
            _carry(socket, keyboard)
        code: int | None = socket.returncode
    finally:
        socket.sock.shutdown()  # close() leaves the connection open when the other side ended it
    return 1 if code is None else code


def _resize(socket: Any, rows: int, columns: int) -> None:
    socket.write_channel(_RESIZE_CHANNEL, f'{{"Width":{columns},"Height":{rows}}}')


def _carry(socket: Any, keyboard: int | None) -> None:
    """Carry bytes between the terminal and ``socket`` until the other side ends."""
    while socket.is_open():
        socket.update(timeout=_PAUSE_S)
        for peek, read, target in (
            (socket.peek_stdout, socket.read_stdout, sys.stdout),
            (socket.peek_stderr, socket.read_stderr, sys.stderr),
        ):
            if peek():
                text = read()
                terminal.write(target.buffer, text if isinstance(text, bytes) else text.encode())
        if keyboard is not None and select.select([keyboard], [], [], 0)[0]:
            typed = os.read(keyboard, 65_536)
            if typed:
                socket.write_stdin(typed)
            else:
                keyboard = None
