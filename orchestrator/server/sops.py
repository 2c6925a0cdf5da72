"""Values for specs from encrypted files beside them, opened by the program sops (https://getsops.io)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import UsageError

MARK = ".sops."
ENDS = (".yaml", ".yml", ".json", ".env")
TIMEOUT_S = 60


def values(folder: Path, *, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values in every encrypted file of a folder, by name; sops finds its keys in ``environ``.

    Raises:
        UsageError: a file cannot be opened, is not encrypted, or says something else than values by name.
    """
    found: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob(f"*{MARK}*") if p.name.endswith(ENDS) and p.is_file()):
        for name, value in _opened(path, environ).items():
            if isinstance(value, dict | list) or value is None:
                raise UsageError(f"{path}: {name} holds no single value", fix="a mapping of names to values")
            if name in found:
                raise UsageError(f"{path}: {name} stands in another encrypted file too", fix="keep one")
            found[name] = value if isinstance(value, str) else json.dumps(value)
    return found


def _opened(path: Path, environ: Mapping[str, str]) -> dict[str, object]:
    try:
        done = subprocess.run(
            ["sops", "--decrypt", "--output-type", "json", str(path)],
            capture_output=True, text=True, timeout=TIMEOUT_S, env={**environ}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UsageError(f"{path}: sops did not open it within {TIMEOUT_S} s") from None
    except FileNotFoundError:
        raise UsageError(
            f"{path} is encrypted, and there is no program sops here", fix="https://getsops.io"
        ) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise UsageError(
            f"{path}: sops cannot open it: {said[0].strip() if said else done.returncode}",
            fix="give the server its key, for example in SOPS_AGE_KEY_FILE",
        )
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise UsageError(f"{path}: no values by name", fix="a mapping of names to values")
    return told
