"""Azure's credentials: those of an application, or of whoever is signed in at its command line."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from backends.vm.rest import Meaning, Refusal, Rest
from orchestrator.errors import AuthFailed

SCOPE = "https://management.azure.com/"
VARIABLES = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET")
"""The variables that Azure's own libraries read."""

EARLY_S = 120
"""A token is renewed this long before it ends."""

FIX = f"set {', '.join(VARIABLES)}, or sign in again: az login"


class Signing:
    """Who asks.

    Args:
        backend: The backend's name, for errors.
        url: Where an application signs in.
    """

    def __init__(self, backend: str, url: str) -> None:
        self._backend = backend
        self._api = Rest(
            url, backend=backend, sign=dict, read=read, fixes={Meaning.EXPIRED: FIX, Meaning.DENIED: FIX}
        )
        self._lock = threading.Lock()
        self._token = ("", 0.0)

    def header(self) -> dict[str, str]:
        """Return the header with a token that holds for some minutes yet.

        Raises:
            AuthFailed: there are no credentials, or they are refused or have expired.
        """
        with self._lock:
            token, ends = self._token
            if time.time() > ends - EARLY_S:
                ask: Callable[[], tuple[str, float]] = self._of_application
                if not all(os.environ.get(name) for name in VARIABLES):
                    ask = self._of_command_line
                token, _ = self._token = ask()
            return {"Authorization": f"Bearer {token}"}

    def _of_application(self) -> tuple[str, float]:
        tenant, client, secret = (os.environ[name] for name in VARIABLES)
        form = {
            "grant_type": "client_credentials", "client_id": client, "client_secret": secret,
            "scope": f"{SCOPE}.default",
        }  # fmt: skip
        found = self._api.post_form(f"/{tenant}/oauth2/v2.0/token", form, where="signing in at Azure")
        return found["access_token"], time.time() + float(found["expires_in"])

    def _of_command_line(self) -> tuple[str, float]:
        command = ["az", "account", "get-access-token", "--resource", SCOPE, "--output", "json"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            raise AuthFailed("no credentials for Azure", backend=self._backend, fix=FIX) from None
        if done.returncode:
            told = (done.stderr.strip().splitlines() or ["it said nothing"])[0].removeprefix("ERROR: ")
            raise AuthFailed(
                f"az has no token for us: {told.rstrip('.')[:200]}", backend=self._backend, fix=FIX
            )
        found = json.loads(done.stdout)
        return found["accessToken"], float(found.get("expires_on") or time.time() + 600)


def read(status: int, body: Any) -> Refusal:
    """Return what an error of signing in means (learn.microsoft.com/entra/identity-platform, error codes).

    >>> read(401, {"error": "invalid_client", "error_description": "AADSTS7000222: The keys are expired."})
    Refusal(meaning=<Meaning.EXPIRED: 'the credentials have expired'>, code='AADSTS7000222', message='')
    """
    if status == 429 or status >= 500:
        return Refusal(Meaning.LATER, f"HTTP {status}")
    told = str(body.get("error_description", "")) if isinstance(body, dict) else ""
    code = told.partition(":")[0] if told.startswith("AADSTS") else f"HTTP {status}"
    # 7000222: the secret has expired; 7000215: it is wrong; 700016, 90002: no such application, tenant
    return Refusal(Meaning.EXPIRED if code == "AADSTS7000222" else Meaning.DENIED, code)
