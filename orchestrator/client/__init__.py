"""The same api from afar: planned here, carried out by a server, over HTTP."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter

from orchestrator.api import (
    FleetView,
    Found,
    Goal,
    Offers,
    Orphan,
    Planner,
    Plans,
    Rehearsal,
    RunView,
    Stray,
    has_arrived,
    origin,
)
from orchestrator.apply import (
    NOTHING_LOST,
    Consent,
    Deletion,
    FleetPlan,
    FleetRecord,
    RunPlan,
    Scope,
    require_consent,
)
from orchestrator.apply.drift import Drift
from orchestrator.apply.inputs import read_inputs
from orchestrator.apply.planfile import default_expiry, sealed_plan
from orchestrator.backend import Can, Check, Leave, LogLine, Volume
from orchestrator.client.connection import AGAIN_S, Connection, problem, quoted
from orchestrator.errors import (
    Denied,
    NotFound,
    PlanRefused,
    Unreachable,
    UsageError,
)
from orchestrator.planner.mirrors import Mirrors
from orchestrator.reconcile import Run, RunEvent, Wanted
from orchestrator.spec.models import Fleet
from orchestrator.spec.values import NAME, NAME_RULE
from orchestrator.store.values import MAIN, Artifact, SecretName
from orchestrator.store.values import Volume as KeptVolume
from orchestrator.wire import (
    QUIET,
    Application,
    Applied,
    Checked,
    CordonRequest,
    DeedPage,
    Ending,
    EventPage,
    FoundPage,
    Kept,
    Lines,
    NewToken,
    NotedDeed,
    OfferPage,
    PlacedVolume,
    ProjectBody,
    Rehearsals,
    RunPage,
    SecretValue,
    SyncStatus,
    TokenRequest,
    TokenView,
)

if TYPE_CHECKING:  # http, ssl and threads: only where runs are driven
    from orchestrator.client.channel import Channels
    from orchestrator.loop import Hooks

_Value = TypeVar("_Value")
_PAGE = 500
_FEW = 50
"""Names that are asked for one by one in a query; beyond them all runs are read."""

_VIEW: TypeAdapter[RunView] = TypeAdapter(RunView)
_LINE: TypeAdapter[LogLine] = TypeAdapter(LogLine)


class Remote(Planner):
    """The answers of a server.

    Args:
        url: Where the server is: ``https://HOST``.
        token: What it knows us by.
        project: Whose runs are meant.
        environ: The user's environment.
        clock: The time, in UTC.
        transport: How requests travel; None is the network.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        project: str = MAIN,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(environ=environ, clock=clock)
        self._told: int | None = None
        self._server = Connection(url, token, project=project, transport=transport)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    # What a plan asks ------------------------------------------------------------------------

    def record_id(self) -> str:
        """Return which record the server keeps and whose part of it is meant: ``<deployment>/<project>``."""
        try:
            return str(self._server.ask("GET", "record").json())
        except NotFound:  # an older server, which holds no plan to it
            return ""

    def record_of(self, names: Collection[str] | None) -> Mapping[str, Run]:
        """Return the runs on record by name: those of ``names`` and of fleets, or all.

        The run of a fleet that rents bears the name of the place that it is: what it may still rent is
        offered to all others.
        """
        wanted = None if names is None else {*names, *self.abilities()}
        return {view.run.name: view.run for view in self._views(wanted)}

    def rehearse(self, plans: Plans) -> Mapping[str, Rehearsal]:
        """Return what the server's clusters say of plans, by run; nothing to who may not apply them."""
        try:
            return self._server.one(
                Rehearsals, "POST", "rehearsals", self._application(plans, NOTHING_LOST)
            ).runs
        except (Denied, NotFound, PlanRefused):  # an older server, or a record that moves: the apply says it
            return {}

    def kept_volumes(self) -> Mapping[str, KeptVolume]:
        """Return the volumes on record by name."""
        found = self._server.every(KeptVolume, "volumes/record")
        return {volume.name: volume for volume in found}

    def fleet_records(self) -> Mapping[str, FleetRecord]:
        """Return the fleets on record by name, with who is on them."""
        found = self._server.every(FleetRecord, "fleets/record")
        return {record.fleet.name: record for record in found}

    def expect(self, fleets: Sequence[Fleet]) -> frozenset[str]:
        """Count on nothing: what a fleet has, the server finds out once it is applied."""
        del fleets
        return frozenset()

    def secret_names(self) -> Collection[str]:
        """Return the names of the secrets on record."""
        return {each.name for each in self.secrets()}

    def left_by(self, name: str) -> Sequence[Artifact]:
        """Return what a run of training left; nothing where it is not on record."""
        try:
            return self.run(name).artifacts
        except NotFound:
            return ()

    def abilities(self) -> Mapping[str, frozenset[Can]]:
        """Return what each place is able to do, preferred ones first."""
        found = self._server.ask("GET", "places").json()
        return {name: frozenset(map(Can, can)) for name, can in found.items()}

    def offers(self) -> Offers:
        """Return what every place offers now."""
        page = self._server.one(OfferPage, "GET", "offers")
        return Offers(tuple(page.offers), page.silent, frozenset(page.denied), frozenset(page.wrong))

    def mirrors(self) -> Mirrors:
        """Return where the server's places have images and models from."""
        try:
            found = self._server.ask("GET", "mirrors").json()
        except NotFound:  # an older server
            return Mirrors()
        return Mirrors(found["registries"], found["hub"])

    # Apply -----------------------------------------------------------------------------------

    def apply(self, plans: Plans, *, consent: Consent = NOTHING_LOST) -> tuple[str, ...]:
        """Send the plans, which the server carries out exactly or refuses."""
        require_consent(plans, consent)
        self._told = self._newest()
        return tuple(
            self._server.one(Applied, "POST", "applications", self._application(plans, consent)).runs
        )

    def _application(self, plans: Plans, consent: Consent) -> Application:
        runs = [plan for plan in plans if isinstance(plan, RunPlan) and plan.template is not None]
        given: list[RunPlan | FleetPlan] = [plan for plan in plans if isinstance(plan, FleetPlan)]
        given += runs
        # deletions are held to the set that they are of; the rest of a scope is in each step
        of = next((plan.set_name for plan in plans if isinstance(plan, Deletion)), "")
        sealed = sealed_plan(
            plans, origin=origin(), record=self.record_id(), scope=Scope(of), consent=consent,
            expires_at=default_expiry(self._clock()),
        )  # fmt: skip
        return Application(
            plan=sealed,
            files={plan.name: list(read_inputs(plan.document, plan.spec).files) for plan in runs},
            variables={
                name: self._environ[name]
                for plan in given
                if plan.action != "unchanged"
                for name, value in plan.spec.env.items()
                if value is None and name in self._environ
            },
        )

    def finish_deletions(self, plans: Plans, *, hooks: Hooks | None = None) -> None:
        """See the runs off that the plans delete, then delete the plans' volumes."""
        deletions = [plan for plan in plans if isinstance(plan, Deletion)]
        if not deletions:
            return
        leaving = [view.run.name for view in self._views(None) if view.run.wanted is Wanted.DELETE]
        if leaving:
            self.follow(leaving, "deleted", hooks=hooks)
        for deletion in deletions:
            if deletion.type == "volume":
                self.delete_volume(deletion.name)
            elif deletion.type == "fleet":
                self.delete_fleet(deletion.name)

    def drift(self) -> Found[Drift]:
        """Return where the places differ from the record."""
        return self._server.one(FoundPage[Drift], "GET", "drift").found()

    def follow(
        self, names: Sequence[str], goal: Goal, *, hooks: Hooks | None = None, timeout_s: float | None = None
    ) -> bool:
        """Wait until each run has reached ``goal`` or its end; False when time ran out."""

        def look() -> tuple[bool, Collection[str]]:
            return all(has_arrived(view.run, view.jobs, goal) for view in self._views(names)), names

        after = self._newest() if self._told is None else self._told
        return self._until(look, after, names, hooks=hooks, timeout_s=timeout_s)

    def _until(
        self,
        look: Callable[[], tuple[bool, Collection[str]]],
        after: int,
        names: Collection[str],
        *,
        hooks: Hooks | None,
        timeout_s: float | None,
    ) -> bool:
        """Wait until ``look`` says that it is so; tell what happens behind ``after`` to the runs it names.

        What happens between a look and the wait behind it was not seen by the look, and ends the wait.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        told = frozenset(names)
        while True:
            after = self._tell(after, told, hooks)
            is_so, names = look()
            told |= frozenset(names)
            if is_so:
                self._tell(after, told, hooks)
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._wait(after, 15.0 if left is None else min(15.0, left))

    def _tell(self, after: int, names: frozenset[str], hooks: Hooks | None) -> int:
        """Tell what happened behind ``after``; return the serial of the last."""
        for serial, event in self.events(None, after=after):
            after = serial
            if hooks is not None and event.run in names and event.action:  # not what the user just asked for
                hooks.event(event)
        return after

    def _wait(self, after: int, timeout_s: float) -> None:
        """Wait until something happens behind ``after``, or time is up."""
        try:
            for kind, said in self._server.stream("events/stream", {"after": after}, read_s=timeout_s):
                if kind == "message" or said == QUIET:  # else it would keep us beyond our time
                    return
        except httpx.TimeoutException:
            return
        except Unreachable:
            time.sleep(AGAIN_S)

    def _newest(self) -> int:
        return int(self._server.ask("GET", "serial").json())

    # Reading ---------------------------------------------------------------------------------

    def runs(self) -> list[RunView]:
        """Return every run, by name; the server keeps them up to date."""
        return list(self._views(None))

    def on_record(self) -> list[RunView]:
        """Return every run, by name, as it is on record."""
        return self.runs()

    def _views(self, names: Collection[str] | None) -> Iterator[RunView]:
        wanted = None if names is None or len(names) > _FEW else sorted(names)
        if wanted == []:
            return
        params = {"limit": _PAGE, "after": "", **({"name": wanted} if wanted else {})}
        for view in self._server.paged(RunPage, "runs", params):
            if names is None or view.run.name in names:
                yield view

    def run(self, name: str) -> RunView:
        """Return one run."""
        return _VIEW.validate_json(self._server.ask("GET", f"runs/{quoted(name)}").content)

    def recorded(self, name: str) -> RunView:
        """Return one run as it is on record."""
        return self.run(name)

    def events(self, name: str | None, *, after: int = 0) -> list[tuple[int, RunEvent]]:
        """Return events with their serials, oldest first."""
        params = {"after": after, **({"run": name} if name is not None else {})}
        return [(told.serial, told.event) for told in self._server.paged(EventPage, "events", params)]

    def output(self, launch: str, *, follow: bool) -> Iterator[LogLine]:
        """Yield the output of one launch."""
        return self._lines(f"launches/{quoted(launch)}/logs/stream", {"follow": follow})

    def logs(
        self,
        name: str,
        *,
        replica: int = 0,
        node: int = 0,
        follow: bool = False,
        since: datetime | None = None,
        tail: int | None = None,
    ) -> Iterator[LogLine]:
        """Yield a run's output; with ``follow`` over all attempts until the run ends."""
        params: dict[str, Any] = {"replica": replica, "node": node}
        if since is not None:
            params["since"] = since.isoformat()
        if tail is not None:
            params["tail"] = tail
        if tail is not None and not follow and tail <= 10_000:
            return iter(self._server.one(Lines, "GET", f"runs/{quoted(name)}/logs", params=params).items)
        return self._lines(f"runs/{quoted(name)}/logs/stream", {**params, "follow": follow})

    def _lines(self, path: str, params: Mapping[str, Any]) -> Iterator[LogLine]:
        for kind, data in self._server.stream(path, params):
            if kind == "message":
                yield _LINE.validate_json(data)
            elif kind == "problem":
                raise problem(data)
            elif kind == "end":
                return

    def execute(
        self, name: str, command: Sequence[str], *, replica: int = 0, node: int = 0, tty: bool
    ) -> int:
        """Run a command inside a running job on this terminal; return its exit code."""
        query = {"replica": replica, "node": node}
        return self._channels().execute(f"runs/{quoted(name)}/exec", query, command, tty=tty)

    def container(self, name: str, *, replica: int = 0, node: int = 0) -> str:
        """Return "": a container behind a server is none of this machine."""
        del replica, node
        self.run(name)
        return ""

    @contextmanager
    def forwarded(
        self, name: str, *, replica: int = 0, node: int = 0
    ) -> Iterator[Mapping[int, tuple[str, int]]]:
        """Give addresses of this machine that lead to a running job's ports."""
        launch = self.run(name).run.template.of_node(node)
        query = {"replica": replica, "node": node}
        with ExitStack() as open_ports:
            yield {
                port.container: open_ports.enter_context(
                    self._channels().forwarded(f"runs/{quoted(name)}/ports/{port.container}", query)
                )
                for port in launch.ports
            }

    def _channels(self) -> Channels:
        from orchestrator.client.channel import Channels  # websockets: only where a terminal is asked for

        return Channels(self._server.url, self._server.token, self._server.project)

    def ask(self, names: Sequence[str], wanted: Wanted) -> None:
        """Write down that the runs shall stop, or be deleted."""
        self._told = self._newest()
        self._server.ask("POST", "endings", Ending(runs=list(names), wanted=wanted))

    # Places ----------------------------------------------------------------------------------

    def check(self) -> list[tuple[str, Check]]:
        """Look whether every configured place of the server is usable."""
        return [(found.place, found.check) for found in self._server.every(Checked, "checks")]

    def diagnose(self) -> list[tuple[str, Check]]:
        """Look whether the server, its record and its places are well."""
        where = ("server", Check("answers", True, f"{self._server.url}, project {self._server.project}"))
        found = self._server.every(Checked, "checks", params={"all": "true"})
        return [where, *((each.place, each.check) for each in found)]

    def orphans(self) -> Found[Orphan]:
        """Return instances that carry our labels and belong to no run on record."""
        return self._server.one(FoundPage[Orphan], "GET", "orphans").found()

    def remove_orphans(self, orphans: Sequence[Orphan]) -> None:
        """Stop and remove them."""
        self._server.ask("POST", "orphans/removal", FoundPage[Orphan](items=list(orphans)))

    def strays(self) -> Found[Stray]:
        """Return machines that are paid for and serve no run on record."""
        return self._server.one(FoundPage[Stray], "GET", "machines/strays").found()

    def terminate(self, strays: Sequence[Stray]) -> None:
        """End them, and all that belongs to them."""
        self._server.ask("POST", "machines/termination", FoundPage[Stray](items=list(strays)))

    def volumes(self) -> list[tuple[str, Volume]]:
        """Return every volume with its backend."""
        return [(found.backend, found.volume) for found in self._server.every(PlacedVolume, "volumes")]

    def delete_volume(self, name: str) -> None:
        """Delete a volume and what it holds."""
        self._server.ask("DELETE", f"volumes/{quoted(name)}")

    def fleets(self, name: str | None = None) -> list[FleetView]:
        """Return every fleet by name, or one, with its hosts as they are at this moment."""
        return self._server.every(FleetView, "fleets", params={"name": name} if name else None)

    def delete_fleet(self, name: str) -> None:
        """Let go of a fleet's hosts; what ended there goes with its output."""
        self._server.ask("DELETE", f"fleets/{quoted(name)}")
        self.follow([name], "deleted")

    def cordon(self, fleet: str, host: str, *, reason: str = "", leave: Leave = "") -> None:
        """Let nothing new start on a host; with ``leave`` also move away what is there."""
        asked = CordonRequest(reason=reason, leave=leave)
        self._server.ask("PUT", f"fleets/{quoted(fleet)}/cordons/{quoted(host)}", asked)

    def uncordon(self, fleet: str, host: str) -> None:
        """Let launches start on a host again."""
        self._server.ask("DELETE", f"fleets/{quoted(fleet)}/cordons/{quoted(host)}")

    def emptied(
        self, fleet: str, host: str, *, hooks: Hooks | None = None, timeout_s: float | None = None
    ) -> bool:
        """Wait until no run has a launch on a host; False when time ran out."""

        def look() -> tuple[bool, Collection[str]]:
            on = {name for each in self.fleets(fleet) for name in each.on.get(host, ())}
            return not on, on

        return self._until(look, self._newest(), (), hooks=hooks, timeout_s=timeout_s)

    def secrets(self) -> list[SecretName]:
        """Return the names of the secrets, when each was last set and what it goes with."""
        found = self._server.every(Kept, "secrets")
        return [SecretName(kept.name, kept.set_at, kept.given_to) for kept in found]

    def set_secret(self, name: str, value: str) -> None:
        """Keep a secret, encrypted, where the server is."""
        self._server.ask("PUT", f"secrets/{quote(name)}", SecretValue(value=value))

    def delete_secret(self, name: str) -> None:
        """Forget a secret."""
        self._server.ask("DELETE", f"secrets/{quote(name)}")

    # Users -----------------------------------------------------------------------------------

    def call(self, method: str, path: str, kind: type[_Value], body: BaseModel | None = None) -> _Value:
        """Return what a route under ``/v1/`` answers, for commands about the server itself."""
        return self._server.call(method, path, kind, body)

    def tokens(self) -> list[TokenView]:
        """Return the tokens that this caller may see."""
        return self._server.every(TokenView, "tokens")

    def new_token(self, request: TokenRequest) -> NewToken:
        """Have a token made."""
        return self._server.one(NewToken, "POST", "tokens", request)

    def revoke(self, id: str) -> None:
        """Let a token open nothing from now on."""
        self._server.ask("DELETE", f"tokens/{quoted(id)}")

    def projects(self) -> list[ProjectBody]:
        """Return every project."""
        return self.call("GET", "projects", list[ProjectBody])

    def put_project(self, body: ProjectBody) -> None:
        """Make a project, or give it other limits."""
        self.call("PUT", "projects", ProjectBody, body)

    def delete_project(self, name: str) -> None:
        """Forget a project that holds nothing, its tokens and its secrets."""
        self.call("DELETE", f"projects/{quoted(name)}", type(None))

    def audit(self, *, after: int = 0) -> list[NotedDeed]:
        """Return the audit log from behind a serial."""
        return list(self._server.paged(DeedPage, "audit", {"after": after}))

    def sync_status(self) -> list[SyncStatus]:
        """Return what became of the last commits that the server synced, newest first."""
        return self._server.every(SyncStatus, "sync")

    def sync_now(self) -> None:
        """Have the server look at the repository at once."""
        self._server.ask("POST", "sync")


def from_environment(environ: Mapping[str, str]) -> Remote | None:
    """Return the server that the environment names, None where it names none.

    Raises:
        UsageError: there is no token for it, or no project can be called what is named.
    """
    url = environ.get("MODELYARD_URL")
    if not url:
        return None
    token = environ.get("MODELYARD_TOKEN")
    if not token:
        raise UsageError("MODELYARD_URL without MODELYARD_TOKEN", fix="set it, or run modelyard login")
    if not (token.isascii() and token.isprintable()):
        raise UsageError("MODELYARD_TOKEN is no token", fix="it begins with my-")
    project = environ.get("MODELYARD_PROJECT") or MAIN
    if not NAME.fullmatch(project):
        raise UsageError(f"MODELYARD_PROJECT: {project!r} is no name of a project", fix=NAME_RULE)
    return Remote(url, token, project=project, environ=environ)
