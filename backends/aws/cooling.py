"""Kinds of machine that were sold out a moment ago: not asked for again before they had time to come back."""

from __future__ import annotations

import json
import time
from pathlib import Path

COOL_DOWN_S = 120
"""Capacity comes back in minutes: AWS advises to wait a few before asking again for the same kind and
zone (docs.aws.amazon.com/AWSEC2/latest/UserGuide/troubleshooting-launch.html)."""


class Cooling:
    """When each kind may be asked for again, shared by the commands of one user.

    Args:
        path: The file it is kept in.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def left_s(self, kind: str) -> float:
        """Return the seconds until ``kind`` may be asked for again, 0 when it may."""
        return max(0.0, self._read().get(kind, 0.0) - time.time())

    def sold_out(self, kind: str) -> None:
        """Remember that ``kind`` was not to be had just now."""
        now = time.time()
        kinds = {each: until for each, until in self._read().items() if until > now}
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_suffix(f".{time.time_ns()}")
        draft.write_text(json.dumps(kinds | {kind: now + COOL_DOWN_S}))
        draft.replace(self._path)

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return {str(kind): float(until) for kind, until in found.items()}
