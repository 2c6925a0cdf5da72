"""What crosses between a client and a server: requests, pages, and errors after RFC 9457.

Bodies are the frozen values of the house as JSON: times in ISO 8601, bytes in base64. An error
crosses with all of its parts, and comes out as the type that went in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from math import isfinite
from typing import Any, Generic, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from orchestrator import errors
from orchestrator.api import Rehearsal, RunView
from orchestrator.api.protocol import Found, Item
from orchestrator.backend import Check, File, Launch, Leave, LogLine, Offer, Volume
from orchestrator.errors import ModelyardError, Position, Problem, Refusal, SpecError, Temporary, WhyNot
from orchestrator.reconcile import RunEvent, Wanted
from orchestrator.spec.values import NAME
from orchestrator.store.values import Deed, Limits

PROBLEM = "application/problem+json"
TYPE = "urn:modelyard:error:"
MAX_PAGE = 1_000
QUIET = "quiet"
"""The comment in a stream of events that nothing has come for a while."""
STDOUT, STDERR = b"\x01", b"\x02"
"""What each piece of a command's output begins with."""
_NAME = f"^(?:{NAME.pattern})$"


class _Body(BaseModel):
    """A body that knows all of its keys."""

    model_config = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class RunPage(_Body):
    """Runs by name; ``next`` is the cursor of what follows, None at the end."""

    items: list[RunView]
    next: str | None = None


class Told(_Body):
    """An event and its serial."""

    serial: int
    event: RunEvent


class EventPage(_Body):
    """Events, oldest first; ``next`` is the serial to go on after, None at the end."""

    items: list[Told]
    next: str | None = None


class DeedPage(_Body):
    """Lines of the audit log, oldest first."""

    items: list[NotedDeed]
    next: str | None = None


class NotedDeed(_Body):
    """A line of the audit log and its serial."""

    serial: int
    deed: Deed


class Checked(_Body):
    """What was looked at in a place."""

    place: str
    check: Check


class PlacedVolume(_Body):
    """A volume and the place that keeps it."""

    backend: str
    volume: Volume


class Kept(_Body):
    """The name of a secret, when it was last set, and the run or fleet that it goes with, if any."""

    name: str
    set_at: datetime
    given_to: str = ""


class OfferPage(_Body):
    """What can be had, and the places that did not answer.

    ``denied`` are those that let us see nothing, ``wrong`` those that are not configured right.
    """

    offers: list[Offer]
    silent: dict[str, str]
    denied: list[str] = []
    wrong: list[str] = []


class SentFile(_Body):
    """One YAML file, as it lies in a repository."""

    path: str = Field("spec.yaml", max_length=1_000)
    text: str


class PlanRequest(_Body):
    """Documents to plan beside the record; what they name on a disk cannot come along this way."""

    files: list[SentFile] = Field(min_length=1, max_length=10_000)
    args: list[str] = []
    env: dict[str, str] = {}
    set: str = ""
    prune: bool = False
    take: bool = False
    rerun: bool = False
    sort: Literal["price", "throughput", "latency"] = "price"
    strict: bool = False
    allow_destroy: bool = False
    allow_replace: bool = False


class Application(_Body):
    """A plan to carry out exactly, or refuse: a plan file, and what it leaves out.

    ``files`` are by run, ``variables`` are the values of the variables that specs only name.
    """

    plan: dict[str, Any]
    files: dict[str, list[File]] = {}
    variables: dict[str, str] = {}


class Applied(_Body):
    """The runs that changed."""

    runs: list[str]


class Rehearsals(_Body):
    """What clusters say of a plan, by run."""

    runs: dict[str, Rehearsal]


class Ending(_Body):
    """Runs that shall stop, or be deleted: all of them, or none where one is unknown."""

    runs: list[str] = Field(min_length=1, max_length=10_000)
    wanted: Wanted


class SecretValue(_Body):
    """The value of a secret; there is no way to read it back."""

    value: str = Field(max_length=1_000_000)


class FoundPage(_Body, Generic[Item]):
    """What places were looked through for, and those that could not be, with the reason of each."""

    items: list[Item]
    silent: dict[str, str] = {}
    exit_code: int = 0

    @classmethod
    def of(cls, found: Found[Item]) -> Self:
        """Return the page that says what was found."""
        return cls(items=list(found.items), silent=dict(found.silent), exit_code=found.exit_code)

    def found(self) -> Found[Item]:
        """Return what the page says."""
        return Found(tuple(self.items), self.silent, self.exit_code)


class CordonRequest(_Body):
    """Why nothing new shall start on a host, and how what is there shall leave."""

    reason: str = Field("", max_length=1_000)
    leave: Leave = ""


class ProjectBody(_Body):
    """A project and its limits."""

    name: str = Field(pattern=_NAME, max_length=63)
    limits: Limits = Limits()

    @field_validator("limits", mode="after")
    @classmethod
    def _holds(cls, limits: Limits) -> Limits:
        """Refuse what would hold nobody: with ``nan`` no comparison is true."""
        if not all(isfinite(most) and most >= 0 for most in (limits.gpus or 0, limits.usd_hour or 0.0)):
            raise ValueError("a limit is a number of at least 0")
        return limits


class TokenRequest(_Body):
    """A token to make; ``project`` ``*`` is every project."""

    name: str = Field(min_length=1, max_length=100)
    role: Literal["viewer", "operator", "admin"]
    project: str = Field("main", pattern=rf"^\*$|{_NAME}", max_length=63)
    lasts_s: int | None = Field(None, gt=0, le=10 * 365 * 86_400)


class TokenView(_Body):
    """A token as it is listed: what it opens, and no part of what opens."""

    id: str
    name: str
    project: str
    role: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class NewToken(_Body):
    """A token that was made; ``token`` is shown this once."""

    token: str
    view: TokenView


class Exchange(_Body):
    """Somebody else's signed word for who asks, to be exchanged for a token of ours."""

    id_token: str = Field(max_length=20_000)


class LoginPage(_Body):
    """How a person can log in: with these issuers, by the device flow."""

    issuers: list[Issuer]


class Issuer(_Body):
    """An issuer that the server believes, and the client id that people use there."""

    issuer: str
    client_id: str


class Me(_Body):
    """Who asks, as the server sees it."""

    name: str
    project: str
    role: str


SyncState = Literal["applied", "failed"]


class SyncStatus(_Body):
    """What became of a commit that was synced."""

    source: str
    commit: str
    state: SyncState
    at: datetime
    message: str = ""
    changed: list[str] = []
    failures: int = 0
    left: list[str] = []
    """Runs that are to be kept up, ended by themselves since the commit was applied, and stay so."""


class Command(_Body):
    """What to run inside a job, and on what terminal: the first message of whoever asks."""

    command: list[str] = Field(min_length=1, max_length=1_000)
    tty: bool = False
    rows: int | None = Field(None, ge=1, le=10_000)
    columns: int | None = Field(None, ge=1, le=10_000)


class Keys(_Body):
    """What a keyboard says that is no key: another size of the window, or that nothing more comes."""

    rows: int | None = Field(None, ge=1, le=10_000)
    columns: int | None = Field(None, ge=1, le=10_000)
    end: bool = False


class Said(_Body):
    """What became of a command: its exit code, or why there is none."""

    code: int | None = None
    problem: dict[str, Any] | None = None


class Lines(_Body):
    """Lines of output."""

    items: list[LogLine]


def light(view: RunView) -> RunView:
    """Return a run without the content of its files, which may hold anything."""
    template = view.run.template
    if not template.launch.files:
        return view
    follower = template.follower and _emptied(template.follower)
    stripped = replace(template, launch=_emptied(template.launch), follower=follower)
    return replace(view, run=replace(view.run, template=stripped))


def _emptied(launch: Launch) -> Launch:
    return replace(launch, files=tuple(replace(file, content=b"") for file in launch.files))


# --- errors ---------------------------------------------------------------------------------

STATUS: Mapping[type[ModelyardError], int] = {
    errors.UsageError: 400,
    errors.SpecError: 422,
    errors.ConfigError: 409,
    errors.ModelError: 422,
    errors.HubUnreachable: 503,
    errors.NothingFits: 422,
    errors.StateMoved: 409,
    errors.PlanRefused: 409,
    errors.RunFailed: 409,
    errors.NotFound: 404,
    errors.Denied: 403,
    errors.StoreError: 503,
    errors.StoreBusy: 503,
    errors.BackendError: 502,
    errors.Unreachable: 503,
    errors.Busy: 503,
    errors.NoCapacity: 409,
    errors.Quota: 409,
    errors.AuthFailed: 502,
    errors.Misconfigured: 409,
    errors.Rejected: 422,
}
"""The HTTP status of each error: 4xx is for whoever asks to put right, 5xx is the server's side."""

_NAMED = {kind.__name__: kind for kind in STATUS}


def status_of(error: ModelyardError) -> int:
    """Return the HTTP status that an error is answered with."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 400)


def outcome_of(error: ModelyardError) -> str:
    """Return how the audit log says that a call ended.

    >>> outcome_of(errors.Denied("not yours"))
    '403 Denied'
    """
    return f"{status_of(error)} {type(error).__name__}"


def problem_of(error: ModelyardError, *, status: int | None = None) -> dict[str, Any]:
    """Return an error as a problem document, with every part it has.

    >>> problem_of(errors.NotFound("no run 'x'"))["status"]
    404
    """
    name = next((kind.__name__ for kind in type(error).__mro__ if kind in STATUS), "ModelyardError")
    body: dict[str, Any] = {
        "type": TYPE + name,
        "title": (_NAMED.get(name, ModelyardError).__doc__ or name)
        .partition("\n")[0]
        .partition(";")[0]
        .rstrip("."),
        "status": status or status_of(error),
        "detail": error.what,
        "exit_code": error.exit_code,
    }
    parts: dict[str, Any] = {
        "where": error.where and asdict(error.where),
        "fix": error.fix,
        "retry_after_s": error.retry_after_s if isinstance(error, Temporary) else None,
    }
    if isinstance(error, SpecError):
        parts["problems"] = [asdict(problem) for problem in error.problems]
    elif isinstance(error, errors.NothingFits):
        parts |= {
            "needs": error.needs,
            "refused": [asdict(each) for each in error.refused],
            "why_not": [asdict(each) for each in error.why_not],
            "elsewhere": error.elsewhere,
            "also": [problem_of(each) for each in error.also],
        }
    elif isinstance(error, errors.BackendError):
        parts["backend"] = error.backend
    return body | {name: value for name, value in parts.items() if value}


def error_of(body: Mapping[str, Any]) -> ModelyardError:
    """Return the error that a problem document was made of; one we do not know keeps its words.

    >>> error_of(problem_of(errors.NoCapacity("full", backend="rack"))).backend
    'rack'
    """
    kind = _NAMED.get(str(body.get("type", "")).removeprefix(TYPE))
    what, fix = str(body.get("detail") or body.get("title") or "the server refused"), body.get("fix")
    where = Position(**body["where"]) if body.get("where") else None
    error: ModelyardError
    if kind is SpecError and body.get("problems"):
        return SpecError(tuple(_problems(body["problems"])))
    if kind is errors.NothingFits:
        homeless = errors.NothingFits(
            what, needs=body.get("needs", ""), refused=[Refusal(**each) for each in body.get("refused", ())],
            why_not=[WhyNot(**each) for each in body.get("why_not", ())],
            elsewhere=body.get("elsewhere", ""), where=where, fix=fix,
        )  # fmt: skip
        others = (error_of(each) for each in body.get("also", ()))
        homeless.also = tuple(each for each in others if isinstance(each, errors.NothingFits))
        return homeless
    if kind is errors.HubUnreachable:
        return errors.HubUnreachable(what, fix=fix, retry_after_s=body.get("retry_after_s"))
    if kind is not None and issubclass(kind, errors.BackendError):
        error = kind(what, backend=body.get("backend", ""), where=where, fix=fix)
    elif kind is None or kind is SpecError:
        error = ModelyardError(what, where=where, fix=fix)
    else:
        error = kind(what, where=where, fix=fix)
    if isinstance(error, Temporary):
        error.retry_after_s = body.get("retry_after_s")
    return error


def _problems(found: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    for each in found:
        yield Problem(
            Position(**each["at"]),
            each["what"],
            each.get("fix"),
            each.get("source_line"),
            each.get("exit_code", SpecError.exit_code),
        )
