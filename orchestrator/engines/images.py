"""Which of the catalog's images an engine starts from on a device."""

from __future__ import annotations

from orchestrator.catalog import images
from orchestrator.catalog.references import read_reference
from orchestrator.catalog.values import Image
from orchestrator.engines.job import Placed


def family(job: Placed) -> str:
    """Return the family that images are kept by: the device's, or ``cpu`` and ``cpu-arm``.

    >>> from orchestrator.catalog.values import ModelFacts
    >>> from orchestrator.engines.job import ServingJob, Source
    >>> facts = ModelFacts("m", "LlamaForCausalLM", 1, 1, 1, 1, 1, 1, 1)
    >>> family(ServingJob(facts, Source("m"), arch="arm"))
    'cpu-arm'
    """
    if job.accelerator:
        return job.family
    return "cpu-arm" if job.arch == "arm" else "cpu"


def find(job: Placed, engine: str) -> Image | None:
    """Return the catalog's image for ``job``: of the version asked for, else the newest; None without."""
    return next(iter(images(engine, family(job), job.version)), None)


def refuses(job: Placed, engine: str) -> str | None:
    """Say that there is no image for this device and version, or that it is too old for the image.

    An image named by the user is taken as it is.
    """
    if job.image:
        return None
    found = find(job, engine)
    if found is None:
        of = f"{engine} {job.version}" if job.version else engine
        return f"there is no image of {of} for {family(job)}, name one"
    device = job.accelerator
    lowest = found.min_capability
    if device is None or lowest is None or device.capability is None or device.capability >= lowest:
        return None
    has = f"{device.capability[0]}.{device.capability[1]}"
    return f"{engine} needs compute capability {lowest[0]}.{lowest[1]}, {device.name} has {has}"


def reference(job: Placed, engine: str) -> str:
    """Return what to pull: the user's image, or the catalog's by digest where one is pinned.

    Raises:
        ValueError: there is none, as ``refuses`` would have said.
    """
    if job.image:
        return job.image
    found = find(job, engine)
    if found is None:
        raise ValueError(refuses(job, engine))
    return found.reference


def version(job: Placed, engine: str, recorded: str) -> str:
    """Return the version that will run: the one asked for, else the image's, else ``recorded``."""
    found = None if job.image or job.version else find(job, engine)
    return job.version or (found.version if found else recorded)


def other_version(job: Placed, engine: str, recorded: str) -> str | None:
    """Say that the newest image for this device is not of the version whose options are recorded."""
    holds = version(job, engine, recorded)
    if job.version or holds == recorded:
        return None
    return f"options are checked against {engine} {recorded}, the image holds {holds}"


def is_of(image: str, engine: str) -> bool:
    """Say whether an image is one of those that the catalog has of ``engine``, of whatever version.

    >>> is_of("vllm/vllm-openai:v0.9.1", "vllm"), is_of("acme/vllm:1", "vllm")
    (True, False)
    """
    return repository(image) in {one.repository for one in images(engine)}


def repository(image: str) -> str:
    """Return an image's name without its registry where that is Docker's, its tag and its digest.

    >>> repository("docker.io/vllm/vllm-openai:v0.9.1"), repository("host:5000/a/b@sha256:0")
    ('vllm/vllm-openai', 'host:5000/a/b')
    """
    return read_reference(image).repository.removeprefix("docker.io/")
