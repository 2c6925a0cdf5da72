"""Options that every backend with rented machines reads in the same way."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import quote

from orchestrator.errors import AuthFailed, ConfigError
from orchestrator.units import parse_bytes, parse_duration


def words(name: str, option: str, value: object, *, least: int = 0) -> tuple[str, ...]:
    """Return a list of names.

    Raises:
        ConfigError: it is none, or shorter than ``least``.
    """
    found = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
    if found is None or len(found) < least or not all(isinstance(each, str) and each for each in found):
        raise ConfigError(f"backend {name!r}: {option}: expected a list of names, got {value!r}")
    return found


def networks(name: str, option: str, value: Sequence[str]) -> tuple[str, ...]:
    """Return a list of networks, as ``203.0.113.0/24``."""
    found = words(name, option, value, least=1)
    for each in found:
        try:
            ip_network(each)
        except ValueError:
            raise ConfigError(
                f"backend {name!r}: {option}: expected networks such as 203.0.113.0/24, got {each!r}"
            ) from None
    return found


def size_bytes(name: str, option: str, value: object) -> int:
    """Return a size such as ``200GiB`` in bytes."""
    return _read(name, option, value, parse_bytes)


def duration_s(name: str, option: str, value: object) -> int:
    """Return a duration such as ``10m`` in seconds."""
    return _read(name, option, value, parse_duration)


def _read(name: str, option: str, value: object, read: Callable[[str], int]) -> int:
    try:
        return read(value if isinstance(value, str) else str(value))
    except ValueError as error:
        raise ConfigError(f"backend {name!r}: {option}: {error}") from None


def state_folder(name: str) -> Path:
    """Return where what is kept of a backend's machines lies."""
    import platformdirs  # pulled in where a backend of this type is configured

    return platformdirs.user_state_path("modelyard") / "vm" / quote(name, safe="")


def cache_folder(name: str) -> Path:
    """Return where what can be asked for again lies."""
    import platformdirs

    return platformdirs.user_cache_path("modelyard") / "vm" / quote(name, safe="")


def secret(backend: str, *, variable: str, file: str | None, page: str) -> str:
    """Return a key of an account: from a file, or from the environment; it is in no configuration.

    Args:
        backend: The backend's name.
        variable: The environment variable that may hold it.
        file: The file that holds it, in place of the variable.
        page: Where its owner gets one.

    Raises:
        AuthFailed: there is none.
    """
    if file is None:
        found = os.environ.get(variable, "").strip()
        if not found:
            raise AuthFailed(f"{variable} is not set", backend=backend, fix=f"set it to a key from {page}")
        return found
    path = Path(file).expanduser()
    try:
        found = path.read_text().strip()
    except OSError as error:
        raise AuthFailed(
            f"cannot read the key in {path}: {error.strerror}", backend=backend,
            fix=f"write a key from {page} to it, or correct api_key_file",
        ) from None  # fmt: skip
    if not found:
        raise AuthFailed(f"{path} is empty", backend=backend, fix=f"write a key from {page} to it")
    return found
