"""Start one node of a replica that spans several: fill in addresses, then become the engine.

Put into the container as it stands and run by the Python there; standard library only::

    python3 node_entry.py [ARGUMENT OF FOLLOWERS ...] -- COMMAND ...

``$(MODELYARD_X)`` in the command and in environment values is replaced by that variable, the
spelling that Kubernetes knows too. Two are added to those that Modelyard sets on every node:
``MODELYARD_NODE_IP``, this node's address on the way to rank 0, and ``MODELYARD_NODE_INTERFACE``,
the network interface that has it; NCCL and GLOO pick the wrong one by themselves where there are
several. Arguments before ``--`` are added on nodes of rank 1 and up.

With ``--ray`` in front, rank 0 begins a Ray cluster and starts the command once every node has
joined; the others join, and stay for as long as it does.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module

_REFERENCE = re.compile(r"\$\((MODELYARD_[A-Z_]+)\)")
_SIOCGIFADDR = 0x8915
_NAME_WAIT_S = 300
_JOIN_WAIT_S = 1800
"""Nodes start together; the last of them may still be pulling its image."""

RAY = "--ray"
RAY_PORT = 6379


def own_address(master: str) -> str:
    """Return the IPv4 address from which this machine reaches ``master``; no packet is sent.

    Rank 0's name may appear in DNS only after this node has started, and the network of a container
    after its program: both are waited for.

    Raises:
        SystemExit: there was no such name or no way to it for five minutes.

    >>> own_address("127.0.0.1")
    '127.0.0.1'
    """
    deadline = time.monotonic() + _NAME_WAIT_S
    while True:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((master, 9))
                return str(probe.getsockname()[0])
        except OSError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"node 0 at {master} cannot be reached: {error.strerror}") from None
            time.sleep(2)


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has ``address``, or None.

    >>> interface_of("127.0.0.1")
    'lo'
    """
    import fcntl  # Linux only, and so is every place this file is put into

    for _, name in socket.if_nameindex():
        request = struct.pack("256s", name.encode()[:15])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return None


def expand(text: str, values: Mapping[str, str]) -> str:
    """Return ``text`` with every ``$(MODELYARD_X)`` that has a value replaced.

    >>> expand("--node-rank=$(MODELYARD_NODE_RANK)", {"MODELYARD_NODE_RANK": "1"})
    '--node-rank=1'
    """
    return _REFERENCE.sub(lambda found: values.get(found[1], found[0]), text)


def command(argv: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return the command of this node from the arguments of this program.

    >>> command(["--headless", "--", "vllm", "serve"], {"MODELYARD_NODE_RANK": "1"})
    ['vllm', 'serve', '--headless']
    """
    split = list(argv).index("--")
    followers = argv[:split] if values.get("MODELYARD_NODE_RANK", "0") != "0" else ()
    return [expand(word, values) for word in (*argv[split + 1 :], *followers)]


def lead(values: Mapping[str, str]) -> None:
    """Begin a Ray cluster on this node, and wait until every node has joined it.

    Raises:
        SystemExit: it did not begin, or a node stayed away for half an hour.
    """
    subprocess.run(
        ["ray", "start", "--head", f"--port={RAY_PORT}", f"--node-ip-address={values['MODELYARD_NODE_IP']}"],
        check=True,
    )
    ray, wanted = import_module("ray"), int(values["MODELYARD_NODES_NUM"])  # which the image brings
    ray.init(address="auto", log_to_driver=False)
    deadline = time.monotonic() + _JOIN_WAIT_S
    while (there := sum(bool(node["Alive"]) for node in ray.nodes())) < wanted:
        if time.monotonic() > deadline:
            raise SystemExit(f"{there} of {wanted} nodes have joined")
        time.sleep(2)
    ray.shutdown()


def join(values: Mapping[str, str]) -> list[str]:
    """Return what makes this node one of rank 0's cluster, which is there when this returns.

    Raises:
        SystemExit: rank 0 did not begin one for half an hour.
    """
    master = values["MODELYARD_MASTER_NODE_IP"]
    deadline = time.monotonic() + _JOIN_WAIT_S
    while True:
        try:
            with socket.create_connection((master, RAY_PORT), timeout=10):
                own = f"--node-ip-address={values['MODELYARD_NODE_IP']}"
                return ["ray", "start", f"--address={master}:{RAY_PORT}", own, "--block"]
        except OSError as error:
            if time.monotonic() > deadline:
                what = f"no Ray cluster at {master}:{RAY_PORT}"
                raise SystemExit(f"{what}: {error.strerror or error}") from None
            time.sleep(2)


def main(argv: Sequence[str]) -> None:
    """Replace this process by the node's command."""
    # as the first process of its container it would ignore this, and be killed when its grace is over
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    joins = argv[0] == RAY
    argv = argv[joins:]
    values = dict(os.environ)
    values["MODELYARD_NODE_IP"] = own_address(values["MODELYARD_MASTER_NODE_IP"])
    values["MODELYARD_NODE_INTERFACE"] = interface_of(values["MODELYARD_NODE_IP"]) or ""
    environment = {name: expand(value, values) for name, value in values.items()}
    # an empty interface name would be taken at its word
    environment = {n: v for n, v in environment.items() if v or not n.endswith("_SOCKET_IFNAME")}
    words = command(argv, values)
    if joins:
        os.environ.update(environment)  # what Ray starts on this node has them too
        if values.get("MODELYARD_NODE_RANK", "0") == "0":
            lead(values)
        else:
            words = join(values)
    os.execvpe(words[0], words, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
