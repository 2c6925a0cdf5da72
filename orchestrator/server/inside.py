"""A program that runs one command inside a launch, on the terminal or pipes that the server gave it.

Backends run commands on their own process's terminal, and a server has none: so each command of a caller
has a process of its own. What to run comes over a socket that was inherited and is in no argument that
others on the machine could list; what became of it goes back there.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import termios
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.catalog.overlay import use
from orchestrator.errors import ModelyardError
from orchestrator.frozen import frozen
from orchestrator.places import Place, Places, Recorded, read_places
from orchestrator.wire import problem_of


@frozen
class Errand:
    """What to run where; ``fleet`` is the place as the record has it, None for one that is configured.

    ``catalog`` is the folder of the user's own tables, whose names the configuration may use.
    """

    config: str | None
    place: str
    fleet: Place | None
    launch: str
    command: tuple[str, ...]
    tty: bool
    catalog: str | None


ERRAND: TypeAdapter[Errand] = TypeAdapter(Errand)


def main() -> None:
    """Read what to run from the socket whose number is the first argument, run it, and say how it ended.

    A server that a script began with "&" ignores the keys ^C and ^\\; what it starts here heeds them.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    with socket.socket(fileno=int(sys.argv[1])) as server, server.makefile("rw") as said:
        print(json.dumps(_ended(ERRAND.validate_json(said.readline()))), file=said, flush=True)


def _ended(asked: Errand) -> dict[str, Any]:
    if asked.tty:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the kernel then tells us of the window's size, and its end
    configured = Path(asked.config) if asked.config else None
    use(Path(asked.catalog) if asked.catalog else None)
    recorded = Recorded((asked.fleet,) if asked.fleet else ())
    try:
        place = Places(read_places(configured), recorded=lambda: recorded)[asked.place]
        code = place.execute(asked.launch, asked.command, tty=asked.tty)
        sys.stdout.flush()
        return {"code": code}
    except ModelyardError as error:
        return {"problem": problem_of(error)}
    except OSError as error:  # whoever reads is gone, or the machine has no more of something
        return {"problem": problem_of(ModelyardError(f"{os.strerror(error.errno or 0)}"))}


if __name__ == "__main__":
    main()
