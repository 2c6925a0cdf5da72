"""Services live, as the gateway sees them."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from orchestrator.cli.shared import Json
from orchestrator.errors import Denied, Unreachable

app = typer.Typer(rich_markup_mode=None)

KEY = "MODELYARD_GATEWAY_KEY"
CLEAR = "\x1b[H\x1b[2J"


@app.command()
def top(
    gateway: Annotated[
        str, typer.Option("--gateway", metavar="URL", help="Where the gateway listens.")
    ] = "http://127.0.0.1:8080",
    every: Annotated[
        float, typer.Option("--every", min=0.2, metavar="SECONDS", help="How often to look.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look, and end.")] = False,
    json: Json = False,
) -> None:
    """Show services live: replicas, load, tokens and cost.

    It takes a key that opens every service, in MODELYARD_GATEWAY_KEY. On a terminal it goes on until
    it is interrupted; elsewhere, and with --json, it prints one look.
    """
    import sys

    from orchestrator.gateway.top import services, told_of
    from orchestrator.render.services import services_json, services_text

    lives = sys.stdout.isatty() and not once and not json
    before, at_s = told_of(_ask(gateway)), time.monotonic()
    while True:
        time.sleep(every)
        now, now_s = told_of(_ask(gateway)), time.monotonic()
        found = services(before, now, over_s=now_s - at_s)
        before, at_s = now, now_s
        if json:
            typer.echo(services_json(found))
        else:
            typer.echo((CLEAR if lives else "") + services_text(found))
        if not lives:
            return


def _ask(gateway: str) -> str:
    """Return the gateway's exposition.

    Raises:
        Denied: the key is missing, or does not open every service.
        Unreachable: nothing answers there, or it is no gateway.
    """
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}
    try:
        answer = httpx.get(f"{gateway.rstrip('/')}/metrics", headers=headers, timeout=5.0)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fix = "modelyard gateway runs one; name it with --gateway"
        raise Unreachable(f"no gateway answers at {gateway}: {error}", fix=fix) from error
    if answer.status_code in (401, 403):
        fix = f"modelyard gateway key NAME makes one; set {KEY}"
        raise Denied("the gateway's figures take a key that opens every service", fix=fix)
    if answer.status_code != 200 or "modelyard_gateway_" not in answer.text:
        raise Unreachable(f"what answers at {gateway} is no gateway", fix="name it with --gateway")
    return answer.text
