"""The hosts of a configuration entry, read strictly; every error names its option."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from orchestrator.backend import Leave
from orchestrator.errors import ConfigError
from orchestrator.frozen import frozen

ENGINE_SOCKET = "/var/run/docker.sock"
HOST_KEYS = ("strict", "accept-new")
HOST_OPTIONS = (
    "hostname",
    "port",
    "user",
    "identity_file",
    "internal_ip",
    "blocks",
    "proxy_jump",
    "engine_socket",
)
JUMP_OPTIONS = ("hostname", "port", "user", "identity_file")

_HOSTNAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:%-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@\\+-]*")


@frozen
class Login:
    """How to reach a machine over SSH; what is None is left to ``ssh`` and its own configuration."""

    hostname: str
    port: int | None = None
    user: str | None = None
    identity_file: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Return what tells it from other machines."""
        return self.hostname.lower(), self.port or 22


@frozen
class Host:
    """One machine of a backend.

    ``name`` is its hostname, with the port where a hostname occurs twice. ``internal_ip`` is its
    address among the others, where the configuration states it; ``blocks`` is None where it is
    shared freely. ``engine_socket`` is where Docker listens there.
    """

    name: str
    login: Login
    jump: Login | None = None
    internal_ip: str | None = None
    blocks: int | None = None
    engine_socket: str = ENGINE_SOCKET


@frozen
class Hold:
    """Why nothing new starts on a host, and how what is there is to leave."""

    reason: str = ""
    leave: Leave = ""

    def __str__(self) -> str:
        """Return it in words.

        >>> str(Hold("a fan is loud")), str(Hold(leave="drain"))
        ('cordoned: a fan is loud', 'drained')
        """
        word = "drained" if self.leave else "cordoned"
        return f"{word}: {self.reason}" if self.reason else word


class Reader:
    """Reads options of one backend's entry.

    Args:
        backend: Its name, for errors.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def wrong(self, option: str, expected: str, got: object) -> ConfigError:
        """Return the error for an option with no such value."""
        return ConfigError(f"backend {self._backend!r}: {option}: expected {expected}, got {got!r}")

    def hosts(self, hosts: object, shared: Mapping[str, object]) -> tuple[Host, ...]:
        """Return the machines; ``shared`` are the entry's own options, which each may override.

        Raises:
            ConfigError: an option has no such value, or a machine is named twice.
        """
        if not isinstance(hosts, Sequence) or isinstance(hosts, str):
            raise self.wrong("hosts", "a list of names", hosts)
        found = [self._host(f"hosts[{n}]", one, shared) for n, one in enumerate(hosts)]
        seen: set[tuple[str, int]] = set()
        for host in found:
            if host.login.key in seen:
                raise ConfigError(
                    f"backend {self._backend!r}: hosts: {host.name!r} is there twice",
                    fix="name each machine once",
                )
            seen.add(host.login.key)
        names = [host.name for host in found]
        return tuple(
            replace(host, name=f"{host.name}:{host.login.key[1]}") if names.count(host.name) > 1 else host
            for host in found
        )

    def network(self, text: object) -> IPv4Network | IPv6Network | None:
        """Return the network between the machines."""
        if text is None:
            return None
        try:
            return ip_network(str(text))
        except ValueError:
            raise self.wrong("network", "a network such as 10.0.0.0/24", text) from None

    def host_keys(self, policy: object) -> str:
        """Return how unknown host keys are taken."""
        if policy not in HOST_KEYS:
            raise self.wrong("host_keys", "strict or accept-new", policy)
        return str(policy)

    def held(self, held: object) -> Mapping[str, Hold]:
        """Return the hosts on which nothing new starts; those that are no longer there say nothing."""
        if not isinstance(held, Mapping):
            raise self.wrong("held", "hosts with reason and leave", held)
        return {str(host): self._hold(f"held.{host}", each) for host, each in held.items()}

    def env(self, env: object) -> Mapping[str, str]:
        """Return the variables of everything that runs there."""
        if not isinstance(env, Mapping) or not all(isinstance(each, str) for each in env.values()):
            raise self.wrong("env", "variables with their values, all text", env)
        return {str(name): str(value) for name, value in env.items()}

    def _hold(self, option: str, value: object) -> Hold:
        if not isinstance(value, Mapping) or not value.keys() <= {"reason", "leave"}:
            raise self.wrong(option, "a mapping with reason and leave", value)
        leave: Leave | None = {"": "", "drain": "drain", "evict": "evict"}.get(value.get("leave", ""))  # type: ignore[assignment]  # mypy takes them for any text
        if leave is None:
            raise self.wrong(f"{option}.leave", "drain or evict", value.get("leave"))
        return Hold(str(value.get("reason", "")), leave)

    def path(self, option: str, value: object) -> str | None:
        """Return a file's path with ``~`` as the home folder."""
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise self.wrong(option, "a path", value)
        return str(Path(value).expanduser())

    def _host(self, option: str, value: object, shared: Mapping[str, object]) -> Host:
        entry = {"hostname": value} if isinstance(value, str) else value
        own = self._mapping(option, entry, HOST_OPTIONS)
        merged = {**shared, **{key: each for key, each in own.items() if each is not None}}
        login = self._login(option, merged)
        jump = merged.get("proxy_jump")
        return Host(
            name=login.hostname,
            login=login,
            jump=None if jump is None else self._jump(jump),
            internal_ip=self._address(f"{option}.internal_ip", own.get("internal_ip")),
            blocks=self._count("blocks" if "blocks" not in own else f"{option}.blocks", merged.get("blocks")),
            engine_socket=self._socket(
                "engine_socket" if "engine_socket" not in own else f"{option}.engine_socket",
                merged.get("engine_socket", ENGINE_SOCKET),
            ),
        )

    def _jump(self, value: object) -> Login:
        if isinstance(value, str):
            user, _, rest = value.rpartition("@")
            name, _, port = rest.partition(":")
            value = {"hostname": name, "user": user or None, "port": int(port) if port.isdecimal() else None}
        return self._login("proxy_jump", self._mapping("proxy_jump", value, JUMP_OPTIONS))

    def _mapping(self, option: str, value: object, known: Sequence[str]) -> Mapping[str, Any]:
        if not isinstance(value, Mapping) or not isinstance(value.get("hostname"), str):
            raise self.wrong(option, "a name, or a mapping with its hostname", value)
        for key in value:
            if key not in known:
                raise ConfigError(
                    f"backend {self._backend!r}: {option}: unknown key {key!r}",
                    fix=f"known: {', '.join(known)}",
                )
        return value

    def _login(self, option: str, values: Mapping[str, object]) -> Login:
        hostname, user = values["hostname"], values.get("user")
        # a leading dash would be an option of ssh, and the rest is read by a shell behind a jump
        if not isinstance(hostname, str) or not _HOSTNAME.fullmatch(hostname):
            raise self.wrong(f"{option}.hostname", "an address or a name", hostname)
        if user is not None and not (isinstance(user, str) and _USER.fullmatch(user)):
            raise self.wrong(f"{option}.user", "a user's name", user)
        port = values.get("port")
        if port is not None and not (type(port) is int and 1 <= port <= 65535):
            raise self.wrong(f"{option}.port", "a number from 1 to 65535", port)
        identity = self.path(f"{option}.identity_file", values.get("identity_file"))
        return Login(hostname, port, user, identity)

    def _address(self, option: str, value: object) -> str | None:
        try:
            return None if value is None else str(ip_address(str(value)))
        except ValueError:
            raise self.wrong(option, "an IP address", value) from None

    def _count(self, option: str, value: object) -> int | None:
        if value is None:
            return None
        if type(value) is not int or value < 1:
            raise self.wrong(option, "a whole number from 1", value)
        return value

    def _socket(self, option: str, value: object) -> str:
        """Return the absolute path of a socket on the machines."""
        if not isinstance(value, str) or not value.startswith("/") or ":" in value:
            raise self.wrong(option, "the absolute path of a socket", value)
        return value
