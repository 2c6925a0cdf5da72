"""What a data set of a hub holds, as its own card says: columns and rows, without fetching any.

Protocol: ``GET /api/datasets/{id}/revision/{revision}`` for the commit and the card's head, whose
``dataset_info`` lists features and splits (hub docs, dataset cards; ``datasets`` writes it when a set
is pushed). What was said last is kept beside what is kept of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.errors import HubUnreachable, ModelError
from orchestrator.facts.hub import Hub, Shelf, connected, refuse
from orchestrator.frozen import frozen

WAIT_S = 5.0
"""A plan does not wait longer for what it can do without."""


@frozen
class DatasetFacts:
    """A data set as its hub describes it; columns and rows are None where the card does not say."""

    id: str
    revision: str
    gated: bool = False
    columns: frozenset[str] | None = None
    rows: int | None = None


@frozen
class Unknown:
    """Nobody could say what a data set holds; ``why`` in a few words."""

    why: str


def dataset_facts(
    id: str, *, split: str, config: str | None, hub: Hub, cache_dir: Path, offline: bool
) -> DatasetFacts | Unknown:
    """Return what a published data set holds, as far as that can be had.

    Args:
        id: Such as ``trl-lib/Capybara``.
        split: Whose rows are counted.
        config: Which of its configurations; None is its default, or its only one.
        hub: Where to ask.
        cache_dir: Where answers are kept.
        offline: Use what is kept and ask nobody.

    Raises:
        ModelError: the hub has no such data set, or not that configuration or split of it.
        Denied: it is gated or private.
    """
    shelf = Shelf(cache_dir / "hub" / "datasets" / id.replace("/", "--"))
    said: Mapping[str, Any] | None = shelf.revision("main") if offline else None
    if not offline:
        try:
            said = _ask(id, replace(hub, timeout_s=WAIT_S), shelf)
        except HubUnreachable as silent:
            said = shelf.revision("main")
            if said is None:
                return Unknown(silent.what)
    if said is None:
        return Unknown("HF_HUB_OFFLINE is set, and nothing is kept of it")
    return _facts(id, said, split, config)


def _ask(id: str, hub: Hub, shelf: Shelf) -> Mapping[str, Any]:
    kept = shelf.revision("main")
    headers = {"if-none-match": kept["etag"]} if kept and kept.get("etag") else {}
    with connected(hub) as client:
        answer = client.get(f"/api/datasets/{quote(id)}/revision/main", headers=headers)
    if answer.status_code == 304 and kept:
        return kept
    refuse(answer, id, "main", kind="data set")
    try:
        found = answer.json()
        card = found.get("cardData") or {}
        said = {
            "sha": str(found["sha"]),
            "etag": answer.headers.get("etag"),
            "gated": bool(found.get("gated")),
            "info": card.get("dataset_info"),
            "default": _default(card.get("configs")),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the answer about {id} is not a hub's", fix="check that HF_ENDPOINT names a hub"
        ) from error
    shelf.keep_revision("main", said)
    return said


def _default(configs: object) -> str | None:
    """Return the configuration that a card calls its default."""
    listed = configs if isinstance(configs, list) else []
    marked = [each.get("config_name") for each in listed if isinstance(each, Mapping) and each.get("default")]
    return str(marked[0]) if marked else None


def _facts(id: str, said: Mapping[str, Any], split: str, config: str | None) -> DatasetFacts:
    plain = DatasetFacts(id, str(said["sha"]), bool(said["gated"]))
    info = said["info"]
    listed = [each for each in (info if isinstance(info, list) else [info]) if isinstance(each, Mapping)]
    chosen = _chosen(id, listed, config, said["default"])
    if chosen is None:
        return plain
    features, splits = chosen.get("features"), chosen.get("splits")
    return replace(plain, columns=_names(features), rows=_rows(id, splits, split))


def _chosen(
    id: str, listed: Sequence[Mapping[str, Any]], config: str | None, default: str | None
) -> Mapping[str, Any] | None:
    named = {str(each.get("config_name", "default")): each for each in listed}
    if config is not None and named and config not in named:
        raise ModelError(f"{id} has no configuration {config!r}", fix=f"there is {', '.join(sorted(named))}")
    if found := named.get(config or default or "default"):
        return found
    return listed[0] if len(listed) == 1 and config is None else None


def _names(features: object) -> frozenset[str] | None:
    listed = features if isinstance(features, list) else []
    return (
        frozenset(str(each["name"]) for each in listed if isinstance(each, Mapping) and "name" in each)
        or None
    )


def _rows(id: str, splits: object, split: str) -> int | None:
    listed = splits if isinstance(splits, list) else []
    counted = {
        str(each.get("name")): each.get("num_examples") for each in listed if isinstance(each, Mapping)
    }
    if counted and split not in counted:
        raise ModelError(f"{id} has no split {split!r}", fix=f"there is {', '.join(sorted(counted))}")
    rows = counted.get(split)
    return rows if isinstance(rows, int) else None
