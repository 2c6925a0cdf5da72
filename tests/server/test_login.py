"""Logging in with a real issuer's signature, and with everything that only looks like one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any

import jwt
import pytest

from orchestrator.errors import ConfigError, Denied, Unreachable
from orchestrator.server import login
from orchestrator.server.login import Believed, Doorman, Rule, read_believed
from tests.cli.conftest import Cli
from tests.server.conftest import Served
from tests.server.issuer import Provider, new_key, provider


@pytest.fixture
def issuer() -> Iterator[Provider]:
    with provider() as running:
        yield running


@pytest.fixture
def open_to(serve: Callable[..., Served], issuer: Provider) -> Served:
    """A server that believes the issuer: a repository's main branch, and people of a domain."""
    rules = (
        Rule(claims={"repository": "acme/models", "ref": "refs/heads/main"}, role="operator"),
        Rule(claims={"email": "*@example.com"}, role="viewer"),
    )
    believed = Believed(issuer=issuer.url, audience="modelyard", client_id="cli", rules=rules)
    return serve(doorman=lambda site: Doorman(site, (believed,)))


MAIN = {"repository": "acme/models", "ref": "refs/heads/main"}


def test_a_pipeline_brings_its_own_identity(
    open_to: Served, issuer: Provider, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_URL", open_to.url)
    result = cli("login", "--id-token-file", cli.write("word.jwt", issuer.word(**MAIN)))
    assert result.code == 0, result.err
    monkeypatch.setenv("MODELYARD_TOKEN", result.out.strip())

    assert cli("ps").out == "no runs\n"
    (token,) = open_to.site.store.access.tokens()
    assert (token.name, token.role, token.project) == ("repo", "operator", "main")
    assert token.expires_at is not None
    assert token.expires_at.timestamp() < time.time() + 610
    (deed,) = [deed for _, deed in open_to.site.store.access.deeds()]
    assert (deed.action, deed.subject) == ("login", "operator")


def test_a_person_confirms_in_a_browser(open_to: Served, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_URL", open_to.url)

    result = cli("login")

    assert result.code == 0, result.err
    assert "confirm ABCD-EFGH" in result.err
    (token,) = open_to.site.store.access.tokens()
    assert (token.name, token.role) == ("ada@example.com", "viewer")


def test_a_person_who_is_refused_is_told(
    open_to: Served, issuer: Provider, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_URL", open_to.url)
    issuer.person = {"sub": "eve", "email": "eve@elsewhere.com"}
    result = cli("login")
    assert (result.code, "no rule of this server is for 'eve'" in result.err) == (77, True)


FORGED: dict[str, tuple[Callable[[Provider], str], str]] = {
    "another branch": (lambda i: i.word(**{**MAIN, "ref": "refs/heads/evil"}), "no rule"),
    "no claims": (lambda i: i.word(), "no rule"),
    "an address nobody verified": (
        lambda i: i.word(sub="eve", email="ada@example.com", email_verified=False), "no rule of this server",
    ),
    "another audience": (lambda i: i.word(**MAIN, aud="else"), "Audience"),
    "another issuer": (lambda i: i.word(**MAIN, iss="https://evil.example"), "server believes"),
    "another key": (lambda i: i.word(**MAIN, key=new_key()), "ignature"),
    "an unknown key": (lambda i: i.word(**MAIN, kid="k2"), "key that its issuer does not have"),
    "expired": (lambda i: i.word(**MAIN, exp=int(time.time()) - 60), "expired"),
    "for ever": (lambda i: _without(i, "exp"), "exp"),
    "not yet": (lambda i: i.word(**MAIN, nbf=int(time.time()) + 600), "not yet valid"),
    "unsigned": (lambda i: _unsigned(i), "proves nothing"),
    "the public key as a password": (lambda i: _confused(i), "proves nothing"),
    "no token": (lambda i: "x.y.z", "not a word"),
}  # fmt: skip


def _without(issuer: Provider, name: str) -> str:
    claims = jwt.decode(issuer.word(**MAIN), options={"verify_signature": False})
    del claims[name]
    return jwt.encode(claims, issuer.key, algorithm="RS256", headers={"kid": "k1"})


def _unsigned(issuer: Provider) -> str:
    claims: dict[str, Any] = jwt.decode(issuer.word(**MAIN), options={"verify_signature": False})
    return jwt.encode(claims, None, algorithm="none", headers={"kid": "k1"})


def _confused(issuer: Provider) -> str:
    claims: dict[str, Any] = jwt.decode(issuer.word(**MAIN), options={"verify_signature": False})
    return jwt.encode(claims, "k" * 64, algorithm="HS256", headers={"kid": "k1"})


@pytest.mark.parametrize("name", sorted(FORGED))
def test_what_only_looks_like_a_word_opens_nothing(open_to: Served, issuer: Provider, name: str) -> None:
    forge, said = FORGED[name]
    word = forge(issuer)

    answer = open_to.http.post(f"{open_to.url}/v1/login", json={"id_token": word})

    assert answer.status_code == 403, answer.text
    assert said in answer.text
    assert word not in answer.text
    assert open_to.site.store.access.tokens() == []


def test_an_issuer_that_is_silent_is_not_taken_for_a_refusal(served: Served) -> None:
    rules = (Rule(claims={"sub": "*"}, role="viewer"),)
    believed = Believed(issuer="http://127.0.0.1:1", audience="modelyard", rules=rules)
    word = Provider(url="http://127.0.0.1:1").word()

    with pytest.raises(Unreachable, match="does not tell its keys"):
        Doorman(served.site, (believed,)).exchange(word)


def test_a_rotated_key_is_found_when_it_is_seen(served: Served, issuer: Provider) -> None:
    rules = (Rule(claims={"sub": "repo"}, role="viewer"),)
    believed = Believed(issuer=issuer.url, audience="modelyard", rules=rules)
    now = 0.0
    doorman = Doorman(served.site, (believed,), monotonic=lambda: now)
    doorman.exchange(issuer.word())
    issuer.key = new_key()
    with pytest.raises(Denied):
        doorman.exchange(issuer.word())
    now = login.KEYS_S + 1
    assert doorman.exchange(issuer.word()).view.role == "viewer"


def test_an_issuer_that_hangs_holds_up_a_few_callers_and_no_other_call(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        rules = (Rule(claims={"sub": "*"}, role="viewer"),)
        believed = Believed(issuer=url, audience="modelyard", rules=rules)
        served = serve(doorman=lambda site: Doorman(site, (believed,)))
        word = Provider(url=url).word()
        with ThreadPoolExecutor(60) as pool:
            asked = [
                pool.submit(served.http.post, f"{served.url}/v1/login", json={"id_token": word}, timeout=60)
                for _ in range(60)
            ]
            answered = list(islice(as_completed(asked), 60 - login.WAITING))
            headers = {"Authorization": f"Bearer {served.token()}"}
            other = served.http.get(f"{served.url}/v1/projects/main/runs", headers=headers)
            hanging = [each for each in asked if not each.done()]

            assert {each.result().status_code for each in answered} == {503}
            assert (other.status_code, len(hanging)) == (200, login.WAITING)


def test_nothing_large_is_taken_from_who_has_no_token(open_to: Served) -> None:
    answer = open_to.http.post(f"{open_to.url}/v1/login", json={"id_token": "x" * 2**20})

    assert answer.status_code == 413
    assert "more than 65536 bytes" in answer.text


def test_keys_that_are_known_hold_while_their_issuer_is_silent(
    served: Served, issuer: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = (Rule(claims={"sub": "repo"}, role="viewer"),)
    believed = Believed(issuer=issuer.url, audience="modelyard", rules=rules)
    now = 0.0
    doorman = Doorman(served.site, (believed,), monotonic=lambda: now)
    doorman.exchange(issuer.word())

    def silent(url: str) -> None:
        raise Unreachable("silent", backend="login")

    monkeypatch.setattr(login, "_keys_of", silent)
    now = 1.5 * login.KEYS_S
    assert doorman.exchange(issuer.word()).view.role == "viewer"
    now = 2.5 * login.KEYS_S
    with pytest.raises(Unreachable):
        doorman.exchange(issuer.word())


@pytest.mark.parametrize(
    "text",
    [
        "- {issuer: 'http://evil.example', audience: a, rules: [{claims: {sub: x}, role: viewer}]}",
        "- {issuer: 'https://i.example', audience: a, rules: [{claims: {}, role: viewer}]}",
        "- {issuer: 'https://i.example', audience: a, rules: []}",
        "- {issuer: 'https://i.example', rules: [{claims: {sub: x}, role: viewer}]}",
        "- {issuer: 'https://i.example', audience: a, rules: [{claims: {sub: x}, role: king}]}",
        "42",
        "[",
    ],
)
def test_a_file_that_would_let_anybody_in_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "oidc.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_believed(path)


@pytest.mark.parametrize("how", [(), ("--id-token-file", os.devnull)], ids=["a person", "a pipeline"])
def test_a_server_that_believes_no_issuer_says_so(afar: Cli, how: tuple[str, ...]) -> None:
    result = afar("login", *how)

    assert result.code == 64
    assert "nobody can log in at this server: it believes no issuer" in result.err
    assert "modelyard token create" in result.err


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"sub": "eve", "email": "boss@example.com", "email_verified": False}, "eve"),
        ({"sub": "ada", "email": "ada@example.com", "email_verified": True}, "ada@example.com"),
        ({"sub": "ada", "email": "ada@example.com"}, "ada@example.com"),
        ({"sub": ""}, "-"),
        ({"sub": "a\x1b[2J\n"}, r"a\x1b[2J\x0a"),
    ],
)
def test_nobody_is_named_by_what_only_they_say(
    serve: Callable[..., Served], issuer: Provider, claims: dict[str, Any], name: str
) -> None:
    rules = (Rule(claims={"team": "ml"}, role="viewer"),)
    believed = Believed(issuer=issuer.url, audience="modelyard", rules=rules)
    served = serve(doorman=lambda site: Doorman(site, (believed,)))

    answer = served.http.post(f"{served.url}/v1/login", json={"id_token": issuer.word(team="ml", **claims)})

    assert (answer.status_code, answer.json()["view"]["name"]) == (201, name)
