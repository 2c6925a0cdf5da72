"""Options as values: what we set, what the user sets, and where the two disagree."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from orchestrator.engines.flags import Flag, Flags, load
from orchestrator.engines.job import KvDtype, ServingJob, Spelled, Stated
from orchestrator.frozen import frozen

_NAME = re.compile(r"--?[A-Za-z][\w.-]*")
_GLUED = re.compile(r"(-[A-Z])(\d+)")  # -O3


@frozen
class Option:
    """One option of a command line with its values, none for a switch."""

    name: str
    values: tuple[str, ...] = ()

    def render(self) -> tuple[str, ...]:
        """Return the words of the command line.

        >>> Option("--port", ("8000",)).render()
        ('--port', '8000')
        """
        return (self.name, *self.values)


def option(name: str, *values: object) -> Option:
    """Return an option with its values as text.

    >>> option("--port", 8000)
    Option(name='--port', values=('8000',))
    """
    return Option(name, tuple(str(v) for v in values))


def parse(args: Sequence[str]) -> tuple[Option, ...]:
    """Return the options in a user's ``args``; ``--name=value`` and ``--name value`` are one.

    Raises:
        ValueError: a value stands before any option.

    >>> parse(["--max-model-len=4096", "--lora-modules", "a=x", "b=y", "--enforce-eager"])[1].values
    ('a=x', 'b=y')
    >>> parse(["--max-model-len", "-1"])
    (Option(name='--max-model-len', values=('-1',)),)
    """
    found: list[tuple[str, list[str]]] = []
    for word in args:
        head, given, value = word.partition("=")
        if glued := _GLUED.fullmatch(word):
            head, given, value = glued[1], "=", glued[2]
        if _NAME.fullmatch(head):
            found.append((head, [value] if given else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise ValueError(f"args: {word!r} stands before any option")
    return tuple(Option(name, tuple(values)) for name, values in found)


def render(options: Iterable[Option]) -> tuple[str, ...]:
    """Return the words of all ``options`` in order."""
    return tuple(word for o in options for word in o.render())


@frozen
class Rules:
    """What an engine says about its user's options, by the option's main name.

    ``owned`` options may not be given at all, ``secret`` ones would show a secret in the process
    list; the text says what to write instead. ``fields`` are the options that say the same as a
    field of the job, with the reader of their value: what the user gives there is checked as if
    the plan had said it. ``beside`` ones have weights loaded beside the model's own.
    """

    owned: Mapping[str, str]
    secret: Mapping[str, str]
    fields: Mapping[str, tuple[str, Callable[[str], object]]]
    beside: frozenset[str] = frozenset()


def objection(user: Sequence[Option], flags: Flags, rules: Rules, *, own_image: bool = False) -> str | None:
    """Say which of the user's options cannot be passed on, and why; None when all can.

    Checks that the option exists in this version, that it is not ours alone, that no secret is
    written out, and that its values are as many, of the kind and of the choices that the parser
    takes. In an image of the user's own (``own_image``) lists that plug-ins extend stay open.
    """
    for given in user:
        flag = flags.find(given.name)
        if flag is None:
            near = flags.nearest(given.name)
            hint = f", did you mean {near}" if near else ""
            return f"args: {flags.engine} {flags.version} has no option {given.name}{hint}"
        if flag.name in rules.secret:
            return f"args: {flag.name} would show a secret, {rules.secret[flag.name]}"
        if flag.name in rules.owned:
            return f"args: {flag.name} is not for args, {rules.owned[flag.name]}"
        if wrong := wrong_values(given, flag, own_image=own_image):
            return f"args: {given.name} {wrong}"
    return None


def wrong_values(given: Option, flag: Flag, *, own_image: bool = False) -> str | None:
    """Say what is wrong with the values given to an option, None where it takes them.

    >>> wrong_values(Option("seed", ("x",)), Flag("--seed", reads="int"))
    "takes a whole number, got 'x'"
    """
    count, takes = len(given.values), flag.takes
    if takes == 0 and count:
        return f"takes no value, got {given.values[0]!r}"
    if (takes == 1 and count != 1) or (takes == "+" and not count):
        return f"takes {'one value' if takes == 1 else 'values'}, got {count or 'none'}"
    if "." in given.name:
        return None  # one key of an object
    if misread := next((v for v in given.values if not _can_read(flag.reads, v)), None):
        return f"takes {_KINDS.get(flag.reads, 'a number')}, got {misread!r}"
    allowed = flag.choices or (() if own_image else flag.known)
    bad = next((v for v in given.values if allowed and not {v, v.upper()} & {*allowed}), None)
    return f"takes one of {', '.join(allowed)}, got {bad!r}" if bad is not None else None


_KINDS = {"int": "a whole number", "bool": "true or false"}
_BOOLS = frozenset({"true", "false", "yes", "no", "t", "f", "y", "n", "1", "0"})
"""What reads as a truth value (transformers 5.23, ``string_to_bool``)."""
_WORDS = ("auto", "none", "")
"""What a parser takes in place of a number where it takes words at all."""


def _can_read(kind: str, text: str) -> bool:
    if kind.endswith("?") and text.lower() in _WORDS:
        return True
    readers: Mapping[str, Callable[[str], float]] = {"int": int, "float": float, "count": whole}
    if not kind:
        return True
    if kind == "bool":
        return text.lower() in _BOOLS
    try:
        readers[kind.rstrip("?")](text)
    except ValueError:
        return False
    return True


def merge(
    own: Sequence[Option], user: Sequence[Option], flags: Flags
) -> tuple[tuple[Option, ...], tuple[str, ...]]:
    """Return our options with the user's in their place, and a warning for each value that changed.

    >>> known = load("vllm", "0.33.0")
    >>> merged, told = merge([option("--max-num-seqs", 64)], parse(["--max-num-seqs", "8"]), known)
    >>> render(merged), told
    (('--max-num-seqs', '8'), ('args: --max-num-seqs 8 replaces 64 of the plan',))
    """
    theirs = {main_name(o, flags): o for o in user}
    told = []
    for o in own:
        given = theirs.get(main_name(o, flags))
        if given is not None and given.values != o.values:
            shown, planned = " ".join(given.values) or "(on)", " ".join(o.values) or "(on)"
            told.append(f"args: {o.name} {shown} replaces {planned} of the plan")
    kept = tuple(o for o in own if main_name(o, flags) not in theirs)
    return (*kept, *user), tuple(told)


def overlay(own: Sequence[tuple[str, str]], user: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return our environment with the user's variables in place of ours.

    >>> overlay([("HF_HOME", "/root"), ("A", "1")], [("HF_HOME", "/data")])
    (('A', '1'), ('HF_HOME', '/data'))
    """
    theirs = {name for name, _ in user}
    return (*(pair for pair in own if pair[0] not in theirs), *user)


def main_name(given: Option, flags: Flags) -> str:
    """Return the option's main name; ``--no-x`` and short names mean the same option."""
    flag = flags.find(given.name)
    return flag.name if flag else given.name


_SCALED = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT])")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def whole(text: str) -> int:
    """Return the number that an option's value means, with the suffixes of vLLM and SGLang.

    Small letters are powers of 1,000 and may follow a decimal, large ones are powers of 1,024.

    Raises:
        ValueError: it is no number.

    >>> whole("4096"), whole("25.6k"), whole("32K")
    (4096, 25600, 32768)
    """
    if not (found := _SCALED.fullmatch(text.strip())):
        return int(text)
    number, suffix = found.groups()
    power = _POWERS[suffix.lower()]
    return int(float(number) * 1000**power) if suffix.islower() else int(number) * 1024**power


def positive(text: str) -> int:
    """Return a number as ``whole`` reads it, which is at least 1.

    Raises:
        ValueError: it is no number, or below 1.
    """
    if (number := whole(text)) < 1:
        raise ValueError(f"{number} is below 1")
    return number


def kv_dtype(text: str) -> KvDtype:
    """Return the kind of KV cache that an engine's name for it means, ``auto`` where it is neither.

    >>> kv_dtype("fp8_e4m3"), kv_dtype("bfloat16"), kv_dtype("auto")
    ('fp8', 'bf16', 'auto')
    """
    if text.startswith("fp8"):
        return "fp8"
    return "bf16" if text == "bfloat16" else "auto"


@frozen
class Settled:
    """A job with the user's options read into it, and those options as they were given."""

    job: ServingJob
    user: tuple[Option, ...]
    flags: Flags
    warnings: tuple[str, ...]

    def words(self, own: Sequence[Option]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the words of ``own`` and the user's options together, and what there is to warn of."""
        merged, told = merge(own, self.user, self.flags)
        return render(merged), (*self.warnings, *told)


class Optioned(ABC):
    """What engines that take options share: the user's are read, checked and merged into the job.

    ``parser`` names whose options they are, and in which versions, where they are not the
    engine's own; the engine's version then says nothing of them.
    """

    name: ClassVar[str]
    versions: ClassVar[tuple[str, ...]]
    rules: ClassVar[Rules]
    parser: ClassVar[tuple[str, tuple[str, ...]] | None] = None
    spelled: ClassVar[Spelled] = Spelled()

    @abstractmethod
    def refusal(self, job: ServingJob) -> str | None:
        """Say why the engine cannot serve ``job``, the user's options already read into it."""

    def refuses(self, job: ServingJob) -> str | None:
        """Say in one phrase why the engine cannot serve ``job``, or None when it can."""
        try:
            self.accepted(job)
        except ValueError as objection:
            return str(objection)
        return None

    def accepted(self, job: ServingJob) -> Settled:
        """Return ``job`` as it will be once the user's own options have won.

        Options of a version that was never recorded are checked against the newest that was, with
        a warning.

        Raises:
            ValueError: the engine refuses ``job``, or an option cannot be passed on or read.
        """
        known = self._flags(job.version)
        user, said = _read(job.args, known, self.rules, own_image=job.image is not None)
        untold = f"options of {self.name} {job.version} are not recorded, checked against {known.version}"
        told = (untold,) if not self.parser and job.version not in (None, known.version) else ()
        of_model = {name: said.pop(name, None) for name in ("pools", "longest_tokens")}
        if any(value is not None for value in of_model.values()):
            job = replace(job, model=Stated(**of_model).of(job.model))  # type: ignore[arg-type]  # as below
        changed = replace(job, **said) if said else job  # type: ignore[arg-type]  # the job's own fields
        if why := self.refusal(changed):
            raise ValueError(why)
        return Settled(changed, user, known, (*told, *_beside(user, known, self.rules)))

    def states(self, args: Sequence[str]) -> Stated:
        """Return what a user's ``args`` say of a job; nothing where they cannot be read.

        >>> from orchestrator.engines import engine
        >>> engine("vllm").states(("--max-model-len", "32k", "--seed", "1")).context_tokens
        32000
        """
        try:
            _, said = _read(args, self._flags(None), self.rules, own_image=True)
        except ValueError:  # the engine refuses it, with its reason
            return Stated()
        return Stated(**said)  # type: ignore[arg-type]  # as in ``accepted``

    def objects(self, args: Sequence[str], *, version: str | None, own_image: bool) -> str | None:
        """Say which of a user's ``args`` this engine cannot be given, and why; None when it can all.

        >>> from orchestrator.engines import engine
        >>> engine("vllm").objects(("--seed", "x"), version=None, own_image=False)
        "args: --seed takes a whole number, got 'x'"
        """
        try:
            _read(args, self._flags(version), self.rules, own_image=own_image)
        except ValueError as unread:
            return str(unread)
        return None

    def _flags(self, version: str | None) -> Flags:
        name, versions = self.parser or (self.name, self.versions)
        return load(name, version if version in versions and not self.parser else versions[0])


def _read(
    args: Sequence[str], flags: Flags, rules: Rules, *, own_image: bool
) -> tuple[tuple[Option, ...], dict[str, object]]:
    """Return a user's options, and what they say of the job's own fields.

    Raises:
        ValueError: an option cannot be passed on or read; the message says which and why.
    """
    user = tuple(as_known for given in parse(args) if (as_known := _turned_off(given, flags)))
    if why := objection(user, flags, rules, own_image=own_image):
        raise ValueError(why)
    return user, _said(user, flags, rules)


def _turned_off(given: Option, flags: Flags) -> Option | None:
    """Return ``--no-x`` as a parser without that spelling has it, None where leaving ``--x`` out says it.

    >>> known = load("sglang", "0.5.23")
    >>> _turned_off(Option("--no-disable-radix-cache"), known) is None
    True
    """
    if given.values or not given.name.startswith("--no-") or flags.find(given.name):
        return given
    flag = flags.find(f"--{given.name.removeprefix('--no-')}")
    if flag is None:
        return given
    return Option(flag.name, ("false",)) if flag.takes else None


def _beside(user: Sequence[Option], flags: Flags, rules: Rules) -> Iterator[str]:
    """Yield a warning for each option that loads weights nobody counted; n-grams and suffixes are none."""
    for given in user:
        none = any(word in value for value in given.values for word in ("ngram", "suffix"))
        if main_name(given, flags) in rules.beside and not none:
            yield f"args: {given.name} loads weights beside the model, which its memory here leaves out"


def _said(user: Sequence[Option], flags: Flags, rules: Rules) -> dict[str, object]:
    said: dict[str, object] = {}
    for given in user:
        name = main_name(given, flags)
        flag = flags.find(given.name)
        if name not in rules.fields or not (given.values or (flag and flag.takes == 0)):
            continue
        field, read = rules.fields[name]
        try:
            said[field] = read(given.values[0] if given.values else "")
        except ValueError:
            raise ValueError(f"args: {given.name} takes a number above 0, got {given.values[0]!r}") from None
    return said
