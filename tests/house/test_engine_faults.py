"""Broken twins of an engine: each must be caught by the property it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.engines import Engine, EngineLaunch, ServingJob, engine
from orchestrator.units import GIB
from tests.engines import properties

Break = Callable[[EngineLaunch], EngineLaunch]


class Twin:
    """vLLM with one fault in its launches."""

    name = "vllm"
    versions = ("0.33.0",)

    def __init__(self, fault: Break) -> None:
        self.fault = fault

    def refuses(self, job: ServingJob) -> str | None:
        """Answer as vLLM does."""
        return engine("vllm").refuses(job)

    def launch(self, job: ServingJob, *, node_rank: int = 0) -> EngineLaunch:
        """Return vLLM's launch with the fault."""
        return self.fault(engine("vllm").launch(job, node_rank=node_rank))


class Deaf(Twin):
    """Refuses nothing, and so promises launches that there cannot be."""

    def refuses(self, job: ServingJob) -> str | None:
        """Let everything through."""
        return None


class Choosy(Twin):
    """Refuses one device by its name, and serves others that are no different."""

    def refuses(self, job: ServingJob) -> str | None:
        """Decide by the name."""
        named = job.accelerator and job.accelerator.name.startswith("H200")
        return "no H200" if named else super().refuses(job)


class Frugal(Twin):
    """Refuses large caches, which are the plan's to decide."""

    def refuses(self, job: ServingJob) -> str | None:
        """Decide by the bytes."""
        return "too much" if (job.kv_cache_bytes or 0) > 30 * GIB else super().refuses(job)


def unknown_option(launch: EngineLaunch) -> EngineLaunch:
    """Say an option of an older release."""
    return replace(launch, command=(*launch.command, "--swap-space", "4"))


def value_too_many(launch: EngineLaunch) -> EngineLaunch:
    """Give a switch a value."""
    return replace(launch, command=(*launch.command, "--enforce-eager", "true"))


def open_route(launch: EngineLaunch) -> EngineLaunch:
    """Let the gateway pass on a change of weights."""
    return replace(launch, routes=(*launch.routes, "/update_weights"))


def short_grace(launch: EngineLaunch) -> EngineLaunch:
    """Kill after the default of Docker."""
    return replace(launch, stop_grace_s=10.0)


def fixed_start(launch: EngineLaunch) -> EngineLaunch:
    """Give every model the same ten minutes."""
    return replace(launch, probe=replace(launch.probe, start_s=600.0) if launch.probe else None)


def shown_secret(launch: EngineLaunch) -> EngineLaunch:
    """Write a reference where the process list shows it."""
    return replace(launch, command=(*launch.command, "--api-key", dict(launch.secrets).get("HF_TOKEN", "")))


def own_variable(launch: EngineLaunch) -> EngineLaunch:
    """Set a variable over the user's."""
    return replace(launch, env=(*launch.env, ("HF_HOME", "/root/.cache/huggingface")))


def loopback(launch: EngineLaunch) -> EngineLaunch:
    """Listen where nobody outside the container can ask."""
    words = tuple("127.0.0.1" if word == "0.0.0.0" else word for word in launch.command)
    return replace(launch, command=words)


@pytest.mark.parametrize(
    ("fault", "catches"),
    [
        (unknown_option, properties.uses_recorded_options),
        (value_too_many, properties.uses_recorded_options),
        (open_route, properties.keeps_administration_out),
        (short_grace, properties.outlasts_its_drain),
        (fixed_start, properties.starts_later_for_more_bytes),
        (shown_secret, properties.keeps_secrets_as_references),
        (own_variable, properties.lets_the_users_variable_win),
        (loopback, properties.listens_on_every_address),
    ],
)
def test_fault_is_caught(fault: Break, catches: Callable[[Engine], None]) -> None:
    with pytest.raises(AssertionError):
        catches(Twin(fault))


@pytest.mark.parametrize(
    "catches", [properties.answers_every_job, properties.asks_for_the_token_of_a_gated_model]
)
def test_engine_that_refuses_nothing_is_caught(catches: Callable[[Engine], None]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        catches(Deaf(lambda launch: launch))


@pytest.mark.parametrize("twin", [Choosy, Frugal])
def test_engine_that_looks_beyond_the_kind_of_device_is_caught(twin: type[Twin]) -> None:
    with pytest.raises(AssertionError):
        properties.decides_by_the_kind_of_device(twin(lambda launch: launch))


@pytest.mark.parametrize("holds", properties.EVERY[1:])
def test_twin_without_a_fault_passes(holds: Callable[[Engine], None]) -> None:
    holds(Twin(lambda launch: launch))
