"""Commands beside a launch, on the terminal of the caller or on one made for them."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from collections.abc import Mapping, Sequence


def run_here(command: Sequence[str], *, env: Mapping[bytes, bytes], cwd: str) -> int:
    """Run ``command`` with this process's own input and output; return its exit code."""
    return _exit_code(subprocess.run(list(command), env=dict(env), cwd=cwd, check=False).returncode)


def run_on_terminal(command: Sequence[str], *, env: Mapping[bytes, bytes], cwd: str) -> int:
    """Run ``command`` on a terminal made for it, though ours is none; return its exit code."""
    ours, theirs = pty.openpty()
    try:
        try:
            child = subprocess.Popen(
                list(command),
                env=dict(env),
                cwd=cwd,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
        finally:
            os.close(theirs)  # while we have it open as well, its end would never show
        _copy(ours)
        return _exit_code(child.wait())
    finally:
        os.close(ours)


def _copy(terminal: int) -> None:
    """Copy our input to ``terminal`` and its output to ours, until nobody has it open."""
    sources = [terminal, 0]
    while terminal in sources:
        for source in select.select(sources, [], [])[0]:
            try:
                chunk = os.read(source, 2**16)
            except OSError:  # EIO: the last one who had the terminal open is gone
                chunk = b""
            if not chunk:
                sources.remove(source)
            else:
                os.write(1 if source == terminal else terminal, chunk)


def _exit_code(returned: int) -> int:
    return returned if returned >= 0 else 128 - returned
