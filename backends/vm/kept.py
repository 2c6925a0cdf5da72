"""Answers of an account that hold for a while, kept in files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_name(*words: str) -> str:
    """Return the name of a file for an answer to a question of any length: names have 255 bytes at most.

    >>> cache_name("us-east-1-shapes", "g*", "p*") == cache_name("us-east-1-shapes", "g*", "p*")
    True
    >>> len(cache_name("us-east-1-spot", *["m7i.48xlarge"] * 99)) < 255
    True
    """
    return f"{words[0]}-{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:32]}.json"


def kept(
    path: Path, lasts_s: float, ask: Callable[[], Any], *, holds: Callable[[Any], bool] = lambda _: True
) -> Any:
    """Return what ``path`` has, as JSON reads it, where that is younger than ``lasts_s``; else ask.

    An answer is written down where it ``holds``, and returned in any case: where it cannot be
    written it is asked for again, as one is that cannot be read.
    """
    with contextlib.suppress(OSError, ValueError):
        if time.time() - path.stat().st_mtime < lasts_s:
            return json.loads(path.read_text())
    found = ask()
    if holds(found):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{time.time_ns()}")
            draft.write_text(json.dumps(found))
            draft.replace(path)
    return found
