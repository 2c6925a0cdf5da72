"""A small OpenID provider on loopback that signs real tokens: keys, discovery, and the device flow."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa


def new_key() -> rsa.RSAPrivateKey:
    """Make a key to sign with."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass
class Provider:
    """What the provider knows, and who asked."""

    url: str = ""
    key: rsa.RSAPrivateKey = field(default_factory=new_key)
    pending: int = 1
    """How often a device is told to wait before its person has confirmed."""
    person: dict[str, Any] = field(default_factory=lambda: {"sub": "ada", "email": "ada@example.com"})

    def word(self, *, key: rsa.RSAPrivateKey | None = None, kid: str = "k1", **claims: Any) -> str:
        """Sign claims; what is not given is what is right."""
        now = int(time.time())
        right = {"iss": self.url, "aud": "modelyard", "iat": now, "exp": now + 600, "sub": "repo"}
        return jwt.encode({**right, **claims}, key or self.key, algorithm="RS256", headers={"kid": kid})

    def answer(self, path: str, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        """Return what a request is answered with."""
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.url, "jwks_uri": f"{self.url}/keys", "token_endpoint": f"{self.url}/token",
                "device_authorization_endpoint": f"{self.url}/device",
            }  # fmt: skip
        if path == "/keys":
            public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
            return 200, {"keys": [{**public, "kid": "k1", "use": "sig", "alg": "RS256"}]}
        if path == "/device":
            return 200, {
                "device_code": "d1", "user_code": "ABCD-EFGH", "verification_uri": f"{self.url}/confirm",
                "interval": 0, "expires_in": 60,
            }  # fmt: skip
        if path == "/token" and form.get("device_code") == ["d1"]:
            if self.pending:
                self.pending -= 1
                return 400, {"error": "authorization_pending"}
            return 200, {"id_token": self.word(**self.person)}
        return 404, {}


@contextmanager
def provider() -> Iterator[Provider]:
    """Run a provider."""
    found = Provider()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            self._send(*found.answer(self.path, {}))

        def do_POST(self) -> None:  # the library's name
            text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            self._send(*found.answer(self.path, parse_qs(text)))

        def _send(self, status: int, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
