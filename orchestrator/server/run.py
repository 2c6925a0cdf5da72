"""The server as a process: its sockets, its first token, and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from orchestrator.errors import UsageError
from orchestrator.frozen import frozen
from orchestrator.server.app import application
from orchestrator.server.connections import Connection, allow_files, is_news, said_seldom
from orchestrator.server.desk import Desk
from orchestrator.server.duty import Duty
from orchestrator.server.idle import Reaper
from orchestrator.server.login import Doorman
from orchestrator.server.schedule import Clock
from orchestrator.server.site import Site
from orchestrator.server.sync import Syncer
from orchestrator.server.users import EVERYWHERE
from orchestrator.server.webhooks import Herald
from orchestrator.wire import TokenRequest

DRAIN_S = 10
"""How long calls under way may take once the server was told to end."""


@frozen
class Door:
    """Where calls come in."""

    host: str
    port: int
    certificate: Path | None = None
    private_key: Path | None = None
    insecure: bool = False
    proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies that are believed whom they ask for."""

    def __post_init__(self) -> None:
        for proxy in self.proxies:
            if not _is_network(proxy):
                raise UsageError(f"--proxy: {proxy!r} is no address", fix="10.0.0.5, or 10.0.0.0/24")
        if self.certificate is None and not self.insecure and not is_loopback(self.host):
            raise UsageError(
                f"tokens would cross the network to {self.host or 'every address'} in the clear",
                fix="--certificate and --private-key, or --insecure where a proxy in front has TLS",
            )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("localhost")
    (True, True, False, True)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


class _Server(uvicorn.Server):
    """uvicorn's server, which also has streams end when it is told to."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ending = ending

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear SIGTERM and SIGINT while serving.

        uvicorn's own way raises them once more at the end, before the runs have been let go of.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        yield
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _end(self, number: int) -> None:
        """Take no new call, and let those under way end; at once when told a second time by Ctrl-C."""
        self.handle_exit(number, None)
        self._ending()


def first_token(site: Site) -> str | None:
    """Make the first token, for a record that has none; it is returned this once."""
    if site.store.access.tokens():
        return None
    asked = TokenRequest(name="first", role="admin", project=EVERYWHERE)
    made = Desk(site.store.access, site.clock).new_token(asked)
    site.audit.note("the server", "create_token", "201", project=EVERYWHERE, subject=asked.name)
    return made.token


def serve(
    site: Site,
    door: Door,
    *,
    say: Callable[[str], None],
    beside: Callable[[asyncio.Event], Coroutine[Any, Any, None]] | None = None,
    syncer: Syncer | None = None,
    doorman: Doorman | None = None,
    heralds: Sequence[Herald] = (),
) -> None:
    """Answer calls until the process is told to end.

    Args:
        site: What calls share; started here, and left to its owner to close.
        door: Where calls come in.
        say: Told where the server listens, and the first token.
        beside: What runs on the same event loop until its event is set.
        syncer: What pulls a repository, where one is named.
        heralds: What tells others of events.
        doorman: Who lets people and pipelines log in, where an issuer is believed.
    """
    opened = _listen(door)
    token = first_token(site)
    config = uvicorn.Config(
        application(site, syncer=syncer, doorman=doorman),
        # what is wrong with a request is told to who made it: a warning each would fill the journal
        log_level="error", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=DRAIN_S, proxy_headers=bool(door.proxies),
        forwarded_allow_ips=list(door.proxies), http=Connection, ws="websockets-sansio",
    )  # fmt: skip
    logging.getLogger("uvicorn.error").addFilter(is_news)
    allow_files()
    if door.certificate is not None:
        _load(config, door)
    site.start()
    shown = f"[{door.host}]" if ":" in door.host else door.host or "0.0.0.0"
    say(f"server listening on {'https' if door.certificate else 'http'}://{shown}:{opened.getsockname()[1]}")
    if token is not None:
        say(f"token {token}")
    beside_it: list[Duty] = [Clock(site), Reaper(site), *([syncer] if syncer else []), *heralds]
    for each in beside_it:
        each.start()
    try:
        asyncio.run(_serve(_Server(config, site.feed.end), opened, beside, site.complain))
    finally:
        for each in beside_it:
            each.close()


async def _serve(
    server: _Server,
    opened: socket.socket,
    beside: Callable[[asyncio.Event], Coroutine[Any, Any, None]] | None,
    complain: Callable[[str], None],
) -> None:
    asyncio.get_running_loop().set_exception_handler(said_seldom(complain))
    ended = asyncio.Event()
    task = asyncio.create_task(beside(ended)) if beside else None
    await server.serve(sockets=[opened])
    ended.set()
    if task is not None:
        await task


def listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens; said to be TCP, so that asyncio sends small answers at once.

    A socket that ``socket.create_server`` made has protocol 0, and asyncio leaves Nagle's algorithm
    on for it: 40 ms on every answer.

    Raises:
        OSError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(1024)
    except OSError:
        made.close()
        raise
    return made


def _listen(door: Door) -> socket.socket:
    try:
        return listener(door.host, door.port)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {door.host or '*'}:{door.port}: {error.strerror or error}",
            fix="choose another --listen",
        ) from error


def _load(config: uvicorn.Config, door: Door) -> None:
    config.ssl_certfile = door.certificate
    config.ssl_keyfile = door.private_key
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"the certificate {door.certificate} cannot be used: {error}",
            fix="name a PEM file with --certificate, and its key with --private-key",
        ) from error
