"""Values of the record that no other room has; light, for those who only pass them on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that a spec asked for: its name, where it is kept, and the spec as canonical JSON."""

    name: str
    backend: str
    spec: str
    spec_hash: str
    created_at: datetime
    set_name: str = ""
    """The set it was applied under, "" where none was named."""
