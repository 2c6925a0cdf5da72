"""The files of ``configs/`` as objects of a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from backends.kubernetes import Kubernetes
from orchestrator.apply.rendering import render_documents
from orchestrator.facts import resolve
from orchestrator.spec.load import load
from orchestrator.spec.models import Model

ROOT = Path(__file__).parents[3] / "configs"

FOLDERS = (
    (re.compile(r"- \.:/(\w+)"), r"- \1:/\1"),
    (re.compile(r"output: \./(\w+)\S*"), r"output: \1"),
    (re.compile(r"dataset: \./\S+"), "dataset: trl-lib/Capybara"),
)
"""What stands for a folder of this machine, which no cluster mounts: a volume, or a data set of the hub."""

TAKEN = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yaml") if path.parent.name != "fleets"
)
"""All but fleets: a cluster has its machines already."""


def objects_of(name: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Return the objects that a file of ``configs/`` becomes.

    Args:
        name: Its path below ``configs/``.
        folder: Where it is written with volumes for folders.
        options: Of the backend; ``default_image`` runs what names no image.
    """
    text = (ROOT / name).read_text()
    for local, instead in FOLDERS:
        text = local.sub(instead, text)
    path = folder / Path(name).name
    path.write_text(text)
    place = Kubernetes("k8s", **{"default_image": "python:3.12-slim", **options})
    made = render_documents(load([str(path)], env={}), place, facts=_facts)
    return [one for manifest in made for one in yaml.safe_load_all(manifest.rendering.text)]


def _facts(model: Model) -> Any:
    return resolve(model.id, revision=model.revision, hub=None, offline=True)
