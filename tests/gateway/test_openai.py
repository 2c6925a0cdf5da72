"""OpenAI's own client in front of the gateway: what it asks is served, and what fails it raises."""

from __future__ import annotations

import json

import openai
import pytest
from openai import AsyncOpenAI

from orchestrator.gateway.limits import Rate
from tests.gateway.clients import SECRET, Stage, chat, in_a_loop, stage
from tests.gateway.upstream import STREAM_HEAD, Upstream, engine, event, plain, saying

CHUNK = {
    "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "llama",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": None}],
}  # fmt: skip
CHAT = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "llama",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
}  # fmt: skip
SAID = [{"role": "user", "content": "hi"}]


def client_of(here: Stage, key: str = SECRET) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{here.port}/v1", api_key=key, max_retries=0, timeout=20)


@in_a_loop
async def test_a_chat_is_answered_and_models_are_listed() -> None:
    async with (
        Upstream(saying(plain(json.dumps(CHAT).encode()))) as replica,
        stage(chat(replica.port)) as here,
        client_of(here) as client,
    ):
        answer = await client.chat.completions.create(model="llama", messages=SAID)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == "hello"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
        assert [model.id async for model in client.models.list()] == ["llama", "sql"]
        assert (await client.models.retrieve("sql")).owned_by == "chat"


@in_a_loop
async def test_a_stream_comes_chunk_by_chunk_with_its_usage_last() -> None:
    async with Upstream(engine) as replica, stage(chat(replica.port)) as here, client_of(here) as client:
        chunks = await client.completions.create(
            model="llama", prompt="x", stream=True, stream_options={"include_usage": True}
        )
        told = [chunk async for chunk in chunks]
    assert [chunk.choices[0].text for chunk in told[:-1]] == ["one", "two", "three", "four"]
    assert told[-1].usage is not None
    assert told[-1].usage.completion_tokens == 4


@in_a_loop
async def test_a_stream_that_breaks_off_is_raised_after_the_chunks_that_came() -> None:
    begun = STREAM_HEAD + event(json.dumps(CHUNK))
    async with (
        Upstream(saying(begun, end=True)) as replica,
        stage(chat(replica.port)) as here,
        client_of(here) as client,
    ):
        chunks = await client.chat.completions.create(model="llama", messages=SAID, stream=True)  # type: ignore[arg-type]
        seen: list[str | None] = []

        async def read() -> None:
            async for chunk in chunks:
                seen.append(chunk.choices[0].delta.content)

        with pytest.raises(openai.APIError) as broken:
            await read()
    assert seen == ["hello"]
    assert broken.value.code == "stream_broken"


@in_a_loop
async def test_what_is_refused_is_raised_as_what_it_is() -> None:
    once = (Rate("/", 0.001, 0, ""),)
    async with Upstream(engine) as replica, stage(chat(replica.port, rates=once)) as here:
        async with client_of(here) as client:
            with pytest.raises(openai.NotFoundError, match="no model 'other'"):
                await client.completions.create(model="other", prompt="x")
            await client.completions.create(model="llama", prompt="x")
            with pytest.raises(openai.RateLimitError) as often:
                await client.completions.create(model="llama", prompt="x")
            assert int(often.value.response.headers["retry-after"]) > 0
        async with client_of(here, "my-own") as client:
            with pytest.raises(openai.AuthenticationError, match="no such key: revoked, or not copied whole"):
                await client.models.list()
        async with client_of(here, "my-bob") as client:
            with pytest.raises(openai.PermissionDeniedError, match="does not open service 'chat'"):
                await client.completions.create(model="llama", prompt="x")
        here.serve(chat(over=True))
        async with client_of(here) as client:
            with pytest.raises(openai.InternalServerError, match="has ended"):
                await client.completions.create(model="llama", prompt="x")
