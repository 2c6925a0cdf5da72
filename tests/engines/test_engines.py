"""What every engine must keep, whatever it serves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.backend import Launch
from orchestrator.engines import Engine, engine, names
from tests.engines import properties
from tests.engines.jobs import DEVICES, job

RECORDED = ("vllm", "sglang", "transformers")


@pytest.mark.parametrize("name", names())
def test_name_is_the_module(name: str) -> None:
    assert engine(name).name == name


def test_unknown_engine_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        engine("job")


@pytest.mark.parametrize("holds", properties.EVERY)
@pytest.mark.parametrize("name", names())
def test_engine_keeps_every_property(name: str, holds: Callable[[Engine], None]) -> None:
    holds(engine(name))


@pytest.mark.parametrize("name", names())
def test_refused_job_is_not_launched(name: str) -> None:
    with pytest.raises(ValueError, match="beyond the model's 131072"):
        engine(name).launch(job(context_tokens=200_000))


@pytest.mark.parametrize("name", RECORDED)
def test_options_exist_in_the_recorded_version(name: str) -> None:
    """Without the engines' parsers at hand, an option that does not exist still fails here."""
    properties.uses_recorded_options(engine(name))


@pytest.mark.parametrize("name", names())
def test_same_job_gives_same_launch(name: str) -> None:
    assert engine(name).launch(job()) == engine(name).launch(job())


@pytest.mark.parametrize("name", names())
def test_several_devices_get_shared_memory(name: str) -> None:
    wide = job(count=4, tensor=4)
    if engine(name).refuses(wide) is None:
        assert engine(name).launch(wide).shm_bytes >= 16 * 10**9


@pytest.mark.parametrize("name", names())
def test_image_is_pinned(name: str) -> None:
    served = engine(name)
    for device in DEVICES:
        sized = job(accelerator=device)
        if served.refuses(sized) is None:
            image = served.launch(sized).image
            assert image
            assert ":" in image
            assert not image.endswith(":latest") or "/1.23.0/" in image  # its version is in its path


@pytest.mark.parametrize("name", names())
def test_own_image_is_taken(name: str) -> None:
    assert engine(name).launch(job(image="registry.local/served:1")).image == "registry.local/served:1"


@pytest.mark.parametrize("name", names())
def test_launch_takes_the_answer_and_keeps_its_name(name: str) -> None:
    answer = engine(name).launch(job())
    started = answer.onto(Launch("chat-0-0-1", "chat", env=(("MODELYARD_RUN_NAME", "chat"),)))
    assert started.name == "chat-0-0-1"
    assert started.env[0] == ("MODELYARD_RUN_NAME", "chat")
    assert started.ports[0].container == answer.port
    assert started.probe == answer.probe
