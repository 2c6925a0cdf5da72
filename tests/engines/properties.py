"""What must hold of any engine, as checks that take the engine: its tests and its broken twins share them."""

from __future__ import annotations

import itertools
from dataclasses import replace

from orchestrator.catalog import accelerators
from orchestrator.engines import Engine, kind_of
from orchestrator.engines.arguments import parse
from orchestrator.engines.flags import load
from tests.engines.jobs import LLAMA_8B, MODELS, PRECISIONS, every_job, job

_ADMINISTRATION = ("load", "update", "pause", "sleep", "reset", "flush", "abort", "profile", "invocations")


def answers_every_job(engine: Engine) -> None:
    """Every job is launched, or refused with a phrase."""
    launched = 0
    for sized in every_job(MODELS):
        why = engine.refuses(sized)
        if why is None:
            engine.launch(sized)
            launched += 1
        else:
            assert why
            assert not why.endswith(".")
    assert launched > 20


def uses_recorded_options(engine: Engine) -> None:
    """Options exist in the recorded version, with as many values and of the choices it takes."""
    known = load(engine.name, engine.versions[0])
    for sized in every_job(MODELS):
        if engine.refuses(sized) is not None:
            continue
        command = engine.launch(sized).command
        begin = next(i for i, word in enumerate(command) if word in ("--served-model-name", "--host"))
        for given in parse(command[begin:]):
            flag = known.find(given.name)
            assert flag, f"{engine.name} has no {given.name}"
            assert not flag.choices or set(given.values) <= set(flag.choices), given
            assert len(given.values) == flag.takes or (flag.takes in ("+", "*") and given.values), given


def keeps_administration_out(engine: Engine) -> None:
    """Routes are requests only."""
    routes = engine.launch(job()).routes
    assert "/v1/chat/completions" in routes
    assert not [r for r in routes if any(word in r for word in _ADMINISTRATION)]


def outlasts_its_drain(engine: Engine) -> None:
    """The kill comes after the engine had the time that it was told to drain in."""
    for drain_s in (0, 30, 600):
        assert engine.launch(job(drain_s=drain_s)).stop_grace_s > drain_s


def starts_later_for_more_bytes(engine: Engine) -> None:
    """A larger model never gets a shorter start, and none gets less than ten minutes."""
    probes = [engine.launch(job(load_bytes=size)).probe for size in (0, 10**10, 10**11, 10**12)]
    starts = [probe.start_s for probe in probes if probe]
    assert starts == sorted(starts)
    assert starts[0] >= 600
    assert starts[-1] > starts[0]


def keeps_secrets_as_references(engine: Engine) -> None:
    """Neither a secret nor its reference is written into what is started."""
    given = (("HF_TOKEN", "secrets.A"), ("NGC_API_KEY", "secrets.B"))
    launch = engine.launch(job(secrets=given))
    assert "secrets." not in f"{launch.command} {launch.env} {launch.entrypoint} {launch.setup}"
    assert dict(launch.secrets) == dict(given)


def asks_for_the_token_of_a_gated_model(engine: Engine) -> None:
    """A gated model without a token is refused before anything is started, unless it is there already."""
    gated, other = replace(LLAMA_8B, gated_access=True), (("NGC_API_KEY", "secrets.NGC"),)
    assert "HF_TOKEN" in (engine.refuses(job(gated, secrets=other)) or "")
    assert engine.refuses(job(gated, secrets=other, fetch_bytes=0)) is None


def lets_the_users_variable_win(engine: Engine) -> None:
    """A variable is set once, to what the user says."""
    launch = engine.launch(job(env=(("HF_HOME", "/scratch"),)))
    assert [value for name, value in launch.env if name == "HF_HOME"] == ["/scratch"]


def listens_on_every_address(engine: Engine) -> None:
    """A server on loopback inside its container is never ready."""
    launch = engine.launch(job())
    said = " ".join((*launch.command, *(f"{n}={v}" for n, v in launch.env)))
    assert "0.0.0.0" in said or engine.name == "nim"  # NIM's proxy has no other way


def decides_by_the_kind_of_device(engine: Engine) -> None:
    """Devices of one kind, and any numbers of bytes, get the same answer."""
    said: dict[object, bool] = {}
    for device in accelerators().values():
        for model, precision, cache in itertools.product(MODELS, PRECISIONS, ("auto", "fp8")):
            size = {"kv_cache_bytes": device.visible_bytes // 4, "load_bytes": device.visible_bytes // 2}
            serves = engine.refuses(job(model, device, precision=precision, kv_dtype=cache, **size)) is None
            assert said.setdefault((kind_of(device), model.id, precision, cache), serves) == serves, device


EVERY = (
    answers_every_job,
    keeps_administration_out,
    outlasts_its_drain,
    starts_later_for_more_bytes,
    keeps_secrets_as_references,
    asks_for_the_token_of_a_gated_model,
    lets_the_users_variable_win,
    listens_on_every_address,
    decides_by_the_kind_of_device,
)
