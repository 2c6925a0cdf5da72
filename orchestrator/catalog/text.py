"""A config's numbers, looked up under the names that architectures give them, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ModelError
from orchestrator.frozen import frozen

_LARGEST = 2**31 - 1  # no dimension of any model comes near; a number above it is a slip or an attack


@frozen
class Text:
    """The language model's part of a config, with the top level to fall back on."""

    values: Mapping[str, Any]
    outer: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Text:
        """Return the text part of ``config``: nested under one of the usual names, or the whole."""
        for key in ("text_config", "llm_config", "language_config", "thinker_config"):
            nested = config.get(key)
            if isinstance(nested, Mapping) and nested:
                return cls.of(nested) if key == "thinker_config" else cls(nested, config)
        return cls(config, config)

    def get(self, *keys: str) -> Any:
        """Return the first value that is there and not null, in the text part before the outer one."""
        for part in (self.values, self.outer):
            for key in keys:
                if part.get(key) is not None:
                    return part[key]
        return None

    def number(self, *keys: str, default: int | None = None) -> int:
        """Return a whole number above 0.

        Raises:
            ModelError: it is missing without a default, no whole number, or out of any model's range.
        """
        found = self._whole(keys)
        if found is None:
            if default is None:
                raise ModelError(f"the config lacks {keys[0]!r}", fix=f"add {keys[0]!r} to config.json")
            return default
        if found < 1:
            raise ModelError(f"the config says {keys[0]!r} is {found}", fix="it must be above 0")
        return found

    def count(self, *keys: str, default: int = 0) -> int:
        """Return a whole number that may be 0.

        Raises:
            ModelError: it is no whole number, negative, or out of any model's range.
        """
        found = self._whole(keys)
        if found is None:
            return default
        if found < 0:
            raise ModelError(f"the config says {keys[0]!r} is {found}", fix="it cannot be negative")
        return found

    def flag(self, *keys: str, default: bool = False) -> bool:
        """Return a truth value."""
        found = self.get(*keys)
        return default if found is None else bool(found)

    def items(self, *keys: str) -> tuple[Any, ...]:
        """Return a list, empty where there is none."""
        found = self.get(*keys)
        return tuple(found) if isinstance(found, (list, tuple)) else ()

    def _whole(self, keys: tuple[str, ...]) -> int | None:
        found = self.get(*keys)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, (list, tuple)) and found:
            found = max((v for v in found if isinstance(v, int)), default=None)
        if found is None:
            return None
        if not isinstance(found, int) or isinstance(found, bool):
            raise ModelError(f"the config says {keys[0]!r} is {found!r}", fix="expected a whole number")
        if found > _LARGEST:
            raise ModelError(f"the config says {keys[0]!r} is {found}", fix="no model is that large")
        return found
