"""The server's own figures in Prometheus' text form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from orchestrator.server.site import Site

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(site: Site) -> str:
    """Return the figures: runs by project, type and state, launches, servers, and passes of the loop."""
    return "\n".join(_lines(site)) + "\n" + site.loop.figures.text()


def _lines(site: Site) -> Iterator[str]:
    runs = site.store.runs()
    yield "# HELP modelyard_runs Runs on record."
    yield "# TYPE modelyard_runs gauge"
    for (project, kind, state), many in sorted(
        Counter((r.project, r.type, r.state.value) for r in runs).items()
    ):
        yield f'modelyard_runs{{project="{project}",type="{kind}",state="{state}"}} {many}'
    yield "# HELP modelyard_gpus Accelerators of runs that are up or on their way."
    yield "# TYPE modelyard_gpus gauge"
    held: Counter[str] = Counter()
    for run in runs:
        if not run.state.is_final:
            template = run.template
            gpus = template.launch.resources.accelerators
            held[run.project] += template.replicas * template.nodes * gpus
    for project, many in sorted(held.items()):
        yield f'modelyard_gpus{{project="{project}"}} {many}'
    yield "# HELP modelyard_events_total Events on record."
    yield "# TYPE modelyard_events_total counter"
    yield f"modelyard_events_total {site.feed.serial}"
    yield "# HELP modelyard_refused_calls_total Calls that this server refused, by outcome."
    yield "# TYPE modelyard_refused_calls_total counter"
    for outcome, many in sorted(site.audit.refused.items()):
        yield f'modelyard_refused_calls_total{{outcome="{outcome}"}} {many}'
    yield "# HELP modelyard_servers Servers that share this record."
    yield "# TYPE modelyard_servers gauge"
    yield f"modelyard_servers {len(site.peers)}"
    yield "# HELP modelyard_loop_rests_total How often the loop had nothing left to do at the moment."
    yield "# TYPE modelyard_loop_rests_total counter"
    yield f"modelyard_loop_rests_total {site.passes}"
