"""Ask a program inside a launch something, and read what it answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

from orchestrator.catalog.overlay import in_use
from orchestrator.reconcile import Job
from orchestrator.server.inside import ERRAND, Errand
from orchestrator.server.site import Site

HIDDEN = frozenset({"MODELYARD_DATABASE_URL", "MODELYARD_SECRET_KEY", "MODELYARD_WEBHOOK_SECRET"})
"""Variables of the server that a command inside a launch has no use for."""
TIMEOUT_S = 30.0


def program(descriptor: int) -> list[str]:
    """Return the program that runs a command inside a launch, told what over this socket."""
    return [sys.executable, "-m", "orchestrator.server.inside", str(descriptor)]


def environment() -> dict[str, str]:
    """Return what that program gets of the server's environment."""
    return {name: value for name, value in os.environ.items() if name not in HIDDEN}


def request(site: Site, job: Job, command: list[str], *, tty: bool) -> bytes:
    """Return what that program is told."""
    config = str(site.config.absolute()) if site.config else None
    catalog = str(folder.absolute()) if (folder := in_use()) else None
    fleet = site.places.fleet(job.backend)
    errand = Errand(config, job.backend, fleet, job.name, tuple(command), tty, catalog)
    return ERRAND.dump_json(errand) + b"\n"


def answer_of(site: Site, job: Job, command: list[str], *, timeout_s: float = TIMEOUT_S) -> str | None:
    """Return what a command inside a running job prints, None where it fails or takes long."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(request(site, job, command, tty=False))
        with subprocess.Popen(
            program(theirs.fileno()), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            env=environment(), text=True,
        ) as child:  # fmt: skip
            try:
                said, _ = child.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                return None
        theirs.close()
        with ours.makefile() as told:
            ended = json.loads(told.readline() or "{}")
    return said if ended.get("code") == 0 else None
