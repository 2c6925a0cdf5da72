"""Shell scripts as the commands in them, as far as they can be read without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field

from orchestrator.frozen import frozen

_COMPUTED = re.compile(r"\$\(\([^()]*(?:\([^()]*\)[^()]*)*\)\)|\$\([^()]*(?:\([^()]*\)[^()]*)*\)|`[^`]*`")
"""What a shell puts in by running something: it has no value here."""
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<plain>\w+))")
_REFERENCE = re.compile(r"\$\{\{.*?\}\}")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_SEPARATORS = ";&|()<>\n"
_MOST_LINES = 60
"""Lines that one quoted text may span."""
_LEADING = frozenset(
    "exec nohup sudo time env then else elif do if while until ! { uv run poetry pipenv nice stdbuf".split()  # noqa: SIM905
)
"""Words that may stand before a program and change nothing about it."""


@frozen
class Command:
    """One simple command: its words with known variables filled in, and the names that were."""

    words: tuple[str, ...]
    filled: frozenset[str] = frozenset()
    own: Mapping[str, str] = field(default_factory=dict)
    """Variables set for it alone, in front of it."""


def is_open(text: str) -> bool:
    """Say whether a text holds something that only the machine that runs it knows.

    >>> is_open("org/$MODEL"), is_open("${{ env.MODEL }}"), is_open("org/model")
    (True, True, False)
    """
    return "${{" in text or _VARIABLE.search(text) is not None or "$?" in text


def commands(script: Iterable[str], env: Mapping[str, str | None]) -> Iterator[Command]:
    """Yield the simple commands of a script's lines, without redirections, in their order.

    Control structures are passed over: what stands in a branch is yielded as if it ran. Variables
    have the value of ``env`` or of an assignment before them; others stay as they are written.

    >>> list(commands(["N=2", "vllm serve $M --tp $N > log 2>&1 &"], {"M": "a/b"}))[0].words
    ('vllm', 'serve', 'a/b', '--tp', '2')
    """
    known = {name: value for name, value in env.items() if value is not None}
    for words in _split("\n".join(script)):
        own = _assigned(words)
        rest = [word for word in words[len(own) :] if not (own and word == "export")]
        exported = rest[:1] == ["export"]
        if exported:
            own, rest = _assigned(rest[1:]), []
        values = {name: _filled(value, known)[0] for name, value in own.items()}
        if not rest:
            known |= {name: value for name, value in values.items() if not is_open(value)}
            continue
        found = [(word, *_filled(word, known | values)) for word in rest]
        filled = frozenset().union(*(names for _, _, names in found))
        yield Command(tuple(one for raw, text, _ in found for one in _as_words(raw, text)), filled, values)


def _as_words(raw: str, text: str) -> tuple[str, ...]:
    """Return what a shell makes of a word: a variable that is empty is none, one of options is several.

    >>> _as_words("$ARGS", "--a 1"), _as_words("$ARGS", ""), _as_words("$NAME", "two words")
    (('--a', '1'), (), ('two words',))
    """
    if not _VARIABLE.fullmatch(raw) or raw == text:
        return (text,)
    if not text.strip():
        return ()
    return tuple(text.split()) if text.startswith("-") else (text,)


def _assigned(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        if not (match := _ASSIGNED.fullmatch(word)):
            break
        found[match[1]] = match[2]
    return found


def _filled(text: str, known: Mapping[str, str]) -> tuple[str, frozenset[str]]:
    names: set[str] = set()

    def value(found: re.Match[str]) -> str:
        name = found["braced"] or found["plain"]
        if name in known:
            names.add(name)
            return known[name]
        return found["default"] if found["default"] is not None else found[0]

    if "${{" in text:
        return text, frozenset()
    return _VARIABLE.sub(value, text), frozenset(names)


def _split(text: str) -> Iterator[list[str]]:
    """Yield the words of each simple command; lines that are no shell are passed over."""
    references = iter(_REFERENCE.findall(text))  # ours, which are not the shell's
    text = _REFERENCE.sub("\x01", text)
    text = _COMPUTED.sub("$_", text.replace("\\\n", " "))
    lines = [_without_comment(line) for line in text.split("\n")]
    at = 0
    while at < len(lines):
        for end in range(at + 1, min(len(lines), at + _MOST_LINES) + 1):
            try:
                found = list(_tokens("\n".join(lines[at:end])))
            except ValueError:  # a quote is open still
                continue
            for words in found:
                yield [re.sub("\x01", lambda _: next(references), word) for word in words]
            at = end
            break
        else:
            at += 1


def _without_comment(line: str) -> str:
    """Return a line up to its comment, so that an apostrophe there opens no quote.

    >>> _without_comment("a '#b' # don't"), _without_comment("a#b")
    ("a '#b' ", 'a#b')
    """
    for found in _COMMENT.finditer(line):
        before = line[: found.start(1)]
        if before.count("'") % 2 == 0 and before.count('"') % 2 == 0:
            return before
    return line


_COMMENT = re.compile(r"(?:^|\s)(#)")


def _tokens(text: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_SEPARATORS)
    lexer.whitespace, lexer.whitespace_split = " \t\r", True
    lexer.commenters = ""
    words: list[str] = []
    target = False
    for token in lexer:
        if token and set(token) <= set(_SEPARATORS):
            if "<" in token or ">" in token:
                target = True
                if words and words[-1] in ("1", "2"):
                    words.pop()
            elif words:
                yield words
                words = []
        elif target:
            target = False
        else:
            words.append(token)
    if words:
        yield words


def program(words: Sequence[str], programs: Iterable[Sequence[str]]) -> int | None:
    """Return where the arguments of one of ``programs`` begin in a command, None where none is in it.

    A program is the words that it begins with; ``-m MODULE`` and scripts, which are told by their end,
    may stand behind Python or a launcher and its options.

    >>> program(["exec", "vllm", "serve", "a/b"], [("vllm", "serve")])
    3
    >>> program(["accelerate", "launch", "--config", "c", "x/trl/scripts/sft.py"], [("trl/scripts/sft.py",)])
    5
    >>> program(["echo", "vllm", "serve"], [("vllm", "serve")])
    """
    start = len(words) - len(bare(words))
    if start == len(words):
        return None
    launched = _LAUNCHER.fullmatch(words[start]) is not None
    for each in programs:
        inner = each[0] == "-m" or each[0].endswith(".py")
        places = range(start, len(words)) if inner and launched else (start,)
        for at in places:
            if _is(words[at : at + len(each)], each):
                return at + len(each)
    return None


def bare(words: Sequence[str]) -> Sequence[str]:
    """Return a command without the words that may stand before a program and change nothing about it.

    >>> bare(["if", "!", "nohup", "vllm", "serve"])
    ['vllm', 'serve']
    """
    start = 0
    while start < len(words) and (words[start] in _LEADING or words[start].startswith(("$", "-"))):
        start += 1
    return words[start:]


_LAUNCHER = re.compile(r"(?:\S*/)?(?:python[\d.]*|accelerate|torchrun|deepspeed)")


def _is(words: Sequence[str], program: Sequence[str]) -> bool:
    return len(words) == len(program) and all(
        word == part or word.endswith(f"/{part}") for word, part in zip(words, program, strict=True)
    )


def in_container(words: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """Return the image and the arguments behind it of ``docker run``, None for another command.

    >>> in_container(["docker", "run", "--gpus", "all", "-p", "80:80", "org/image:1", "--model", "a/b"])
    ('org/image:1', ('--model', 'a/b'))
    """
    rest = [word for word in words if word != "sudo"]
    if rest[:2] not in (["docker", "run"], ["podman", "run"]):
        return None
    # an image has a path, and what follows an option of Docker's with a path has a colon or begins with /
    at = next(
        (
            i for i in range(2, len(rest))
            if _IMAGE.fullmatch(rest[i]) and rest[i - 1] not in _TAKES_A_PATH
        ),
        None,
    )  # fmt: skip
    return None if at is None else (rest[at], tuple(rest[at + 1 :]))


_IMAGE = re.compile(r"[a-z0-9][\w.-]*(?::\d+)?(?:/[\w.-]+)+(?::[\w.-]+)?(?:@sha256:[0-9a-f]+)?")
_TAKES_A_PATH = frozenset("-v --volume --mount --env-file -w --workdir --name --network".split())  # noqa: SIM905
