"""The pure parts: models in bodies, routes from the record, limits, keys, usage."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.backend import Launch, Port, Scaling
from orchestrator.errors import StoreError
from orchestrator.gateway.answers import models
from orchestrator.gateway.keys import PREFIX, Key, Keys, digest_of, new_key
from orchestrator.gateway.limits import Buckets, Rate
from orchestrator.gateway.model_key import ModelKey, model_of_form
from orchestrator.gateway.routes import PATHS_OF_ANY_ENGINE, Replica, routes_of
from orchestrator.gateway.usage import Account, Tokens, tokens_of
from orchestrator.reconcile.values import Job, JobState, Run, RunState, Template, Wanted, before_of
from orchestrator.spec.models import Service
from orchestrator.store.values import SecretName

T0 = datetime(2026, 11, 25, 12, tzinfo=UTC)

SCALARS = st.sampled_from(
    ["", "model", '"', "\\", 'a"model":"b', "{", "[", "ä€", '\\"model\\"', 0, 1.5, None, True]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "x", '"']), inner),
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "messages", "Model", "model ", "mode", '\\"']), VALUES, max_size=4),
    st.sampled_from(["llama", 'quo"ted', "back\\slash", "ünï", ""]),
    st.integers(0, 4),
    st.lists(st.integers(1, 30), max_size=20),
    st.booleans(),
)
def test_the_model_is_found_wherever_it_stands(
    others: dict[str, object], model: str, at: int, cuts: list[int], ascii_only: bool
) -> None:
    items = list(others.items())
    items.insert(at, ("model", model))
    text = json.dumps(dict(items), ensure_ascii=ascii_only).encode()
    key, end = ModelKey(), 0
    for cut in [*cuts, len(text)]:
        end = min(len(text), end + cut)
        if key.look(text[:end]):
            break
    assert key.name == model
    assert json.loads(text[key.span[0] : key.span[1]]) == model


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_a_model_that_is_not_at_the_top_is_none(value: object) -> None:
    text = json.dumps({"messages": value, "metadata": {"model": "inner"}}).encode()
    key = ModelKey()
    assert key.look(text)
    assert key.name is None


@pytest.mark.parametrize(
    "text",
    [
        b"[1]",
        b'"model"',
        b"}",
        b"null",
        b"]",
        b'{"model": {"a": "b"}}',
        b'{"model": 1}',
        b'{"model": "\xff"}',
    ],
)
def test_what_names_no_model_is_given_up(text: bytes) -> None:
    key = ModelKey()
    assert key.look(text)
    assert key.name is None


def test_a_model_in_the_middle_of_a_form_is_found() -> None:
    first = b'--x\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n'
    form = first + b"--x\r\ncontent-disposition: form-data; name=model\r\n\r\nm\r\n--x--"
    assert model_of_form(form) == "m"
    assert model_of_form(form.replace(b"name=model", b'name="x"; filename="model"')) is None


# Routes ---------------------------------------------------------------------------------------


def a_run(name: str = "chat", *, plan: str = "{}", **fields: object) -> Run:
    spec = Service.model_validate({"type": "service", "name": name, "model": "org/llama", **fields})
    launch = Launch(f"{name}-0-0-0", name, ports=(Port(8000), Port(9000)))
    text = json.dumps(spec.canonical())
    return Run(
        f"id-{name}", name, "service", text, "h", Template(launch, ("docker",)), T0, plan=plan, created_at=T0
    )


def a_job(run: Run, replica: int = 0, **fields: object) -> Job:
    job = Job(
        run.id, f"{run.name}-{replica}-0-0", replica, 0, 0, "h", "docker", JobState.READY, T0,
        ports={8000: ("10.0.0.1", 32000 + replica), 9000: ("10.0.0.1", 1)},
    )  # fmt: skip
    return replace(job, **fields)  # type: ignore[arg-type]  # a test's own


def test_ready_replicas_are_routed_to_at_their_published_port() -> None:
    run = a_run()
    routes = routes_of([run], [a_job(run), a_job(run, 1)], serial=7)
    assert routes.serial == 7
    assert routes.services["chat"].replicas == (
        Replica("chat-0-0-0", "10.0.0.1", 32000),
        Replica("chat-1-0-0", "10.0.0.1", 32001),
    )
    assert routes.of_model("org/llama") is routes.services["chat"]


@pytest.mark.parametrize(
    "fields",
    [
        {"stop_asked_at": T0}, {"state": JobState.RUNNING}, {"state": JobState.STARTING}, {"node": 1},
        {"state": JobState.FAILED}, {"ports": {}},
    ],
)  # fmt: skip
def test_no_new_request_goes_to_a_replica_that_is_not_ready_or_is_to_stop(fields: dict[str, object]) -> None:
    run = a_run()
    assert routes_of([run], [a_job(run, **fields)]).services["chat"].replicas == ()


def test_an_older_replica_is_routed_to_at_the_port_of_its_own_spec() -> None:
    old = replace(a_run(), was_ready=True)
    launch = replace(old.template.launch, ports=(Port(8500),))
    run = replace(old, spec_hash="i", template=Template(launch, ("docker",), before=before_of(old)))
    new = a_job(run, 1, spec_hash="i", ports={8500: ("10.0.0.1", 1)})
    assert routes_of([run], [a_job(old), new]).services["chat"].replicas == (
        Replica("chat-0-0-0", "10.0.0.1", 32000, is_new=False),
        Replica("chat-1-0-0", "10.0.0.1", 1),
    )


@pytest.mark.parametrize("wanted", [Wanted.STOP, Wanted.DELETE])
def test_a_service_that_is_to_stop_is_over(wanted: Wanted) -> None:
    run = replace(a_run(), wanted=wanted)
    service = routes_of([run], [a_job(run)]).services["chat"]
    assert (service.over, service.replicas) == (True, ())


def test_a_service_that_failed_is_over_and_one_that_starts_is_not() -> None:
    failed = replace(a_run(), state=RunState.FAILED)
    starting = replace(a_run("other"), state=RunState.STARTING)
    services = routes_of([failed, starting], []).services
    assert (services["chat"].over, services["other"].over) == (True, False)


def test_the_plan_says_paths_and_names() -> None:
    plan = json.dumps({"serving": {"model_name": "/models/llama", "routes": ["/v1/embeddings"]}})
    service = routes_of([a_run(plan=plan)], []).services["chat"]
    assert service.paths == {"/v1/embeddings"}
    assert dict(service.models) == {"org/llama": "/models/llama"}


def test_without_a_plan_only_what_every_engine_serves_passes() -> None:
    assert routes_of([a_run()], []).services["chat"].paths == PATHS_OF_ANY_ENGINE


def test_a_model_with_commands_is_the_users_own_program() -> None:
    run = a_run(commands=["python serve.py"], image="python:3.12-slim", port=8000)
    assert routes_of([run], []).services["chat"].paths is None


def test_limits_and_auth_come_from_the_spec() -> None:
    limits = [{"prefix": "/v1/", "rps": 2, "burst": 3, "key": {"type": "header", "header": "X-User"}}]
    service = routes_of([a_run(rate_limits=limits, auth=False)], []).services["chat"]
    assert service.rates == (Rate("/v1/", 2.0, 3, "x-user"),)
    assert not service.auth


def test_a_service_that_its_place_scales_is_not_scaled_here() -> None:
    run = a_run(replicas="1..4", scaling={"metric": "queue", "target": 4})
    assert routes_of([run], []).services["chat"].scaled is not None
    theirs = replace(run, template=replace(run.template, scaling=Scaling(1, 4, "waiting", 4.0)))
    assert routes_of([theirs], []).services["chat"].scaled is None


def test_adapters_are_models_of_their_service() -> None:
    model = {"id": "org/llama", "adapters": [{"name": "sql", "id": "org/sql-lora"}]}
    assert set(routes_of([a_run(model=model)], []).by_model) == {"org/llama", "sql"}


def test_a_model_goes_to_a_service_that_lives_before_one_that_ended() -> None:
    ended = replace(a_run("a"), state=RunState.STOPPED)
    routes = routes_of([ended, a_run("b")], [])
    assert routes.by_model["org/llama"] == "b"
    assert [model["owned_by"] for model in models(routes, Key("k", b""))] == ["b"]


# Limits, keys, usage --------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.01, 0.25, 1.0, 7.0]), min_size=1, max_size=60),
    st.sampled_from([0.5, 2.0, 10.0]),
    st.integers(0, 5),
)
def test_no_window_lets_more_through_than_rate_and_burst(gaps: list[float], rps: float, burst: int) -> None:
    buckets, rate, now, let_in = Buckets(), Rate("/", rps, burst), 0.0, []
    for gap in gaps:
        now += gap
        if buckets.take(rate, "ann", now_s=now) == 0.0:
            let_in.append(now)
    for first, start in enumerate(let_in):
        for last in range(first, len(let_in)):
            assert last - first + 1 <= 1 + burst + rps * (let_in[last] - start) + 1e-6


def test_who_waits_as_told_is_let_in_and_clients_do_not_share() -> None:
    buckets, rate = Buckets(), Rate("/", 0.3)
    assert buckets.take(rate, "ann", now_s=0.0) == 0.0
    assert buckets.take(rate, "bob", now_s=0.0) == 0.0
    wait_s = buckets.take(rate, "ann", now_s=1.0)
    assert buckets.take(rate, "ann", now_s=1.0 + wait_s) == 0.0


def test_buckets_are_bounded() -> None:
    buckets = Buckets(most=3)
    for client in range(10):
        buckets.take(Rate("/", 1), str(client), now_s=0.0)
    assert buckets.take(Rate("/", 1), "9", now_s=0.0) > 0
    assert buckets.take(Rate("/", 1), "0", now_s=0.0) == 0.0


class Shelf:
    def __init__(self, **values: str) -> None:
        self.values = values

    def list(self) -> list[SecretName]:
        return [SecretName(name, datetime(2026, 11, 30, tzinfo=UTC)) for name in self.values]

    def get(self, name: str) -> str:
        return self.values[name]


def test_a_new_key_is_found_by_its_secret_and_kept_without_it() -> None:
    key, secret = new_key("ann", ["chat"])
    keys = Keys.read(Shelf(**{PREFIX + "ann": key.text(), "chat/HF_TOKEN": "x"}))
    assert keys.find(secret.encode()) == key
    assert keys.find(b"my-wrong") is None
    assert secret not in key.text()
    assert (key.opens("chat"), key.opens("other")) == (True, False)


def test_a_secret_that_is_no_key_is_named() -> None:
    with pytest.raises(StoreError) as error:
        Keys.read(Shelf(**{PREFIX + "ann": '"my-plain-text"'}))
    assert "ann" in error.value.what
    assert "my-plain-text" not in str(error.value)


@pytest.mark.parametrize(
    ("tail", "tokens"),
    [
        (b'"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}', Tokens(3, 5)),
        (b'"usage": {"input_tokens": 3, "output_tokens": 5}', Tokens(3, 5)),
        (b'"usage":null}', None),
        (b'{"text": "hello"}', None),
        (b'"usage":{"prompt_tokens":1}}\n\n"usage":{"prompt_tokens":1,"completion_tokens":2}}', Tokens(1, 2)),
    ],
)  # fmt: skip
def test_usage_is_read_from_the_end(tail: bytes, tokens: Tokens | None) -> None:
    assert tokens_of(tail) == tokens


def test_accounts_add_up() -> None:
    account = Account()
    account.add(200, Tokens(3, 5))
    account.add(429, None)
    account.add(200, None)
    assert account == Account(requests=3, failed=1, prompt_tokens=3, output_tokens=5, untold=1)
    assert digest_of("a") == digest_of(b"a")
