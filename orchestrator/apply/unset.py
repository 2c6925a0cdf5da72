"""Variables and secrets that a spec names and that nobody has given a value; values are not read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from orchestrator.errors import Problem
from orchestrator.planner.ask import Work
from orchestrator.spec.interpolation import secrets_in
from orchestrator.spec.load import Document
from orchestrator.spec.models import Fleet


def unset(
    document: Document,
    spec: Work | Fleet,
    *,
    environ: Collection[str],
    secrets: Callable[[], Collection[str]],
) -> list[Problem]:
    """Return a problem for each place that names a value which neither side has, by place.

    Args:
        document: Where the spec was read.
        spec: What it says.
        environ: The names of the variables of the environment.
        secrets: Returns the names of the secrets, those of a run or a fleet as ``<run>/<name>``; asked
            only where one is named.
    """
    return sorted(_unset(document, spec, environ, secrets), key=lambda problem: problem.at)


def _unset(
    document: Document, spec: Work | Fleet, environ: Collection[str], secrets: Callable[[], Collection[str]]
) -> Iterator[Problem]:
    bare = [name for name, value in spec.env.items() if value is None and name not in environ]
    texts = {f"env.{name}": value for name, value in spec.env.items() if value is not None}
    if not isinstance(spec, Fleet) and spec.registry_auth:
        texts["registry_auth.username"] = spec.registry_auth.username
        texts["registry_auth.password"] = spec.registry_auth.password
    named = {path: names for path, text in texts.items() if (names := secrets_in(text))}
    if not bare and not named:
        return
    known = secrets()
    for name in bare:
        if not _has(name, spec.name, known):
            fix = f"export {name}, or modelyard secret set {name}"
            yield document.problem(f"env.{name}", f"{name} has no value", fix)
    for path, names in named.items():
        for name in names:
            if not _has(name, spec.name, known):
                fix = f"modelyard secret set {name}"
                yield document.problem(path, f"secret {name} is not set", fix)


def _has(name: str, run: str, known: Collection[str]) -> bool:
    return name in known or f"{run}/{name}" in known
