"""Google's credentials, by its own library: found, refreshed, and turned into a header."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from orchestrator.errors import AuthFailed, Unreachable

SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class Signing:
    """Who asks, as its credentials say.

    Args:
        backend: The backend's name, for errors.
        file: The file of the credentials; None: the application default ones.
    """

    def __init__(self, backend: str, file: str | None) -> None:
        self._backend = backend
        self._file = file
        self._lock = threading.Lock()
        self._found: tuple[Any, str | None] | None = None

    def header(self) -> dict[str, str]:
        """Return the header with a token that holds for some minutes yet.

        Raises:
            AuthFailed: there are no credentials, or they are refused or have expired.
        """
        from google.auth import exceptions

        with self._lock:
            try:
                credentials, _ = self._credentials()
                if not credentials.valid:
                    self._refresh(credentials)
            except exceptions.TransportError as error:
                raise Unreachable(
                    f"Google's sign-in does not answer ({type(error).__name__})", backend=self._backend
                ) from None
            except exceptions.RefreshError as error:
                raise AuthFailed(
                    f"Google does not take the credentials: {_said(error)}", backend=self._backend,
                    fix="sign in again: gcloud auth application-default login, or renew credentials_file",
                ) from None  # fmt: skip
            except (exceptions.GoogleAuthError, OSError, ValueError) as error:
                raise AuthFailed(
                    f"no credentials for Google Cloud: {_said(error)}", backend=self._backend,
                    fix="run gcloud auth application-default login, or give credentials_file",
                ) from None  # fmt: skip
            return {"Authorization": f"Bearer {credentials.token}"}

    def project(self) -> str | None:
        """Return the project that the credentials name, if they do."""
        self.header()
        assert self._found is not None  # or there was no header
        return self._found[1]

    def _credentials(self) -> tuple[Any, str | None]:
        import google.auth  # heavy: only where a call is made

        if self._found is None:
            self._found = _read(self._file) if self._file else google.auth.default(scopes=[SCOPE])
        return self._found

    def _refresh(self, credentials: Any) -> None:
        import requests
        from google.auth.transport.requests import Request

        with closing(requests.Session()) as session:
            credentials.refresh(Request(session=session))


def _read(file: str) -> tuple[Any, str | None]:
    """Return the credentials of a file, of a kind that leads nowhere but to Google, and their project.

    Raises:
        ValueError: it holds none, or of a kind that may send us elsewhere: those are the user's to
            trust, through ``GOOGLE_APPLICATION_CREDENTIALS``.
    """
    from google.oauth2 import credentials, service_account

    path = Path(file).expanduser()
    found = json.loads(path.read_text())
    kind = found.get("type") if isinstance(found, dict) else None
    if kind == "service_account":
        make = service_account.Credentials.from_service_account_info
        return make(found, scopes=[SCOPE]), found.get("project_id")  # type: ignore[no-untyped-call]  # theirs
    if kind == "authorized_user":
        user = credentials.Credentials.from_authorized_user_info(found, scopes=[SCOPE])  # type: ignore[no-untyped-call]  # theirs
        return user, found.get("quota_project_id")
    raise ValueError(f"{path} holds credentials of type {kind!r}: set GOOGLE_APPLICATION_CREDENTIALS to it")


def _said(error: Exception) -> str:
    """Return what an error says, in its first line and without what it quotes of a response."""
    text = str(error.args[0] if error.args else error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:200]
