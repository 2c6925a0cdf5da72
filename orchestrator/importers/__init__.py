"""Other tools' YAML to our documents: one file per tool, and what cannot be carried over by its line.

>>> theirs = "type: task\\nname: hi\\nimage: busybox\\ncommands: [echo hi]\\nentrypoint: env\\nnvcc: true"
>>> print(import_text(theirs, tool="dstack", file="hi.dstack.yml").text)
type: task
name: hi
image: busybox
entrypoint: env
commands:
- echo hi
<BLANKLINE>
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from orchestrator.errors import Problems
from orchestrator.frozen import frozen
from orchestrator.importers.settle import Imported, settle
from orchestrator.importers.theirs import Theirs
from orchestrator.spec.tree import Node

__all__ = ["TOOLS", "Imported", "Profiles", "import_text"]

TOOLS = ("compose", "dstack", "skypilot")
"""Whose YAML can be read; the module of that name beside this one reads it."""


@frozen
class Profiles:
    """A file of defaults beside a configuration, as dstack has it; without a name its default one counts."""

    text: str
    file: str
    name: str = ""


def import_text(text: str, *, tool: str, file: str, profiles: Profiles | None = None) -> Imported:
    """Return another tool's documents as ours, and all that could not be carried over.

    Nothing is looked up: not the files that are named, not the environment. Paths stay as they
    are written, so that they count from where the result is kept.

    Args:
        text: What the file says.
        tool: One of ``TOOLS``.
        file: Its name, for positions, and for documents that have no name.
        profiles: What fills in where a document of dstack's says nothing.

    Raises:
        KeyError: there is no such tool, or it has no profiles.
        SpecError: it is broken YAML, no document of that tool's, or part of it cannot run here.
    """
    if tool not in TOOLS or (profiles and tool != "dstack"):
        raise KeyError(tool)
    module = importlib.import_module(f"{__name__}.{tool}")
    read: Callable[[tuple[Node, ...], Theirs], None] = module.read
    theirs, roots = _parsed(text, tool, file)
    if profiles:
        beside, (root, *_) = _parsed(profiles.text, tool, profiles.file)
        theirs.profile = module.profile(root, beside, profiles.name)
        read(roots, theirs)
        theirs.left_out.extend(beside.left_out)
    else:
        read(roots, theirs)
    return settle(theirs)


def _parsed(text: str, tool: str, file: str) -> tuple[Theirs, tuple[Node, ...]]:
    from orchestrator.spec.source import decode, parse  # brings PyYAML: 20 ms of CPU

    problems = Problems()
    source = decode(text.encode("utf-8", "surrogatepass"), file, problems)
    roots = parse(source) if source else ()
    problems.settle()
    assert source is not None, "what could not be decoded was a problem"
    theirs = Theirs(source, tool)
    if not roots:
        theirs.refuse((1, 1), "no documents", f"name a file of {tool}")
    return theirs, roots
