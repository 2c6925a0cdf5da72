"""Measure the gateway beside its peers: CPU per request and per streamed token, added latency.

    python -m tests.benchmarks.gateway [--seconds 4] [--rounds 3] [--peers nginx,aiohttp,httpx]

Every proxy runs as one process, keeps its connections and stands between the same load (wrk for
requests, an asyncio reader for streams) and the same upstream (nginx for requests, a stamping
server for streams). Rounds are interleaved in a shuffled order and medians printed. CPU is that of the
proxy's processes, user and system, from ``/proc``: with cores shared between load, proxy and
upstream, requests a second say more about the machine than about the proxy.

nginx and wrk are Debian's; aiohttp, fastapi, uvicorn, httpx, vllm-router and ``litellm[proxy]`` are PyPI's.
A peer that is not installed is left out: a program on PATH, which may lie in an environment of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.gateway import Key, Keys, Replica, ServiceRoute
from orchestrator.gateway.keys import digest_of
from orchestrator.gateway.routes import make_routes

SECRET = "my-key-of-the-benchmark"
PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
ANSWER = json.dumps(
    {
        "id": "cmpl-1", "object": "chat.completion", "created": 1, "model": "llama",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 200}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 40, "total_tokens": 49},
    }
)  # fmt: skip
BODY = json.dumps({"model": "llama", "messages": [{"role": "user", "content": "y" * 100}]})
TICKS = os.sysconf("SC_CLK_TCK")


def nginx_upstream(port: int) -> str:
    """Return the configuration of the server that answers requests."""
    answer = ANSWER.replace('"', '\\"')
    return f"""
        server {{ listen 127.0.0.1:{port} reuseport backlog=4096; keepalive_requests 100000000;
          location / {{ default_type application/json; return 200 "{answer}"; }} }}
    """


def nginx_proxy(port: int, upstream: int) -> str:
    """Return the configuration of nginx as a proxy that does not hold tokens back."""
    return f"""
        upstream replica {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
        server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 100000000;
          location / {{ proxy_pass http://replica; proxy_http_version 1.1; proxy_buffering off;
            proxy_set_header Connection ""; }} }}
    """


@contextmanager
def nginx(servers: str, folder: Path) -> Iterator[int]:
    """Run nginx with one worker; give its master's process id."""
    folder.mkdir()
    config = folder / "nginx.conf"
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;"
        f"events {{ worker_connections 8192; }} http {{ access_log off; {temporary} {servers} }}"
    )
    process = subprocess.Popen(["nginx", "-p", folder, "-c", config], stderr=subprocess.DEVNULL)
    with ended(process):
        yield process.pid


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process that was started here."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until somebody listens."""
    for _ in range(4800):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.025)
    raise SystemExit(f"nobody listens on port {port}")


# The proxies ----------------------------------------------------------------------------------


def serve_own(port: int, upstream: int) -> None:
    """Be the gateway."""
    from orchestrator.gateway.server import Gateway

    async def serve() -> None:
        gateway = Gateway()
        chat = ServiceRoute(
            "chat", (Replica("chat-0-0-0", "127.0.0.1", upstream),), {"llama": "llama"}, paths=PATHS
        )
        gateway.update(make_routes([chat]), Keys.of([Key("bench", digest_of(SECRET))]))
        await gateway.open("127.0.0.1", port)
        await asyncio.Event().wait()

    import uvloop

    uvloop.run(serve())


def serve_own_plain_loop(port: int, upstream: int) -> None:
    """Be the gateway on asyncio's own loop."""
    import uvloop

    uvloop.run = asyncio.run  # type: ignore[assignment]  # this process does nothing else
    serve_own(port, upstream)


def serve_aiohttp(port: int, upstream: int) -> None:
    """Be a bare aiohttp server with an aiohttp client: pass everything on, look at nothing."""
    import uvloop
    from aiohttp import ClientSession, TCPConnector, web

    async def serve() -> None:
        session = ClientSession(connector=TCPConnector(limit=0), auto_decompress=False)

        async def pass_on(request: web.Request) -> web.StreamResponse:
            url = f"http://127.0.0.1:{upstream}{request.path_qs}"
            body = await request.read()
            async with session.request(request.method, url, data=body) as answer:
                response = web.StreamResponse(status=answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response

        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", pass_on)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    uvloop.run(serve())


def serve_httpx(port: int, upstream: int) -> None:
    """Be FastAPI with an httpx client, as several tools' proxies are."""
    import httpx
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse

    app = FastAPI()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(limits=limits, timeout=None)

    async def pass_on(path: str, request: Request) -> StreamingResponse:
        ask = client.build_request(
            request.method, f"http://127.0.0.1:{upstream}/{path}", content=await request.body()
        )
        answer = await client.send(ask, stream=True)
        return StreamingResponse(
            answer.aiter_raw(), status_code=answer.status_code,
            media_type=answer.headers.get("content-type"), background=None,
        )  # fmt: skip

    # FastAPI looks annotations up among the module's names, where these are not.
    pass_on.__annotations__.update(request=Request, path=str)
    app.add_api_route("/{path:path}", pass_on, methods=["GET", "POST"], response_model=None)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


@dataclass(frozen=True)
class Peer:
    """A proxy that can be measured: what it needs, and how it is started.

    ``serve`` is one of the above, ``program`` one that was installed: its arguments with the
    port and the upstream's. ``config`` is the text of the file that it reads, ``tokens`` how many
    are sent through each stream flat out; 0: only requests are.
    """

    name: str
    needs: tuple[str, ...] = ()
    serve: Callable[[int, int], None] | None = None
    program: tuple[str, ...] = ("nginx",)
    config: str = ""
    tokens: int = 4000

    @property
    def is_here(self) -> bool:
        """Whether it is installed."""
        modules = all(importlib.util.find_spec(module) for module in self.needs)
        return modules and (self.serve is not None or shutil.which(self.program[0]) is not None)


PEERS = (
    Peer("nginx"),
    Peer("own", ("uvloop",), serve_own),
    Peer("own-asyncio", ("uvloop",), serve_own_plain_loop),
    Peer("aiohttp", ("aiohttp", "uvloop"), serve_aiohttp),
    Peer("httpx", ("fastapi", "httpx", "uvicorn"), serve_httpx),
    Peer(
        "vllm-router",
        program=(
            "vllm-router",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--worker-urls",
            "http://127.0.0.1:{upstream}",
            "--policy",
            "round_robin",
            "--log-level",
            "error",
            "--prometheus-port",
            "{spare}",
        ),
    ),
    Peer(
        "litellm",
        program=("litellm", "--host", "127.0.0.1", "--port", "{port}", "--config", "{config}"),
        config=f"""
model_list:
  - model_name: llama
    litellm_params:
      {{{{model: openai/llama, api_base: "http://127.0.0.1:{{upstream}}/v1", api_key: none}}}}
litellm_settings: {{{{telemetry: false}}}}
general_settings: {{{{master_key: "{SECRET}", dangerously_permit_weak_or_unset_master_key: true}}}}
""",
        tokens=0,
    ),
)


@contextmanager
def running(peer: Peer, upstream: int, folder: Path) -> Iterator[tuple[int, int]]:
    """Run a proxy in front of ``upstream``; give its port and process id."""
    port = free_port()
    if peer.program != ("nginx",):
        (config := folder / f"{peer.name}-{port}.yaml").write_text(peer.config.format(upstream=upstream))
        words = {"port": port, "upstream": upstream, "spare": free_port(), "config": config}
        command = [part.format(**words) for part in peer.program]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    elif peer.serve is not None:
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--be", peer.name, str(port), str(upstream)]
        )
    else:
        with nginx(nginx_proxy(port, upstream), folder / f"proxy-{upstream}") as pid:
            wait_for(port)
            yield port, pid
        return
    with ended(process):
        wait_for(port)
        yield port, process.pid


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its children that live."""
    total = 0.0
    for task in [pid, *_children(pid)]:
        fields = Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def resident_mb(pid: int) -> float:
    """Return the memory a process and its children hold."""
    total = 0
    for task in [pid, *_children(pid)]:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{task}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024


# The loads ------------------------------------------------------------------------------------

SCRIPT = f"""
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {SECRET}"
wrk.body = '{BODY}'
done = function(summary, latency)
  io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, latency:percentile(50),
    latency:percentile(99), summary.errors.status + summary.errors.read + summary.errors.timeout))
end
"""


@dataclass
class Seen:
    """What was measured of one proxy, one entry per round."""

    us_per_request: list[float] = field(default_factory=list)
    requests_s: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    us_per_token: list[float] = field(default_factory=list)
    token_p50_ms: list[float] = field(default_factory=list)
    token_p99_ms: list[float] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)
    errors: int = 0


def ask(port: int, pid: int, seen: Seen, *, seconds: int, connections: int, script: Path) -> None:
    """Load one proxy with requests."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    before = cpu_s(pid)
    out = subprocess.run(
        [*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True
    ).stdout
    used = cpu_s(pid) - before
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", out)
    assert found is not None, out
    count = int(found[1])
    seen.us_per_request.append(used / count * 1e6)
    seen.requests_s.append(count / seconds)
    seen.p50_us.append(int(found[2]))
    seen.p99_us.append(int(found[3]))
    seen.errors += int(found[4])
    seen.resident_mb.append(resident_mb(pid))


def serve_stream(port: int, _upstream: int) -> None:
    """Be an engine that streams tokens, each with the time it was written.

    The prompt says how many, and how many seconds apart.
    """
    import uvloop

    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            length = 0
            while line not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
                line = await reader.readline()
            if not length:  # a router that asks whether we are well
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                continue
            prompt = json.loads(await reader.readexactly(length))["prompt"].split()
            count, apart_s = int(prompt[0]), float(prompt[1])
            writer.write(head)
            due = time.monotonic()
            for _ in range(count):
                if apart_s:
                    due += apart_s
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                elif writer.transport.get_write_buffer_size() > 2**16:
                    await writer.drain()
                data = (
                    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"llama","choices":'
                    b'[{"index":0,"text":" word","finish_reason":null}],"at":%17.6f}\n\n' % time.monotonic()
                )
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                if not apart_s:
                    await asyncio.sleep(0)
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", port, backlog=4096)
        await server.serve_forever()

    uvloop.run(serve())


_STAMP = re.compile(rb'"at": *([0-9.]+)')


async def read_streams(port: int, *, streams: int, tokens: int, apart_s: float) -> list[float]:
    """Read ``streams`` streams at once; return each token's age in seconds when it was read."""
    body = json.dumps({"model": "llama", "stream": True, "prompt": f"{tokens} {apart_s}"}).encode()
    data = (
        b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (SECRET.encode(), len(body), body)
    )

    async def one() -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(random.random() * apart_s)
        writer.write(data)
        ages: list[float] = []
        tail = left = b""
        while not tail.endswith(b"0\r\n\r\n"):
            piece = await reader.read(2**16)
            now = time.monotonic()
            if not piece:
                raise SystemExit(f"a stream broke off: {tail!r}")
            tail = (tail + piece)[-8:]
            if apart_s:
                *whole, left = (left + piece).split(b"}\n\n")
                ages += [now - float(stamp) for part in whole for stamp in _STAMP.findall(part)]
        writer.close()
        return ages

    found = await asyncio.gather(*(one() for _ in range(streams)))
    return [age for ages in found for age in ages]


def stream(port: int, pid: int, seen: Seen, *, seconds: int, flat_out: int) -> None:
    """Load one proxy with streams: first paced for the latency, then flat out for the CPU."""
    tokens, streams = 40 * seconds, 64
    ages = sorted(asyncio.run(read_streams(port, streams=streams, tokens=tokens, apart_s=1 / 40)))
    seen.token_p50_ms.append(ages[len(ages) // 2] * 1e3)
    seen.token_p99_ms.append(ages[len(ages) * 99 // 100] * 1e3)
    before = cpu_s(pid)
    asyncio.run(read_streams(port, streams=16, tokens=flat_out, apart_s=0.0))
    seen.us_per_token.append((cpu_s(pid) - before) / (16 * flat_out) * 1e6)


def measure(peers: Sequence[Peer], *, rounds: int, seconds: int) -> dict[str, Seen]:
    """Measure every peer in every round."""
    seen = {peer.name: Seen() for peer in peers}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "ask.lua").write_text(SCRIPT)
        answers, streams = free_port(), free_port()
        stack.enter_context(nginx(nginx_upstream(answers), folder / "upstream"))
        be = subprocess.Popen([sys.executable, "-m", __spec__.name, "--be", "engine", str(streams), "0"])
        stack.enter_context(ended(be))
        wait_for(answers)
        wait_for(streams)
        up = {}
        for peer in peers:
            asks = stack.enter_context(running(peer, answers, folder))
            up[peer.name] = (asks, stack.enter_context(running(peer, streams, folder)))
        for at in range(rounds):
            order = list(peers)
            random.Random(at).shuffle(order)
            for peer in order:
                (port, pid), (stream_port, stream_pid) = up[peer.name]
                ask(port, pid, seen[peer.name], seconds=seconds, connections=16, script=folder / "ask.lua")
                if peer.tokens:
                    paced_s = max(1, seconds // 2)
                    stream(stream_port, stream_pid, seen[peer.name], seconds=paced_s, flat_out=peer.tokens)
    return seen


def measure_memory(peer: Peer, *, streams: int) -> None:
    """Print what a proxy holds after a tenth of ``streams``, and after all, 50 at a time."""
    with ExitStack() as stack:
        upstream = free_port()
        be = subprocess.Popen([sys.executable, "-m", __spec__.name, "--be", "engine", str(upstream), "0"])
        stack.enter_context(ended(be))
        wait_for(upstream)
        port, pid = stack.enter_context(running(peer, upstream, Path(tempfile.gettempdir())))
        for done in range(50, streams + 1, 50):
            asyncio.run(read_streams(port, streams=50, tokens=20, apart_s=0.0))
            if done in (streams // 10, streams):
                print(f"{peer.name}: {resident_mb(pid):.1f} MB after {done} streams")


def report(seen: dict[str, Seen]) -> None:
    """Print the medians, and each against nginx."""

    def middle(values: Sequence[float]) -> float:
        return statistics.median(values) if values else float("nan")

    print(
        f"{'proxy':<14}{'req/s':>8}{'p50 us':>8}{'p99 us':>9}{'CPU us/req':>12}{'x nginx':>9}"
        f"{'CPU us/token':>14}{'x nginx':>9}{'token p50 ms':>14}{'p99':>7}{'MB':>6}{'errors':>8}"
    )
    base = seen.get("nginx")
    for name, one in seen.items():
        request, token = middle(one.us_per_request), middle(one.us_per_token)
        of_request = request / middle(base.us_per_request) if base else float("nan")
        of_token = token / middle(base.us_per_token) if base else float("nan")
        print(
            f"{name:<14}{middle(one.requests_s):>8.0f}{middle(one.p50_us):>8.0f}{middle(one.p99_us):>9.0f}"
            f"{request:>12.1f}{of_request:>9.1f}{token:>14.2f}{of_token:>9.2f}"
            f"{middle(one.token_p50_ms):>14.2f}{middle(one.token_p99_ms):>7.1f}"
            f"{max(one.resident_mb):>6.0f}{one.errors:>8}"
        )


def main() -> None:
    """Measure and print; or, as a child, be one of the proxies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS))
    parser.add_argument("--memory", type=int, metavar="STREAMS", help="measure the gateway's memory instead")
    parser.add_argument("--be", nargs=3)
    options = parser.parse_args()
    if options.be:
        name, port, upstream = options.be
        serve = serve_stream if name == "engine" else next(p.serve for p in PEERS if p.name == name)
        assert serve is not None
        serve(int(port), int(upstream))
        return
    if options.memory:
        measure_memory(next(peer for peer in PEERS if peer.name == "own"), streams=options.memory)
        return
    for program in ("nginx", "wrk"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed: apt-get install nginx-light wrk")
    wanted = options.peers.split(",")
    peers = [peer for peer in PEERS if peer.name in wanted and peer.is_here]
    report(measure(peers, rounds=options.rounds, seconds=options.seconds))


if __name__ == "__main__":
    main()
