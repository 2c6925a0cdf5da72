"""What every engine must keep, whatever it serves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.backend import Launch
from orchestrator.engines import engine, names
from orchestrator.engines.arguments import parse
from orchestrator.engines.flags import load
from tests.engines.jobs import DEVICES, LLAMA_8B, MODELS, every_job, job

RECORDED = ("vllm", "sglang", "transformers")


@pytest.mark.parametrize("name", names())
def test_name_is_the_module(name: str) -> None:
    assert engine(name).name == name


def test_unknown_engine_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        engine("job")


@pytest.mark.parametrize("name", names())
def test_every_job_is_launched_or_refused_with_a_reason(name: str) -> None:
    served = engine(name)
    launched = 0
    for sized in every_job(MODELS):
        why = served.refuses(sized)
        if why is None:
            assert served.launch(sized).command or name in ("nim", "tgi")
            launched += 1
        else:
            assert why
            assert not why.endswith(".")
    assert launched > 20


@pytest.mark.parametrize("name", names())
def test_refused_job_is_not_launched(name: str) -> None:
    with pytest.raises(ValueError, match="beyond the model's 131072"):
        engine(name).launch(job(context_tokens=200_000))


@pytest.mark.parametrize("name", RECORDED)
def test_options_exist_in_the_recorded_version(name: str) -> None:
    """Without the engines' parsers at hand, an option that does not exist still fails here."""
    served = engine(name)
    known = load(name, served.versions[0])
    for sized in every_job(MODELS):
        if served.refuses(sized) is not None:
            continue
        command = served.launch(sized).command
        first = next(i for i, word in enumerate(command) if word == "--served-model-name" or word == "--host")
        for given in parse(command[first:]):
            flag = known.find(given.name)
            assert flag, f"{name} has no {given.name}"
            assert not flag.choices or set(given.values) <= set(flag.choices)
            assert (len(given.values) == flag.takes) or (flag.takes in ("+", "*") and given.values)


@pytest.mark.parametrize("name", names())
def test_same_job_gives_same_launch(name: str) -> None:
    assert engine(name).launch(job()) == engine(name).launch(job())


@pytest.mark.parametrize("name", names())
def test_more_bytes_never_shorten_the_start(name: str) -> None:
    budgets = [engine(name).launch(job(load_bytes=size)).probe for size in (0, 10**10, 10**11, 10**12)]
    starts = [probe.start_s for probe in budgets if probe]
    assert starts == sorted(starts)
    assert starts[0] >= 600
    assert starts[-1] > starts[0]


@pytest.mark.parametrize("name", names())
def test_routes_keep_administration_out(name: str) -> None:
    routes = engine(name).launch(job()).routes
    assert "/v1/chat/completions" in routes
    forbidden = (
        "load",
        "update",
        "pause",
        "sleep",
        "reset",
        "flush",
        "abort",
        "profile",
        "metrics",
        "invocations",
    )
    assert not [r for r in routes if any(word in r for word in forbidden)]


@pytest.mark.parametrize("name", names())
def test_grace_outlasts_the_drain(name: str) -> None:
    assert engine(name).launch(job(drain_s=120)).stop_grace_s > 120


@pytest.mark.parametrize("name", names())
def test_secrets_stay_references(name: str) -> None:
    launch = engine(name).launch(job(secrets=(("HF_TOKEN", "secrets.A"), ("NGC_API_KEY", "secrets.B"))))
    shown = f"{launch.command} {launch.env} {launch.entrypoint} {launch.setup}"
    assert "secrets." not in shown
    assert dict(launch.secrets) == {"HF_TOKEN": "secrets.A", "NGC_API_KEY": "secrets.B"}


@pytest.mark.parametrize("name", names())
def test_users_variable_wins(name: str) -> None:
    launch = engine(name).launch(job(env=(("HF_HOME", "/scratch"),)))
    assert [value for key, value in launch.env if key == "HF_HOME"] == ["/scratch"]


@pytest.mark.parametrize("name", names())
def test_gated_model_without_token_is_refused(name: str) -> None:
    gated = replace(LLAMA_8B, gated_access=True)
    ngc = (("NGC_API_KEY", "secrets.NGC"),)
    assert "HF_TOKEN" in (engine(name).refuses(job(gated, secrets=ngc)) or "")
    assert engine(name).refuses(job(gated, secrets=ngc, fetch_bytes=0)) is None


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
            assert not image.endswith(":latest") or "/1.23.0/" in image  # Gaudi's version is in its path


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
