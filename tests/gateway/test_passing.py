"""What reaches a replica and what comes back, over real sockets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from orchestrator.gateway.limits import Rate
from orchestrator.gateway.server import Limits
from tests.gateway.clients import chat, completion, in_a_loop, request, stage, until, web
from tests.gateway.upstream import (
    COMPLETION,
    Asked,
    Upstream,
    engine,
    plain,
    saying,
    silent,
    websocket_accept,
)


@in_a_loop
async def test_a_completion_comes_back_byte_for_byte() -> None:
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here:
        answer = await here.ask(completion())
    assert (answer.status, answer.body) == (200, COMPLETION)
    assert json.loads(replica.asked[0].body)["model"] == "llama"


@in_a_loop
async def test_an_adapter_is_served_by_its_service_under_its_own_name() -> None:
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here:
        assert (await here.ask(completion("sql"))).status == 200
    assert json.loads(replica.asked[0].body)["model"] == "sql"


@in_a_loop
async def test_a_model_is_called_what_the_engine_calls_it() -> None:
    service = chat(0, models={"org/tiny": "/models/tiny@main"})
    async with Upstream(engine) as replica:
        service = replace(service, replicas=(replace(service.replicas[0], port=replica.port),))
        async with stage(service) as here:
            assert (await here.ask(completion("org/tiny", pad=70_000))).status == 200
    body = json.loads(replica.asked[0].body)
    assert body == {"prompt": "x" * 70_000, "model": "/models/tiny@main", "stream": False}


@in_a_loop
async def test_tokens_arrive_one_by_one() -> None:
    step = asyncio.Event()

    async def serve(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for token in (b"a", b"b"):
            writer.write(b"1\r\n%b\r\n" % token)
            await step.wait()
            step.clear()
        writer.write(b"0\r\n\r\n")

    async with Upstream(serve) as replica, stage(chat(replica.port)) as here, here.connection() as client:
        await client.send(completion(stream=True))
        await client.reader.readuntil(b"\r\n\r\n")
        for token in (b"a", b"b"):  # the second is not even made before the first was read
            assert await client.reader.readexactly(6) == b"1\r\n%b\r\n" % token
            step.set()
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"


@in_a_loop
async def test_connections_are_kept_on_both_sides() -> None:
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here, here.connection() as client:
        for _ in range(5):
            assert (await client.ask(completion())).status == 200
            assert (await client.ask(completion(stream=True))).status == 200
    assert replica.connections == 1


@in_a_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async def echo(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(asked.target.encode()))

    async with Upstream(echo) as replica, stage(web(replica.port)) as here, here.connection() as client:
        targets = [f"/{at}" for at in range(20)]
        await client.send(b"".join(request(f"/services/web{t}", method="GET") for t in targets))
        assert [(await client.answer()).body.decode() for _ in targets] == targets


@in_a_loop
async def test_models_of_all_services_are_listed_as_far_as_the_key_goes() -> None:
    async with stage(chat(1), web(2, models={"tiny": "tiny"}, auth=False)) as here:
        ann = (await here.ask(request("/v1/models", method="GET"))).json()["data"]
        bob = (await here.ask(request("/v1/models", method="GET", key="my-bob"))).json()["data"]
        one = (await here.ask(request("/v1/models/llama", method="GET"))).json()
    assert [model["id"] for model in ann] == ["llama", "sql", "tiny"]
    assert [model["id"] for model in bob] == ["tiny"]
    assert (one["id"], one["owned_by"]) == ("llama", "chat")


@in_a_loop
async def test_a_service_answers_under_its_name_without_the_prefix() -> None:
    async with Upstream(saying(plain(b"{}"))) as replica, stage(web(replica.port)) as here:
        await here.ask(request("/services/web/a/b?c=d", method="GET"))
        await here.ask(request("/services/web", method="GET"))
    assert [asked.target for asked in replica.asked] == ["/a/b?c=d", "/"]


@in_a_loop
async def test_a_form_with_a_file_finds_its_model() -> None:
    form = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n' + bytes(100_000) +
        b'\r\n--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nllama\r\n--x--\r\n'
    )  # fmt: skip
    async with Upstream(saying(plain(b"{}"))) as replica, stage(chat(replica.port)) as here:
        target = "/v1/audio/transcriptions"
        answer = await here.ask(
            request(target, form, headers=["Content-Type: multipart/form-data; boundary=x"])
        )
    assert answer.status == 200
    assert replica.asked[0].body == form


@in_a_loop
async def test_a_chunked_body_is_passed_on_whole() -> None:
    body = json.dumps({"model": "llama", "prompt": "y" * 300_000}).encode()
    head = request(
        "/v1/completions", headers=["Transfer-Encoding: chunked", "Content-Type: application/json"]
    )
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here:
        assert (await here.ask(head + chunked)).status == 200
    assert replica.asked[0].body == body


@in_a_loop
async def test_who_expects_to_be_told_to_go_on_is_told() -> None:
    whole = completion().replace(b"Host:", b"Expect: 100-continue\r\nHost:", 1)
    head, _, body = whole.partition(b"\r\n\r\n")
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here, here.connection() as client:
        await client.send(head + b"\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(body)).status == 200
    assert replica.asked[0].header("expect") is None


@in_a_loop
async def test_an_old_client_gets_an_answer_without_chunks() -> None:
    old = completion(stream=True).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here:
        answer = await here.ask(old)
    assert "transfer-encoding" not in answer.headers
    assert answer.body.endswith(b"data: [DONE]\n\n")


@in_a_loop
async def test_an_answer_that_ends_with_its_connection_gets_a_framing() -> None:
    said = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it"
    async with Upstream(saying(said, end=True)) as replica, stage(web(replica.port)) as here:
        answer = await here.ask(request("/services/web/", method="GET"))
    assert answer.headers["transfer-encoding"] == "chunked"
    assert (answer.body, answer.whole) == (b"all of it", True)


@in_a_loop
async def test_head_and_no_content_have_no_body() -> None:
    said = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with (
        Upstream(saying(said)) as replica,
        stage(web(replica.port)) as here,
        here.connection() as client,
    ):
        assert (await client.ask(request("/services/web/", method="DELETE"))).status == 204
        replica.serve = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
        head = await client.ask(request("/services/web/", method="HEAD"), method="HEAD")
        assert head.headers["content-length"] == "999"
        replica.serve = saying(plain(b"{}"))
        assert (await client.ask(request("/services/web/", method="GET"))).body == b"{}"


@in_a_loop
async def test_a_websocket_passes_both_ways() -> None:
    async def serve(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        accept = websocket_accept(asked.header("sec-websocket-key") or "")
        writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\nhello ".encode()
        )
        await release.wait()
        writer.write(b"bye")
        await writer.drain()
        return True

    release = asyncio.Event()
    headers = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    async with Upstream(serve) as replica, stage(web(replica.port)) as here, here.connection() as client:
        answer = await client.ask(request("/services/web/ws", method="GET", headers=headers))
        assert answer.status == 101
        assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert await client.reader.readexactly(6) == b"hello "
        release.set()
        assert await client.reader.read() == b"bye"


@in_a_loop
async def test_a_switch_of_protocols_nobody_asked_for_is_refused() -> None:
    said = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    async with Upstream(saying(said)) as replica, stage(web(replica.port)) as here:
        assert (await here.ask(request("/services/web/", method="GET"))).status == 502


@in_a_loop
async def test_nothing_about_the_connection_or_the_key_reaches_the_replica() -> None:
    headers = [
        "Connection: keep-alive, X-Secret-Hop", "X-Secret-Hop: 1", "Keep-Alive: timeout=5", "TE: trailers",
        "Proxy-Authorization: Basic x", "X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Real-IP: 6",
        "X-Kept: yes",
    ]  # fmt: skip
    body = b'{"model": "llama"}'
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here:
        assert (await here.ask(request("/v1/completions", body, headers=headers))).status == 200
    assert dict(replica.asked[0].headers) == {
        "host": "gateway.test", "x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http",
        "X-Kept": "yes", "content-length": str(len(body)),
    }  # fmt: skip


@in_a_loop
async def test_a_program_that_asks_for_credentials_itself_gets_them() -> None:
    async with Upstream(saying(plain(b"{}"))) as replica, stage(web(replica.port)) as here:
        await here.ask(request("/services/web/", method="GET", key="its-own"))
    assert replica.asked[0].header("authorization") == "Bearer its-own"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (completion(key=None), 401, "invalid_api_key"),
        (completion(key="my-wrong"), 401, "invalid_api_key"),
        (completion(key="my-bob"), 403, "service_not_open"),
        (completion("gpt-9"), 404, "model_not_found"),
        (request("/v1/load_lora_adapter", b'{"model": "llama"}'), 404, "path_not_served"),
        (request("/v1/completions/", b'{"model": "llama"}'), 404, "path_not_served"),
        (request("/v1/%63ompletions", b'{"model": "llama"}'), 404, "path_not_served"),
        (request("/services/chat/pause", method="POST", body=b"{}"), 404, "path_not_served"),
        (request("/services/chat/metrics", method="GET"), 404, "path_not_served"),
        (request("/services/nobody/", method="GET"), 404, "service_not_found"),
        (request("/v1/completions", b'{"prompt": "x"}'), 400, "model_missing"),
        (request("/v1/completions", b'{"model": 5}'), 400, "model_missing"),
        (request("/v1/completions", b"no json"), 400, "model_missing"),
        (request("/v1/completions", method="GET"), 404, "not_found"),
        (request("/pause", method="POST"), 404, "not_found"),
    ],
)  # fmt: skip
def test_what_is_refused_reaches_no_replica(data: bytes, status: int, code: str) -> None:
    @in_a_loop
    async def check() -> None:
        async with Upstream(engine) as replica, stage(chat(replica.port)) as here:
            answer = await here.ask(data)
        assert (answer.status, answer.code) == (status, code)
        assert replica.connections == 0

    check()


@in_a_loop
async def test_metrics_take_a_key_that_opens_everything() -> None:
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here:
        await here.ask(completion(stream=True))
        await here.ask(completion())
        text = (await here.ask(request("/metrics", method="GET"))).body.decode()
        assert (await here.ask(request("/metrics", method="GET", key="my-bob"))).status == 403
        assert (await here.ask(request("/metrics", method="GET", key=None))).status == 403
    assert 'modelyard_gateway_output_tokens_total{key="ann",service="chat"} 8\n' in text
    assert 'modelyard_gateway_prompt_tokens_total{key="ann",service="chat"} 18\n' in text


@in_a_loop
async def test_a_client_that_asks_too_often_is_told_when_to_come_back() -> None:
    rates = (Rate("/", rps=0.1, burst=1),)
    async with Upstream(engine) as replica, stage(chat(replica.port, rates=rates)) as here:
        answers = [await here.ask(completion()) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[2].headers["retry-after"] == "10"
    assert len(replica.asked) == 2


@in_a_loop
async def test_clients_behind_a_trusted_proxy_are_told_apart() -> None:
    rates = (Rate("/", rps=0.01),)
    body = b'{"model": "llama"}'
    trusted = frozenset({"127.0.0.1"})
    async with Upstream(engine) as replica, stage(chat(replica.port, rates=rates), trusted=trusted) as here:
        statuses = [
            (await here.ask(request("/v1/completions", body, headers=[f"X-Forwarded-For: {client}"]))).status
            for client in ("9.9.9.9, 10.0.0.1", "6.6.6.6, 10.0.0.1", "10.0.0.2")
        ]
    assert statuses == [200, 429, 200]


@in_a_loop
async def test_the_replica_with_the_least_to_do_is_asked() -> None:
    release = asyncio.Event()
    async with (
        Upstream(silent(release)) as busy,
        Upstream(engine) as free,
        stage(chat(busy.port)) as here,
        here.connection() as first,
    ):
        await first.send(completion())
        await until(lambda: bool(busy.asked))
        here.serve(chat(busy.port, free.port))
        for _ in range(4):
            assert (await here.ask(completion())).status == 200
        release.set()
        assert (await first.answer()).status == 200
    assert (len(busy.asked), len(free.asked)) == (1, 4)


@in_a_loop
async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    head = request("/v1/completions", headers=["Content-Length: 5000"])
    async with Upstream(engine) as replica, stage(chat(replica.port), limits=Limits(body_bytes=4096)) as here:
        assert (await here.ask(head)).status == 413
        chunked = request("/v1/completions", headers=["Transfer-Encoding: chunked"])
        assert (await here.ask(chunked + b"2000\r\n" + b"[" * 8192)).status in (400, 413)
    assert replica.connections == 0
