"""Runs, jobs, events and places, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from types import MappingProxyType

from orchestrator.api import Offers, Orphan, RunView, Stray
from orchestrator.backend import Check, LogLine, Offer, Phase, Volume
from orchestrator.reconcile import Job, Run, RunEvent
from orchestrator.render.plans import holds, offer_object, price_text
from orchestrator.render.table import columns, table, to_json
from orchestrator.spec.parts import exact_bytes
from orchestrator.store.values import Artifact, SecretName
from orchestrator.units import format_bytes, format_duration


def runs_text(views: Sequence[RunView], *, now: datetime, ended: int = 0) -> str:
    """Return one line per run; ``ended`` ones are counted where there is no other."""
    if not views:
        return f"no runs ({ended} ended: ps --all)" if ended else "no runs"
    header = ["NAME", "TYPE", "STATE", "REPLICAS", "BACKEND", "AGE", "ADDRESS", "REASON"]
    return table(header, [_run_cells(view, now) for view in views])


def _run_cells(view: RunView, now: datetime) -> list[str]:
    run = view.run
    live = [job for job in view.jobs if not job.state.is_final]
    backends = sorted({job.backend for job in (live or view.jobs[-1:])})
    replicas = f"{run.ready}/{run.template.replicas}" if run.type != "task" else "-"
    if (holding := run.template.holding) and holding.most > holding.least:
        replicas = f"{run.ready}/{holding.least}..{holding.most}"
    if (scaling := run.template.scaling) and run.ready > run.template.replicas:  # the cluster's own doing
        replicas = f"{run.ready}/{scaling.least}..{scaling.most}"
    age = format_duration((now - (run.created_at or run.since)).total_seconds())
    return [
        run.name, run.type, run.state.value, replicas, ",".join(backends) or "-", age,
        next(addresses(view), "-"), run.reason or _costs(view),
    ]  # fmt: skip


def _costs(view: RunView) -> str:
    """Return what the machines of a fleet cost, and who is on them; "" for all other runs."""
    if view.run.template.holding is None:
        return ""
    live = [job for job in view.jobs if not job.state.is_final]
    used = {job.message.removeprefix("used by ") for job in live if job.message.startswith("used by ")}
    price = price_text(sum(job.rent.price_usd_hour for job in live if job.rent))
    return f"{price}, used by {', '.join(sorted(used))}" if used else price


def addresses(view: RunView) -> Iterator[str]:
    """Yield where a run's ports can be reached from this machine, ready jobs first.

    An IPv6 address stands in brackets.
    """
    live = [job for job in view.jobs if not job.state.is_final]
    for job in sorted(live, key=lambda j: j.ready_at is None):
        for host, port in job.ports.values():
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{port}" if view.run.type == "service" else f"{shown}:{port}"


def ports_text(view: RunView) -> Iterator[str]:
    """Yield one line per published port of the live jobs."""
    for job in view.jobs:
        if not job.state.is_final:
            for port, (host, local) in sorted(job.ports.items()):
                yield f"{job.name}  port {port} answers at {host}:{local}"


def editor_link(view: RunView, container: str) -> Iterator[str]:
    """Yield the link that opens a dev environment in its editor, where it is a container here.

    The form is the one of VS Code's Dev Containers extension: the hex of a small JSON object.
    """
    ide = json.loads(view.run.spec).get("ide")
    if ide and container:
        where = json.dumps({"containerName": f"/{container}"}).encode().hex()
        folder = view.run.template.launch.working_dir or "/"
        yield f"{ide}  {ide}://vscode-remote/attached-container+{where}{folder}"


def run_text(view: RunView) -> str:
    """Return one run in full: its state, its jobs, where it answers."""
    run = view.run
    launch = run.template.launch
    facts = [
        ["type", run.type],
        ["state", run.state.value + (f": {run.reason}" if run.reason else "")],
        ["wanted", run.wanted.value],
        ["image", launch.image or "none: commands of the machine"],
        ["backends", ", ".join(dict.fromkeys(run.template.backends))],
        ["spec", run.spec_hash[:12]],
        ["id", run.id],
    ]
    if run.set_name:
        facts.append(["set", run.set_name])
    if launch.tags:
        facts.append(["tags", ", ".join(f"{key}={value}" for key, value in launch.tags)])
    if found := list(addresses(view)):
        facts.insert(2, ["address", ", ".join(found)])
    lines = [run.name, *columns(facts, indent="  ")]
    if view.jobs:
        header = ["JOB", "STATE", "BACKEND", "EXIT", "REASON", "DEVICES"]
        lines += ["", table(header, [_job_cells(job) for job in view.jobs], indent="  ")]
    if rented := [[job.name, job.machine or "-", str(job.rent)] for job in view.jobs if job.rent]:
        lines += ["", table(["JOB", "MACHINE", "RENTED"], rented, indent="  ")]
    if view.artifacts:
        lines += ["", *_artifacts(view)]
    return "\n".join(lines)


def _artifacts(view: RunView) -> Iterator[str]:
    """Yield what training left, and what it was made from."""
    header = ["ARTIFACT", "SIZE", "SHA256", "WHERE"]
    rows = [
        [a.kind, format_bytes(a.size_bytes), a.sha256[:16], f"{a.location}/{a.path}".removesuffix("/.")]
        for a in view.artifacts
    ]
    yield table(header, rows, indent="  ")
    first = view.artifacts[0]
    yield f"  base     {first.base_id}" + (f" @ {first.base_revision}" if first.base_revision else "")
    yield f"  dataset  {first.dataset}" + (f" @ {first.dataset_revision}" if first.dataset_revision else "")
    for a in view.artifacts:
        if a.metrics:
            yield "  metrics  " + " · ".join(f"{name} {value:.6g}" for name, value in a.metrics)


def _job_cells(job: Job) -> list[str]:
    code = "-" if job.exit_code is None else str(job.exit_code)
    return [job.name, job.state.value, job.backend, code, job.reason or "-", ",".join(job.devices) or "-"]


def runs_json(views: Sequence[RunView]) -> str:
    """Return the runs as ``modelyard/runs/v1``."""
    return to_json("modelyard/runs/v1", {"runs": [run_object(view) for view in views]})


def ended_json(ended: Sequence[tuple[str, RunView | None]]) -> str:
    """Return what became of runs that were asked to end as ``modelyard/ended/v1``.

    A run that is no longer on record was deleted.
    """
    found = [
        {
            "name": name,
            "state": view.run.state.value if view else "deleted",
            "wanted": view.run.wanted.value if view else "delete",
            "reason": view.run.reason if view else "",
        }
        for name, view in ended
    ]
    return to_json("modelyard/ended/v1", {"runs": found})


def wait_json(names: Sequence[str], runs: Mapping[str, Run], *, goal: str, reached: Collection[str]) -> str:
    """Return how far each run came as ``modelyard/wait/v1``; one that is not on record was deleted."""
    found = [
        {
            "name": name,
            "state": runs[name].state.value if name in runs else "deleted",
            "reason": runs[name].reason if name in runs else "",
            "reached": name in reached,
        }
        for name in names
    ]
    return to_json("modelyard/wait/v1", {"goal": goal, "runs": found})


def log_json(line: LogLine, *, run: str, replica: int, node: int) -> str:
    """Return a line of output as ``modelyard/log/v1``, itself one line."""
    body = {
        "run": run, "replica": replica, "node": node,
        "at": line.at.isoformat() if line.at else None, "stream": line.stream, "text": line.text,
    }  # fmt: skip
    return to_json("modelyard/log/v1", body, indent=None)


def run_json(view: RunView) -> str:
    """Return one run as ``modelyard/run/v1``."""
    return to_json("modelyard/run/v1", {"run": run_object(view)})


def run_object(view: RunView) -> dict[str, object]:
    """Return a run with its jobs as JSON has it."""
    run: Run = view.run
    return {
        "id": run.id,
        "name": run.name,
        "type": run.type,
        "state": run.state.value,
        "wanted": run.wanted.value,
        "reason": run.reason,
        "spec_hash": run.spec_hash,
        "serial": run.serial,
        "set": run.set_name,
        "tags": dict(run.template.launch.tags),
        "replicas": run.template.replicas,
        "ready": run.ready,
        "nodes": run.template.nodes,
        "addresses": list(addresses(view)),
        "created_at": _time(run.created_at),
        "updated_at": _time(run.updated_at),
        "jobs": [_job_object(job) for job in view.jobs],
        "artifacts": [_artifact_object(each) for each in view.artifacts],
    }


def _artifact_object(artifact: Artifact) -> dict[str, object]:
    return {
        "kind": artifact.kind,
        "location": artifact.location,
        "path": artifact.path,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "base": {"id": artifact.base_id, "revision": artifact.base_revision},
        "dataset": {"id": artifact.dataset, "revision": artifact.dataset_revision},
        "image": artifact.image,
        "spec_hash": artifact.spec_hash,
        "launch": artifact.launch,
        "metrics": dict(artifact.metrics),
        "recorded_at": _time(artifact.recorded_at),
    }


def _job_object(job: Job) -> dict[str, object]:
    return {
        "name": job.name,
        "replica": job.replica,
        "node": job.node,
        "attempt": job.attempt,
        "backend": job.backend,
        "state": job.state.value,
        "exit_code": job.exit_code,
        "reason": job.reason,
        "message": job.message,
        "ports": {str(port): list(address) for port, address in job.ports.items()},
        "devices": list(job.devices),
        "machine": job.machine,
        "rent": asdict(job.rent) if job.rent else None,
        "started_at": _time(job.started_at),
        "ready_at": _time(job.ready_at),
        "finished_at": _time(job.finished_at),
    }


def _time(at: datetime | None) -> str | None:
    return at.isoformat(timespec="milliseconds") if at else None


def events_text(events: Sequence[tuple[int, RunEvent]]) -> str:
    """Return one line per event."""
    rows = [[_clock_text(e.at), e.subject, _change(e), e.cause, _extra(e)] for _, e in events]
    return table(["TIME", "SUBJECT", "STATE", "CAUSE", "MESSAGE"], rows) if rows else "no events"


def event_text(event: RunEvent) -> str:
    """Return one event as progress shows it, without its time."""
    cause = f"  {event.cause}" if event.cause else ""
    extra = f"  {_extra(event)}" if _extra(event) else ""
    return f"{event.subject}  {event.after}{cause}{extra}"


def _extra(event: RunEvent) -> str:
    return event.message.removeprefix(event.cause).removeprefix(": ")


def _change(event: RunEvent) -> str:
    return f"{event.before or '-'} -> {event.after}" if event.before != event.after else event.after


def _clock_text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def events_json(events: Sequence[tuple[int, RunEvent]]) -> str:
    """Return events as ``modelyard/events/v1``."""
    return to_json("modelyard/events/v1", {"events": [_event_object(s, e) for s, e in events]})


def _event_object(serial: int, event: RunEvent) -> dict[str, object]:
    return {
        "serial": serial,
        "run": event.run,
        "at": _time(event.at),
        "subject": event.subject,
        "before": event.before,
        "after": event.after,
        "cause": event.cause,
        "action": event.action,
        "message": event.message,
    }


def offers_text(offers: Offers) -> str:
    """Return one line per offer, cheapest first, and the places that did not answer.

    A machine of one's own stands with what its owner counts for one accelerator, which is the least
    that can be taken of it; any other with what all of it costs.
    """
    header = ["BACKEND", "REGION", "INSTANCE TYPE", "HOLDS", "CPU", "MEMORY", "DISK", "PRICE"]
    header += ["NOT NOW"] if any(offer.unfit for offer in offers.offers) else []
    ordered = sorted(offers.offers, key=lambda o: (_least_usd_hour(o), o.backend, o.region, o.instance_type))
    rows = [
        [o.backend, o.region or "-", o.instance_type, holds(o), f"{o.cpu:g}", format_bytes(o.memory_bytes),
         format_bytes(o.disk_bytes) if o.disk_bytes is not None else "-", _offer_price(o),
         o.unfit]
        for o in ordered
    ]  # fmt: skip
    lines = [table(header, rows) if rows else "no offers"]
    return "\n".join([*lines, *silent_lines(offers.silent)])


def silent_lines(silent: Mapping[str, str]) -> list[str]:
    """Return one line per place of which nothing is known, with the reason.

    >>> silent_lines({"lab": "no kubeconfig at lab.conf"})
    ['nothing is known of lab: no kubeconfig at lab.conf']
    """
    return [f"nothing is known of {name}: {why}" for name, why in sorted(silent.items())]


def _least_usd_hour(offer: Offer) -> float:
    """Return what the least that can be taken of it costs: one accelerator, or the whole machine."""
    return offer.costs_usd_hour(count=1 if offer.divisible else offer.count)


def _offer_price(offer: Offer) -> str:
    """Return what an offer costs by the hour.

    >>> _offer_price(Offer("rack", "r1", 64, 2**39, accelerator="L4-24GB", divisible=True, own_usd_hour=0.5))
    '$0.5/h each'
    """
    is_shared = offer.divisible and offer.accelerator and offer.own_usd_hour
    return price_text(_least_usd_hour(offer)) + (" each" if is_shared else "")


def offers_json(offers: Offers) -> str:
    """Return offers as ``modelyard/offers/v1``."""
    body = {"offers": [offer_object(o) for o in offers.offers], "silent": dict(offers.silent)}
    return to_json("modelyard/offers/v1", body)


def checks_text(checks: Sequence[tuple[str, Check]]) -> str:
    """Return what was looked at, line by line, with what to do about what is not well."""
    rows: list[list[str]] = []
    for name, check in checks:
        fix = f"({check.fix})" if check.fix and not check.ok else ""
        rows.append(
            [name, "ok" if check.ok else "FAIL", check.what, " ".join(filter(None, [check.detail, fix]))]
        )
    return "\n".join(columns(rows))


def checks_json(checks: Sequence[tuple[str, Check]]) -> str:
    """Return checks as ``modelyard/checks/v1``."""
    found = [
        {"backend": name, "what": c.what, "ok": c.ok, "detail": c.detail, "fix": c.fix, "denied": c.denied}
        for name, c in checks
    ]
    return to_json("modelyard/checks/v1", {"checks": found})


def orphans_text(
    orphans: Sequence[Orphan],
    strays: Sequence[Stray] = (),
    silent: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return one line per instance that belongs to no run on record: what has ended, then what runs.

    Then one per rented machine that serves no run, and the places that could not be looked at.

    What runs may be another record's, on the same machine: that is for its reader to know.
    """
    if not orphans and not strays:
        return "\n".join(["no orphans", *silent_lines(silent)])
    header = ["BACKEND", "INSTANCE", "PHASE", "RUN", "STARTED"]
    ended = [o for o in orphans if o.instance.phase is Phase.EXITED]
    alive = [o for o in orphans if o.instance.phase is not Phase.EXITED]
    warned = "still running: nobody here owns it, but another record may"
    lines: list[str] = []
    for title, found in (("ended", ended), (warned, alive)):
        if found:
            lines += [title, table(header, [_orphan_cells(o) for o in found], indent="  ")]
    if strays:
        header = ["BACKEND", "MACHINE", "TYPE", "REGION", "STATE", "LAUNCH", "WHY"]
        rows = table(header, [_stray_cells(stray) for stray in strays], indent="  ")
        lines += ["rented, and serving no run", rows]
    return "\n".join([*lines, *silent_lines(silent)])


def _stray_cells(stray: Stray) -> list[str]:
    machine = stray.machine
    return [
        stray.backend, machine.id, machine.instance_type, machine.region, machine.state,
        machine.launch or "-", stray.why,
    ]  # fmt: skip


def _orphan_cells(orphan: Orphan) -> list[str]:
    instance = orphan.instance
    at = _clock_text(instance.started_at) if instance.started_at else "-"
    return [orphan.backend, instance.name, instance.phase.value, instance.run, at]


def orphans_json(
    orphans: Sequence[Orphan],
    strays: Sequence[Stray] = (),
    silent: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return orphans and stray machines as ``modelyard/orphans/v1``."""
    found = [
        {
            "backend": o.backend,
            "name": o.instance.name,
            "run": o.instance.run,
            "phase": o.instance.phase.value,
            "started_at": _time(o.instance.started_at),
        }
        for o in orphans
    ]
    machines = [
        {
            "backend": stray.backend,
            "id": stray.machine.id,
            "instance_type": stray.machine.instance_type,
            "region": stray.machine.region,
            "state": stray.machine.state,
            "launch": stray.machine.launch,
            "why": stray.why,
        }
        for stray in strays
    ]
    return to_json("modelyard/orphans/v1", {"orphans": found, "machines": machines, "silent": dict(silent)})


def volumes_text(volumes: Sequence[tuple[str, Volume]]) -> str:
    """Return one line per volume."""
    rows = [
        [v.name, backend, exact_bytes(v.size_bytes) if v.size_bytes else "-", ", ".join(v.used_by) or "-"]
        for backend, v in volumes
    ]
    return table(["NAME", "BACKEND", "SIZE", "USED BY"], rows) if rows else "no volumes"


def volumes_json(volumes: Sequence[tuple[str, Volume]]) -> str:
    """Return volumes as ``modelyard/volumes/v1``."""
    found = [
        {"name": v.name, "backend": b, "size_bytes": v.size_bytes, "used_by": list(v.used_by)}
        for b, v in volumes
    ]
    return to_json("modelyard/volumes/v1", {"volumes": found})


def secrets_text(secrets: Sequence[SecretName]) -> str:
    """Return the names of secrets, when each was set and what it goes with; values are shown nowhere."""
    rows = [[each.name, _clock_text(each.set_at), each.given_to or "-"] for each in secrets]
    return table(["NAME", "SET", "GIVEN TO"], rows) if secrets else "no secrets"


def secrets_json(secrets: Sequence[SecretName]) -> str:
    """Return the names of secrets as ``modelyard/secrets/v1``."""
    found = [{"name": s.name, "set_at": _time(s.set_at), "given_to": s.given_to} for s in secrets]
    return to_json("modelyard/secrets/v1", {"secrets": found})
