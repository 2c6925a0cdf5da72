"""Who was refused: told of with who, from where and why, in few lines, and never with a token."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.errors import Denied, StoreError
from orchestrator.server import audit
from orchestrator.server.audit import MOST, WINDOW, Audit
from orchestrator.server.login import Believed, Doorman, Rule
from orchestrator.server.site import Site
from orchestrator.server.users import Caller, Lapsed, Role, Unknown
from orchestrator.store import open_store
from orchestrator.store.records import Store
from orchestrator.store.values import Deed, Project
from tests.cli.conftest import CONFIG
from tests.server.conftest import Served
from tests.server.issuer import Provider, new_key, provider
from tests.server.test_gate import knock
from tests.store.conftest import store
from tests.store.values import T0

__all__ = ["store"]

NO_TOKEN = "my-000000000000-" + "a" * 43


@pytest.fixture
def at(serve: Callable[..., Served], url: str) -> Served:
    """A server, once on each kind of record."""
    return serve(url)


def get(served: Served, token: str | None, path: str = "runs") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return served.http.get(f"{served.url}/v1/projects/main/{path}", headers=headers).status_code


def deeds(served: Served) -> list[Deed]:
    return [deed for _, deed in served.site.store.access.deeds()]


def test_every_way_to_be_refused_is_told_of_with_who_from_where_and_why(at: Served) -> None:
    access, now = at.site.store.access, at.site.clock()
    access.put_project(Project("other", now))
    viewer, revoked = at.token("viewer", "main"), at.token("operator", "main")
    expired, elsewhere = at.token("admin", "main", lasts_s=1), at.token("admin", "other")
    tokens = {"viewer": viewer, "revoked": revoked, "expired": expired, "elsewhere": elsewhere}
    ids = {name: token.split("-")[1] for name, token in tokens.items()}
    access.revoke(ids["revoked"], now=now)
    at.site.clock = lambda: now + timedelta(seconds=2)
    guessed = viewer[:-4] + "AAAA"

    for token in (None, "hunter2", NO_TOKEN, guessed, revoked, expired, elsewhere):
        assert get(at, token) in (401, 403)
    assert get(at, viewer, "audit") == 403
    assert knock(at, "/v1/projects/{project}/runs/{name}/exec", viewer) == 403

    found = [(deed.who, deed.action, deed.outcome) for deed in deeds(at)]
    assert found == [
        ("nobody", "runs", "401 no token"),
        ("nobody", "runs", "401 no token of ours"),
        ("nobody", "runs", "401 unknown token"),
        (f"not viewer ({ids['viewer']})", "runs", "401 wrong secret"),
        (f"operator ({ids['revoked']})", "runs", "403 revoked"),
        (f"admin ({ids['expired']})", "runs", "403 expired"),
        (f"admin ({ids['elsewhere']})", "runs", "403 Denied"),
        (f"viewer ({ids['viewer']})", "audit", "403 Denied"),
        (f"viewer ({ids['viewer']})", "exec", "403 Denied"),
    ]
    assert {(deed.address, deed.project) for deed in deeds(at)} == {("127.0.0.1", "main")}
    written = repr(access.deeds())
    secrets = [token.split("-", 2)[2] for token in (viewer, revoked, expired, elsewhere, guessed, NO_TOKEN)]
    assert [secret for secret in (*secrets, "hunter2") if secret in written] == []


@pytest.fixture
def issuer() -> Iterator[Provider]:
    with provider() as running:
        yield running


def test_a_login_that_is_refused_is_told_of_with_the_reason(
    serve: Callable[..., Served], issuer: Provider, url: str
) -> None:
    rules = (Rule(claims={"sub": "repo"}, role="viewer"),)
    believed = Believed(issuer=issuer.url, audience="modelyard", rules=rules)
    served = serve(url, doorman=lambda site: Doorman(site, (believed,)))
    words = [
        issuer.word(aud="else"), issuer.word(sub="eve"), issuer.word(key=new_key()),
        issuer.word(exp=int(time.time()) - 60), issuer.word(iss="https://evil.example"), "x.y.z",
    ]  # fmt: skip

    for word in words:
        assert served.http.post(f"{served.url}/v1/login", json={"id_token": word}).status_code == 403

    found = deeds(served)
    assert {(d.who, d.address, d.action, d.outcome) for d in found} == {
        ("nobody", "127.0.0.1", "login", "403 Denied")
    }
    reasons = ["Audience", "no rule", "ignature", "expired", "none that this server believes", "not a word"]
    assert [why for why, deed in zip(reasons, found, strict=True) if why not in deed.subject] == []
    assert f"says it is 'repo' of '{issuer.url}'" in found[0].subject
    assert [word for word in words if word in repr(found)] == []


class Clock:
    """The time, as a test sets it."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(store: Store, clock: Clock) -> Audit:
    return Audit(store.access, clock, pytest.fail)


def lines(store: Store) -> list[tuple[str, str, str, str]]:
    return [(d.who, d.action, d.subject, d.outcome) for _, d in store.access.deeds()]


def test_a_flood_is_a_few_lines_that_say_how_many_there_were(store: Store, log: Audit, clock: Clock) -> None:
    for n in range(1_000):
        log.refuse("runs", Unknown("unknown token"), address="10.0.0.1", project=f"p{n}")
    assert len(lines(store)) == MOST

    clock.now += WINDOW
    log.tell()

    assert lines(store)[MOST:] == [
        ("nobody", "several", f"{1_000 - MOST} more since 2026-11-25T12:00:00Z", "401 unknown token")
    ]
    assert {deed.address for _, deed in store.access.deeds()} == {"10.0.0.1"}
    assert log.refused == {"401 unknown token": 1_000}
    log.tell(ended=True)
    assert len(lines(store)) == MOST + 1


def test_a_flood_from_everywhere_is_not_many_lines_either(store: Store, log: Audit) -> None:
    for n in range(1_000):
        log.refuse("runs", Unknown("unknown token"), address=f"10.0.{n // 250}.{n % 250}")
    log.tell(ended=True)

    deeds = [deed for _, deed in store.access.deeds()][MOST:]

    assert len(deeds) == MOST + 1
    said = f"{1_000 - 2 * MOST} more since 2026-11-25T12:00:00Z"
    assert [(deed.address, deed.subject) for deed in deeds if deed.subject[:2] != "1 "] == [("", said)]


def test_the_same_again_is_counted(store: Store, log: Audit, clock: Clock) -> None:
    caller = Caller("1", "ci", "main", Role.VIEWER)
    for _ in range(3):
        log.refuse("apply", Denied("not you"), who=caller.shown, address="10.0.0.1", subject="hello")
    clock.now += WINDOW
    log.refuse("apply", Denied("not you"), who=caller.shown, address="10.0.0.1", subject="hello")

    assert lines(store) == [
        ("ci (1)", "apply", "hello", "403 Denied"),
        ("ci (1)", "apply", "hello: 2 more since 2026-11-25T12:00:00Z", "403 Denied"),
        ("ci (1)", "apply", "hello", "403 Denied"),
    ]


def test_a_flood_hides_no_other(store: Store, log: Audit) -> None:
    caller = Caller("1", "ci", "main", Role.VIEWER)
    for n in range(100):
        log.refuse("runs", Unknown("no token"), address=f"10.0.0.{n}")
    log.refuse("runs", Unknown("wrong secret", "not ci (1)"))
    log.refuse("runs", Lapsed("token 'ci' was revoked", "revoked", caller))

    assert lines(store)[-2:] == [
        ("not ci (1)", "runs", "", "401 wrong secret"), ("ci (1)", "runs", "", "403 revoked"),
    ]  # fmt: skip


def test_what_was_done_is_written_down_however_often_and_kept(
    store: Store, log: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "KEPT", 10)
    monkeypatch.setattr(audit, "PRUNE_EVERY", 1)
    for _ in range(30):
        log.note("ci (1)", "apply", "200", subject="hello")
    for n in range(30):
        log.refuse("apply", Denied("not you"), who=f"ci ({n})")

    found = lines(store)
    assert [line[-1] for line in found].count("200") == 30
    assert [who for who, _, _, outcome in found if outcome != "200"] == [f"ci ({n})" for n in range(20, 30)]


def test_a_clock_that_jumps_back_opens_a_new_window(store: Store, log: Audit, clock: Clock) -> None:
    log.refuse("runs", Unknown("no token"))
    clock.now -= timedelta(days=400)
    log.refuse("runs", Unknown("no token"))

    assert len(lines(store)) == 2


def test_a_line_is_one_line_and_no_longer_than_it_may(store: Store, log: Audit) -> None:
    who = "ci\x1b[2J\n2026-01-01 root\u2028\u202e"
    log.note(who, "apply", "200", address="10.0.0.1", project="p" * 10_000, subject="s\r" * 10_000)

    (deed,) = [deed for _, deed in store.access.deeds()]

    assert deed.who == r"ci\x1b[2J\x0a2026-01-01 root\x2028\x202e"
    assert (len(deed.project), len(deed.subject)) == (63, 500)
    assert "\r" not in deed.subject


def test_who_is_refused_is_so_though_it_cannot_be_written_down(
    at: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(deed: Deed) -> None:
        raise StoreError("no space left")

    monkeypatch.setattr(at.site.store.access, "note_deed", full)

    assert get(at, None) == 401
    assert at.complaints == ["1 refused calls are missing in the audit log: no space left"]


def test_refusals_are_figures_to_be_warned_by(served: Served) -> None:
    get(served, None)
    get(served, NO_TOKEN)
    headers = {"Authorization": f"Bearer {served.token()}"}

    text = served.http.get(f"{served.url}/v1/metrics", headers=headers).text

    found = re.findall(r"^modelyard_refused_calls_total\{(.*)\} (\d+)$", text, re.MULTILINE)
    assert found == [('outcome="401 no token"', "1"), ('outcome="401 unknown token"', "1")]


def test_what_was_counted_is_written_down_when_the_server_ends(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(state=tmp_path / "sim.jsonl"))
    with Site(url, config=config, environ={}, complain=pytest.fail) as site:
        for _ in range(3):
            site.audit.refuse("runs", Unknown("no token"))

    with open_store(url) as store:
        assert [deed.subject.partition(" since")[0] for _, deed in store.access.deeds()] == ["", "2 more"]
