"""Planted secrets: given in every way there is, and looked for everywhere a server writes or answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from orchestrator.client import Remote
from orchestrator.errors import ModelyardError
from orchestrator.server.webhooks import Herald
from orchestrator.spec.load import read
from orchestrator.wire import Application, TokenRequest
from tests.server.conftest import Served
from tests.server.test_webhooks import Receiver, receiver

__all__ = ["receiver"]

CANARY = "canary-4711"
SPEC = """\
type: service
name: web
port: 8000
image: a
commands: [serve]
env: {HF_TOKEN: null, KEY: "${{ secrets.KEY }}"}
probes: [{type: http, url: /}]
"""


def test_what_is_secret_is_nowhere_a_server_writes_or_answers(
    serve: Callable[..., Served], url: str, receiver: Receiver, tmp_path: Path
) -> None:
    served = serve(url, MODELYARD_WEBHOOK_SECRET=f"hook-{CANARY}", HF_TOKEN=f"theirs-{CANARY}")
    client = Remote(served.url, served.token(), environ={"HF_TOKEN": f"hf-{CANARY}"})
    served.clients.append(client)
    tokens = [client.new_token(TokenRequest(name="ci", role="viewer")).token.split("-", 2)[2]]
    client.set_secret("KEY", f"key-{CANARY}")
    client.set_secret("UNUSED", f"unused-{CANARY}")
    client.apply(client.plan(read(SPEC)))
    client.follow(["web"], "ready", timeout_s=30)
    with httpx.Client() as http:
        Herald(served.site, receiver.url).once(http)

    said = {path: _answer(served, path) for path in _readable(served)}
    said |= {f"error {n}": text for n, text in enumerate(_errors(served, client))}
    said["webhooks"] = "".join(f"{headers}{body!r}" for headers, body in receiver.got)
    said["complaints"] = "".join(served.complaints)
    said["processes"] = _processes()
    said["record"] = _record(url)

    assert len(said) > 20
    assert receiver.got
    for where, text in said.items():
        assert CANARY not in text, where
        assert not any(token in text for token in tokens), where
    assert served.site.store.secrets.get("web/HF_TOKEN") == f"hf-{CANARY}"  # it is there, sealed
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


def _readable(served: Served) -> list[str]:
    """Return every path that can be read, from the server's own document."""
    paths = served.http.get(f"{served.url}/openapi.json").json()["paths"]
    found = [path for path, methods in paths.items() if "get" in methods and not path.endswith("stream")]
    assert "/v1/metrics" in found
    assert "/v1/projects/{project}/audit" in found
    return [re.sub(r"\{[^}]*\}", "web", path.replace("{project}", "main")) for path in found]


def _answer(served: Served, path: str) -> str:
    answer = served.http.get(served.url + path, headers={"Authorization": f"Bearer {served.token()}"})
    return f"{answer.headers}{answer.text}"


def _errors(served: Served, client: Remote) -> list[str]:
    """Return what is answered to calls that bring secrets and are wrong."""
    found = []
    headers = {"Authorization": f"Bearer my-{CANARY}", "Idempotency-Key": CANARY}
    found.append(served.http.post(f"{served.url}/v1/projects/main/endings", headers=headers).text)
    headers["Authorization"] = f"Bearer {served.token()}"
    put = f"{served.url}/v1/projects/main/secrets/KEY"
    for body in ({"value": [f"key-{CANARY}"]}, {"value": "x", "more": f"key-{CANARY}"}, f'"key-{CANARY}'):
        content = body if isinstance(body, str) else json.dumps(body)
        answer = served.http.put(put, headers=headers, content=content)
        assert answer.status_code == 422
        found.append(answer.text)
    with pytest.raises(ModelyardError) as refused:
        client._server.ask(
            "POST", "applications", Application(plan={}, variables={"HF_TOKEN": f"hf-{CANARY}"})
        )
    return [*found, str(refused.value)]


def _processes() -> str:
    """Return the command lines of this process and all that there are on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found.append(path.read_text(errors="replace"))
    assert any("pytest" in line for line in found)
    return "".join(found)


def _record(url: str) -> str:
    """Return every row of every table as text."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            tables = sa.inspect(connection).get_table_names()
            assert {"runs", "events", "audit", "answers", "tokens", "secrets"} <= set(tables)
            return "".join(str(connection.execute(sa.text(f"SELECT * FROM {t}")).all()) for t in tables)
    finally:
        engine.dispose()
