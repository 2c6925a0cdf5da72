"""Reads the rank of LoRA weights from a folder of this machine, or from where the hub's client keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import ModelError

CONFIG = "adapter_config.json"
"""Written beside the weights by PEFT; ``r`` is the rank (PEFT docs, developer_guides/checkpoint)."""


def adapter_rank(id: str, *, revision: str | None = None, environ: Mapping[str, str]) -> int | None:
    """Return the largest rank among an adapter's matrices; None where no file here tells.

    Nobody is asked: what is on the hub alone is not known.

    Args:
        id: A folder, or a hub id.
        revision: A branch, tag or commit of the hub's repository; None is ``main``.
        environ: The user's environment, which says where the hub's client keeps what it fetched.

    Raises:
        ModelError: the file is there and says no rank.
    """
    folder = Path(id) if id.startswith("/") else _kept(id, revision or "main", environ)
    file = None if folder is None else folder / CONFIG
    try:
        text = file.read_text() if file is not None and file.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} cannot be read", fix="check the file and its permissions") from error
    return None if text is None else _rank(text, str(file))


def _kept(id: str, revision: str, environ: Mapping[str, str]) -> Path | None:
    """Return the folder of a commit in the hub's cache (huggingface_hub docs, guides/manage-cache)."""
    cache = _cache(environ) / f"models--{id.replace('/', '--')}"
    try:
        commit = (cache / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError, ValueError):  # none kept, or a revision that is no file's name
        commit = revision
    folder = cache / "snapshots" / commit
    return folder if "/" not in commit and folder.is_dir() else None


def _cache(environ: Mapping[str, str]) -> Path:
    if where := environ.get("HF_HUB_CACHE"):
        return Path(where)
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home, "hub").expanduser()


def _rank(text: str, file: str) -> int:
    """Return the rank that a config says: the largest, where some matrices have their own.

    >>> _rank('{"r": 8, "rank_pattern": {"q_proj": 16}}', "adapter_config.json")
    16
    """
    try:
        said: Any = json.loads(text)
        ranks = [said["r"], *(said.get("rank_pattern") or {}).values()]
    except (ValueError, TypeError, KeyError, AttributeError):
        ranks = [None]
    if not all(type(rank) is int and rank > 0 for rank in ranks):  # True is an int, and no rank
        raise ModelError(f"{file} tells no rank of its adapter", fix="save the adapter with PEFT once more")
    return int(max(ranks))
