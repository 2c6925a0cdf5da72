"""A model's facts: from the catalog, a folder or file, or the hub; pinned, cached, never guessed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import catalog
from orchestrator.catalog import ModelFacts, count_parameters, from_config
from orchestrator.errors import ModelError
from orchestrator.facts.adapters import adapter_rank
from orchestrator.facts.files import CONFIG
from orchestrator.facts.hub import Hub, hub_commit, hub_facts

if TYPE_CHECKING:
    from orchestrator.facts.datasets import DatasetFacts, Unknown

__all__ = [
    "Hub",
    "ModelFacts",
    "adapter_rank",
    "commit_of",
    "count_parameters",
    "from_config",
    "resolve",
    "resolve_dataset",
]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LONGEST_ID = 200  # twice the hub's own limit of 96 for a name, with its owner
_REMOTE = re.compile(r"(s3|gs|oci|pvc|az|https?)://")


def resolve(
    model: str | Path,
    *,
    revision: str | None = None,
    hub: Hub | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    overlay: Path | None = None,
) -> ModelFacts:
    """Return the facts of ``model``, from the nearest place that knows it.

    In this order: a folder or file of that path; the catalog, unless a ``revision`` other than
    ``main`` is asked for; a config put by hand into the cache; the hub.

    Args:
        model: A hub id, a folder with ``config.json``, a ``config.json``, a ``.gguf`` file.
        revision: A branch, tag or commit of the hub's repository.
        hub: Where to ask; the public hub without a token when None.
        cache_dir: Where answers are kept; the user's cache directory when None.
        offline: Ask nobody.
        overlay: A folder with the user's own catalog.

    Raises:
        ModelError: nobody knows the model, or its files are wrong; says where to put config.json.
        Denied: the model is gated or private.
        HubUnreachable: the hub did not answer, or asked to be asked later.

    >>> resolve("qwen/qwen3-8b", offline=True).layers
    36
    """
    text = str(model)
    path = _existing(text)
    if path is not None:
        return _local_facts(path)
    _refuse_unreadable(text)
    pinned = revision if revision not in (None, "main") else None
    known = catalog.model(text, overlay=overlay)
    if known and pinned is None:
        return known
    kept = cache_dir or _default_cache()
    placed = kept / "placed" / text
    if pinned is None and (placed / CONFIG).is_file():
        return _local_facts(placed, id=text)
    try:
        found = hub_facts(text, revision=pinned, hub=hub or Hub(), cache_dir=kept, offline=offline)
    except OSError as error:
        raise ModelError(
            f"the cache in {kept} cannot be used: {error.strerror}", fix="make it writable, or name another"
        ) from error
    except ModelError as error:
        if offline:
            error.fix = f"put its {CONFIG} at {placed / CONFIG}, or name a folder that has it"
        if known is None and (near := catalog.nearest_model(text, overlay=overlay)):
            error.fix = f"did you mean {near!r}? If not, {error.fix}"
        raise
    return _with_catalog(found, known)


def commit_of(model: str, *, revision: str | None, hub: Hub, cache_dir: Path | None = None) -> str | None:
    """Return the commit that a revision of ``model`` is at now; None for what no hub publishes.

    Raises:
        ModelError: the hub has no such model or revision.
        Denied: the model is gated or private.
        HubUnreachable: the hub did not answer, or asked to be asked later.
    """
    if _existing(model) is not None or _REMOTE.match(model):
        return None
    _refuse_unreadable(model)
    return hub_commit(model, revision=revision, hub=hub, cache_dir=cache_dir or _default_cache())


def resolve_dataset(
    dataset: str,
    *,
    split: str = "train",
    config: str | None = None,
    hub: Hub | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
) -> DatasetFacts | Unknown:
    """Return what a hub's data set holds, or why nobody can say.

    Raises:
        ModelError: the hub has no such data set, or not that configuration or split of it.
        Denied: it is gated or private.
    """
    if not _ID.fullmatch(dataset) or ".." in dataset or len(dataset) > _LONGEST_ID:
        raise ModelError(
            f"{dataset[:_LONGEST_ID]!r} is no hub id", fix="write ./ before a file or folder of this machine"
        )
    from orchestrator.facts.datasets import dataset_facts  # only for training

    return dataset_facts(
        dataset, split=split, config=config, hub=hub or Hub(), cache_dir=cache_dir or _default_cache(),
        offline=offline,
    )  # fmt: skip


def _local_facts(path: Path, *, id: str | None = None) -> ModelFacts:
    from orchestrator.facts.local import local_facts  # GGUF and the rest: not for the catalog's models

    return local_facts(path, id=id)


def _existing(text: str) -> Path | None:
    """Return the path that ``text`` names when something is there."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, RuntimeError):  # a name too long for the file system; ~someone who is not a user
        return None


def _with_catalog(found: ModelFacts, known: ModelFacts | None) -> ModelFacts:
    """Add what only the catalog says: a licence, when the hub's answer had none."""
    if known is None:
        return found
    return replace(found, licence=found.licence or known.licence)


def _refuse_unreadable(model: str) -> None:
    if _REMOTE.match(model):
        raise ModelError(
            f"what {model} is cannot be read from here",
            fix=f"give the folder with its {CONFIG} too, as the model's config",
        )
    if not _ID.fullmatch(model) or ".." in model or len(model) > _LONGEST_ID:
        raise ModelError(
            f"there is no file or folder {model[:_LONGEST_ID]!r}, and it is no hub id",
            fix="write an id such as Qwen/Qwen3-8B, or the path of a folder with config.json",
        )


def _default_cache() -> Path:
    import platformdirs  # only where the cache is used

    return Path(platformdirs.user_cache_dir("modelyard"))
