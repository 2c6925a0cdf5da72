"""Options as values: what we set, what the user sets, and where the two disagree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.engines.flags import Flags, load
from orchestrator.engines.job import ServingJob

_NAME = re.compile(r"--?[A-Za-z][\w.-]*")
_GLUED = re.compile(r"(-[A-Z])(\d+)")  # -O3


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Rules:
    """What an engine says about its user's options, by the option's main name.

    ``owned`` options may not be given at all, ``secret`` ones would show a secret in the process
    list; the text says what to write instead. ``fields`` are the options that say the same as a
    field of the job, with the reader of their value: what the user gives there is checked as if
    the plan had said it.
    """

    owned: Mapping[str, str]
    secret: Mapping[str, str]
    fields: Mapping[str, tuple[str, Callable[[str], object]]]


def objection(user: Sequence[Option], flags: Flags, rules: Rules) -> str | None:
    """Say which of the user's options cannot be passed on, and why; None when all can.

    Checks that the option exists in this version, that it is not ours alone, that no secret is
    written out, and that its values are as many and of the choices that the parser takes.
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
        if wrong := _wrong_values(given, flag.takes, flag.choices):
            return f"args: {given.name} {wrong}"
    return None


def _wrong_values(given: Option, takes: int | str, choices: tuple[str, ...]) -> str | None:
    count = len(given.values)
    if takes == 0 and count:
        return f"takes no value, got {given.values[0]!r}"
    if (takes == 1 and count != 1) or (takes == "+" and not count):
        return f"takes {'one value' if takes == 1 else 'values'}, got {count or 'none'}"
    bad = next((v for v in given.values if choices and v not in choices), None)
    return f"takes one of {', '.join(choices)}, got {bad!r}" if bad is not None else None


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


def whole(text: str) -> int:
    """Return the number that an option's value means; ``32k`` is 32,000 and ``32K`` 32,768 as in vLLM.

    Raises:
        ValueError: it is no number.

    >>> whole("4096"), whole("32k"), whole("32K")
    (4096, 32000, 32768)
    """
    scale = {"k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}.get(text[-1:], 1)
    return int(text[:-1] if scale != 1 else text) * scale


@dataclass(frozen=True, slots=True)
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


Refusal = Callable[[ServingJob], str | None]
"""Why an engine cannot serve a job, the user's options already read into it; None when it can."""


def accept(settled: Settled, refusal: Refusal) -> Settled:
    """Return ``settled`` where nothing speaks against its job.

    Raises:
        ValueError: ``refusal`` has a reason; it is the message.
    """
    if why := refusal(settled.job):
        raise ValueError(why)
    return settled


def refused(accepted: Callable[[ServingJob], Settled], job: ServingJob) -> str | None:
    """Return the reason that ``accepted`` raises for ``job``, None when it raises none."""
    try:
        accepted(job)
    except ValueError as objection:
        return str(objection)
    return None


def settle(job: ServingJob, engine: str, versions: Sequence[str], rules: Rules) -> Settled:
    """Return ``job`` as it will be once the user's own options have won.

    Options of a version that was never recorded are checked against the newest that was, with a
    warning.

    Raises:
        ValueError: an option cannot be passed on or read; the message says which and why.
    """
    version = job.version if job.version in versions else versions[0]
    known = load(engine, version)
    untold = f"options of {engine} {job.version} are not recorded, checked against {version}"
    user = parse(job.args)
    if why := objection(user, known, rules):
        raise ValueError(why)
    warnings = (untold,) if job.version not in (None, version) else ()
    return Settled(_with(job, user, known, rules), user, known, warnings)


def _with(job: ServingJob, user: Sequence[Option], flags: Flags, rules: Rules) -> ServingJob:
    changed: dict[str, object] = {}
    for given in user:
        name = main_name(given, flags)
        if name not in rules.fields:
            continue
        field, read = rules.fields[name]
        try:
            changed[field] = read(given.values[0])
        except ValueError:
            raise ValueError(f"args: {given.name} takes a number, got {given.values[0]!r}") from None
    if not changed:
        return job
    return replace(job, **changed)  # type: ignore[arg-type]  # the keys are the job's own fields
