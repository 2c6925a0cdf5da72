"""What things are called in a cluster: names that fit, labels that find, text that is not expanded."""

from __future__ import annotations

import hashlib
import re

from orchestrator.backend import LABEL

MANAGER = "modelyard"
"""The field manager of every apply, and the value of ``app.kubernetes.io/managed-by``."""

LONGEST = 52
"""Kubernetes adds up to eleven characters to the names of pods: 63 in all (RFC 1123 labels)."""

RUN = LABEL + "run"
HASH = LABEL + "spec-hash"
KIND = LABEL + "kind"
NODES = LABEL + "nodes"
ATTEMPT = LABEL + "attempt"
DIGEST = LABEL + "group"
"""The annotation that says which group an object was last made to say."""

LAUNCH = LABEL + "launch"
VOLUME = LABEL + "volume"

_REFERENCE = re.compile(r"\$(?=[$(])")
_FOREIGN = re.compile(r"[^a-z0-9-]+")


def fitting(name: str, most: int = LONGEST) -> str:
    """Return ``name`` as an object may be called; a longer one is cut and told apart by a hash.

    >>> fitting("llama-8b"), fitting("My_Run")
    ('llama-8b', 'my-run-309ffa')
    >>> len(fitting("x" * 80))
    52
    """
    plain = _FOREIGN.sub("-", name.lower()).strip("-") or "x"
    if plain == name and len(plain) <= most:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{plain[: most - 7].rstrip('-')}-{digest}"


def label_value(text: str) -> str:
    """Return ``text`` as the value of a label: at most 63 characters, with a hash when it was longer.

    >>> label_value("abc123")
    'abc123'
    """
    if re.fullmatch(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", text):
        return text
    return fitting(text, 63)


def literal(text: str) -> str:
    """Return ``text`` so that the kubelet expands nothing in it: ``$(X)`` is its reference to variables.

    >>> literal("echo $(date) $HOME $$")
    'echo $$(date) $HOME $$$'
    """
    return _REFERENCE.sub("$$", text)


def labels(run: str, *, spec_hash: str, kind: str) -> dict[str, str]:
    """Return the labels of a run's objects: those that Kubernetes recommends, and ours.

    Nothing selects by the recommended ones: Argo CD may write ``instance`` itself
    (argo-cd docs, resource tracking).
    """
    return {
        "app.kubernetes.io/name": label_value(run),
        "app.kubernetes.io/instance": label_value(run),
        "app.kubernetes.io/component": kind,
        "app.kubernetes.io/managed-by": MANAGER,
        **selector(run),
        KIND: kind,
        HASH: spec_hash[:16],
    }


def selector(run: str) -> dict[str, str]:
    """Return what finds the objects of a run, and never changes."""
    return {RUN: label_value(run)}
