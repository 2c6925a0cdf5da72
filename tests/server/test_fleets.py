"""Fleets through a server: applied, looked at, held back and deleted from afar, by admins."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from orchestrator.errors import Denied, NotFound, UsageError
from orchestrator.spec.load import Document, read
from tests.server.conftest import Served

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh: apt-get install openssh-client")

FLEET = """
type: fleet
name: rack
ssh_config:
  user: ops
  hosts: [{hostname: 127.0.0.1, port: 1}]
"""


def fleet(text: str = FLEET) -> tuple[Document, ...]:
    """Return the document of a fleet whose one host has no sshd."""
    return read(text, file="rack.yaml")


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep connections and memory of hosts in a folder of the test's."""
    with tempfile.TemporaryDirectory(prefix="my-run-", dir="/tmp") as name:  # paths of sockets are short
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        monkeypatch.setenv("XDG_STATE_HOME", f"{name}/state")
        yield


def test_a_fleet_is_applied_held_back_and_deleted_from_afar(served: Served) -> None:
    admin = served.client("admin")
    assert admin.apply(admin.plan(fleet())) == ()
    assert [plan.action for plan in admin.plan(fleet())] == ["unchanged"]
    (view,) = admin.fleets("rack")
    assert (view.hosts[0].name, view.hosts[0].state, view.applied) == ("127.0.0.1", "silent", True)
    assert "start sshd" in view.hosts[0].fix
    assert "rack" in admin.abilities()
    assert "Connection refused" in admin.offers().silent["rack"]

    admin.cordon("rack", "127.0.0.1", reason="a loud fan")
    (cordon,) = served.site.store.cordons()
    assert (cordon.place, cordon.host, cordon.reason) == ("rack", "127.0.0.1", "a loud fan")
    with pytest.raises(NotFound, match=r"has no host '127\.0\.0\.2'"):
        admin.cordon("rack", "127.0.0.2")
    assert admin.emptied("rack", "127.0.0.1", timeout_s=5)
    admin.uncordon("rack", "127.0.0.1")
    assert served.site.store.cordons() == []

    admin.delete_fleet("rack")
    with pytest.raises(NotFound, match="no fleet 'rack'"):
        admin.fleets("rack")
    assert "rack" not in admin.abilities()


def test_only_an_admin_says_where_the_server_logs_in(served: Served) -> None:
    operator = served.client("operator")
    with pytest.raises(Denied, match="may not change fleet 'rack'"):
        operator.apply(operator.plan(fleet()))
    with pytest.raises(Denied):
        operator.cordon("rack", "127.0.0.1")
    assert served.site.store.fleets() == []


def test_a_fleet_is_its_projects_and_its_name_is_taken_for_all(served: Served) -> None:
    from orchestrator.wire import ProjectBody

    admin = served.client("admin")
    admin.put_project(ProjectBody(name="lab"))
    admin.apply(admin.plan(fleet()))
    lab = served.client("admin", "lab")
    assert "rack" not in lab.abilities()
    with pytest.raises(NotFound):
        lab.fleets("rack")
    with pytest.raises(NotFound):
        lab.delete_fleet("rack")
    with pytest.raises(UsageError, match="another project has a fleet called 'rack'"):
        lab.apply(lab.plan(fleet(FLEET.replace("ops", "root"))))
