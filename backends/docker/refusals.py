"""The engine's refusals to start a launch, as errors that say what to do.

The engine answers 500 to most of what a user did wrong, so its words are all there is to tell
the kinds apart. They are those of dockerd 20.10 to 28 and runc.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from backends.docker.engine import EngineError
from backends.docker.images import without_noise
from orchestrator.backend import Launch
from orchestrator.errors import BackendError, NoCapacity, Rejected


def explained(
    refusal: EngineError, launch: Launch, *, holder: Callable[[int], str | None], backend: str
) -> BackendError:
    """Return what the engine's refusal of ``launch`` means, or itself when it means nothing more.

    Args:
        refusal: What it said.
        launch: What it was to start.
        holder: Says which launch of ours has a port of the machine.
        backend: Named in the error.
    """
    text = refusal.message
    if "port is already allocated" in text or "address already in use" in text:
        return _port_taken(text, holder, backend)
    if "no space left on device" in text:
        return NoCapacity("the engine's disk is full", backend=backend, fix="docker system prune")
    if "could not select device driver" in text:
        return Rejected(
            "the Docker engine cannot hand out GPUs",
            backend=backend,
            fix="install the NVIDIA Container Toolkit and restart Docker",
        )
    if 400 <= refusal.status < 500 or "OCI runtime" in text:
        return Rejected(
            f"launch '{launch.name}' cannot start: {without_noise(text)}",
            backend=backend,
            fix="check image, commands, mounts and resources of the spec",
        )
    return refusal


def _port_taken(text: str, holder: Callable[[int], str | None], backend: str) -> Rejected:
    found = re.search(r":(\d+)(?: failed|: bind)", text)
    number = int(found[1]) if found else 0
    launch = holder(number)
    who = f"launch '{launch}'" if launch else "another program"
    fix = f"stop '{launch}', or choose another port" if launch else "choose another port"
    return Rejected(f"port {number} is taken by {who}", backend=backend, fix=fix)
