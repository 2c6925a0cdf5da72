"""Who may ask for what: made from the table of routes, so that no new route is forgotten."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from orchestrator.apply.planfile import _seal
from orchestrator.backend import Launch, Offer, Resources
from orchestrator.errors import Denied, NotFound, PlanRefused, StateMoved, UsageError
from orchestrator.reconcile import Template
from orchestrator.server.app import OPEN, application
from orchestrator.server.gate import Gated
from orchestrator.server.limits import Prices
from orchestrator.server.office import gate as office
from orchestrator.server.runs import gate as runs
from orchestrator.server.sockets import GatedSocket
from orchestrator.server.sockets import gate as sockets
from orchestrator.server.streams import AT_ONCE
from orchestrator.server.users import Role
from orchestrator.spec.load import read
from orchestrator.store.values import Limits, Project
from orchestrator.wire import TokenRequest
from tests.server.conftest import Served

SOCKETS = [route for route in sockets.routes if isinstance(route, WebSocketRoute)]
ROUTES = [route for route in (*runs.routes, *office.routes) if isinstance(route, APIRoute)]
HELLO = "type: task\nname: hello\ncommands: [echo hi]\n"


def path_of(route: APIRoute, project: str) -> str:
    """Fill a route's path: the project, and some name for the rest."""
    return re.sub(r"\{[^}]*\}", "some", route.path.replace("{project}", project))


def ask(served: Served, route: APIRoute, token: str | None, project: str = "main") -> httpx.Response:
    method = next(iter(route.methods))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return served.http.request(method, served.url + path_of(route, project), headers=headers, json={})


def flat(routes: Iterable[Any]) -> Iterator[Any]:
    """Yield routes, and those of the routers among them, whatever FastAPI calls these."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from flat(inner.routes)


def role_of(route: APIRoute) -> Role:
    return Role.named((route.openapi_extra or {})["x-role"])


def knock(served: Served, path: str, token: str | None) -> int:
    """Ask for a WebSocket; return the status of the answer, 101 where it opened."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = served.url.replace("http", "ws") + re.sub(r"\{[^}]*\}", "1", path.replace("{project}", "main"))
    try:
        with connect(url, additional_headers=headers):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


def test_every_socket_refuses_whom_it_does_not_know(served: Served) -> None:
    operator, theirs = served.token("operator", "main"), served.token("admin", "other")
    viewer = served.token("viewer", "main")
    for route in SOCKETS:
        assert isinstance(route.endpoint, GatedSocket), route.path
        assert route.endpoint.role >= Role.OPERATOR, route.path
        asked = {who: knock(served, route.path, who) for who in (None, "my-0", theirs, viewer, operator)}
        assert list(asked.values()) == [401, 401, 403, 403, 404], route.path
    assert len(SOCKETS) == 2
    assert {deed.outcome for _, deed in served.site.store.access.deeds("main")} == {
        "401 no token", "401 no token of ours", "403 Denied",
    }  # fmt: skip


def test_every_route_refuses_whom_it_does_not_know(served: Served) -> None:
    viewer = served.token("viewer", "main")
    revoked = served.token("admin", "main")
    served.site.store.access.revoke(revoked.split("-")[1], now=served.site.clock())
    expired = served.token("admin", "main", lasts_s=1)
    clock = served.site.clock
    served.site.clock = lambda: clock() + timedelta(seconds=2)
    operator = served.token("operator", "main")
    theirs = served.token("admin", "other")

    for route in ROUTES:
        assert ask(served, route, None).status_code == 401, route.path
        assert ask(served, route, "my-000000000000-" + "a" * 43).status_code == 401, route.path
        assert ask(served, route, revoked).status_code == 403, route.path
        assert ask(served, route, expired).status_code == 403, route.path
        assert ask(served, route, theirs).status_code == 403, route.path
        for token, role in ((viewer, Role.VIEWER), (operator, Role.OPERATOR)):
            if role < role_of(route):
                assert ask(served, route, token).status_code == 403, route.path


def test_every_route_has_a_role_and_what_changes_takes_more_than_a_viewers(served: Served) -> None:
    planning = {"/v1/projects/{project}/plans"}  # it asks in a body, and changes nothing
    found = list(flat(application(served.site).routes))
    for route in found:
        path = route.path
        if path in OPEN:
            continue
        assert isinstance(route, Gated) or isinstance(route.endpoint, GatedSocket), path
        if isinstance(route, APIRoute):
            changes = bool(route.methods - {"GET", "HEAD"}) and path not in planning
            assert role_of(route) > Role.VIEWER or not changes, path
    assert len(found) == len(ROUTES) + len(SOCKETS) + len(OPEN & {route.path for route in found})
    assert len(ROUTES) > 25


@pytest.fixture(autouse=True)
def _projects(served: Served) -> None:
    served.site.store.access.put_project(Project("other", served.site.clock()))


def test_projects_do_not_see_each_other(served: Served) -> None:
    ours, theirs = served.client("operator", of="main"), served.client("operator", "other", of="other")
    ours.apply(ours.plan(read(HELLO)))
    ours.follow(["hello"], "ended")
    ours.set_secret("TOKEN", "planted")

    assert [view.run.name for view in ours.runs()] == ["hello"]
    assert theirs.runs() == []
    assert theirs.events(None) == []
    assert theirs.secrets() == []
    with pytest.raises(NotFound):
        theirs.run("hello")
    with pytest.raises(NotFound):
        list(theirs.logs("hello"))
    with pytest.raises(UsageError, match="another project has a run called 'hello'"):
        theirs.apply(theirs.plan(read(HELLO)))


def test_what_was_called_once_more_with_its_key_is_done_once(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.token()}", "Idempotency-Key": "k1"}
    url = f"{served.url}/v1/projects/main/tokens"
    body = {"name": "ci", "role": "viewer"}

    first = served.http.post(url, headers=headers, json=body)
    again = served.http.post(url, headers=headers, json=body)
    other = served.http.post(url, headers=headers, json={**body, "name": "else"})

    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert other.status_code == 400
    assert len([t for t in served.site.store.access.tokens() if t.name == "ci"]) == 1


def test_of_calls_with_one_key_at_the_same_time_one_is_carried_out(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.token()}", "Idempotency-Key": "k1"}
    url = f"{served.url}/v1/projects/main/tokens"
    body = {"name": "ci", "role": "viewer"}

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(served.http.post, url, headers=headers, json=body) for _ in range(8)]
    answers = [each.result() for each in asked]

    assert [answer.status_code for answer in answers] == [201] * 8
    assert len({answer.json()["token"] for answer in answers}) == 1
    assert len([t for t in served.site.store.access.tokens() if t.name == "ci"]) == 1
    assert [deed.action for _, deed in served.site.store.access.deeds()] == ["create_token"]


def test_a_call_that_failed_may_be_made_again_with_its_key(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.token()}", "Idempotency-Key": "k1"}
    url = f"{served.url}/v1/projects/main/endings"
    body = {"runs": ["hello"], "wanted": "stop"}
    assert served.http.post(url, headers=headers, json=body).status_code == 404
    client = served.client()
    client.apply(client.plan(read(HELLO)))

    assert served.http.post(url, headers=headers, json=body).status_code == 202


def test_a_key_that_a_killed_server_took_is_free_again(served: Served) -> None:
    access, now = served.site.store.access, served.site.clock()
    old = now - timedelta(minutes=5)
    for key, owner, at in (("a", "elsewhere:1:1", now), ("b", "elsewhere:1:1", old)):
        assert access.claim(key, "d", owner=owner, now=at, stale_before=old) is None

    def taken(key: str, digest: str = "d") -> bool:
        found = access.claim(
            key, digest, owner=served.site.owner, now=now, stale_before=now - timedelta(minutes=2)
        )
        return found is not None

    assert taken("a")
    assert taken("b", "another")
    assert not taken("b")


def test_the_answer_that_is_a_token_is_not_on_record(served: Served, tmp_path: Path) -> None:
    made = served.client().new_token(TokenRequest(name="ci", role="viewer"))
    secret = made.token.split("-", 2)[2]

    for path in tmp_path.glob("state.db*"):
        assert secret.encode() not in path.read_bytes(), path


def test_a_run_that_moved_is_not_stopped_by_who_saw_it_before(served: Served) -> None:
    client = served.client()
    client.apply(client.plan(read(HELLO)))
    client.follow(["hello"], "ended")
    headers = {"Authorization": f"Bearer {served.token()}"}
    url = f"{served.url}/v1/projects/main/runs/hello"
    etag = served.http.get(url, headers=headers).headers["etag"]

    stale = served.http.delete(url, headers={**headers, "If-Match": '"1"'})
    fresh = served.http.delete(url, headers={**headers, "If-Match": etag})

    assert (stale.status_code, fresh.status_code) == (409, 202)
    assert stale.json()["type"].endswith(StateMoved.__name__)


def test_of_those_who_saw_the_same_serial_one_changes_the_run(served: Served) -> None:
    """Three or four of eight at once did: the serial was compared before the run was read to be changed."""
    client = served.client()
    client.apply(client.plan(read(HELLO.replace("hello", "web"))))  # it runs until it is stopped
    client.follow(["web"], "accepted")
    headers = {"Authorization": f"Bearer {served.token()}"}
    url = f"{served.url}/v1/projects/main/runs/web"
    etag = served.http.get(url, headers=headers).headers["etag"]

    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(served.http.post, f"{url}/stop", headers={**headers, "If-Match": etag})
            for _ in range(8)
        ]

    assert sorted(each.result().status_code for each in asked)[:2] in ([202, 409], [409, 409])


def test_every_change_is_written_down_with_who_and_how_it_ended(served: Served) -> None:
    client = served.client("operator", of="main")
    client.apply(client.plan(read(HELLO)))
    with pytest.raises(NotFound):
        client.delete_volume("none")

    deeds = [deed for _, deed in served.site.store.access.deeds("main")]

    assert [(deed.action, deed.subject, deed.outcome) for deed in deeds] == [
        ("apply", "hello", "200"), ("delete_volume", "none", "404 NotFound"),
    ]  # fmt: skip
    assert deeds[0].spec_hash
    assert {(deed.address, deed.who.split()[0]) for deed in deeds} == {("127.0.0.1", "operator")}


def test_who_tries_what_they_may_not_is_written_down(served: Served) -> None:
    plans = served.client("operator", of="main").plan(read(HELLO))
    with pytest.raises(Denied):
        served.client("viewer", of="main").apply(plans)
    headers = {"Authorization": "Bearer my-0-0"}
    nobody = served.http.post(f"{served.url}/v1/projects/main/runs/hello/stop", headers=headers)

    deeds = [deed for _, deed in served.site.store.access.deeds("main")]

    assert nobody.status_code == 401
    assert [(d.who.split()[0], d.action, d.outcome) for d in deeds] == [
        ("viewer", "apply", "403 Denied"), ("nobody", "stop", "401 no token of ours"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"gpus": 1}, "would hold 2 GPUs and may hold 1"),
        ({"backends": ["elsewhere"]}, "backend 'sim' is not one this project may use"),
    ],
    ids=["gpus", "backends"],
)
def test_a_project_is_held_to_its_limits(served: Served, limits: dict[str, object], said: str) -> None:
    headers = {"Authorization": f"Bearer {served.token()}"}
    body = {"name": "other", "limits": limits}
    assert served.http.put(f"{served.url}/v1/projects", headers=headers, json=body).status_code == 200
    client = served.client("operator", "other", of="other")
    plans = client.plan(read(HELLO + "image: a\nresources: {gpu: H100:2}\n"))

    with pytest.raises(Denied, match=said):
        client.apply(plans)
    assert client.runs() == []


CACHE = "type: volume\nname: cache\nsize: {}\n"


def test_a_volume_is_no_other_projects_to_take_or_to_mount(served: Served) -> None:
    access, now = served.site.store.access, served.site.clock()
    for name in ("lab", "other"):
        access.put_project(Project(name, now))
    lab, other = (served.client("operator", name, of=name) for name in ("lab", "other"))
    lab.apply(lab.plan(read(CACHE.format("1GB"))))

    for spec in (CACHE.format("1GB"), HELLO + "image: a\nvolumes: ['cache:/data']\n"):
        with pytest.raises(UsageError, match="another project has a volume called 'cache'"):
            other.apply(other.plan(read(spec)))

    assert (list(lab.kept_volumes()), list(other.kept_volumes()), other.runs()) == (["cache"], [], [])
    lab.apply(lab.plan(read(HELLO + "image: a\nvolumes: ['cache:/data']\n")))


def test_whose_a_volume_is_stays_when_who_sees_all_changes_it(served: Served) -> None:
    served.site.store.access.put_project(Project("lab", served.site.clock()))
    lab, api = served.client("operator", "lab", of="lab"), served.site.api(None)
    lab.apply(lab.plan(read(CACHE.format("1GB") + "tags: {team: a}\n")))

    api.apply(api.plan(read(CACHE.format("1GB") + "tags: {team: b}\n")))

    (volume,) = served.site.store.volumes()
    assert (volume.project, json.loads(volume.spec)["tags"]) == ("lab", {"team": "b"})


def test_a_project_is_held_to_its_dollars(serve: Callable[..., Served], tmp_path: Path) -> None:
    config = tmp_path / "priced.yaml"
    config.write_text("backends: [{type: sim, script: {}, prices: {H100-80GB: 4.0}}]\n")
    served = serve(f"sqlite:///{tmp_path}/priced.db", config=config)  # not the record of the fixture's server
    access, now = served.site.store.access, served.site.clock()
    access.put_project(Project("other", now, Limits(usd_hour=20.0)))
    client = served.client("operator", "other", of="other")
    spec = "type: service\nname: {}\ncommands: [serve]\nimage: a\nport: 8000\nresources: {{gpu: H100:2}}\n"

    more = client.plan(read(spec.format("more") + "replicas: 0..2\nscaling: {metric: rps, target: 1}\n"))
    client.apply(client.plan(read(spec.format("web"))))  # $8 an hour
    assert client.follow(["web"], "started", timeout_s=30)  # holds two of the eight: the plan does not mind
    with pytest.raises(Denied, match=r"would cost \$24/h and may cost \$20/h"):
        client.apply(more)  # what it may come to, and not the nothing it begins with
    access.put_project(Project("other", now, Limits(usd_hour=24.0)))
    client.apply(more)

    assert {view.run.name for view in client.runs()} == {"web", "more"}


@pytest.mark.parametrize(("divisible", "costs"), [(True, 32.0), (False, 0.0)], ids=["own", "rented whole"])
def test_what_a_run_holds_of_a_machine_of_ones_own_counts_though_nothing_of_it_is_free(
    divisible: bool, costs: float
) -> None:
    wanted = Resources(accelerator="H100-80GB", accelerators=8, cpu=4.0)
    template = Template(Launch("web-0-0-0", "web", resources=wanted), ("rack",))
    busy = Offer("rack", "r1", 0.0, 0, accelerator="H100-80GB", own_usd_hour=4.0, divisible=divisible)

    assert Prices([busy]).usd_hour_of(template) == costs


def test_a_template_that_no_plan_of_ours_would_hold_is_refused(served: Served) -> None:
    token = served.token("operator", "main")
    headers = {"Authorization": f"Bearer {token}"}
    asked = {"files": [{"path": "hello.yaml", "text": HELLO}]}
    plan = served.http.post(f"{served.url}/v1/projects/main/plans", headers=headers, json=asked).json()
    plan["steps"][0]["template"]["launch"]["run"] = "theirs"
    del plan["seal"]
    plan["seal"] = _seal(plan)

    answer = served.http.post(
        f"{served.url}/v1/projects/main/applications", headers=headers, json={"plan": plan}
    )

    assert answer.status_code == 403
    assert "bears another name" in answer.json()["detail"]


def test_a_plan_file_is_for_its_record_and_its_project(served: Served, tmp_path: Path) -> None:
    served.site.store.access.put_project(Project("lab", served.site.clock()))
    lab, main = served.client(project="lab"), served.client()
    file = tmp_path / "plan.json"
    file.write_text(lab.save(lab.plan(read(HELLO))))

    with pytest.raises(PlanRefused, match="made for project 'lab', this is 'main'"):
        main.resume(str(file))
    plans, consent = lab.resume(str(file))
    sent = main._application(plans, consent).model_dump(mode="json")  # as a caller may write it
    sent["plan"] = json.loads(file.read_text())
    url = f"{served.url}/v1/projects/main/applications"
    refused = served.http.post(url, json=sent, headers={"Authorization": f"Bearer {served.token()}"})

    assert (refused.status_code, "made for project 'lab'" in refused.text) == (409, True)
    assert lab.apply(plans, consent=consent) == ("hello",)


def test_who_leaves_in_the_middle_of_a_body_is_no_fault_of_ours(served: Served) -> None:
    """Each left 45 lines of traceback on stderr, where anybody with a token could fill the journal."""
    said: list[Any] = []
    headers = [(b"authorization", f"Bearer {served.token()}".encode())]
    scope = {
        "type": "http", "method": "PUT", "path": "/v1/projects", "raw_path": b"", "query_string": b"",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http",
    }  # fmt: skip

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        said.append(message)

    asyncio.run(application(served.site)(scope, receive, send))

    assert said[0]["status"] == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("projects/main/endings", b'{"runs": ["a\\ud800"], "wanted": "stop"}'),
        ("projects/main/plans", b'{"files": [{"text": "type: fleet"}], "set": "\\uDFFF"}'),
        ("projects/main/applications", b'{"plan": {"schema": "\\ud800\\u0041"}}'),
    ],
)
def test_half_a_character_is_whoever_sent_its_fault(served: Served, path: str, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {served.token()}", "Content-Type": "application/json"}

    answer = served.http.post(f"{served.url}/v1/{path}", headers=headers, content=body)

    assert (answer.status_code, "half of a UTF-16 pair" in answer.text) == (400, True), answer.text


def test_a_whole_character_of_two_halves_is_taken(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.token()}", "Content-Type": "application/json"}
    body = b'{"name": "\\ud83d\\ude80 \\\\ud800", "role": "viewer"}'

    answer = served.http.post(f"{served.url}/v1/projects/main/tokens", headers=headers, content=body)

    assert answer.json()["view"]["name"] == "\N{ROCKET} \\ud800"


@pytest.mark.parametrize("limits", ['{"usd_hour": NaN}', '{"usd_hour": 1e999}', '{"gpus": -1}'])
def test_a_limit_that_would_hold_nobody_is_refused(served: Served, limits: str) -> None:
    """``nan`` was taken, and kept as no limit at all."""
    headers = {"Authorization": f"Bearer {served.token()}", "Content-Type": "application/json"}
    body = f'{{"name": "other", "limits": {limits}}}'

    answer = served.http.put(f"{served.url}/v1/projects", headers=headers, content=body)

    assert answer.status_code == 422
    assert "a limit is a number of at least 0" in answer.text


def test_who_takes_the_name_of_a_deleted_project_gets_none_of_its_secrets(
    serve: Callable[..., Served], url: str
) -> None:
    served = serve(url)
    access, now = served.site.store.access, served.site.clock()
    for name in ("lab", "lab-2"):
        access.put_project(Project(name, now))
        served.client("operator", name, of=name).set_secret("KEY", "planted")
    admin = served.client()

    admin.delete_project("lab")
    access.put_project(Project("lab", now))

    assert served.client("operator", "lab", of="lab").secrets() == []
    assert [kept.name for kept in served.client("operator", "lab-2", of="lab-2").secrets()] == ["KEY"]


def test_a_project_with_a_fleet_stays(served: Served) -> None:
    fleet = "type: fleet\nname: rack\nssh_config: {user: ops, hosts: [10.0.0.1]}\n"
    client = served.client("admin", "other", of="other")
    client.apply(client.plan(read(fleet)))

    with pytest.raises(UsageError, match="still has fleets"):
        served.client().delete_project("other")


def test_a_reader_of_events_who_does_not_read_holds_few(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    found = served.site.store.events

    def events(run: str | None, *, after: int, limit: int, project: str) -> Any:
        asked.append(limit)
        return found(run, after=after, limit=limit, project=project)

    monkeypatch.setattr(served.site.store, "events", events)
    headers = {"Authorization": f"Bearer {served.token()}"}
    with served.http.stream("GET", f"{served.url}/v1/projects/main/events/stream", headers=headers) as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": here"
        client = served.client()
        client.apply(client.plan(read(HELLO)))
        assert any(line.startswith("data:") for line in lines)

    assert set(asked) == {AT_ONCE}


@pytest.mark.parametrize("how", ["revoked", "deleted"])
def test_a_stream_ends_with_the_token_that_opened_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("orchestrator.server.streams.QUIET_S", 0.1)
    monkeypatch.setattr("orchestrator.server.gate.LOOK_AGAIN_S", 0.1)
    access, token = served.site.store.access, served.token("viewer", "other")
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{served.url}/v1/projects/other/events/stream"
    with served.http.stream("GET", url, headers=headers, timeout=30) as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": here"
        if how == "revoked":
            access.revoke(token.split("-")[1], now=served.site.clock())
        else:
            access.delete_project("other")
        assert len(list(islice(lines, 200))) < 200


def test_a_stream_outlives_an_hour_that_a_login_lasts(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.server.streams.QUIET_S", 0.1)
    monkeypatch.setattr("orchestrator.server.gate.LOOK_AGAIN_S", 0.0)
    headers = {"Authorization": f"Bearer {served.token('viewer', 'main', lasts_s=3_600)}"}
    clock = served.site.clock
    with served.http.stream("GET", f"{served.url}/v1/projects/main/events/stream", headers=headers) as stream:
        lines = stream.iter_lines()
        served.site.clock = lambda: clock() + timedelta(hours=2)
        client = served.client()
        client.apply(client.plan(read(HELLO)))
        assert any(line.startswith("data:") for line in lines)


def test_what_nobody_owns_is_told_to_who_may_see_every_project(served: Served) -> None:
    """`drift` told it to a viewer of any: the run it was of may have been another project's."""
    launch = Launch("secret-plan-0-0-0", "secret-plan", spec_hash="1", resources=Resources())
    served.site.places["sim"].start(launch, secrets={}, progress=lambda *_: None)

    assert [drift.run for drift in served.client("admin").drift().items] == ["secret-plan"]
    assert served.client("viewer", "other", of="other").drift().items == ()
