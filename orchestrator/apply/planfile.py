"""Saved plans: what was reviewed, as a file that is carried out exactly or refused.

A plan file holds what would be written down, not how to find it again: specs, launches and the
offers they were placed on, the serial of every run it touches, and digests of all it was made
from. It is text that says the same for the same input, sealed with a digest of itself. The seal
shows damage and careless edits; who may write the file is for the place that keeps it to say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.apply.asked import asked_of, caught_up
from orchestrator.apply.consent import Consent
from orchestrator.apply.fleets import FleetPlan
from orchestrator.apply.inputs import read_inputs
from orchestrator.apply.planning import fingerprint
from orchestrator.apply.plans import Plan, RunPlan, VolumePlan
from orchestrator.apply.prices import PLAN_AGAIN, cap_usd_hour, chosen
from orchestrator.apply.sets import Deletion, FleetRecord, Scope
from orchestrator.backend import File, Launch
from orchestrator.errors import (
    PlanRefused,
    Position,
    Problem,
    Problems,
    Refusal,
    SpecError,
    UsageError,
)
from orchestrator.frozen import frozen
from orchestrator.planner.ask import Work
from orchestrator.planner.compose import Inputs
from orchestrator.planner.plan import Choice, Placed
from orchestrator.reconcile import Run, Template, Wanted
from orchestrator.spec.interpolation import looks_secret, refers_to_secret
from orchestrator.spec.load import Document
from orchestrator.spec.models import DevEnvironment, Fleet, Service, Task, Volume, changes, spec_of
from orchestrator.spec.parts import Change
from orchestrator.spec.tree import Entries, Source
from orchestrator.store.codec import decode, encode
from orchestrator.store.values import Volume as KeptVolume

SCHEMA = "modelyard/planfile/v1"
_SHORTEST_SECRET = 8
"""Characters below which a value is too common to be found by searching for it."""


@frozen
class Origin:
    """What a plan was made with: the program's version and the digest of its catalog."""

    tool: str
    catalog: str


@frozen
class Saved:
    """A plan file that was read and found whole; ``steps`` are still to be held to the record."""

    path: str
    record: str
    """Which record it was made against, and for which project of it; "" where there was none yet."""
    scope: Scope
    consent: Consent
    steps: tuple[Mapping[str, Any], ...]


def default_expiry(now: datetime) -> datetime:
    """Return when a plan made at ``now`` ends: at midnight UTC, after one whole day.

    Plans of one day and one input are then the same file.

    >>> default_expiry(datetime(2026, 11, 25, 18, 42, tzinfo=UTC)).isoformat()
    '2026-11-27T00:00:00+00:00'
    """
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=2)


def plan_file(
    plans: Sequence[Plan],
    *,
    origin: Origin,
    record: str,
    scope: Scope,
    consent: Consent,
    expires_at: datetime,
    environ: Mapping[str, str],
    locks: Sequence[Path] = (),
) -> str:
    """Return the plans as the text of a plan file for ``record``; ``locks`` are inputs as the specs are.

    Raises:
        PlanRefused: a file of a spec changed while it was planned, or the value of a variable
            that is named like a secret would stand in the text.
        SpecError: a spec holds a secret's value itself.
    """
    _refuse_plain_secrets(plans)
    sealed = sealed_plan(
        plans, origin=origin, record=record, scope=scope, consent=consent, expires_at=expires_at, locks=locks
    )
    text = json.dumps(sealed, indent=2, ensure_ascii=False) + "\n"
    for name, value in sorted(environ.items()):
        if looks_secret(name) and len(value) >= _SHORTEST_SECRET and json.dumps(value)[1:-1] in text:
            raise PlanRefused(
                f"the plan would hold the value of {name}", fix=f"pass {name} by its bare name in env"
            )
    return text


def sealed_plan(
    plans: Sequence[Plan],
    *,
    origin: Origin,
    record: str,
    scope: Scope,
    consent: Consent,
    expires_at: datetime,
    locks: Sequence[Path] = (),
) -> dict[str, Any]:
    """Return plans as a plan file has them, to be sent: it may hold what a spec itself says.

    Raises:
        PlanRefused: a file of a spec changed while it was planned.
    """
    body = {
        "schema": SCHEMA,
        "tool": origin.tool,
        "catalog_sha256": origin.catalog,
        "record": record,
        "expires_at": expires_at.astimezone(UTC).isoformat(timespec="seconds"),
        "set": scope.name,
        "prune": scope.prune,
        "allow": {"destroy": consent.destroy, "replace": consent.replace},
        "inputs": _inputs(plans, locks),
        "steps": [_step(plan) for plan in plans],
    }
    return {**body, "seal": _seal(body)}


def read_plan(path: str, *, origin: Origin, now: datetime) -> Saved:
    """Return the plan file at ``path``, once nothing speaks against it but the record.

    Raises:
        PlanRefused: it was changed, has expired, is of another version of the program or the
            catalog, or an input that can still be read is no longer what it was.
        UsageError: there is no such file, or it is no plan file.
    """
    body = _read(path)
    saved = opened_plan(body, path=path, origin=origin, now=now)
    with _well_formed(path):
        _check_inputs(body["inputs"])
    return saved


def opened_plan(body: Mapping[str, Any], *, path: str, origin: Origin, now: datetime) -> Saved:
    """Return a plan that was sent, once nothing in it speaks against it; ``path`` is its name in errors.

    Raises:
        PlanRefused: it was changed, has expired, or is of another version of the program or catalog.
    """
    seal, body = body.get("seal"), {key: value for key, value in body.items() if key != "seal"}
    with _well_formed(path):
        return _checked(path, body, seal, origin=origin, now=now)


def _checked(path: str, body: Mapping[str, Any], seal: object, *, origin: Origin, now: datetime) -> Saved:
    if body.get("schema") != SCHEMA:
        raise PlanRefused(f"{path} has the form {body.get('schema')!r}, not {SCHEMA!r}", fix=PLAN_AGAIN)
    if seal != _seal(body):
        raise PlanRefused(f"{path} was changed after it was written", fix=PLAN_AGAIN)
    if body["tool"] != origin.tool:
        what = f"{path} was made by modelyard {body['tool']}, this is {origin.tool}"
        raise PlanRefused(what, fix="plan and apply with the same version")
    if body["catalog_sha256"] != origin.catalog:
        raise PlanRefused(f"{path} was made with another catalog", fix=PLAN_AGAIN)
    if datetime.fromisoformat(body["expires_at"]) <= now:
        raise PlanRefused(f"{path} expired at {body['expires_at']}", fix=PLAN_AGAIN)
    scope, consent = Scope(body["set"], body["prune"]), Consent(**body["allow"])
    return Saved(path, body["record"], scope, consent, tuple(body["steps"]))


def resume(
    saved: Saved,
    *,
    record: str,
    runs: Mapping[str, Run],
    volumes: Mapping[str, KeptVolume],
    fleets: Mapping[str, FleetRecord],
    inputs: Callable[[Document, Work], Inputs] = read_inputs,
) -> tuple[Plan, ...]:
    """Return the plans of a file, held to the record: each is of what it was made against.

    Args:
        saved: What ``read_plan`` returned.
        record: Which record this is, and whose part of it, as the plan has it.
        runs: Every run on record, by name.
        volumes: Every volume on record, by name.
        fleets: Every fleet on record, by name.
        inputs: Where the files of a spec come from.

    Raises:
        PlanRefused: it was made against another record, a run, volume or fleet it touches moved since, one
            it leaves alone is no longer as its spec says, or a local file of a spec changed.
    """
    _check_record(saved, record)
    with _well_formed(saved.path):
        plans = tuple(_resume(step, saved, runs, volumes, fleets, inputs) for step in saved.steps)
    if not saved.record and (runs or volumes or fleets):
        what = "the plan is stale: it was made before there was a record, and this one is in use"
        raise PlanRefused(what, fix=PLAN_AGAIN)
    return plans


def _check_record(saved: Saved, record: str) -> None:
    """Refuse a plan that was made elsewhere: what it only creates is new here, too."""
    if saved.record in (record, ""):
        return
    (was, of), (this, mine) = (each.partition("/")[::2] for each in (saved.record, record))
    if was == this:
        what, fix = f"{saved.path} was made for project {of!r}, this is {mine!r}", f"MODELYARD_PROJECT={of}"
    else:
        what = f"{saved.path} was made against another record than this one"
        fix = "apply it with the MODELYARD_URL or MODELYARD_DATABASE_URL it was planned with, or plan again"
    raise PlanRefused(what, fix=fix)


def reason_of(plan: Plan) -> str:
    """Return why a plan does what it does, in words."""
    if isinstance(plan, Deletion):
        return plan.reason
    paths = ", ".join(change.path for change in plan.changes)
    match plan.action:
        case "create":
            return "not on record"
        case "update" if isinstance(plan, RunPlan) and plan.drift:
            return f"puts back what others changed: {'; '.join(plan.drift)}"
        case "update":
            return f"changes in place: {paths}"
        case "replace":
            return f"needs new containers: {paths or 'its files changed'}"
        case "rerun":
            return "it has ended, or was stopped"
        case _:
            return "as on record"


# --- writing --------------------------------------------------------------------------------


def _step(plan: Plan) -> dict[str, Any]:
    head: dict[str, Any] = {
        "name": plan.name,
        "type": plan.type,
        "action": plan.action,
        "reason": reason_of(plan),
    }
    if isinstance(plan, Deletion):
        return {**head, "run": _pin(plan.run), "backend": plan.backend}
    head |= {
        "set": plan.set_name,
        "at": [plan.document.position.file, plan.document.position.line, plan.document.position.column],
        "changes": [[c.path, c.old, c.new, c.mark] for c in plan.changes],
        "spec": plan.spec.canonical(),
    }
    if isinstance(plan, VolumePlan):
        return {**head, "backend": plan.backend}
    if isinstance(plan, FleetPlan):
        leaving = [[host, list(runs)] for host, runs in plan.leaving]
        head |= {"leaving": leaving, "notes": list(plan.notes)}
        if plan.template is None:
            return head
        rented = {"run": _pin(plan.run), "serving": json.loads(plan.serving), "placed": _placed(plan)}
        return {**head, **rented, "template": json.loads(encode(plan.template))}
    head |= {"spec_hash": plan.spec_hash, "run": _pin(plan.run)}
    if plan.drift:
        head |= {"drift": list(plan.drift)}
    if plan.template is None:
        return head
    if plan.action == "update" and not plan.template.base:  # what runs stays
        return {**head, "scales": plan.template.scales}  # the rest follows from spec and record
    return {
        **head,
        "image": plan.template.launch.image,
        "model": _model(plan),
        "placed": _placed(plan),
        "template": json.loads(encode(_without_files(plan))),
        "serving": json.loads(plan.serving),
        "held": plan.held,
        "notes": list(plan.notes),
    }


def _pin(run: Run | None) -> dict[str, Any] | None:
    return None if run is None else {"id": run.id, "serial": run.serial, "asked_sha256": asked_of(run)}


def _model(plan: RunPlan) -> dict[str, Any] | None:
    chosen = plan.served or plan.trained
    if chosen is None:
        return None
    sha256 = hashlib.sha256(encode(chosen.facts).encode()).hexdigest()
    return {"id": chosen.facts.id, "revision": chosen.facts.revision, "facts_sha256": sha256}


def _placed(plan: RunPlan | FleetPlan) -> dict[str, Any] | None:
    placed = plan.placed
    if placed is None:
        return None
    cap = next((cap_usd_hour(plan, choice) for choice in chosen(plan)), 0.0)
    return {
        "cap_usd_hour": cap,
        "tries_usd_hour": list(placed.tries_usd_hour),
        "choices": json.loads(encode(placed.choices)),
        "fitting": placed.fitting,
        "refused": [[r.reason, r.offers] for r in placed.refused],
        "backends": list(placed.backends),
    }


def _without_files(plan: RunPlan) -> Template:
    """Return the template without the content of the user's files: they may hold anything.

    They are read again where the plan is applied, and held to the hash that covers them.
    """
    assert plan.template is not None
    inputs = read_inputs(plan.document, plan.spec)
    if fingerprint(plan.spec, inputs, plan.held) != plan.spec_hash:
        raise PlanRefused(f"files of {plan.name!r} changed while it was planned", fix="plan again")
    return _with_files(plan.template, {file.target: replace(file, content=b"") for file in inputs.files})


def _with_files(template: Template, files: Mapping[str, File]) -> Template:
    def filled(launch: Launch) -> Launch:
        return replace(launch, files=tuple(files.get(file.target, file) for file in launch.files))

    follower = template.follower and filled(template.follower)
    return replace(template, launch=filled(template.launch), follower=follower)


def _inputs(plans: Sequence[Plan], locks: Sequence[Path]) -> list[dict[str, str]]:
    found: dict[str, str] = {}
    for plan in plans:
        if not isinstance(plan, Deletion):
            source = plan.document.source
            found[source.file] = hashlib.sha256(source.text.encode()).hexdigest()
    found |= {str(lock): hashlib.sha256(lock.read_bytes()).hexdigest() for lock in locks if lock.is_file()}
    return [{"path": path, "sha256": sha256} for path, sha256 in found.items()]


def _refuse_plain_secrets(plans: Sequence[Plan]) -> None:
    problems: list[Problem] = []
    for plan in plans:
        if not isinstance(plan, RunPlan):
            continue
        for name, value in plan.spec.env.items():
            if value and looks_secret(name) and not refers_to_secret(value):
                what = f"the value of {name} would be written into the plan"
                fix = f"write the bare name {name}, or ${{{{ secrets.{name} }}}}"
                at = plan.document.at(f"env.{name}")
                problems.append(Problem(at, what, fix))  # without its line, which shows the value
    if problems:
        raise SpecError(problems)


def _seal(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


# --- reading --------------------------------------------------------------------------------


def _read(path: str) -> dict[str, Any]:
    fix = "name a file that plan --out wrote, or give specs with -f"
    try:
        body = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}", fix=fix) from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is no saved plan", fix=fix) from None
    if not isinstance(body, dict) or not str(body.get("schema", "")).startswith("modelyard/planfile/"):
        raise UsageError(f"{path} is no saved plan", fix=fix)
    return body


def _check_inputs(inputs: Sequence[Mapping[str, str]]) -> None:
    """Refuse when a file that can still be read says something else; one that is gone says nothing."""
    from orchestrator.spec.source import decode as text_of  # brings PyYAML

    for entry in inputs:
        try:
            content = Path(entry["path"]).read_bytes()
        except OSError:
            continue
        source = text_of(content, entry["path"], Problems())
        if source is None or hashlib.sha256(source.text.encode()).hexdigest() != entry["sha256"]:
            raise PlanRefused(f"{entry['path']} changed since the plan was made", fix=PLAN_AGAIN)


@contextmanager
def _well_formed(path: str) -> Iterator[None]:
    """Refuse a file that was sealed and yet lacks what this version writes: someone else made it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise PlanRefused(
            f"{path} does not hold what a plan file holds: {error!r}", fix=PLAN_AGAIN
        ) from error


def _resume(
    step: Mapping[str, Any],
    saved: Saved,
    runs: Mapping[str, Run],
    volumes: Mapping[str, KeptVolume],
    fleets: Mapping[str, FleetRecord],
    inputs: Callable[[Document, Work], Inputs],
) -> Plan:
    if step["action"] == "delete":
        if step["type"] == "fleet":
            return _resume_fleet_deletion(step, saved, fleets)
        return _resume_deletion(step, saved, runs, volumes)
    if step["type"] == "fleet":
        return _resume_fleet(step, fleets, runs)
    return _resume_volume(step, volumes) if step["type"] == "volume" else _resume_run(step, runs, inputs)


def _resume_fleet_deletion(
    step: Mapping[str, Any], saved: Saved, fleets: Mapping[str, FleetRecord]
) -> Deletion:
    known = fleets.get(step["name"])
    if known is None or known.fleet.set_name != saved.scope.name:
        raise _stale("fleet", step["name"])
    return Deletion(step["name"], "fleet", saved.scope.name, backend=step["name"])


def _resume_fleet(
    step: Mapping[str, Any], fleets: Mapping[str, FleetRecord], runs: Mapping[str, Run]
) -> FleetPlan:
    """Return the plan of a fleet, while the record has what it was compared with.

    Who is on a host that leaves is looked up again: runs come and go.
    """
    spec, known = spec_of(step["spec"]), fleets.get(step["name"])
    assert isinstance(spec, Fleet)
    if (known is None) != (step["action"] == "create"):
        raise _stale("fleet", spec.name)
    same = known is not None and known.fleet.spec == json.dumps(spec.canonical(), sort_keys=True)
    if step["action"] == "unchanged" and not same:
        raise _stale("fleet", spec.name)
    leaving = tuple((host, tuple(known.on.get(host, ())) if known else ()) for host, _ in step["leaving"])
    plan = FleetPlan(
        _document(spec, step), spec, step["action"], _changes(step), step["set"], leaving,
        tuple(step["notes"]),
    )  # fmt: skip
    if "template" not in step:
        return plan
    return replace(
        plan, run=_same_run(step, runs), template=decode(Template, json.dumps(step["template"])),
        placed=_placed_of(step["placed"]), serving=json.dumps(step["serving"], sort_keys=True),
    )  # fmt: skip


def _resume_deletion(
    step: Mapping[str, Any], saved: Saved, runs: Mapping[str, Run], volumes: Mapping[str, KeptVolume]
) -> Deletion:
    name = step["name"]
    if step["run"] is not None:
        run = _same_run(step, runs)
        return Deletion(name, step["type"], saved.scope.name, run)
    volume = volumes.get(name)
    if volume is None or (volume.set_name, volume.backend) != (saved.scope.name, step["backend"]):
        raise _stale("volume", name)
    return Deletion(name, "volume", saved.scope.name, backend=volume.backend)


def _resume_volume(step: Mapping[str, Any], volumes: Mapping[str, KeptVolume]) -> VolumePlan:
    spec, kept = spec_of(step["spec"]), volumes.get(step["name"])
    assert isinstance(spec, Volume)
    if (kept is None) != (step["action"] == "create"):
        raise _stale("volume", spec.name)
    if step["action"] == "unchanged" and kept and kept.spec != json.dumps(spec.canonical(), sort_keys=True):
        raise _stale("volume", spec.name)
    return VolumePlan(
        _document(spec, step), spec, step["action"], step["backend"], _changes(step), step["set"]
    )


def _resume_run(
    step: Mapping[str, Any], runs: Mapping[str, Run], inputs: Callable[[Document, Work], Inputs]
) -> RunPlan:
    spec = spec_of(step["spec"])
    assert isinstance(spec, Task | Service | DevEnvironment)
    document, action = _document(spec, step), step["action"]
    if action == "unchanged":
        return _left_alone(step, spec, document, runs)
    run = _same_run(step, runs)
    plan = RunPlan(
        document, spec, action, step["spec_hash"], _changes(step), run=run, set_name=step["set"],
        notes=tuple(step.get("notes", ())), held=step.get("held", ""), drift=tuple(step.get("drift", ())),
    )  # fmt: skip
    if run and (plan.drift or (action == "update" and "template" not in step)):
        scales = step.get("scales", run.template.scales)
        return caught_up(replace(plan, template=replace(run.template, scales=scales)), run)
    template: Template = decode(Template, json.dumps(step["template"]))
    plan = replace(
        plan, template=_refilled(template, plan, inputs), placed=_placed_of(step["placed"]),
        serving=json.dumps(step["serving"], sort_keys=True),
    )  # fmt: skip
    return caught_up(plan, run) if run else plan


def _left_alone(step: Mapping[str, Any], spec: Work, document: Document, runs: Mapping[str, Run]) -> RunPlan:
    """Return the plan to do nothing, while the record says what the spec says.

    The serial does not count here: a replica that comes and goes moves it, and nothing depends on it.
    """
    run = runs.get(spec.name)
    if run is None or run.wanted is not Wanted.RUN or run.set_name != step["set"]:
        raise _stale("run", spec.name)
    if changes(spec_of(json.loads(run.spec)), spec) or run.spec_hash != step["spec_hash"]:
        raise _stale("run", spec.name)
    return RunPlan(document, spec, "unchanged", step["spec_hash"], run=run, set_name=step["set"])


def _same_run(step: Mapping[str, Any], runs: Mapping[str, Run]) -> Run | None:
    """Return the run that a step was planned against, None where there was none.

    Its serial tells when that was and does not count: whatever becomes of a run moves it, and a plan
    lies for hours.
    """
    run, pin = runs.get(step["name"]), step["run"]
    if (asked_of(run) if run else None) != (pin["asked_sha256"] if pin else None):
        raise _stale("run", step["name"])
    return run


def _stale(kind: str, name: str) -> PlanRefused:
    return PlanRefused(f"the plan is stale: {kind} {name!r} moved since it was made", fix=PLAN_AGAIN)


def _refilled(template: Template, plan: RunPlan, inputs: Callable[[Document, Work], Inputs]) -> Template:
    """Return a template with the files of its spec as they are here, if they are what was planned."""
    found = inputs(plan.document, plan.spec)
    if fingerprint(plan.spec, found, plan.held) != plan.spec_hash:
        raise PlanRefused(f"files of {plan.name!r} changed since the plan was made", fix=PLAN_AGAIN)
    return _with_files(template, {file.target: file for file in found.files})


def _document(spec: Work | Volume | Fleet, step: Mapping[str, Any]) -> Document:
    """Return a document that knows where the spec began, and no more of its source."""
    file, line, column = step["at"]
    source = Source(file, "", Problems())
    return Document(spec, Position(file, line, column), source, Entries(line, column, {}))


def _changes(step: Mapping[str, Any]) -> tuple[Change, ...]:
    return tuple(Change(path, old, new, mark) for path, old, new, mark in step["changes"])


def _placed_of(placed: Mapping[str, Any] | None) -> Placed | None:
    if placed is None:
        return None
    choices: tuple[Choice, ...] = decode(tuple[Choice, ...], json.dumps(placed["choices"]))
    refused = tuple(Refusal(reason, offers) for reason, offers in placed["refused"])
    costs = tuple(placed.get("tries_usd_hour", ()))
    return Placed(choices, placed["fitting"], refused, tuple(placed["backends"]), tries_usd_hour=costs)
