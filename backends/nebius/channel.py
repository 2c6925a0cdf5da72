"""Calls of Nebius' API, which speaks gRPC only, and the credentials they are made with."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from backends.nebius.messages import IAM, message
from backends.nebius.refusals import FIXES, is_detailed, read
from backends.vm.rest import TRIES, Meaning, Refusal
from orchestrator.errors import AuthFailed, BackendError, Unreachable

TOKEN = "NEBIUS_IAM_TOKEN"
"""The variable that Nebius' own tools read a token from."""

TIMEOUT_S = 30.0

JWT_S = 300
"""How long the signed claim holds that is given for a token (github.com/nebius/api, README)."""

EARLY_S = 60.0
"""A token is exchanged again before it ends by itself."""

HOSTS: Mapping[str, str] = {
    "nebius.compute.v1.InstanceService": "compute",
    "nebius.compute.v1.PlatformService": "compute",
    "nebius.common.v1.OperationService": "compute",
    "nebius.vpc.v1.SubnetService": "vpc",
    "nebius.iam.v1.ProjectService": "cpl.iam",
    "nebius.iam.v1.TokenExchangeService": "tokens.iam",
    "nebius.capacity.v1.ResourceAdviceService": "capacity-advisor.billing-cpl",
    "nebius.billing.v1.CalculatorService": "api.calculator.billing-data-plane",
}
"""Where each service answers, before ``.api.nebius.cloud`` (github.com/nebius/api, endpoints.md).

Operations are asked for where they began: all of ours are the compute service's."""


class Calls:
    """The API as one account sees it; every call is one attempt on a connection of its own.

    Args:
        backend: The backend's name, for errors.
        credentials_file: Credentials of a service account; None: the token in the environment.
        url: ``http://host:port`` where all services answer in place of Nebius', in plain text.
    """

    def __init__(self, backend: str, *, credentials_file: str | None, url: str | None) -> None:
        self._backend = backend
        self._file = credentials_file
        self._url = url
        self._lock = threading.Lock()
        self._token = ("", 0.0)

    def look(self, service: str, method: str, request: Any, answer: str, *, where: str) -> Any:
        """Ask what changes nothing; asked again where the answer is "later"."""
        pause = threading.Event()
        for attempt in range(TRIES):
            try:
                return self._call(service, method, request, answer, where, ())
            except _Refused as refused:
                if refused.refusal.meaning is not Meaning.LATER or attempt == TRIES - 1:
                    raise self.refused(refused.refusal, where) from None
            pause.wait(0.25 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def change(
        self, service: str, method: str, request: Any, answer: str, *, where: str, key: str | None = None
    ) -> Any:
        """Ask for a change, once.

        Args:
            service: The service's full name.
            method: What it is asked to do.
            request: The message that says it.
            answer: The full name of what is answered.
            where: What it is about, for errors.
            key: Makes a request that is sent twice count once.

        Raises:
            Unreachable: nobody knows whether it was done.
        """
        headers = (("x-idempotency-key", key),) if key else ()
        try:
            return self._call(service, method, request, answer, where, headers)
        except _Refused as refused:
            raise self.refused(refused.refusal, where) from None

    def pages(self, service: str, request: Any, answer: str, *, where: str) -> Iterator[Any]:
        """Yield all that a service lists, page by page."""
        while True:
            page = self.look(service, "List", request, answer, where=where)
            yield from page.items
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def refused(self, refusal: Refusal, where: str) -> BackendError:
        """Return a refusal as an error of this cloud's."""
        return refusal.error(backend=self._backend, where=where, fixes=FIXES)

    def _call(
        self,
        service: str,
        method: str,
        request: Any,
        answer: str,
        where: str,
        headers: Any,
        *,
        sign: bool = True,
    ) -> Any:
        import grpc  # heavy: only where a call is made

        signed = (("authorization", f"Bearer {self._signed(where)}"),) if sign else ()
        with self._channel(grpc, service) as channel:
            ask = channel.unary_unary(
                f"/{service}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=message(answer).FromString,
            )
            try:
                return ask(request, timeout=TIMEOUT_S, metadata=(*signed, *headers))
            except grpc.RpcError as error:
                raise self._error(error, where, service) from None

    def _channel(self, grpc: Any, service: str) -> Any:
        if self._url:  # a proxy of the environment's is for what is outside
            return grpc.insecure_channel(urlsplit(self._url).netloc, options=(("grpc.enable_http_proxy", 0),))
        target = f"{HOSTS[service]}.api.nebius.cloud:443"
        return grpc.secure_channel(target, grpc.ssl_channel_credentials())

    def _error(self, error: Any, where: str, service: str) -> Exception:
        """Return what a call ended with; one that nobody answered says nothing of what was done."""
        code, text = error.code(), str(error.details() or "")
        details = _details(error)
        if code.name in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and not is_detailed(details):
            at = self._url or f"{HOSTS[service]}.api.nebius.cloud"
            return Unreachable(
                f"{where}: {at} does not answer ({code.name})", backend=self._backend,
                fix="check the network, and endpoint_url of this backend where it is set",
            )  # fmt: skip
        return _Refused(read(code.value[0], text, details))

    # -- credentials -----------------------------------------------------------------------------

    def _signed(self, where: str) -> str:
        """Return a token that holds for a while yet.

        Raises:
            AuthFailed: there are no credentials, or they are refused.
        """
        if self._file is None:
            found = os.environ.get(TOKEN, "").strip()
            if not found:
                raise AuthFailed(
                    f"{TOKEN} is not set", backend=self._backend,
                    fix="give credentials_file, or set it to what nebius iam get-access-token prints",
                )  # fmt: skip
            return found
        with self._lock:
            token, until = self._token
            if time.monotonic() > until - EARLY_S:
                token, lasts_s = self._exchange(Path(self._file).expanduser(), where)
                self._token = (token, time.monotonic() + lasts_s)
            return token

    def _exchange(self, file: Path, where: str) -> tuple[str, float]:
        request = message(IAM + "ExchangeTokenRequest")(
            grant_type="urn:ietf:params:oauth:grant-type:token-exchange",
            requested_token_type="urn:ietf:params:oauth:token-type:access_token",
            subject_token_type="urn:ietf:params:oauth:token-type:jwt",
            subject_token=self._claim(file),
        )
        service = "nebius.iam.v1.TokenExchangeService"
        try:
            found = self._call(
                service, "Exchange", request, IAM + "CreateTokenResponse", "sign-in", (), sign=False
            )
        except _Refused as refused:
            refusal = refused.refusal
            if refusal.meaning is Meaning.LATER:
                raise self.refused(refusal, where) from None
            raise AuthFailed(
                f"Nebius does not take the credentials in {file} ({refusal.code})", backend=self._backend,
                fix="make a key: nebius iam auth-public-key generate --service-account-id … --output FILE",
            ) from None  # fmt: skip
        return found.access_token, float(found.expires_in)

    def _claim(self, file: Path) -> str:
        """Return the signed claim of the service account whose key a file holds."""
        try:
            said = json.loads(file.read_text())["subject-credentials"]
            key, kid, account = said["private-key"], said["kid"], said["sub"]
            return claim(key, kid=kid, account=account, now=int(time.time()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            told = error.strerror if isinstance(error, OSError) else "it holds no key of a service account"
            raise AuthFailed(
                f"cannot use the credentials in {file}: {told}", backend=self._backend,
                fix="make them: nebius iam auth-public-key generate --service-account-id … --output FILE",
            ) from None  # fmt: skip


def claim(private_key: str, *, kid: str, account: str, now: int) -> str:
    """Return the JSON Web Token, signed with RS256, that is given for a token of the API.

    Raises:
        ValueError: the key is none of RSA's.
    """
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    key = serialization.load_pem_private_key(private_key.encode(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("not an RSA key")
    head = {"alg": "RS256", "typ": "JWT", "kid": kid}
    body = {"iss": account, "sub": account, "iat": now, "exp": now + JWT_S}
    text = ".".join(_base64(json.dumps(each).encode()) for each in (head, body))
    return f"{text}.{_base64(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _details(error: Any) -> list[Any]:
    """Return the details of an error: in a trailer, as every service of Google's shape sends them."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return list(message("google.rpc.Status").FromString(value).details)
    return []


class _Refused(Exception):
    """A call was answered with an error."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal
