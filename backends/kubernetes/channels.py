"""Several streams over one websocket of the API server, each frame marked by its first byte."""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from typing import Any

from backends.kubernetes.client import Cluster
from backends.kubernetes.refusals import Refused, explained
from orchestrator.errors import Unreachable

_V5 = "v5.channel.k8s.io"
"""Since Kubernetes 1.30 a stream can be ended: by a frame on this channel that names it."""
_CLOSE = 255

_PIECE = 16_384
"""What a socket that select calls writable takes without blocking: one record of TLS."""


class Channels:
    """An open connection to a pod.

    Args:
        cluster: Where it is.
        path: Of the pod's ``exec`` or ``portforward``.
        query: What is asked of it.

    Raises:
        BackendError: the server refused.
        Unreachable: it did not answer.
    """

    def __init__(self, cluster: Cluster, path: str, query: Sequence[tuple[str, str]]) -> None:
        # the official client's websockets: 0.3 CPU-seconds, only where something is executed
        from kubernetes.stream.ws_client import create_websocket, get_websocket_url
        from websocket import WebSocketBadStatusException, WebSocketException

        configuration = cluster.configuration()
        url = get_websocket_url(f"{configuration.host}{path}", list(query))  # type: ignore[no-untyped-call]  # no types
        try:
            self._socket: Any = create_websocket(configuration, url, cluster.headers())  # type: ignore[no-untyped-call]  # no types
        except WebSocketBadStatusException as error:
            refusal = Refused.of(error.status_code, error.resp_body or b"")
            raise explained(refusal, cluster.backend) from error
        except (OSError, WebSocketException) as error:
            raise Unreachable(f"cannot open a connection: {error}", backend=cluster.backend) from error
        self._outgoing = bytearray()
        self.is_open = True

    def __enter__(self) -> Channels:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown()

    @property
    def is_behind(self) -> bool:
        """Whether what was sent before is still on its way."""
        return bool(self._outgoing)

    def send(self, channel: int, data: bytes) -> None:
        """Send ``data`` as soon as the other side takes it."""
        from websocket import ABNF

        frame = ABNF.create_frame(bytes([channel]) + data, ABNF.OPCODE_BINARY)
        self._outgoing += frame.format()

    def end(self, channel: int) -> None:
        """Say that nothing more comes on a channel, where the server understands it."""
        if self._socket.getheaders().get("sec-websocket-protocol") == _V5:
            self.send(_CLOSE, bytes([channel]))

    def wait(self, others: Sequence[Any], timeout_s: float | None = None) -> list[Any]:
        """Wait until something can be received, one of ``others`` is readable, or the time is over.

        Returns:
            Those of ``others`` that are readable.
        """
        own = self._socket.sock
        read, write, _ = select.select(
            [own, *others], [own] if self._outgoing else [], [], 0 if self._is_pending() else timeout_s
        )
        if write:
            try:
                del self._outgoing[: own.send(bytes(self._outgoing[:_PIECE]))]
            except OSError:
                self.is_open = False
        return [one for one in read if one is not own]

    def received(self) -> Iterator[tuple[int, bytes]]:
        """Yield channel and content of what has come, without waiting."""
        from websocket import ABNF, WebSocketException

        while self.is_open and (self._is_pending() or select.select([self._socket.sock], [], [], 0)[0]):
            try:
                code, frame = self._socket.recv_data_frame(True)
            except (OSError, WebSocketException):
                self.is_open = False
                return
            if code == ABNF.OPCODE_CLOSE:
                self.is_open = False
            elif code == ABNF.OPCODE_BINARY and frame.data:
                yield frame.data[0], frame.data[1:]

    def _is_pending(self) -> bool:
        """Return whether TLS has decoded more than was taken: select does not see that."""
        pending = getattr(self._socket.sock, "pending", None)  # a socket without TLS has none
        return pending is not None and pending() > 0
