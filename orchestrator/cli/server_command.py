"""The server: the api over HTTP for many users, with the loop inside."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import (
    Config,
    database_url,
    default_config,
    parse_address,
    seconds,
    settle,
    use_catalog,
)
from orchestrator.cli.specs import AllowDestroy, AllowReplace
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    import asyncio

    from orchestrator.server.site import Site

app = typer.Typer(rich_markup_mode=None)


@app.command()
def server(
    listen: Annotated[
        str, typer.Option("--listen", help="Address and port; port 0 is any.")
    ] = "127.0.0.1:8470",
    certificate: Annotated[Path | None, typer.Option("--certificate", help="PEM file, to serve TLS.")] = None,
    private_key: Annotated[Path | None, typer.Option("--private-key", help="Its key, as PEM.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on the network without TLS: a proxy in front has it.")
    ] = False,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            "--proxy",
            metavar="ADDRESS",
            help="Believe a proxy, or a network of them, whom it asks for. May be given often.",
        ),
    ] = None,
    gateway: Annotated[
        str | None, typer.Option("--gateway", metavar="ADDRESS", help="Run the gateway too, at this address.")
    ] = None,
    sync: Annotated[
        str | None,
        typer.Option("--sync", metavar="git+URL[@REF][//FOLDER]", help="Apply a repository continuously."),
    ] = None,
    interval: Annotated[
        str, typer.Option("--interval", metavar="DURATION", help="How often it is looked at.")
    ] = "1m",
    sync_set: Annotated[str, typer.Option("--sync-set", metavar="NAME", help="The set it is.")] = "sync",
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Delete what the repository no longer has.")
    ] = True,
    signed: Annotated[
        bool, typer.Option("--signed", help="Refuse commits whose signature git cannot verify.")
    ] = False,
    oidc: Annotated[
        Path | None,
        typer.Option("--oidc", help="YAML file of issuers that people and pipelines log in with."),
    ] = None,
    webhook: Annotated[
        list[str] | None,
        typer.Option("--webhook", metavar="URL", help="Send the events of runs there. May be given often."),
    ] = None,
    allow_destroy: AllowDestroy = False,
    allow_replace: AllowReplace = False,
    config: Config = None,
) -> None:
    """Answer for many users, and keep their runs going.

    Told to end, it lets calls under way end.
    """
    try:
        from orchestrator.server.run import Door, serve
        from orchestrator.server.site import Site
    except ImportError as error:
        raise ConfigError(
            f"the server needs a package that is not installed: {error.name}",
            fix="pip install 'modelyard[server]'",
        ) from error
    host, port = parse_address(listen)
    door = Door(host, port, certificate, private_key, insecure, tuple(proxy or ()))
    inner = parse_address(gateway) if gateway is not None else None
    use_catalog()
    site = Site(database_url(), config=config or default_config(), environ=os.environ, complain=_complain)
    syncer = None
    try:
        if sync is not None:
            from platformdirs import user_state_path

            from orchestrator.apply import Consent
            from orchestrator.server.git import Source
            from orchestrator.server.sync import Syncer, Wish

            wish = Wish(
                Source.parse(sync), seconds("--interval", interval), sync_set, prune, signed,
                Consent(allow_destroy, allow_replace),
            )  # fmt: skip
            syncer = Syncer(site, wish, user_state_path("modelyard") / "sync" / wish.set_name)
        heralds = []
        if webhook:
            from orchestrator.server.webhooks import Herald

            heralds = [Herald(site, url) for url in webhook]
        doorman = None
        if oidc is not None:
            from orchestrator.server.login import Doorman, read_believed

            doorman = Doorman(site, read_believed(oidc))
        settle()
        serve(
            site, door, say=_say, syncer=syncer, doorman=doorman, heralds=heralds,
            beside=None if inner is None else lambda ended: _gateway(site, inner, ended),
        )  # fmt: skip
    finally:
        site.close()


async def _gateway(site: Site, at: tuple[str, int], ended: asyncio.Event) -> None:
    from orchestrator.cli.gateway_command import open_tracing, serve_until
    from orchestrator.gateway.server import Gateway

    told = Gateway(tracing=open_tracing() if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else None)
    site.serving = told.serving
    told.beside = site.loop.figures.text
    await serve_until(ended, told, site.store, *at, wake=site.wrote, called="gateway ")


def _say(text: str) -> None:
    typer.echo(text)
    sys.stdout.flush()


def _complain(text: str) -> None:
    typer.echo(text, err=True)
