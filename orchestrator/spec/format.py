"""Files in one form: indents, ends of lines and of the file; what they say stays as it is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import Position, Problem, Problems, SpecError
from orchestrator.spec.load import files_of
from orchestrator.spec.source import decode, parse
from orchestrator.spec.tree import Value, plain


def formatted(text: str, *, file: str) -> str:
    r"""Return YAML in the form of the house: two spaces, ``- `` two further in, comments and order kept.

    Raises:
        SpecError: it is no YAML of ours, or would say something else in that form; it is left alone then.

    >>> formatted("name:   a\ncommands:\n- one   # first\n-   two\n\n\n", file="a.yaml")
    'name: a\ncommands:\n  - one # first\n  - two\n'
    """
    from ruamel.yaml import YAML  # 30 ms of CPU: only where something is to be formatted
    from ruamel.yaml.error import YAMLError

    before = _said(text, file)
    bare = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if _said(bare, file) == before:  # else the blanks are what a text in it holds
        text = bare
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**20  # lines are the writer's to break
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    try:
        documents = [each for each in yaml.load_all(text) if each is not None]
        yaml.dump_all(documents, out)
    except YAMLError as error:
        raise SpecError([_left_alone(file, str(error).partition("\n")[0])]) from None
    made = out.getvalue().rstrip("\n") + "\n"
    if _said(made, file) != before:
        raise SpecError([_left_alone(file, "it would say something else in another form")])
    return made


def format_files(paths: Sequence[str], *, write: bool) -> tuple[list[str], int]:
    """Bring files into one form; return those that were not in it, and how many there are.

    Raises:
        SpecError: some are no YAML of ours; every problem of all of them, and nothing was written.
    """
    problems = Problems()
    made: dict[str, tuple[str, str]] = {}
    for file in files_of(paths, problems):
        try:
            text = Path(file).read_text("utf-8")
            made[file] = text, formatted(text, file=file)
        except SpecError as error:
            problems.found += error.problems
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            problems.add(Position(file, 1, 1), f"cannot be read: {said}", "check the path and what it holds")
    problems.settle()
    changed = [file for file, (text, then) in made.items() if text != then]
    if write:
        for file in changed:
            Path(file).write_text(made[file][1], "utf-8")
    return changed, len(made)


def _said(text: str, file: str) -> list[Value]:
    """Return what the documents of a file say.

    Raises:
        SpecError: it is no YAML of ours.
    """
    problems = Problems()
    source = decode(text.encode(), file, problems)
    problems.settle()
    return [plain(node) for node in parse(source)] if source else []


def _left_alone(file: str, why: str) -> Problem:
    return Problem(Position(file, 1, 1), f"left as it is: {why}", "format it by hand")
