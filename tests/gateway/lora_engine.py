"""An engine that answers by name and takes adapters while it runs, by vLLM's contract or by SGLang's.

As a program it stands for ``vllm serve``. The contracts are those of vLLM 0.33 (``/v1/load_lora_adapter``,
closed unless its variable is set) and SGLang 0.5.23 (``/load_lora_adapter``, names after a colon).
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Kind = Literal["vllm", "sglang"]


class LoraEngine(ThreadingHTTPServer):
    """One replica: the model ``base``, and ``adapters``, which ``calls`` changed, each with its path."""

    request_queue_size = 128
    daemon_threads = False

    def __init__(self, kind: Kind, base: str, *, port: int = 0, opens: bool = True) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.kind, self.base, self.opens = kind, base, opens
        self.adapters: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server_address[1]

    def load(self, name: str, path: str) -> str:
        """Load one; return why not."""
        if self.kind == "vllm" and name in self.adapters:
            return f"The lora adapter '{name}' has already been loaded."
        if path.endswith("missing"):
            return f"No adapter found for {path}"
        self.adapters[name] = path
        return ""

    def unload(self, name: str) -> str:
        """Drop one; return why not."""
        return "" if self.adapters.pop(name, None) else f"The lora adapter '{name}' cannot be found."


class _Handler(BaseHTTPRequestHandler):
    server: LoraEngine
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        engine = self.server
        if self.path != "/v1/models":
            self.say(200, {})
            return
        with engine.lock:
            cards = [{"id": engine.base, "object": "model", "root": engine.base, "parent": None}]
            cards += [
                {"id": name, "object": "model", "root": path, "parent": engine.base}
                for name, path in engine.adapters.items()
            ]
        self.say(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:
        engine, body = self.server, json.loads(self.rfile.read(int(self.headers["content-length"])))
        prefix = "/v1" if engine.kind == "vllm" else ""
        if self.path in (f"{prefix}/load_lora_adapter", f"{prefix}/unload_lora_adapter") and engine.opens:
            with engine.lock:
                name, path = body["lora_name"], body.get("lora_path")
                why = engine.load(name, path) if "/load" in self.path else engine.unload(name)
                engine.calls.append(("load" if "/load" in self.path else "unload", name))
            self.told(why)
        elif self.path == "/v1/completions":
            self.complete(body["model"])
        else:
            self.say(404, {"detail": "Not Found"})

    def told(self, why: str) -> None:
        if self.server.kind == "sglang":
            self.say(400 if why else 200, {"success": not why, "error_message": why or None})
        elif why:
            self.say(400, {"error": {"message": why, "type": "InvalidUserInput", "code": 400}})
        else:
            self.say(200, "Success")

    def complete(self, model: str) -> None:
        engine = self.server
        base, _, name = model.partition(":") if engine.kind == "sglang" else ("", "", model)
        with engine.lock:
            path = engine.adapters.get(name)
        if path is None and model != engine.base:
            self.say(404, {"error": {"message": f"The model `{model}` does not exist."}})
            return
        text = f"{name or base} from {path or 'the base'} by {os.getpid()}"
        self.say(200, {"choices": [{"text": text}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})

    def say(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def lora_engine(kind: Kind, base: str = "org/llama") -> Iterator[LoraEngine]:
    """Run one in a thread."""
    with LoraEngine(kind, base) as engine:
        thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield engine
        finally:
            engine.shutdown()
            thread.join()


def main(words: list[str]) -> None:
    """Stand for ``vllm serve MODEL --served-model-name NAME --port N [--lora-modules NAME=PATH ...]``."""

    def values(flag: str) -> list[str]:
        if flag not in words:
            return []
        rest = words[words.index(flag) + 1 :]
        end = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
        return rest[:end]

    opens = os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "True" and "--enable-lora" in words
    with LoraEngine(
        "vllm", values("--served-model-name")[0], port=int(values("--port")[0]), opens=opens
    ) as e:
        for listed in values("--lora-modules"):
            name, _, path = listed.partition("=")
            if why := e.load(name, path):
                sys.exit(why)
        e.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main(sys.argv[1:])
