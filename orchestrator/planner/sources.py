"""Where models and data lie, as an engine sees them: what is local is mounted, the rest fetched."""

from __future__ import annotations

from pathlib import PurePosixPath

from orchestrator.backend import Mount
from orchestrator.engines import Source
from orchestrator.engines.buckets import is_bucket
from orchestrator.frozen import frozen
from orchestrator.spec.models import Adapter, Model, Train

VOLUME = "volume://"
"""What lies in a named volume: ``volume://NAME/FOLDER``."""
MODEL, ADAPTERS = "/modelyard/model", "/modelyard/adapters"
DATA, OUTPUT = "/modelyard/data", "/modelyard/output"
"""Where a container sees them."""


def model_source(model: Model) -> tuple[Source, tuple[Mount, ...]]:
    """Return where a model's weights come from, and the mount of a local folder or of its volume.

    >>> model_source(Model(id="/models/tuned"))[1][0].target
    '/modelyard/model'
    >>> model_source(Model(id="org/model"))[1]
    ()
    >>> model_source(Model(id="volume://sft-output/merged"))[0].reference
    '/modelyard/model/merged'
    """
    return _source(model.id, model.revision, MODEL)


def _source(id: str, revision: str | None, target: str) -> tuple[Source, tuple[Mount, ...]]:
    if id.startswith(VOLUME):
        name, _, folder = id.removeprefix(VOLUME).partition("/")
        path = f"{target}/{folder}".rstrip("/")
        return Source(id, revision, path=path), (Mount(name, target, "volume", read_only=True),)
    if id.startswith("/"):
        return Source(id, revision, path=target), (Mount(id, target, "folder", read_only=True),)
    return Source(id, revision), ()


def adapter_source(adapter: Adapter) -> tuple[Source, tuple[Mount, ...]]:
    """Return where an adapter's weights come from, and the mount of a local folder.

    >>> adapter_source(Adapter(name="sql", id="/adapters/sql"))[0].reference
    '/modelyard/adapters/sql'
    """
    return _source(adapter.id, adapter.revision, f"{ADAPTERS}/{adapter.name}")


def data_source(dataset: str) -> tuple[str | None, tuple[Mount, ...]]:
    """Return the path of a local data set inside the container, and its mount; None for a hub id.

    >>> data_source("/data/rows.jsonl")[0], data_source("trl-lib/Capybara")[0]
    ('/modelyard/data/rows.jsonl', None)
    """
    if not dataset.startswith("/"):
        return None, ()
    target = f"{DATA}/{PurePosixPath(dataset).name}"
    return target, (Mount(dataset, target, "folder", read_only=True),)


def output_mount(output: str | None, run: str) -> Mount | None:
    """Return where checkpoints and results go: a folder, a volume, or a volume of the run's own.

    None for a bucket: what is written is sent there.

    >>> output_mount("/runs/sft", "sft").kind, output_mount("results", "sft").kind
    ('folder', 'volume')
    >>> output_mount(None, "sft").source, output_mount("s3://bucket/sft", "sft")
    ('sft-output', None)
    """
    if output is None:
        return Mount(f"{run}-output", OUTPUT, "cache")
    if is_bucket(output):
        return None
    return Mount(output, OUTPUT, "folder" if output.startswith("/") else "volume")


@frozen
class Places:
    """Where a trainer finds the model and the data, where it writes, and what is fetched first.

    ``data`` is None for a data set of the hub; ``fetched`` are pairs of path and URL.
    """

    model: Source
    data: str | None
    output: str
    fetched: tuple[tuple[str, str], ...] = ()


def placed(train: Train, *, home: str, mounted: bool) -> Places:
    """Return where everything of a training run is; without mounts it is where the spec says.

    What lies in a bucket is fetched into ``home``, and what goes to one is written there first.

    >>> train = Train(model=Model(id="org/model"), dataset="s3://b/rows.jsonl", output="s3://b/sft")
    >>> placed(train, home="/modelyard", mounted=True).fetched
    (('/modelyard/data/rows.jsonl', 's3://b/rows.jsonl'),)
    """
    fetched = []
    model, data, output = train.model, train.dataset, train.output or ""
    source = model_source(model)[0] if mounted else Source(model.id, model.revision)
    if is_bucket(model.id):
        source = Source(model.id, model.revision, path=f"{home}/model")
        fetched.append((f"{home}/model", model.id))
    path = data_source(data)[0]
    if is_bucket(data):
        path = f"{home}/data/{PurePosixPath(data).name}"
        fetched.append((path, data))
    elif path and not mounted:
        path = data
    written = f"{home}/output" if mounted or is_bucket(output) else output
    return Places(source, path, written, tuple(fetched))
