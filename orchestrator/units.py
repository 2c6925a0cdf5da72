"""Bytes and seconds, read from text and written for people.

``GB`` is 10^9 bytes and ``GiB`` 2^30, as in IEC 80000-13. Lower case is accepted.
"""

from __future__ import annotations

import re

_BYTES = {
    "B": 1,
    **{f"{p}B": 10 ** (3 * i) for i, p in enumerate("KMGTP", 1)},
    **{f"{p}IB": 2 ** (10 * i) for i, p in enumerate("KMGTP", 1)},
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,18}")
_DURATION_PART = re.compile(r"(\d+)\s*([a-z]+)", re.ASCII)

GB = 10**9
GIB = 2**30
MAX_BYTES = 2**63 - 1


def parse_bytes(text: str) -> int:
    """Return the bytes that ``text`` names; the unit is required.

    Raises:
        ValueError: ``text`` is no size, or larger than 2^63 - 1 bytes.

    >>> parse_bytes("16GB"), parse_bytes("0.5 GiB"), parse_bytes("1tb")
    (16000000000, 536870912, 1000000000000)
    """
    found = _QUANTITY.fullmatch(text)
    if not found or (unit := found[2].upper()) not in _BYTES:
        raise ValueError(f"expected a size with its unit, such as 16GB or 512MiB, got {text!r}")
    whole, _, fraction = found[1].partition(".")
    scale = _BYTES[unit]  # integers all the way: 1.1TB is exact
    size: int = int(whole) * scale + int(fraction or 0) * scale // 10 ** len(fraction)
    if size > MAX_BYTES:
        raise ValueError(f"{text.strip()!r} is larger than any machine")
    return size


def format_bytes(size: int) -> str:
    """Return ``size`` bytes in binary units, one decimal where it matters.

    >>> format_bytes(0), format_bytes(1536), format_bytes(80 * 2**30)
    ('0 B', '1.5 KiB', '80 GiB')
    """
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def parse_duration(text: str) -> int:
    """Return the seconds that ``text`` names: ``90s``, ``5m``, ``2h``, ``1d``, ``1w``, ``1h30m``, ``90``.

    A bare whole number counts seconds.

    Raises:
        ValueError: ``text`` is no duration.

    >>> parse_duration("90s"), parse_duration("1h30m"), parse_duration("90")
    (90, 5400, 90)
    """
    compact = text.strip().lower()
    if _WHOLE.fullmatch(compact):
        compact += "s"
    parts = _DURATION_PART.findall(compact)
    known = all(unit in _SECONDS for _, unit in parts)
    if not parts or not known or "".join(n + u for n, u in parts) != re.sub(r"\s+", "", compact):
        raise ValueError(f"expected a duration such as 90s, 5m, 2h, 1d or 1w, got {text!r}")
    seconds = sum(int(n) * _SECONDS[u] for n, u in parts)
    if seconds > 100 * 365 * 86_400:
        raise ValueError(f"{text.strip()!r} is longer than a century")
    return seconds


def format_duration(seconds: float) -> str:
    """Return ``seconds`` in the two largest units that say something.

    >>> format_duration(42), format_duration(5400), format_duration(93784)
    ('42s', '1h30m', '1d2h')
    """
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return "".join(parts[:2]) or "0s"


def backoff_s(failures: int, *, first_s: float, most_s: float) -> float:
    """Return how long to wait after so many failures in a row: twice as long each time, up to the most.

    >>> [backoff_s(n, first_s=1, most_s=60) for n in (1, 2, 3, 7, 5_000)]
    [1.0, 2.0, 4.0, 60, 60]
    """
    return min(most_s, first_s * 2.0 ** min(failures - 1, 64))


def exact_usd(amount: float) -> str:
    """Return dollars as a spec takes them: every digit to a millionth, and no exponent.

    >>> exact_usd(1.4), exact_usd(1234567.0), exact_usd(0.000125)
    ('1.4', '1234567', '0.000125')
    """
    return f"{amount:.6f}".rstrip("0").rstrip(".")


def format_figure(value: float, digits: int) -> str:
    """Return a figure in so many digits, or whole where it has more; there is no exponent above.

    >>> format_figure(0.01234, 2), format_figure(103.7, 2), format_figure(1762.4, 3)
    ('0.012', '104', '1,762')
    """
    return f"{value:.{digits}g}" if value < 10**digits - 0.5 else f"{value:,.0f}"


def format_usd(amount: float, digits: int = 4) -> str:
    """Return dollars in so many digits, or whole ones where there are more.

    >>> format_usd(17.688, 3), format_usd(1762.4, 3), format_usd(1234567.0), format_usd(0)
    ('17.7', '1,762', '1,234,567', '0')
    """
    return format_figure(amount, digits)


def plain(text: str) -> str:
    r"""Return a text without what would move a terminal or begin a line of its own.

    >>> print(plain("ci\x1b[2J\nroot"))
    ci\x1b[2J\x0aroot
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
