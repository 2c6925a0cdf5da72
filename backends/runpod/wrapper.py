"""The program that a pod's container starts with, and what its output says of the launch; pure.

RunPod tells neither how a container ended nor that it did: where a program ends, its container may be
started again, which would run it twice. So the program of a launch is run by a small one in POSIX shell,
which writes down in the output when it began and how it ended, hands a stop on, and then holds the
container until the pod is given back. The API reads the output (``GET /v2/pods/{id}/logs``), and so do we.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.backend import File, Launch, LogLine

MOST_FILE_BYTES = 64 * 1024
"""Files are part of the program's text, four bytes for each of theirs, which Linux limits to 128 KiB an
argument (execve(2), MAX_ARG_STRLEN) and this to two of them."""

HOLD = r"""
mark() { printf '::modelyard-%s::%s\n' "$key" "$*"; }
key=$1; shift
child= again= asked=
trap 'again=1; asked=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
mark began "$(date +%s)"
if ready && [ -z "$asked" ]; then
  "$@" <&3 3<&- & child=$!
  wait "$child"; code=$?
  while [ -n "$again" ]; do
    again=
    wait "$child" 2>/dev/null; now=$?
    [ "$now" = 127 ] || code=$now
  done
else
  code=126
fi
mark ended "$code"
trap 'exit 0' TERM INT
[ -z "$asked" ] || exit 0
while :; do sleep 3600 >/dev/null 2>&1 & wait $!; done
"""
"""A signal that comes while ``wait`` waits ends it early: it is asked again, and 127 then means that it had
its answer before."""


def start_command(launch: Launch, key: str) -> str:
    """Return what a pod is given as its start command: JSON, which overrides the image's entrypoint.

    The form is of docs.runpod.io/pods/templates/manage-templates ("Container start command").
    """
    command = [*(launch.entrypoint or ()), *launch.command]
    ready = [f"cd {shlex.quote(launch.working_dir)}"] if launch.working_dir else []
    ready += [step for file in launch.files for step in _lay(file)]
    script = f"ready() {{ {' && '.join(ready) or ':'}; }}\nexec 3</dev/null{HOLD}"
    return json.dumps({"entrypoint": ["/bin/sh", "-c"], "cmd": [script, "sh", key, *command]})


def _lay(file: File) -> Iterator[str]:
    """Yield the commands that write a file, with nothing but the shell's own ``printf`` for its content."""
    folder, slash, _ = file.target.rpartition("/")
    if slash and folder:
        yield f"mkdir -p -- {shlex.quote(folder)}"
    text = "".join(f"\\{byte:03o}" for byte in file.content)
    yield f"printf '{text}' > {shlex.quote(file.target)}"
    yield f"chmod {file.mode:o} -- {shlex.quote(file.target)}"


@dataclass(slots=True)
class Told:
    """What the output of a pod says: when its program began, each time, how it ended, and its own lines."""

    began: list[int] = field(default_factory=list)
    code: int | None = None
    ended_at: datetime | None = None
    lines: list[LogLine] = field(default_factory=list)

    def hear(self, text: str, at: datetime | None, key: str) -> Iterator[LogLine]:
        """Take one line of the output; yield what of it is the program's.

        The mark follows what a program wrote last where that does not end in a new line.

        >>> told = Told()
        >>> [line.text for line in told.hear("half a line::modelyard-k::ended 3", None, "k")], told.code
        (['half a line'], 3)
        """
        before, word, value = split(text, key)
        if word == "began" and int(value) not in self.began:
            self.began.append(int(value))
            self.code = None
        elif word == "ended":
            self.code, self.ended_at = int(value), at
        if not word or before:
            line = LogLine(before, at)
            self.lines.append(line)
            yield line

    @property
    def is_over(self) -> bool:
        """Say whether the program ended."""
        return self.code is not None


def split(text: str, key: str) -> tuple[str, str, str]:
    """Return a line without the mark, and the mark's word and number.

    >>> split("::modelyard-k::began 1795953600", "k")
    ('', 'began', '1795953600')
    >>> split("::modelyard-other::ended 0", "k")
    ('::modelyard-other::ended 0', '', '')
    """
    found = re.fullmatch(rf"(.*)::modelyard-{re.escape(key)}::(began|ended) (\d+)", text)
    return (found[1], found[2], found[3]) if found else (text, "", "")
