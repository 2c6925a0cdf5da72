"""Commands for an air gap: images, bundle."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.shared import Config, Files, Json, default_config, facts_by, load_files, use_catalog
from orchestrator.errors import ModelyardError, UsageError

if TYPE_CHECKING:
    from orchestrator.apply.needs import HubNeed, ImageNeed, Needs
    from orchestrator.facts import Hub

app = typer.Typer(rich_markup_mode=None)

Offline = Annotated[
    bool, typer.Option("--offline", help="Ask no registry and no hub: digests and commits stay unknown.")
]


@app.command()
def images(file: Files, json: Json = False, offline: Offline = False, config: Config = None) -> None:
    """List what files need from elsewhere: images and models."""
    from orchestrator.render.needs import needs_json, needs_text

    needs, hub = _needs(file, config)
    digests: dict[str, str] = {}
    commits: dict[tuple[str, str], str] = {}
    if not offline:
        digests, commits = _digests(needs), _commits(needs, hub)
    typer.echo((needs_json if json else needs_text)(needs, digests, commits))


@app.command()
def bundle(
    file: Files,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where to write.", show_default=False)],
    models: Annotated[bool, typer.Option("--models/--no-models", help="Write models and data too.")] = True,
    config: Config = None,
) -> None:
    """Write all that files need into a folder, to be carried to where no network is.

    Images are had through the Docker engine at hand, models from the hub. A second run goes on where
    the first one ended.
    """
    from orchestrator.render.table import to_json

    needs, hub = _needs(file, config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {os.strerror(error.errno or 0).lower()}") from None
    failed: list[ModelyardError] = []
    written: dict[str, list[dict[str, Any]]] = {"images": [], "hub": []}
    with ExitStack() as stack:
        client = stack.enter_context(_engine()) if needs.images else None
        for image in needs.images:
            with _collecting(failed):
                written["images"].append(_save(client, image, out))
    for need in needs.hub if models else ():
        with _collecting(failed):
            written["hub"].append(_fetch(need, hub, out))
    (out / "bundle.json").write_text(to_json("modelyard/bundle/v1", written) + "\n", "utf-8")
    script = out / "load.sh"
    script.write_text(_load_script(written["images"]), "utf-8")
    script.chmod(0o755)
    for each in failed:
        typer.echo(f"not written: {each}", err=True)
    done = [f"{len(written['images'])} images", f"{len(written['hub'])} repositories of the hub"]
    typer.echo(f"{out}: {', '.join(done)}; see {out}/bundle.json, and run {script} where they are to be")
    if failed:
        raise typer.Exit(failed[0].exit_code)


@contextmanager
def _collecting(failed: list[ModelyardError]) -> Iterator[None]:
    """Remember what cannot be had: the rest is written all the same."""
    try:
        yield
    except ModelyardError as error:
        failed.append(error)


def _needs(file: list[str], config: Path | None) -> tuple[Needs, Hub]:
    from orchestrator.apply.needs import needs_of
    from orchestrator.facts import Hub
    from orchestrator.places import read_mirrors

    use_catalog()
    mirrors = read_mirrors(config or default_config())
    return needs_of(load_files(file), facts=facts_by(os.environ), mirrors=mirrors), Hub.from_environment(
        os.environ
    )


@contextmanager
def _engine() -> Iterator[Any]:
    from orchestrator.facts.engine_images import engine

    with engine() as client:
        yield client


def _digests(needs: Needs) -> dict[str, str]:
    """Return the digests of images that name none, as far as engine and registries tell them."""
    from orchestrator.facts.engine_images import digest_of

    found: dict[str, str] = {}
    try:
        with _engine() as client:
            for image in needs.images:
                if image.pinned is None:
                    try:
                        found[image.reference] = digest_of(client, image.reference)
                    except ModelyardError as error:
                        typer.echo(f"digest unknown: {error.what}", err=True)
    except ModelyardError as error:
        typer.echo(f"digests unknown: {error.what}", err=True)
    return found


def _commits(needs: Needs, hub: Hub) -> dict[tuple[str, str], str]:
    """Return the commits of models and adapters, as far as the hub tells them."""
    from orchestrator.facts import commit_of

    found: dict[tuple[str, str], str] = {}
    for need in needs.hub:
        if need.kind != "dataset":
            try:
                commit = commit_of(need.id, revision=need.revision, hub=hub)
                found |= {(need.id, need.revision or ""): commit} if commit else {}
            except ModelyardError as error:
                typer.echo(f"commit unknown: {error.what}", err=True)
    return found


def _save(client: Any, image: ImageNeed, out: Path) -> dict[str, Any]:
    from orchestrator.facts.engine_images import digest_of, save

    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", image.reference.partition("@")[0])
    path = out / "images" / f"{name}-{hashlib.sha256(image.reference.encode()).hexdigest()[:8]}.tar"
    saved = save(client, image.reference, path, progress=_say)
    digest: str | None = image.pinned
    if digest is None:
        with suppress(ModelyardError):  # an image that was built here is in no registry
            digest = digest_of(client, image.reference)
    return {
        "reference": image.reference, "from": image.mirror, "digest": digest,
        "name": saved.name, "file": str(path.relative_to(out)), "bytes": saved.bytes, "sha256": saved.sha256,
    }  # fmt: skip


def _fetch(need: HubNeed, hub: Hub, out: Path) -> dict[str, Any]:
    from orchestrator.facts.snapshots import snapshot

    kind: Any = "datasets" if need.kind == "dataset" else "models"
    folder = out / kind / need.id
    made = snapshot(kind, need.id, revision=need.revision, hub=hub, folder=folder, progress=_say)
    return {
        "kind": need.kind, "id": need.id, "revision": need.revision, "commit": made.commit,
        "folder": str(folder.relative_to(out)), "files": made.files, "bytes": made.bytes,
    }  # fmt: skip


def _say(phrase: str) -> None:
    typer.echo(phrase, err=True)


def _load_script(images: list[dict[str, Any]]) -> str:
    """Return the script that gives the images to an engine there, and to its mirror where there is one."""
    lines = [
        "#!/bin/sh",
        "# Written by modelyard bundle: gives the images of this folder to the Docker engine at hand,",
        "# and pushes those that the configuration has from a mirror.",
        "set -e",
        'cd "$(dirname "$0")"',
    ]
    for image in images:
        mirror = image["from"].partition("@")[0]
        lines.append(f"docker load -q -i {shlex.quote(image['file'])}")
        if image["from"] != image["reference"]:
            lines.append(f"docker tag {shlex.quote(image['name'])} {shlex.quote(mirror)}")
            lines.append(f"docker push -q {shlex.quote(mirror)}")
    return "\n".join(lines) + "\n"
