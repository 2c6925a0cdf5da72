"""Every error a user can meet, as one tree; each says what, where and what to do.

::

    ModelyardError            exit code
    ├── UsageError            64  the command line is wrong
    ├── SpecError             65  a spec is wrong; carries every problem of every file
    ├── ConfigError           78  the configuration of places is wrong
    ├── ModelError            65  a model's files are wrong, or nothing is known about it
    │   └── HubUnreachable    69  the hub did not answer, or asked to be asked later     (temporary)
    ├── NothingFits           75  no offer can hold what a spec asks for
    ├── StateMoved             1  the record changed since it was read
    ├── PlanRefused            1  a saved plan or a lock no longer holds
    ├── RunFailed              1  the work itself failed
    ├── NotFound              64  no run, volume or secret of that name
    ├── Denied                77  not allowed
    ├── StoreError            69  the store cannot be read or written
    │   └── StoreBusy         75  another process holds it, or it does not answer   (temporary)
    └── BackendError          69  a place answered with an error
        ├── Unreachable       69  it did not answer: nothing is known        (temporary)
        ├── Busy              69  it answered "later"                        (temporary)
        ├── NoCapacity        75  it has no room now                         (temporary)
        ├── Quota             75  a limit of the account; a person must act
        ├── AuthFailed        77  credentials missing or refused
        ├── Misconfigured     78  what the configuration says of it is wrong; a ConfigError too
        └── Rejected           1  it will never take this launch

Whether a retry can help is the type's to say: ``Temporary`` or not. Exit codes follow
sysexits.h, so that 2 can only mean "changes" (``--detailed-exitcode``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.frozen import frozen


@dataclass(frozen=True, order=True)
class Position:
    """A place in a source file; lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@frozen
class Problem:
    """One thing wrong with a source file.

    ``source_line`` is the text of the line at ``at``; ``fix`` says what to do about it and
    stands beside the caret. ``exit_code`` is another where the file is right and a place refuses it.
    """

    at: Position
    what: str
    fix: str | None = None
    source_line: str | None = None
    exit_code: int = 65

    def __str__(self) -> str:
        """Draw the problem with its line and a caret.

        >>> at = Position("chat.yaml", 8, 3)
        >>> print(Problem(at, "unknown key 'cuont'", "did you mean 'count'?", "  cuont: 2"))
        chat.yaml:8:3: unknown key 'cuont'
            8 |   cuont: 2
              |   ^ did you mean 'count'?
        """
        text = f"{self.at}: {self.what}"
        if self.source_line is None:
            return f"{text}\n    {self.fix}" if self.fix else text
        gutter = f"{self.at.line:>5} | "
        shown = self.source_line.replace("\t", " ")
        start = 0
        if len(shown) > 160:  # a 10 MB line is no help to anyone
            start = max(0, self.at.column - 80)
            shown = shown[start : start + 160]
        caret = " " * 5 + " | " + " " * (self.at.column - 1 - start) + "^"
        return "\n".join([text, gutter + shown, caret + (f" {self.fix}" if self.fix else "")])


class ModelyardError(Exception):
    """The root: anything we say to a user on purpose.

    Args:
        what: What happened, one phrase, no full stop.
        where: The place in the user's YAML, where there is one.
        fix: What to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: Position | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  fix     {self.fix}" if self.fix else head

    @property
    def line(self) -> str:
        """What happened and what to do about it, for where there is one line.

        >>> UsageError("no files given", fix="name them with -f").line
        'no files given (name them with -f)'
        """
        return f"{self.what} ({self.fix})" if self.fix else self.what


class Temporary(ModelyardError):
    """Mixed into errors that may pass by themselves.

    ``retry_after_s`` is what the other side asked for, in seconds, or None.
    """

    retry_after_s: float | None = None


class UsageError(ModelyardError):
    """The command line is wrong."""

    exit_code = 64


class SpecError(ModelyardError):
    """One or more specs are wrong; ``problems`` holds every one, ordered by place.

    It ends a command as its problems do, where they agree: 77 where all of them are permissions.

    >>> at = Position("chat.yaml", 1, 1)
    >>> denied = Problem(at, "not allowed", exit_code=77)
    >>> SpecError([denied]).exit_code, SpecError([denied, Problem(at, "unknown key")]).exit_code
    (77, 65)
    """

    exit_code = 65

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: p.at))
        codes = {problem.exit_code for problem in self.problems}
        self.exit_code = codes.pop() if len(codes) == 1 else SpecError.exit_code
        count = len(self.problems)
        super().__init__(f"{count} problem{'' if count == 1 else 's'}", where=self.problems[0].at)

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems)


class ConfigError(ModelyardError):
    """The configuration of places (``config.yaml``) is wrong."""

    exit_code = 78


class ModelError(ModelyardError):
    """A model's files are wrong, or nothing is known about it."""

    exit_code = 65


class HubUnreachable(ModelError, Temporary):
    """The model hub did not answer, or asked to be asked later."""

    exit_code = 69

    def __init__(self, what: str, *, fix: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(what, fix=fix)
        self.retry_after_s = retry_after_s


@frozen
class Refusal:
    """How many offers fell for one reason."""

    reason: str
    offers: int


@frozen
class WhyNot:
    """One kind of machine that does not do: the first reason, and the smallest change that helps.

    ``offers`` counts its offers, ``price_usd_hour`` is the cheapest of them; ``change`` is a field
    of the spec and its value, empty where no single change helps. ``nodes`` such machines are what
    the price is for.
    """

    accelerator: str
    count: int
    offers: int
    price_usd_hour: float
    reason: str
    change: str = ""
    nodes: int = 1

    @property
    def machines(self) -> str:
        """What it is in words.

        >>> WhyNot("L4-24GB", 1, 2, 2.1, "over max_price", nodes=3).machines
        '1 × L4-24GB × 3 nodes'
        """
        return f"{self.count} × {self.accelerator}" + (f" × {self.nodes} nodes" if self.nodes > 1 else "")


class NothingFits(ModelyardError):
    """No offer can hold what a spec asks for; says what was needed and why each offer fell.

    ``why_not`` says so of every kind of machine, ``elsewhere`` names a provider that would do;
    ``also`` has the other specs of the same plan that found no place.
    """

    exit_code = 75

    def __init__(
        self,
        what: str,
        *,
        needs: str = "",
        refused: Sequence[Refusal] = (),
        why_not: Sequence[WhyNot] = (),
        elsewhere: str = "",
        where: Position | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.needs = needs
        self.elsewhere = elsewhere
        self.why_not = tuple(why_not)
        self.refused = tuple(refused)
        self.also: tuple[NothingFits, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.needs:
            lines.append(f"  needs   {self.needs}")
        saw = sum(r.offers for r in self.refused)
        reasons = ", ".join(f"{r.offers} {r.reason}" for r in self.refused)
        lines.append(f"  saw     {saw} offer{'' if saw == 1 else 's'}" + (f": {reasons}" if reasons else ""))
        if self.fix:
            lines.append(f"  fix     {self.fix}")
        if self.elsewhere:
            lines.append(f"  or      {self.elsewhere}")
        return "\n".join([*lines, *map(str, self.also)])


class StateMoved(ModelyardError):
    """The record changed between reading and writing; nothing was done."""


class PlanRefused(ModelyardError):
    """A saved plan or a lock no longer holds: stale, expired, changed or of another version."""


class RunFailed(ModelyardError):
    """The work itself failed; the reason is in the run's events."""


class NotFound(ModelyardError):
    """No run, volume or secret has that name."""

    exit_code = 64


class Denied(ModelyardError):
    """Not allowed."""

    exit_code = 77


class StoreError(ModelyardError):
    """The store cannot be read or written; what was asked for was not done, not even in part."""

    exit_code = 69


class StoreBusy(StoreError, Temporary):
    """Another process holds the store, or its server does not answer; nothing was done."""

    exit_code = 75


class BackendError(ModelyardError):
    """A backend answered with an error; ``backend`` is its name in the configuration."""

    exit_code = 69

    def __init__(
        self, what: str, *, backend: str = "", where: Position | None = None, fix: str | None = None
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.backend = backend


class Unreachable(BackendError, Temporary):
    """The backend did not answer: what it runs is unknown, and nothing follows from that."""


class Busy(BackendError, Temporary):
    """The backend answered, and asked to be asked later."""


class NoCapacity(BackendError, Temporary):
    """The backend has no room for this launch now; another offer may have."""

    exit_code = 75


class Quota(BackendError):
    """A limit of the account stands in the way; a person has to raise it."""

    exit_code = 75


class AuthFailed(BackendError):
    """Credentials are missing, expired or refused."""

    exit_code = 77


class Misconfigured(ConfigError, BackendError):
    """What the configuration says of one place is wrong; the others are as they were."""


class Rejected(BackendError):
    """The backend will never take this launch as it is."""

    exit_code = 1


@dataclass
class Problems:
    """Collects problems, so that a reader sees all of them at once."""

    found: list[Problem] = field(default_factory=list)

    def add(self, at: Position, what: str, fix: str | None = None, source_line: str | None = None) -> None:
        """Remember one problem."""
        self.found.append(Problem(at, what, fix, source_line))

    def settle(self) -> None:
        """Raise ``SpecError`` when anything was found."""
        if self.found:
            raise SpecError(self.found)
