"""Where images and models are had from, where not from whoever publishes them: the table of an air gap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace

from orchestrator.backend import Launch
from orchestrator.frozen import frozen

ENDPOINT = "HF_ENDPOINT"
"""The variable in which every client of the hub looks for another one (huggingface_hub docs)."""


@frozen
class Mirrors:
    """What is put in place of registries, and of the model hub; nothing where both are empty.

    ``registries`` are the beginnings of images, whole parts of their names, and what they become.
    """

    registries: Mapping[str, str] = field(default_factory=dict)
    hub: str = ""

    def image(self, reference: str) -> str:
        """Return an image as it is to be pulled: by the longest beginning in the table, else as it is.

        >>> mirrors = Mirrors({"docker.io": "reg.lan/hub", "docker.io/vllm": "reg.lan/engines"})
        >>> mirrors.image("vllm/vllm-openai:v0.33.0"), mirrors.image("python:3.12-slim")
        ('reg.lan/engines/vllm-openai:v0.33.0', 'reg.lan/hub/library/python:3.12-slim')
        >>> mirrors.image("ghcr.io/huggingface/trl:1"), mirrors.image("reg.lan/hub/x")
        ('ghcr.io/huggingface/trl:1', 'reg.lan/hub/x')
        """
        whole = canonical(reference)
        for prefix in sorted(self.registries, key=len, reverse=True):
            if whole.startswith(f"{prefix.rstrip('/')}/"):
                return self.registries[prefix].rstrip("/") + whole[len(prefix.rstrip("/")) :]
        return reference

    def launch(self, launch: Launch) -> Launch:
        """Return a launch whose image is pulled here, and whose program looks for models here.

        A variable of the spec's own says where, before this table does.

        >>> Mirrors(hub="http://hub.lan").launch(Launch("a-0-0-0", "a", env=(("A", "1"),))).env
        (('A', '1'), ('HF_ENDPOINT', 'http://hub.lan'))
        """
        named = {name for name, _ in (*launch.env, *launch.secrets)}
        more = ((ENDPOINT, self.hub),) if self.hub and ENDPOINT not in named else ()
        image = None if launch.image is None else self.image(launch.image)
        return replace(launch, image=image, env=(*launch.env, *more))

    def environment(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        """Return the variables in which a hub is looked for; the user's own come first."""
        return {ENDPOINT: self.hub, **environment} if self.hub else environment


NO_MIRRORS = Mirrors()


def canonical(reference: str) -> str:
    """Return an image with its registry, and with Docker Hub's own folder, as Docker reads names.

    >>> canonical("busybox"), canonical("a/b:1"), canonical("reg:5000/x"), canonical("localhost/x")
    ('docker.io/library/busybox', 'docker.io/a/b:1', 'reg:5000/x', 'localhost/x')
    """
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return reference
    return f"docker.io/{reference}" if slash else f"docker.io/library/{reference}"
