"""Who may ask for what: made from the table of routes, so that no new route is forgotten."""

from __future__ import annotations

import re
from datetime import timedelta

import httpx
import pytest
from fastapi.routing import APIRoute

from orchestrator.apply.planfile import _seal
from orchestrator.errors import Denied, NotFound, StateMoved, UsageError
from orchestrator.server.app import OPEN, application
from orchestrator.server.gate import Gated
from orchestrator.server.office import gate as office
from orchestrator.server.runs import gate as runs
from orchestrator.server.users import Role
from orchestrator.spec.load import read
from orchestrator.store.values import Project
from tests.server.conftest import Served

ROUTES = [route for route in (*runs.routes, *office.routes) if isinstance(route, APIRoute)]
HELLO = "type: task\nname: hello\ncommands: [echo hi]\n"


def path_of(route: APIRoute, project: str) -> str:
    """Fill a route's path: the project, and some name for the rest."""
    return re.sub(r"\{[^}]*\}", "some", route.path.replace("{project}", project))


def ask(served: Served, route: APIRoute, token: str | None, project: str = "main") -> httpx.Response:
    method = next(iter(route.methods))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return served.http.request(method, served.url + path_of(route, project), headers=headers, json={})


def role_of(route: APIRoute) -> Role:
    return Role.named((route.openapi_extra or {})["x-role"])


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
    for route in application(served.site).routes:
        path = getattr(route, "path", "")
        if path in OPEN:
            continue
        if isinstance(route, APIRoute):
            assert isinstance(route, Gated), path
            changes = bool(route.methods - {"GET", "HEAD"}) and path not in planning
            assert role_of(route) > Role.VIEWER or not changes, path
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
