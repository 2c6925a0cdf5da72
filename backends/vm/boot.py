"""What a rented machine is told at its first boot, and the book that it keeps of itself; pure.

Every machine has a folder with two files. ``deadline`` holds the second since 1970 at which it
powers itself off; whoever of ours hears of it moves that on, and nothing else keeps it up: a control
plane that is gone takes its machines with it. ``idle`` is there while no launch has the machine;
renaming it is how one, and only one, takes it over.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from orchestrator.backend import LABEL
from orchestrator.frozen import frozen

FOLDER = "/var/lib/modelyard"


def folder(key: str) -> str:
    """Return where the machine that was ordered under ``key`` keeps its book."""
    return f"{FOLDER}/{key}"


TOOLKIT: tuple[str, ...] = (
    "sh",
    "-c",
    "command -v nvidia-smi >/dev/null || exit 0; command -v nvidia-ctk >/dev/null || "
    "{ apt-get update -q && apt-get install -yq --no-install-recommends nvidia-container-toolkit; }; "
    "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker",
)
"""Makes Docker of an image that brings NVIDIA's driver know the GPUs, where it does not yet
(docs.nvidia.com/datacenter/cloud-native/container-toolkit, "Configuring Docker")."""


@frozen
class Notice:
    """How a machine learns that it is about to be taken away.

    ``test`` is a shell command that succeeds once it is; ``grace_s`` is what its program then gets
    to end by itself, somewhat less than its provider gives.
    """

    test: str
    grace_s: int


def cloud_config(
    *,
    key: str,
    public_key: str,
    user: str,
    lasts_s: int,
    namespace: str = "",
    prepare: Sequence[Sequence[str]] = (),
    notice: Notice | None = None,
) -> str:
    """Return the cloud-config of a machine that powers itself off after ``lasts_s`` without renewal.

    The image brings Docker and, for accelerators, the driver and NVIDIA's container toolkit;
    ``prepare`` are commands of its provider's that see to what is missing, before a login is
    possible that finds Docker. With a ``notice`` the machine looks every five seconds whether it is
    about to be taken away; then it writes that down and asks the containers of ``namespace`` to
    end. A deadline that cannot be read counts as over. JSON is YAML, and needs no quoting of ours.

    >>> text = cloud_config(key="k", public_key="ssh-ed25519 A", user="ubuntu", lasts_s=60)
    >>> text.splitlines()[0], json.loads(text.partition(chr(10))[2])["ssh_authorized_keys"]
    ('#cloud-config', ['ssh-ed25519 A'])
    """
    where = folder(key)
    begin = (
        f"mkdir -p {where} && cd {where} && "
        f"{{ [ -e deadline ] || echo $(( $(date +%s) + {lasts_s} )) > deadline; }}"
    )
    watch = f'[ "$(date +%s)" -lt "$(cat {where}/deadline)" ] || exec systemctl poweroff'
    timer = ["systemd-run", "--unit=modelyard-deadline", "--on-boot=60", "--on-unit-active=60"]
    config = {
        "ssh_authorized_keys": [public_key],
        "bootcmd": [
            ["sh", "-c", begin], [*timer, "/bin/sh", "-c", watch], *_notices(where, namespace, notice),
        ],
        "runcmd": [
            *map(list, prepare), ["usermod", "-aG", "docker", user], ["chown", "-R", user, where],
        ],
    }  # fmt: skip
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"


def _notices(where: str, namespace: str, notice: Notice | None) -> list[list[str]]:
    """Return the command that begins to look for the notice; none without one."""
    if notice is None:
        return []
    chosen = shlex.quote(f"label={LABEL}namespace={namespace}")
    told = (
        f"[ -e {where}/taken ] || {{ {{ {notice.test}; }} && date +%s > {where}/taken && "
        f"docker ps -q --filter {chosen} | xargs -r docker stop -t {notice.grace_s}; }}"
    )
    # a timer of systemd's is exact to a minute unless told
    timer = ["--on-boot=5", "--on-unit-active=5", "--timer-property=AccuracySec=1s"]
    return [["systemd-run", "--unit=modelyard-notice", *timer, "/bin/sh", "-c", told]]


def taken(key: str) -> str:
    """Return the script that prints the second at which a machine learned that it is taken away."""
    return f"cat {folder(key)}/taken 2>/dev/null || :\n"


def renew(key: str, *, lasts_s: int) -> str:
    """Return the script that moves the deadline of a machine on, unless it is idle."""
    return f"cd {folder(key)} && {{ [ -e idle ] || {{ {_deadline(lasts_s)}; }}; }}\n"


def lay_down(key: str, *, lasts_s: int) -> str:
    """Return the script that marks a machine as idle, to power itself off after ``lasts_s``."""
    return f"cd {folder(key)} && {_deadline(lasts_s)} && rm -f held-by-* && touch idle\n"


def take_up(key: str, launch: str, *, lasts_s: int) -> str:
    """Return the script that takes an idle machine for ``launch``; it says ``taken`` where it did.

    ``rename(2)`` has one winner. The deadline is moved on first, so that what was won stays.
    """
    held = shlex.quote(f"held-by-{launch}")
    return (
        f"cd {folder(key)} && if [ -e {held} ]; then echo taken; "
        f"elif [ -e idle ]; then {_deadline(lasts_s)}; mv idle {held} 2>/dev/null && echo taken || :; fi\n"
    )


def _deadline(lasts_s: int) -> str:
    """Return commands that replace the deadline in one step."""
    return f"echo $(( $(date +%s) + {lasts_s} )) > .deadline.$$ && mv .deadline.$$ deadline"
