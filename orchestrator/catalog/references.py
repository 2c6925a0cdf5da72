"""The name of a container image, taken apart: repository, tag and digest."""

from __future__ import annotations

from orchestrator.frozen import frozen


@frozen
class Reference:
    """What ``repository:tag@digest`` says; tag and digest are None where it says none."""

    repository: str
    """With its registry, where it names one."""
    tag: str | None = None
    digest: str | None = None
    """With its algorithm, such as ``sha256:0123…``."""


def read_reference(text: str) -> Reference:
    """Take the name of an image apart; a colon before the last slash is a registry's port.

    >>> read_reference("vllm/vllm-openai:v0.9.1")
    Reference(repository='vllm/vllm-openai', tag='v0.9.1', digest=None)
    >>> read_reference("reg:5000/a/b@sha256:12")
    Reference(repository='reg:5000/a/b', tag=None, digest='sha256:12')
    >>> read_reference("a:1@sha256:12"), read_reference("a").tag
    (Reference(repository='a', tag='1', digest='sha256:12'), None)
    """
    named, _, digest = text.partition("@")
    folder, slash, last = named.rpartition("/")
    last, _, tag = last.partition(":")
    return Reference(f"{folder}{slash}{last}", tag or None, digest or None)
