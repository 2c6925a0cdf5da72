"""The gateway: run it on the record, and the keys that open it."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.shared import Config, Json, open_record, parse_address, settle
from orchestrator.errors import ConfigError, NotFound, UsageError

if TYPE_CHECKING:
    import ssl

    from orchestrator.gateway.server import Gateway
    from orchestrator.gateway.server.tracing import Tracing
    from orchestrator.store.records import Store

app = typer.Typer(rich_markup_mode=None)
gateway = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(gateway, name="gateway")

_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.", show_default=False)]


@gateway.callback()
def run_gateway(
    context: typer.Context,
    listen: Annotated[
        str, typer.Option("--listen", help="Address and port; port 0 is any.")
    ] = "127.0.0.1:8080",
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option("--trust-proxy", help="Address of a proxy in front, whose X-Forwarded-For is believed."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option("--certificate", help="PEM file, to serve TLS.")] = None,
    private_key: Annotated[Path | None, typer.Option("--private-key", help="Its key, as PEM.")] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="Print a JSON line per request.")] = False,
    share_port: Annotated[
        bool,
        typer.Option(
            "--share-port",
            help="Let other gateways listen there too: one for each core, or the next before this one ends.",
        ),
    ] = False,
    traces: Annotated[
        bool,
        typer.Option("--traces", help="Send OpenTelemetry traces where OTEL_EXPORTER_OTLP_ENDPOINT says."),
    ] = False,
    scale: Annotated[
        bool,
        typer.Option(
            "--scale/--no-scale", help="Scale services by their load and keep runs going; one gateway does."
        ),
    ] = True,
    config: Config = None,
) -> None:
    """Pass requests on to the replicas of services, and scale them.

    Models answer under /v1 by their names, every service under /services/NAME. Told to end, it
    takes no new request and lets those under way end; the replicas go on.
    """
    if context.invoked_subcommand is not None:
        return
    host, port = parse_address(listen)
    tls = _tls(certificate, private_key)
    from orchestrator.gateway.server import Gateway

    settle()
    told = Gateway(
        trusted=frozenset(trust_proxy or ()),
        scheme="https" if tls else "http",
        log=(lambda entry: typer.echo(entry.line())) if access_log else None,
        tracing=open_tracing() if traces else None,
    )
    with open_record(config) as api:
        if not scale:
            _run(_serve(told, api.store, host, port, tls, shared=share_port))
            return
        from orchestrator.loop import Hooks, Keeper, Loop
        from orchestrator.store.leases import this_owner

        loop = Loop(
            api.store, api.places, owner=this_owner(), hooks=Hooks(serving=told.serving),
            refresh=api.places.refresh,
        )  # fmt: skip
        told.beside = loop.figures.text
        with Keeper(loop, complain=_complain):
            _run(_serve(told, api.store, host, port, tls, wake=loop.wake, shared=share_port))


def open_tracing() -> Tracing:
    """Return where spans go.

    Raises:
        ConfigError: the extra is not installed, or nothing says where traces go.
    """
    try:
        from orchestrator.gateway.server.tracing import exporting
    except ImportError:
        raise ConfigError("OpenTelemetry is not installed", fix="pip install 'modelyard[traces]'") from None
    return exporting(environ=os.environ)


@gateway.command("key")
def new(
    name: KeyName,
    service: Annotated[
        list[str] | None,
        typer.Option("--service", help="A service it opens; unset: all. May be given often."),
    ] = None,
    config: Config = None,
) -> None:
    """Make a key, in place of one of that name, and print it: it is shown this once."""
    if not _KEY_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a key", fix="use letters, digits, dots, hyphens, at most 63"
        )
    from orchestrator.gateway.keys import PREFIX, new_key

    key, secret = new_key(name, service or None)
    with open_record(config) as api:
        api.store.secrets.set(PREFIX + name, key.text(), now=datetime.now(UTC))
    typer.echo(secret)


@gateway.command("keys")
def show(json: Json = False, config: Config = None) -> None:
    """List the keys and the services each opens."""
    from orchestrator.gateway.keys import Keys

    with open_record(config) as api:
        found = sorted(Keys.read(api.store.secrets).by_digest.values(), key=lambda key: key.name)
    if json:
        from orchestrator.render.table import to_json

        rows = [{"name": k.name, "services": sorted(k.services) if k.services else None} for k in found]
        typer.echo(to_json("modelyard/keys/v1", {"keys": rows}))
        return
    for key in found:
        typer.echo(f"{key.name}  {', '.join(sorted(key.services)) if key.services else 'every service'}")


@gateway.command("revoke")
def revoke(name: KeyName, config: Config = None) -> None:
    """Forget a key; a gateway that runs stops to take it within seconds."""
    from orchestrator.gateway.keys import PREFIX

    with open_record(config) as api:
        try:
            api.store.secrets.delete(PREFIX + name)
        except NotFound:
            raise NotFound(f"no key {name!r}", fix="modelyard gateway keys lists them") from None


def _tls(certificate: Path | None, private_key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if private_key is not None:
            raise UsageError("--private-key without --certificate", fix="name both")
        return None
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, private_key)
    except OSError as error:  # ssl's own errors are ones too
        raise ConfigError(
            f"the certificate {certificate} cannot be used: {error}",
            fix="name a PEM file with --certificate, and its key with --private-key",
        ) from error
    return context


async def _serve(
    gateway: Gateway,
    store: Store,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    *,
    wake: Callable[[], None] | None = None,
    shared: bool = False,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve_until(stop, gateway, store, host, port, tls=tls, wake=wake, shared=shared)


async def serve_until(
    stop: asyncio.Event,
    gateway: Gateway,
    store: Store,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    wake: Callable[[], None] | None = None,
    shared: bool = False,
    called: str = "",
) -> None:
    """Pass requests on until ``stop`` is set, then let those under way end.

    With ``wake``, which wakes whoever keeps the runs going, services are scaled too. ``called`` is what it
    says of itself where it listens.
    """
    from orchestrator.gateway.server import follow, read, scale

    # Before anybody can ask: no model that is there is called unknown.
    routes, keys = await asyncio.to_thread(read, store, -1, with_keys=True)
    gateway.update(routes or gateway.routes, keys)
    try:
        at, bound = await gateway.open(host, port, tls=tls, shared=shared)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host or '*'}:{port}: {error.strerror or error}", fix="choose another --listen"
        ) from error
    beside = [asyncio.create_task(follow(gateway, store, complain=_complain, moved=wake or (lambda: None)))]
    if wake is not None:
        clock = functools.partial(datetime.now, UTC)
        scaling = scale(gateway, store, clock=clock, complain=_complain, wrote=wake)
        beside.append(asyncio.create_task(scaling))
    shown = f"[{at}]" if ":" in at else at
    typer.echo(f"{called}listening on {'https' if tls else 'http'}://{shown}:{bound}")
    sys.stdout.flush()
    await stop.wait()
    # Followed on while draining: what waits for a replica may still get one.
    await gateway.close()
    for task in beside:
        task.cancel()
    if gateway.tracing is not None:
        await asyncio.to_thread(gateway.tracing.close)


def _complain(text: str) -> None:
    typer.echo(text, err=True)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` on uvloop where it is installed: half the CPU of asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
