"""Routes of a project: plans, runs, events, output, places, volumes, fleets and secrets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Annotated

from fastapi import Path, Query, Request, Response

from orchestrator.api import FleetView, Orphan, Plans, RunView, Stray, origin
from orchestrator.apply import Consent, FleetPlan, FleetRecord, RunPlan, Scope
from orchestrator.apply.drift import Drift
from orchestrator.apply.inputs import clone_command, digest_of
from orchestrator.apply.planfile import default_expiry, opened_plan, resume, sealed_plan
from orchestrator.apply.prices import check_prices, is_priced
from orchestrator.backend import Can, LogLine
from orchestrator.catalog.hardware import known_names
from orchestrator.errors import Denied, SpecError, UsageError
from orchestrator.planner.ask import Work
from orchestrator.planner.compose import Inputs
from orchestrator.planner.mirrors import Mirrors
from orchestrator.reconcile import RunEvent, Wanted
from orchestrator.server import streams
from orchestrator.server.carrying import carry_out, named_in_audit
from orchestrator.server.gate import Gate, caller, require_serial, site_of
from orchestrator.server.site import Hosted, Site
from orchestrator.server.sync import Syncer
from orchestrator.server.users import EVERYWHERE, Caller, Role
from orchestrator.spec.load import Document, read
from orchestrator.spec.values import MAX_NAME, NAME
from orchestrator.store.values import Volume as KeptVolume
from orchestrator.wire import (
    MAX_PAGE,
    Application,
    Applied,
    Checked,
    CordonRequest,
    Ending,
    EventPage,
    FoundPage,
    Kept,
    Lines,
    OfferPage,
    PlacedVolume,
    PlanRequest,
    Rehearsals,
    RunPage,
    SecretValue,
    SyncStatus,
    Told,
    light,
)

gate = Gate("/v1/projects/{project}", ["runs"])

Project = Annotated[str, Path(max_length=63)]
Name = Annotated[str, Path(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Serial = Annotated[int, Query(ge=0, le=2**62)]
Count = Annotated[int, Query(ge=0, le=1_000_000)]
_SECRET = r"^[A-Za-z0-9_./-]{1,200}$"


# Plans -----------------------------------------------------------------------------------------


@gate.route_for("POST", "/plans", Role.VIEWER)
def plan(project: Project, asked: PlanRequest, request: Request) -> dict[str, object]:
    """Plan documents, and return a plan file: what would be done, and what POST applications takes."""
    site = site_of(request)
    api = site.api(project)
    documents = [document for file in asked.files for document in _read(file.path, file.text, asked)]
    _refuse_twins(documents)
    for document in documents:
        _refuse_local(document)
    scope = Scope(asked.set, asked.prune, asked.take)
    plans = api.plan(documents, rerun=asked.rerun, sort=asked.sort, strict=asked.strict, scope=scope)
    consent = Consent(asked.allow_destroy, asked.allow_replace)
    now = site.clock()
    return sealed_plan(
        plans, origin=origin(), record=api.record_id(), scope=scope, consent=consent,
        expires_at=default_expiry(now),
    )  # fmt: skip


def _read(path: str, text: str, asked: PlanRequest) -> tuple[Document, ...]:
    return read(text, file=path, known_accelerators=known_names(), env=asked.env, args=asked.args)


def _refuse_twins(documents: list[Document]) -> None:
    first: dict[tuple[str, str], Document] = {}
    for document in documents:
        kind = document.spec.type
        key = kind if kind in ("volume", "fleet") else "run", document.spec.name
        if key in first:
            what = f"a second document named {document.spec.name!r}"
            raise SpecError([document.problem("name", what, f"the first is at {first[key].position}")])
        first[key] = document


def _refuse_local(document: Document) -> None:
    """Refuse what would be read from this server's own disk."""
    spec = document.spec
    repos = [repo for repo in getattr(spec, "repos", ()) if repo.local_path]
    for field, there in (("files", getattr(spec, "files", ())), ("repos", repos)):
        if there:
            fix = "plan with the command line, which sends them along"
            raise SpecError([document.problem(field, f"{field} of a disk cannot be sent by this call", fix)])


@gate.route_for("POST", "/applications", Role.OPERATOR)
def apply(project: Project, sent: Application, request: Request) -> Applied:
    """Carry out a plan file exactly, or refuse it: stale, expired, changed, or over a limit."""
    site = site_of(request)
    plans, consent = opened(site, site.api(project), sent)
    _require_for_fleets(caller(request), plans, project)
    request.state.subject, request.state.spec_hash = named_in_audit(plans)
    return Applied(runs=list(carry_out(site, project, plans, consent, sent.variables)))


@gate.route_for("POST", "/rehearsals", Role.OPERATOR)
def rehearse(project: Project, sent: Application, request: Request) -> Rehearsals:
    """Say a plan file to the clusters that would keep its runs, and return their words; writes nothing."""
    site = site_of(request)
    api = site.api(project)
    plans, _ = opened(site, api, sent)
    return Rehearsals(runs=dict(api.rehearse(plans)))


def _require_for_fleets(asking: Caller, plans: Plans, project: str) -> None:
    """Hold back fleets from who is no admin: this server logs in where they say, with keys of its own."""
    named = [plan.name for plan in plans if plan.type == "fleet" and plan.action != "unchanged"]
    if named and not asking.may(Role.ADMIN, project):
        raise Denied(
            f"{asking.name!r} may not change fleet {named[0]!r}",
            fix=f"it takes a token with the role admin in project {project!r}",
        )


def opened(site: Site, api: Hosted, sent: Application) -> tuple[Plans, Consent]:
    """Return the plans that were sent, held to the record and to what machines cost now."""
    saved = opened_plan(sent.plan, path="the plan", origin=origin(), now=site.clock())

    def inputs(_document: Document, spec: Work) -> Inputs:
        files = tuple(sent.files.get(spec.name, ()))
        clones = tuple(clone_command(repo) for repo in spec.repos if not repo.local_path)
        return Inputs(files, digest_of(files), clones)

    plans = resume(
        saved, record=api.record_id(), runs=api.record_of(None), volumes=api.kept_volumes(),
        fleets=api.fleet_records(), inputs=inputs,
    )  # fmt: skip
    api.record_of([plan.name for plan in plans if isinstance(plan, RunPlan)])  # a name of another project
    _refuse_strange(api, plans)
    if is_priced(plans):
        found = api.offers()
        check_prices(plans, found.offers, found.silent)
    return plans, saved.consent


def _refuse_strange(api: Hosted, plans: Plans) -> None:
    """Refuse launches that no plan of ours would hold: a template is the sender's to write."""
    known = api.abilities()
    for plan in plans:
        if isinstance(plan, RunPlan | FleetPlan) and plan.template is not None:
            launch, is_fleet = plan.template.launch, isinstance(plan, FleetPlan)
            if launch.run != plan.name or launch.name != f"{plan.name}-0-0-0":
                raise Denied(f"the launch of {plan.name!r} bears another name")
            if launch.fleet != (plan.name if is_fleet else "") or (plan.template.holding is None) is is_fleet:
                raise Denied(f"the launch of {plan.name!r} holds machines as no {plan.type} does")
            spec_hash = plan.spec_hash if isinstance(plan, RunPlan) else plan.spec.hash()
            if launch.spec_hash != spec_hash and plan.action != "update":
                raise Denied(f"the launch of {plan.name!r} is of another spec")
            if strange := sorted(set(plan.template.backends) - set(known)):
                raise UsageError(f"no backend {strange[0]!r} here", fix="plan again")
            if not NAME.fullmatch(plan.name) or len(plan.name) > MAX_NAME:
                raise UsageError(f"{plan.name!r} is no name for a run")


# Runs ------------------------------------------------------------------------------------------


@gate.route_for("GET", "/runs", Role.VIEWER)
def runs(
    project: Project,
    request: Request,
    name: Annotated[list[str] | None, Query(max_length=200)] = None,
    after: Annotated[str, Query(max_length=200)] = "",
    limit: Limit = 200,
) -> RunPage:
    """List runs with their jobs, by name: all, or those of the names given."""
    api = site_of(request).api(project)
    found = [run for run in api.runs_on_record() if run.name > after and (name is None or run.name in name)]
    page = found[:limit]
    views = [light(view) for view in api.views(page)]
    return RunPage(items=views, next=page[-1].name if len(found) > limit else None)


@gate.route_for("GET", "/runs/{name}", Role.VIEWER)
def run(project: Project, name: Name, request: Request, response: Response) -> RunView:
    """Show one run; its ETag is the serial that If-Match takes."""
    view = light(site_of(request).api(project).recorded(name))
    response.headers["ETag"] = f'"{view.run.serial}"'
    return view


@gate.route_for("POST", "/runs/{name}/stop", Role.OPERATOR, status=202)
def stop(project: Project, name: Name, request: Request) -> RunView:
    """Ask a run to end: drain, then terminate, then kill."""
    return _end(project, name, Wanted.STOP, request)


@gate.route_for("DELETE", "/runs/{name}", Role.OPERATOR, status=202)
def delete(project: Project, name: Name, request: Request) -> RunView:
    """Ask a run to end and be forgotten."""
    return _end(project, name, Wanted.DELETE, request)


def _end(project: str, name: str, wanted: Wanted, request: Request) -> RunView:
    api = site_of(request).api(project)
    api.ask([name], wanted, hold=lambda run: require_serial(request, run.serial))
    return light(api.recorded(name))


@gate.route_for("POST", "/endings", Role.OPERATOR, status=202)
def end(project: Project, ending: Ending, request: Request) -> Applied:
    """Ask several runs to end, or to be deleted: all of them, or none."""
    request.state.subject = ",".join(ending.runs)
    if ending.wanted is Wanted.RUN:
        raise UsageError("an ending ends", fix='wanted: "stop" or "delete"')
    site_of(request).api(project).ask(ending.runs, ending.wanted)
    return Applied(runs=ending.runs)


# Events and output -----------------------------------------------------------------------------


@gate.route_for("GET", "/events", Role.VIEWER)
def events(
    project: Project,
    request: Request,
    run: str | None = None,
    after: Serial = 0,
    limit: Limit = MAX_PAGE,
) -> EventPage:
    """List events, oldest first, from behind a serial."""
    found = site_of(request).store.events(run, after=after, limit=limit, project=project)
    items = [Told(serial=serial, event=event) for serial, event in found]
    return EventPage(items=items, next=str(items[-1].serial) if len(items) == limit else None)


@gate.route_for("GET", "/record", Role.VIEWER)
def record(project: Project, request: Request) -> str:
    """Return which record this is and whose part of it: a plan file is for no other."""
    return site_of(request).api(project).record_id()


@gate.route_for("GET", "/serial", Role.VIEWER)
def serial(project: Project, request: Request) -> int:  # noqa: ARG001  # the gate reads the project
    """Return the serial of the newest event, to go on behind."""
    return site_of(request).store.last_serial()


@gate.route_for("GET", "/events/stream", Role.VIEWER, response_class=streams.EventStream)
async def stream(
    project: Project, request: Request, run: str | None = None, after: Serial = 0
) -> streams.EventStream:
    """Follow events as server-sent events; Last-Event-ID goes on where a stream was cut."""
    site = site_of(request)
    last = request.headers.get("last-event-id", "")
    start = int(last) if last.isdecimal() and len(last) < 19 else after

    def page(serial: int) -> list[tuple[int, RunEvent]]:
        return site.store.events(run, after=serial, limit=streams.AT_ONCE, project=project)

    return streams.EventStream(streams.events(site.feed, page, after=start))


@gate.route_for("GET", "/runs/{name}/logs", Role.VIEWER)
def logs(
    project: Project,
    name: Name,
    request: Request,
    replica: Count = 0,
    node: Count = 0,
    since: datetime | None = None,
    tail: Annotated[int, Query(ge=0, le=10_000)] = 1_000,
) -> Lines:
    """Return the last lines of a run's output."""
    api = site_of(request).api(project)
    found = api.logs(name, replica=replica, node=node, follow=False, since=_zoned(since), tail=tail)
    return Lines(items=list(found))


@gate.route_for("GET", "/runs/{name}/logs/stream", Role.VIEWER, response_class=streams.EventStream)
async def follow_logs(
    project: Project,
    name: Name,
    request: Request,
    replica: Count = 0,
    node: Count = 0,
    follow: bool = True,
    since: datetime | None = None,
    tail: Annotated[int | None, Query(ge=0)] = None,
) -> streams.EventStream:
    """Follow a run's output as server-sent events, over all attempts until the run ends."""
    site = site_of(request)
    api = site.api(project)

    def source() -> Iterator[LogLine]:
        return api.logs(name, replica=replica, node=node, follow=follow, since=_zoned(since), tail=tail)

    return streams.EventStream(streams.lines(source, site.feed))


@gate.route_for("GET", "/launches/{name}/logs/stream", Role.VIEWER, response_class=streams.EventStream)
async def follow_output(
    project: Project, name: Name, request: Request, follow: bool = True
) -> streams.EventStream:
    """Follow the output of one launch as server-sent events."""
    site = site_of(request)
    api = site.api(project)
    return streams.EventStream(streams.lines(lambda: api.output(name, follow=follow), site.feed))


def _zoned(at: datetime | None) -> datetime | None:
    if at is not None and at.tzinfo is None:
        raise UsageError("since: a time without a zone", fix="for example 2026-01-31T12:00:00Z")
    return at


# Places ----------------------------------------------------------------------------------------


@gate.route_for("GET", "/places", Role.VIEWER)
def places(project: Project, request: Request) -> dict[str, list[Can]]:
    """Return what each place is able to do, preferred ones first."""
    can = site_of(request).api(project).abilities()
    return {name: sorted(able, key=lambda each: each.name) for name, able in can.items()}


@gate.route_for("GET", "/mirrors", Role.VIEWER)
def mirrors(project: Project, request: Request) -> Mirrors:
    """Return where images and models are had from: what plans put in place of their publishers'."""
    return site_of(request).api(project).mirrors()


@gate.route_for("GET", "/offers", Role.VIEWER)
def offers(project: Project, request: Request) -> OfferPage:
    """Return what can be had where, for how much."""
    found = site_of(request).api(project).offers()
    return OfferPage(
        offers=list(found.offers), silent=dict(found.silent), denied=sorted(found.denied),
        wrong=sorted(found.wrong),
    )  # fmt: skip


@gate.route_for("GET", "/checks", Role.VIEWER)
def checks(project: Project, request: Request, all: bool = False) -> list[Checked]:
    """Look whether every place is usable; with ``all`` also whether the server and its record are."""
    api = site_of(request).api(project)
    found = api.diagnose() if all else api.check()
    return [Checked(place=place, check=check) for place, check in found]


@gate.route_for("GET", "/drift", Role.VIEWER)
def drift(project: Project, request: Request) -> FoundPage[Drift]:
    """Return where the places differ from the record."""
    api = site_of(request).api(project)
    found = api.drift()
    if caller(request).project != EVERYWHERE:  # what nobody owns may have been any project's
        ours = {run.name for run in api.runs_on_record()} | {""}  # volumes are of no run
        found = replace(found, items=tuple(each for each in found.items if each.run in ours))
    return FoundPage[Drift].of(found)


@gate.route_for("GET", "/orphans", Role.ADMIN)
def orphans(project: Project, request: Request) -> FoundPage[Orphan]:
    """Return instances that carry our labels and belong to no run on record."""
    _require_everywhere(request)
    return FoundPage[Orphan].of(site_of(request).api(project).orphans())


@gate.route_for("POST", "/orphans/removal", Role.ADMIN)
def remove_orphans(project: Project, gone: FoundPage[Orphan], request: Request) -> Applied:
    """Stop and remove instances, if nobody owns them still."""
    _require_everywhere(request)
    api = site_of(request).api(project)
    there = {(orphan.backend, orphan.instance.name): orphan for orphan in api.orphans().items}
    wanted = [(orphan.backend, orphan.instance.name) for orphan in gone.items]
    api.remove_orphans([there[key] for key in wanted if key in there])
    return Applied(runs=[name for _, name in wanted])


@gate.route_for("GET", "/machines/strays", Role.ADMIN)
def strays(project: Project, request: Request) -> FoundPage[Stray]:
    """Return machines that are paid for and serve no run on record."""
    _require_everywhere(request)
    return FoundPage[Stray].of(site_of(request).api(project).strays())


@gate.route_for("POST", "/machines/termination", Role.ADMIN)
def terminate(project: Project, gone: FoundPage[Stray], request: Request) -> Applied:
    """End machines, if they serve no run still."""
    _require_everywhere(request)
    api = site_of(request).api(project)
    there = {(stray.backend, stray.machine.id): stray for stray in api.strays().items}
    wanted = [(stray.backend, stray.machine.id) for stray in gone.items]
    api.terminate([there[key] for key in wanted if key in there])
    return Applied(runs=[name for _, name in wanted])


def _require_everywhere(request: Request) -> None:
    """Hold back what concerns every project from who may only see one."""
    if caller(request).project != EVERYWHERE:
        raise Denied("what nobody owns is for an admin of every project", fix="token create --project '*'")


# Volumes and secrets ---------------------------------------------------------------------------


@gate.route_for("GET", "/volumes", Role.VIEWER)
def volumes(project: Project, request: Request) -> list[PlacedVolume]:
    """List volumes as their places have them."""
    found = site_of(request).api(project).volumes()
    return [PlacedVolume(backend=backend, volume=volume) for backend, volume in found]


@gate.route_for("GET", "/volumes/record", Role.VIEWER)
def kept_volumes(project: Project, request: Request) -> list[KeptVolume]:
    """List volumes as they are on record."""
    return list(site_of(request).api(project).kept_volumes().values())


@gate.route_for("DELETE", "/volumes/{name}", Role.OPERATOR, status=204)
def delete_volume(project: Project, name: Name, request: Request) -> None:
    """Delete a volume and what it holds."""
    site_of(request).api(project).delete_volume(name)


# Fleets ----------------------------------------------------------------------------------------


@gate.route_for("GET", "/fleets", Role.VIEWER)
def fleets(project: Project, request: Request, name: str | None = None) -> list[FleetView]:
    """List fleets with their hosts as they are at this moment."""
    return site_of(request).api(project).fleets(name)


@gate.route_for("GET", "/fleets/record", Role.VIEWER)
def fleet_records(project: Project, request: Request) -> list[FleetRecord]:
    """List fleets as they are on record, with who is on them."""
    return list(site_of(request).api(project).fleet_records().values())


@gate.route_for("DELETE", "/fleets/{name}", Role.ADMIN, status=202)
def delete_fleet(project: Project, name: Name, request: Request) -> Applied:
    """Let go of a fleet's hosts; return the run to wait for where it rents them, which ends with them."""
    site = site_of(request)
    is_ending = site.api(project).end_fleet(name)
    site.wrote()
    return Applied(runs=[name] if is_ending else [])


@gate.route_for("PUT", "/fleets/{name}/cordons/{host}", Role.ADMIN, status=204)
def cordon(project: Project, name: Name, host: Name, asked: CordonRequest, request: Request) -> None:
    """Let nothing new start on a host; with leave also move away what is there."""
    site_of(request).api(project).cordon(name, host, reason=asked.reason, leave=asked.leave)


@gate.route_for("DELETE", "/fleets/{name}/cordons/{host}", Role.ADMIN, status=204)
def uncordon(project: Project, name: Name, host: Name, request: Request) -> None:
    """Let launches start on a host again."""
    site_of(request).api(project).uncordon(name, host)


@gate.route_for("GET", "/secrets", Role.VIEWER)
def secrets(project: Project, request: Request) -> list[Kept]:
    """List the names of secrets; values are shown nowhere."""
    found = site_of(request).api(project).secrets()
    return [Kept(name=each.name, set_at=each.set_at, given_to=each.given_to) for each in found]


@gate.route_for("PUT", "/secrets/{name:path}", Role.OPERATOR, status=204)
def set_secret(
    project: Project, name: Annotated[str, Path(pattern=_SECRET)], secret: SecretValue, request: Request
) -> None:
    """Keep a secret, encrypted."""
    site_of(request).api(project).set_secret(name, secret.value)


@gate.route_for("DELETE", "/secrets/{name:path}", Role.OPERATOR, status=204)
def delete_secret(project: Project, name: Annotated[str, Path(pattern=_SECRET)], request: Request) -> None:
    """Forget a secret."""
    site_of(request).api(project).delete_secret(name)


# Sync ------------------------------------------------------------------------------------------


@gate.route_for("GET", "/sync", Role.VIEWER)
def sync_status(project: Project, request: Request) -> list[SyncStatus]:
    """Say what became of the last commits that were synced, newest first."""
    return [status for each in _syncers(request, project) for status in each.history()]


@gate.route_for("POST", "/sync", Role.OPERATOR, status=202)
def sync_now(project: Project, request: Request) -> Applied:
    """Sync now, whatever the clock says, and start again what ended by itself."""
    for each in _syncers(request, project):
        each.ask()
    return Applied(runs=[])


def _syncers(request: Request, project: str) -> list[Syncer]:
    found: Syncer | None = getattr(request.app.state, "syncer", None)
    return [found] if found is not None and found.project == project else []
