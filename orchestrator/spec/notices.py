"""What is right as it is written and may not do what its writer expects, at its place in the file."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import Problem
from orchestrator.spec.load import Document
from orchestrator.spec.models import Volume
from orchestrator.spec.unheeded import unheeded


def notices(documents: Sequence[Document]) -> list[Problem]:
    """Return a notice for each field that does nothing and each volume that no document declares."""
    declared = {document.spec.name for document in documents if isinstance(document.spec, Volume)}
    found: list[Problem] = []
    for document in documents:
        spec = document.spec
        for each in unheeded(spec):
            found.append(document.problem(each.path, f"notice: {each.path}: {each.what}"))
        for at, mount in enumerate(getattr(spec, "volumes", ())):
            if mount.name and not mount.optional and mount.name not in declared:
                what = f"notice: volume {mount.name!r} is declared in none of these files"
                found.append(document.problem(f"volumes[{at}]", what, "it has to be there already"))
    return sorted(found, key=lambda notice: notice.at)
