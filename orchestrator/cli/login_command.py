"""Log in to a server: a person by the device flow, a pipeline with a token it was given."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import Denied, Unreachable, UsageError

if TYPE_CHECKING:
    import httpx

app = typer.Typer(rich_markup_mode=None)


@app.command()
def login(
    id_token_file: Annotated[
        Path | None,
        typer.Option("--id-token-file", help="A pipeline's own signed token; unset: a person, in a browser."),
    ] = None,
) -> None:
    """Print a token for the server in MODELYARD_URL, good for an hour at most.

    For example: export MODELYARD_TOKEN=$(modelyard login)
    """
    url = os.environ.get("MODELYARD_URL")
    if not url:
        raise UsageError("no server is named", fix="set MODELYARD_URL")
    import httpx

    with httpx.Client(base_url=url, timeout=30.0) as http:
        try:
            word = _read(id_token_file) if id_token_file is not None else _asked_for(http)
            typer.echo(_answer(http.post("/v1/login", json={"id_token": word}))["token"])
        except httpx.HTTPError as error:
            raise Unreachable(f"no answer: {error}", backend="login", fix="check MODELYARD_URL") from None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or '').lower()}") from None


def _asked_for(http: httpx.Client) -> str:
    """Return the word that an issuer gives about a person, who confirms it in a browser (RFC 8628)."""
    issuers = _answer(http.get("/v1/login"))["issuers"]
    if not issuers:
        raise _nobody()
    about = _answer(http.get(f"{issuers[0]['issuer'].rstrip('/')}/.well-known/openid-configuration"))
    client = {"client_id": issuers[0]["client_id"]}
    device = _answer(
        http.post(about["device_authorization_endpoint"], data={**client, "scope": "openid email"})
    )
    where = device.get("verification_uri_complete") or device["verification_uri"]
    typer.echo(f"open {where} and confirm {device['user_code']}", err=True)
    pause, deadline = float(device.get("interval", 5)), time.monotonic() + float(device["expires_in"])
    asked = {
        **client, "device_code": device["device_code"],
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
    }  # fmt: skip
    while time.monotonic() < deadline:
        answer = http.post(about["token_endpoint"], data=asked)
        if answer.status_code < 400:
            return str(answer.json()["id_token"])
        match answer.json().get("error"):
            case "authorization_pending":
                pass
            case "slow_down":
                pause += 5
            case other:
                raise Denied(f"the issuer refused: {other}")
        time.sleep(pause)
    raise Denied("nobody confirmed it in time", fix="log in again")


def _nobody() -> UsageError:
    return UsageError(
        "nobody can log in at this server: it believes no issuer",
        fix="ask an admin for a token, from modelyard token create; server --oidc names issuers",
    )


def _answer(answer: httpx.Response) -> Any:
    if (answer.status_code, answer.request.url.path) == (404, "/v1/login"):
        raise _nobody()
    if answer.status_code >= 400:
        from orchestrator.wire import PROBLEM, error_of

        if answer.headers.get("content-type", "").startswith(PROBLEM):
            raise error_of(answer.json())
        raise Denied(f"{answer.request.url.host} answered {answer.status_code}")
    return answer.json()
