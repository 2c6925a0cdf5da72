"""Adapters: loaded and dropped while an engine runs, and asked for by name where they are."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from socket import create_server

import pytest

from orchestrator.api import Local
from orchestrator.backend import Instance, Phase
from orchestrator.engines import engine
from orchestrator.engines.job import Adapters
from orchestrator.gateway.keys import PREFIX, Key, Keys, digest_of, new_key
from orchestrator.gateway.model_key import ModelKey
from orchestrator.gateway.routes import ServiceRoute, make_routes, routes_of
from orchestrator.loop.adapters import Tender, tend
from orchestrator.reconcile.values import Adapter, Loaded, Wanted
from orchestrator.spec.load import load
from tests.engines.jobs import job as engine_job
from tests.gateway import lora_engine
from tests.gateway.clients import Answer, chat, completion, in_a_loop, request, stage, until
from tests.gateway.lora_engine import Kind
from tests.gateway.test_parts import a_job, a_run
from tests.gateway.test_record import NOW, program
from tests.gateway.upstream import Upstream
from tests.gateway.upstream import engine as answering

VLLM = Adapters("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "--lora-modules")
SGLANG = Adapters("/load_lora_adapter", "/unload_lora_adapter", "--lora-paths", called="{base}:{name}")
SQL, SUM = Adapter("sql", "org/sql"), Adapter("sum", "org/sum")


def test_the_paths_are_those_the_engines_state() -> None:
    for name, takes in (("vllm", VLLM), ("sglang", SGLANG)):
        stated = engine(name).launch(engine_job(adapter_slots=2)).adapters
        assert stated is not None
        assert (stated.load, stated.unload, stated.flag, stated.called) == (
            takes.load, takes.unload, takes.flag, takes.called
        )  # fmt: skip
        assert (stated.slots, stated.rank) == (2, 64)


@pytest.mark.parametrize(("kind", "takes"), [("vllm", VLLM), ("sglang", SGLANG)])
def test_an_engine_comes_to_serve_what_is_wanted_and_nothing_else(kind: Kind, takes: Adapters) -> None:
    with lora_engine.lora_engine(kind) as replica:
        replica.adapters.update({"old": "org/old", "sum": "org/elsewhere"})
        assert tend(takes, [SQL, SUM], (), replica.address) == Loaded(("sql", "sum"))
        assert replica.adapters == {"sql": "org/sql", "sum": "org/sum"}
        calls = len(replica.calls)
        assert tend(takes, [SQL, SUM], ("sql", "sum"), replica.address) == Loaded(("sql", "sum"))
        assert len(replica.calls) == calls


def test_other_weights_at_the_same_path_are_loaded_anew() -> None:
    with lora_engine.lora_engine("vllm") as replica:
        old, new = replace(SQL, revision="a"), replace(SQL, revision="b")
        assert tend(VLLM, [old], (), replica.address) == Loaded(("sql@a",))
        assert tend(VLLM, [new], ("sql@a",), replica.address) == Loaded(("sql@b",))
        assert replica.calls == [("load", "sql"), ("unload", "sql"), ("load", "sql")]


def test_what_an_engine_refuses_is_told_in_its_words_and_the_others_are_served() -> None:
    with lora_engine.lora_engine("sglang") as replica:
        found = tend(SGLANG, [Adapter("bad", "org/missing"), SQL], (), replica.address)
    assert found == Loaded(("sql",), "adapter bad is not loaded: No adapter found for org/missing")


def test_an_engine_that_does_not_answer_is_not_known_to_serve_less() -> None:
    with create_server(("127.0.0.1", 0)) as nobody:
        address = nobody.getsockname()
    assert tend(VLLM, [SQL], ("sql",), address) is None


def test_an_engine_that_never_said_what_it_serves_is_told_of_and_a_last_word_stands() -> None:
    with create_server(("127.0.0.1", 0)) as nobody, ThreadPoolExecutor(1) as pool:
        instance = Instance(
            "chat-0-0-0", "chat", 0, 0, 0, "h", Phase.RUNNING, ports={80: nobody.getsockname()}
        )
        nobody.close()
        tender = Tender(pool, lambda: 0.0, lambda: None)
        tender.look(instance, VLLM, (SQL,), (), 80)
        pool.submit(int).result()
        found = tender.look(instance, VLLM, (SQL,), (), 80)
        assert found == Loaded((), "chat-0-0-0 does not say which adapters it serves")
        with lora_engine.lora_engine("vllm") as replica:
            instance = replace(instance, ports={80: replica.address})
            for wanted in ((SQL, SUM), (SQL,)):  # a list that changes is told at once
                tender.look(instance, VLLM, wanted, (), 80)
                pool.submit(int).result()
            assert tender.look(instance, VLLM, (SQL,), (), 80) == Loaded(("sql",))
        tender.look(instance, VLLM, (SUM,), (), 80)
        pool.submit(int).result()
        assert tender.look(instance, VLLM, (SUM,), (), 80) == Loaded(("sql",))


def test_a_list_that_changes_is_told_at_once_and_a_refusal_is_tried_again_later() -> None:
    time = 0.0
    instance = Instance("chat-0-0-0", "chat", 0, 0, 0, "h", Phase.RUNNING)
    with lora_engine.lora_engine("vllm") as replica, ThreadPoolExecutor(1) as pool:
        instance = replace(instance, ports={80: replica.address})
        tender = Tender(pool, lambda: time, lambda: None)

        def look(*wanted: Adapter) -> Loaded | None:
            tender.look(instance, VLLM, wanted, (), 80)
            pool.submit(int).result()  # after what was asked before it
            return tender.look(instance, VLLM, wanted, (), 80)

        assert look(SQL) == Loaded(("sql",))
        assert look(SQL, SUM) == Loaded(("sql", "sum"))
        bad = Adapter("bad", "org/missing")
        assert (look(bad) or Loaded()).trouble.startswith("adapter bad is not loaded")
        tried = len(replica.calls)
        assert look(bad)
        assert len(replica.calls) == tried
        assert 0 < (tender.next_s() or 0) <= 1
        time = 1.0
        look(bad)
        assert len(replica.calls) == tried + 1
        looked = tender.look(instance, VLLM, (SQL,), (), 80)
        assert looked is not None
        assert looked.trouble == ""  # what was refused of another list says nothing of this one
        tender.forget([])
        assert tender.next_s() is None


# Routes ------------------------------------------------------------------------------------------


def test_an_adapter_is_asked_for_as_its_engine_calls_it_of_replicas_that_have_it() -> None:
    takes = {"load": "/load_lora_adapter", "unload": "/u", "flag": "--lora-paths", "called": "{base}:{name}"}
    plan = json.dumps({"serving": {"model_name": "llama", "adapters": takes}})
    model = {"id": "org/llama", "adapters": [{"name": "sql", "id": "org/sql-lora"}]}
    run = a_run(model=model, plan=plan)
    service = routes_of([run], [replace(a_job(run), adapters=("sql@v1",))]).services["chat"]
    assert dict(service.models) == {"org/llama": "llama", "sql": "llama:sql"}
    assert service.adapters == {"sql"}
    assert [replica.adapters for replica in service.replicas] == [frozenset({"sql"})]


def test_a_service_with_a_base_has_the_replicas_of_that_and_its_own_doors() -> None:
    takes = {"load": "/l", "unload": "/u", "flag": "--lora"}
    plan = json.dumps({"serving": {"model_name": "llama", "routes": ["/v1/x"], "adapters": takes}})
    base = a_run(model={"id": "org/llama", "max_adapters": 2}, plan=plan)
    run = a_run(name="sql", model=None, base="chat", adapters=[{"name": "sql", "id": "a/b"}], auth=False)
    template = replace(run.template, base="chat", adapters=(Adapter("sql", "a/b"),), replicas=0)
    run = replace(run, id="sql", template=template)
    jobs = [replace(a_job(base), adapters=("sql",))]
    routes = routes_of([run, base], jobs)
    assert routes.by_model["sql"] == "sql"
    assert routes.services["sql"].replicas == routes.services["chat"].replicas
    assert (routes.services["sql"].auth, routes.services["sql"].paths) == (False, {"/v1/x"})
    gone = routes_of([run, replace(base, wanted=Wanted.DELETE)], jobs).services["sql"]
    assert (gone.replicas, gone.over) == ((), True)
    assert routes_of([run], []).services["sql"].over


def with_adapters(*ports: int, have: list[set[str]], **more: object) -> ServiceRoute:
    route = chat(*ports, adapters=frozenset({"sql"}), **more)
    replicas = [replace(r, adapters=frozenset(h)) for r, h in zip(route.replicas, have, strict=True)]
    return replace(route, replicas=tuple(replicas))


@in_a_loop
async def test_an_adapter_s_requests_go_only_where_it_is_loaded() -> None:
    async with Upstream(answering) as without, Upstream(answering) as having, stage(chat()) as here:
        here.serve(with_adapters(without.port, having.port, have=[set(), {"sql"}]))
        for _ in range(6):
            assert (await here.ask(completion("sql"))).status == 200
        assert (len(without.asked), len(having.asked)) == (0, 6)
        for _ in range(6):
            assert (await here.ask(completion("llama"))).status == 200
    assert len(without.asked) == 3


@in_a_loop
async def test_who_waits_for_an_adapter_holds_up_nobody_and_is_served_once_it_is_loaded() -> None:
    async with Upstream(answering) as replica, stage(chat()) as here:
        waiting = [asyncio.create_task(here.ask(completion(m))) for m in ("sql", "llama")]
        await until(lambda: len(here.gateway.desks["chat"].waiting) == 2)
        here.serve(with_adapters(replica.port, have=[set()]))
        assert (await waiting[1]).status == 200
        assert not waiting[0].done()
        here.serve(with_adapters(replica.port, have=[{"sql"}]))
        assert (await waiting[0]).status == 200


@in_a_loop
async def test_nobody_waits_for_an_adapter_that_an_engine_refused_unless_another_has_it() -> None:
    async with Upstream(answering) as replica, stage(chat()) as here:
        waiting = asyncio.create_task(here.ask(completion("sql")))
        await until(lambda: len(here.gateway.desks["chat"].waiting) == 1)
        bad = frozenset({"sql"})
        here.serve(with_adapters(replica.port, have=[set()], refused=bad))
        assert ((await waiting).status, (await here.ask(completion("sql"))).code) == (
            503,
            "adapter_not_loaded",
        )
        here.serve(with_adapters(replica.port, have=[{"sql"}], refused=bad))
        assert (await here.ask(completion("sql"))).status == 200


SQL_KEY = "my-sql"
OF_SQL = Keys.of([Key("ann", digest_of(SQL_KEY), frozenset({"sql"}))])


def shared(port: int) -> tuple[ServiceRoute, ServiceRoute]:
    """Return a base that one key opens, and a service on its replicas that another one opens."""
    own = chat(port, auth=True, models={"org/llama": "llama"})
    sql = replace(
        own, name="sql", base="chat", models={"tuned": "llama:tuned"}, adapters=frozenset({"tuned"})
    )
    both = replace(own, replicas=(replace(own.replicas[0], adapters=frozenset({"tuned"})),))
    return both, replace(sql, replicas=both.replicas)


@in_a_loop
async def test_an_adapter_is_asked_for_by_its_service_s_path_as_by_its_name() -> None:
    async with Upstream(answering) as without, Upstream(answering) as having, stage(chat()) as here:
        here.serve(with_adapters(without.port, having.port, have=[set(), {"sql"}]))
        asked = request("/services/chat/v1/completions", b'{"prompt": "x", "model": "sql"}')
        for _ in range(6):
            assert (await here.ask(asked)).status == 200
        assert (len(without.asked), len(having.asked)) == (0, 6)
        assert having.asked[0].target == "/v1/completions"
        other = request("/services/chat/v1/completions", b'{"prompt": "x"}')
        for _ in range(4):  # what names no adapter is for any replica
            assert (await here.ask(other)).status == 200
    assert len(without.asked) >= 2


@in_a_loop
async def test_a_service_on_a_base_answers_by_its_path_to_its_own_models_alone() -> None:
    async with Upstream(answering) as replica, stage(chat()) as here:
        here.gateway.update(make_routes(shared(replica.port)), OF_SQL)

        async def ask(path: str, body: bytes, key: str | None = SQL_KEY) -> Answer:
            return await here.ask(request(path, body, key=key))

        answer = await ask("/services/sql/v1/completions", b'{"model": "tuned"}')
        assert answer.status == 200
        assert replica.asked[0].body == b'{"model": "llama:tuned"}'
        assert (await ask("/services/sql/v1/completions", b'{"model": "llama:tuned"}')).status == 200
        asked = len(replica.asked)
        for body in (b'{"model": "llama"}', b'{"model": "org/llama"}', b"{}", b"[]", b'{"model": 1}'):
            assert (await ask("/services/sql/v1/completions", body)).status in (400, 404)
        assert (await ask("/services/sql/v1/load_lora_adapter", b'{"model": "tuned"}')).status == 404
        assert (await ask("/services/chat/v1/completions", b'{"model": "org/llama"}')).status == 403
        assert (await ask("/services/sql/v1/completions", b'{"model": "tuned"}', key=None)).status == 401
        assert len(replica.asked) == asked


FORM = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ntuned\r\n--x--\r\n'
TWICE = [
    b'{"model": "tuned", "model": "llama"}',
    b'{"model": "tuned", "prompt": {"a": [1, "]"]}, "m\\u006fdel": "llama"}',
    b'{"\\u006d\\u006F\\u0064\\u0065\\u006c": "llama", "model": "tuned"}',
    b'{"model": "tuned", "model": null}',
    b'{"model": "tuned", "a": "\\\\", "model": ["llama"]}',
    b'{"model": "tuned", "prompt": "x"',
    b'{"model": "tuned"',
]


@pytest.mark.parametrize("body", TWICE)
@pytest.mark.parametrize("path", ["/v1/completions", "/services/sql/v1/completions"])
def test_no_other_model_of_the_same_replicas_is_reached_by_naming_two(path: str, body: bytes) -> None:
    names_two(path, body)


@in_a_loop
async def names_two(path: str, body: bytes) -> None:
    async with Upstream(answering) as replica, stage(chat()) as here:
        here.gateway.update(make_routes(shared(replica.port)), OF_SQL)
        assert (await here.ask(request(path, body, key=SQL_KEY))).status in (400, 404)
        form = request(path, FORM, key=SQL_KEY, headers=["Content-Type: multipart/form-data; boundary=x"])
        assert (await here.ask(form)).status == 400
        assert replica.asked == []


def test_one_model_is_found_to_the_end_of_what_any_json_holds() -> None:
    for body in (
        b'{"model": "a"}',
        b' {"x": {"model": "b"}, "model": "a", "y": [{"model": "c"}], "modem": 1} ',
    ):
        for size in (1, 3, len(body)):
            key, over = ModelKey(to_the_end=True), False
            for end in range(size, len(body) + size, size):
                over = key.look(body[:end])
            assert (over, key.name, body[slice(*key.span)]) == (True, "a", b'"a"')


# As a user does ----------------------------------------------------------------------------------

SMI = "#!/bin/sh\necho '0, GPU-5fd4f087, NVIDIA L4, 23034, 00000000:00:03.0, [N/A], 8.9'\n"
BASE = """\
type: service
name: chat
model:
  id: Qwen/Qwen2.5-0.5B-Instruct
  adapters: [{adapters}]
  max_adapters: 3
engine: vllm
port: {port}
auth: false
traffic: {{concurrency: 1, input_tokens: 64, output_tokens: 16}}
probes: [{{type: token, interval: 1s}}]
backends: [process]
"""
BASED = """\
type: service
name: code
base: chat
adapters: [{name: code, id: org/code}]
auth: true
"""


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def ask(url: str, model: str, key: str = "") -> tuple[int, str]:
    body = json.dumps({"model": model, "prompt": "x"}).encode()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers)) as answer:
            return answer.status, json.loads(answer.read())["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]["message"]


def test_adapters_are_added_and_removed_in_place_and_shared_by_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (
        ("nvidia-smi", SMI),
        ("vllm", f'#!/bin/sh\nexec {sys.executable} {lora_engine.__file__} "$@"\n'),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    config = tmp_path / "config.yaml"
    config.write_text(f"backends: [{{type: process, state_dir: {tmp_path}/process}}]\n")
    monkeypatch.setenv("MODELYARD_CONFIG", str(config))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    file, port = tmp_path / "chat.yaml", free_port()
    api = Local(f"sqlite:///{tmp_path}/state.db", config=config)

    def apply(text: str) -> str:
        file.write_text(text)
        plans = api.plan(load([str(file)]))
        api.apply(plans)
        api.follow([plans[0].name], "settled", timeout_s=30)
        return plans[0].action

    def base(*adapters: str) -> str:
        listed = ", ".join(f"{{name: {name}, id: org/{name}}}" for name in adapters)
        return BASE.format(adapters=listed, port=port)

    try:
        assert apply(base("sql")) == "create"
        key, secret = new_key("ann", ["code"])
        api.store.secrets.set(PREFIX + "ann", key.text(), now=NOW)
        with program(tmp_path) as (_, url):
            status, first = ask(url, "sql")
            assert (status, first.split(" by ")[0]) == (200, "sql from org/sql")
            pid = first.split(" by ")[1]
            assert apply(base("sum")) == "update"
            assert ask(url, "sum") == (200, f"sum from org/sum by {pid}")
            wait_for(lambda: ask(url, "sql")[0] == 404)
            assert apply(BASED) == "create"
            assert api.store.run("code").state.value == "ready"
            assert ask(url, "code", secret) == (200, f"code from org/code by {pid}")
            assert ask(url, "code")[0] == 401
            assert apply(base("sum", "missing")) == "update"
            reason = "adapter missing is not loaded: No adapter found for org/missing"
            assert api.store.run("chat").reason == reason
            wait_for(lambda: ask(url, "missing") == (503, "adapter 'missing' could not be loaded"))
            assert apply(base("sum")) == "update"
            assert api.store.run("chat").reason == ""
            assert {e.after for _, e in api.store.events("code")} >= {"queued", "ready"}
            os.kill(int(pid), 9)
            wait_for(lambda: ask(url, "code", secret)[1] not in ("", f"code from org/code by {pid}"))
            api.follow(["chat"], "settled", timeout_s=30)
            names = {
                name.partition("@")[0] for job in api.store.jobs() if job.ready_at for name in job.adapters
            }
            assert names == {"sum", "code"}
            causes = [event.cause for _, event in api.store.events("chat")]
            assert "serves adapters sum" in causes
            api.ask(["chat"], Wanted.STOP)
            api.follow(["chat"], "ended", timeout_s=30)
            api.follow(["code"], "settled", timeout_s=30)
            assert api.store.run("code").reason == "service chat does not run: apply it"
            assert ask(url, "code", secret) == (503, "service 'code' has ended")
    finally:
        left = [run.name for run in api.store.runs()]  # however far it came
        api.ask(left, Wanted.DELETE)
        api.follow(left, "deleted", timeout_s=30)
        api.close()


def wait_for(holds: object) -> None:
    async def within() -> None:
        async with asyncio.timeout(30):
            await until(holds)  # type: ignore[arg-type]

    asyncio.run(within())
