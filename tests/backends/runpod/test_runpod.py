"""Pods: what is offered, what is asked for and refused, what is seen of one, and its output."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import backends.runpod as module
from backends.runpod import Runpod
from backends.runpod.pods import Pods
from orchestrator.backend import File, Instance, Launch, Mount, Phase, Port, Rent, Resources
from orchestrator.cli import run as modelyard
from orchestrator.errors import (
    AuthFailed,
    BackendError,
    Busy,
    ConfigError,
    NoCapacity,
    NotFound,
    Quota,
    Rejected,
    Unreachable,
)
from tests.backends.runpod.api import API_KEY, CREATE, H100, LIST, Container, FakeRunpod, problem
from tests.backends.ssh.farm import until

RENT = Rent(H100, "US-KS-2", price_usd_hour=3.99, accelerator="H100-80GB", accelerators=1)


def launch(script: str = "echo done", name: str = "sft-0-0-1", **fields: Any) -> Launch:
    """Return a launch that runs a script of a shell."""
    return replace(
        Launch(
            name, "sft", attempt=1, spec_hash="a", image="busybox", command=("sh", "-c", script), rent=RENT
        ),
        **fields,
    )


def start(backend: Runpod, one: Launch, **secrets: str) -> Instance:
    return backend.start(one, secrets=secrets, progress=lambda _: None)


def seen(backend: Runpod, name: str = "sft-0-0-1") -> Instance:
    (found,) = [one for one in backend.instances() if one.name == name]
    return found


def ended(backend: Runpod, name: str = "sft-0-0-1") -> Instance:
    until(lambda: seen(backend, name).phase is Phase.EXITED, f"{name} ends")
    return seen(backend, name)


# -- offers --------------------------------------------------------------------------------------


def test_offers_are_what_the_catalog_says_now(options: dict[str, Any]) -> None:
    found = {(o.instance_type, o.region): o for o in Runpod(**options).offers()}
    h100 = found[H100, "US-KS-2"]
    assert (h100.accelerator, h100.vendor, h100.count, h100.vram_bytes) == (H100, "nvidia", 1, 80 * 2**30)
    assert (h100.price_usd_hour, h100.available) == (round(3.99 + 50 * 0.1 / 730, 6), None)
    assert (h100.cpu, h100.memory_bytes, h100.spot) == (20.0, 125 * 2**30, False)
    assert found[H100, "EU-NL-1"].available == 0
    assert found[f"{H100} x4", "US-KS-2"].price_usd_hour == round(4 * 3.99 + 50 * 0.1 / 730, 6)
    assert found[f"{H100} x8", ""].available == 0  # no data centre has so many
    assert found["AMD Instinct MI300X OAM", ""].vendor == "amd"
    large = h100.with_disk(180 * 10**9)
    assert large.disk_bytes == 180 * 10**9
    assert large.price_usd_hour == pytest.approx(3.99 + 180 * 0.1 / 730, abs=2e-6)
    assert found["cpu5c:4", "US-KS-2"].with_disk(180 * 10**9).disk_bytes == 50 * 10**9
    cpu = found["cpu5c:4", "US-KS-2"]
    assert (cpu.accelerator, cpu.cpu, cpu.memory_bytes) == (None, 4.0, 10 * 10**9)
    assert "community" not in {region for _, region in found}


def test_the_community_is_offered_where_it_is_configured(options: dict[str, Any]) -> None:
    found = Runpod(**{**options, "clouds": ["community"]}).offers()
    assert {(o.instance_type, o.region, o.price_usd_hour) for o in found} == {
        (H100, "community", round(2.69 + 50 * 0.1 / 730, 6)),
        (f"{H100} x2", "community", round(2 * 2.69 + 50 * 0.1 / 730, 6)),
    }


@pytest.mark.parametrize(
    ("rent", "wanted"),
    [
        (RENT, {"gpu": {"id": H100, "count": 1}, "cloud": "SECURE", "dataCenterIds": ["US-KS-2"]}),
        (Rent(f"{H100} x2", "community"), {"gpu": {"id": H100, "count": 2}, "cloud": "COMMUNITY"}),
        (Rent("cpu5c:8", "EU-NL-1"), {"cpu": {"id": "cpu5c", "vcpuCount": 8}, "cloud": "SECURE", "disk": 50}),
        (replace(RENT, disk_bytes=180 * 10**9), {"gpu": {"id": H100, "count": 1}, "disk": 180}),
    ],
)
def test_what_was_planned_is_asked_for(
    cloud: FakeRunpod, options: dict[str, Any], rent: Rent, wanted: dict[str, Any]
) -> None:
    backend = Runpod(**options)
    start(backend, launch("sleep 60", rent=rent))
    (made,) = cloud.there.values()
    assert wanted.items() <= made.data["body"].items()
    (machine,) = backend.machines()
    assert (machine.launch, machine.instance_type) == ("sft-0-0-1", rent.instance_type)
    assert machine.region == rent.region


# -- refusals ------------------------------------------------------------------------------------

REFUSED: tuple[tuple[str, int, Any, type[BackendError]], ...] = (
    ("no room", 400, problem(400, "Bad Request", "There are no longer any instances available"), NoCapacity),
    ("balance", 402, problem(402, "Payment Required", "insufficient balance"), Quota),
    ("pool", 403, problem(403, "Forbidden", "access denied"), Quota),
    ("key", 401, problem(401, "Unauthorized", "missing bearer token"), AuthFailed),
    ("template", 404, problem(404, "Not Found", "resource not found"), Rejected),
    ("method", 405, problem(405, "Method Not Allowed", "not allowed for this path"), Rejected),
    ("contract", 422, problem(422, "Unprocessable Entity", "x", "$.disk: minimum 1"), Rejected),
    ("rate", 429, problem(429, "Too Many Requests", "rate limit exceeded for the minute window"), Busy),
    ("fault", 500, problem(500, "Internal Server Error", "x"), Busy),
    ("gateway", 502, "<html>Bad gateway</html>", Busy),
)


@pytest.mark.parametrize(("what", "status", "body", "kind"), REFUSED, ids=[each[0] for each in REFUSED])
def test_what_is_refused_is_told_with_place_and_fix_and_asked_once(
    cloud: FakeRunpod, options: dict[str, Any], what: str, status: int, body: Any, kind: type[BackendError]
) -> None:
    cloud.refuse(*CREATE, status, body, times=9)
    with pytest.raises(kind) as caught:
        start(Runpod(**options), launch())
    assert f"{H100} in US-KS-2" in caught.value.what
    assert caught.value.fix or kind is Busy
    assert API_KEY not in str(caught.value)
    assert cloud.count(*CREATE) == 1
    assert cloud.there == {}
    if status in (400, 403):  # nothing but its words tells what it was
        assert body["detail"] in caught.value.what


def test_a_kind_that_was_sold_out_is_left_alone_for_a_while(
    cloud: FakeRunpod, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.refuse(*CREATE, *REFUSED[0][1:3])
    for words in ("no longer any", "was sold out"):
        with pytest.raises(NoCapacity, match=words):
            start(Runpod(**options), launch())
    assert cloud.count(*CREATE) == 1
    offers = {(o.instance_type, o.region): o.available for o in Runpod(**options).offers()}
    assert (offers[H100, "US-KS-2"], offers[f"{H100} x2", "US-KS-2"]) == (0, None)
    monkeypatch.setattr("backends.vm.cooling.time.time", lambda: datetime.now(UTC).timestamp() + 121)
    start(Runpod(**options), launch())


def test_a_look_is_repeated_where_the_answer_was_later(cloud: FakeRunpod, options: dict[str, Any]) -> None:
    cloud.refuse(*LIST, 429, problem(429, "Too Many Requests", "x"), headers={"Retry-After": "0"})
    assert Runpod(**options).instances() == []


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"image": None}, "images"),
        ({"rent": None}, "names nothing to rent"),
        ({"privileged": True}, "not privileged"),
        ({"user": "1000"}, "user"),
        ({"mounts": (Mount("v", "/v"),)}, "volume 'v'"),
        ({"mounts": (Mount("/f", "/f", "folder"),)}, "folder '/f'"),
        ({"command": ()}, "its program"),
        ({"ports": (Port(8000),)}, "whole internet"),
        ({"env": tuple((f"V{n}", "x") for n in range(50))}, "50 variables"),
        ({"files": (File("f", b"x" * 17_000),)}, "17000 bytes"),
        ({"resources": Resources(accelerators=2)}, "2 accelerators: the pod has 1"),
    ],
)
def test_what_no_pod_can_do_is_refused_before_anything_is_rented(
    cloud: FakeRunpod, options: dict[str, Any], fields: dict[str, Any], word: str
) -> None:
    with pytest.raises(Rejected, match=word) as caught:
        start(Runpod(**options), launch(**fields))
    assert caught.value.fix
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"clouds": ["spot"]}, "spot"),
        ({"clouds": []}, "clouds"),
        ({"disk": "much"}, "disk"),
        ({"boot_timeout": "soon"}, "boot_timeout"),
    ],
)
def test_an_option_that_is_wrong_is_named(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Runpod(**wrong)


@pytest.mark.parametrize("way", ["variable", "file"])
def test_a_key_that_is_not_there_is_named(
    options: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    more = {"api_key_file": "/nonexistent/key"} if way == "file" else {}
    with pytest.raises(AuthFailed) as caught:
        Runpod(**options, **more).instances()
    assert ("RUNPOD_API_KEY" if way == "variable" else "/nonexistent/key") in caught.value.what
    assert "console.runpod.io" in (caught.value.fix or "")
    (check,) = Runpod(**options, **more).check()
    assert (check.ok, bool(check.fix)) == (False, True)


# -- once ----------------------------------------------------------------------------------------


def test_a_pod_whose_answer_was_lost_is_found(cloud: FakeRunpod, options: dict[str, Any]) -> None:
    cloud.refuse(*CREATE, 0, None, after=True)
    with pytest.raises(Unreachable):
        start(Runpod(**options), launch("sleep 60"))
    assert cloud.made == 1
    found = start(Runpod(**options), launch("sleep 60"))
    assert (cloud.made, list(cloud.there)) == (1, [found.machine])


def test_what_two_machines_that_raced_have_made_is_one_again(
    cloud: FakeRunpod, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Runpod(**options)
    ours = here._ours
    looked: list[int] = []

    def late() -> Any:
        """See nothing the first two times, as one that looks before another's pod is listed."""
        looked.append(1)
        return ours() if len(looked) > 2 else []

    start(Runpod(**options), launch("sleep 60"))
    monkeypatch.setattr(here, "_ours", late)
    found = start(here, launch("sleep 60"))
    assert cloud.made == 2
    assert list(cloud.there) == [found.machine] == ["0000000001"]


def test_pods_of_others_are_left_alone(cloud: FakeRunpod, options: dict[str, Any]) -> None:
    theirs = Runpod(**{**options, "deployment": "d2"})
    start(theirs, launch("sleep 60"))
    ours = Runpod(**options)
    assert (ours.instances(), ours.machines()) == ([], [])
    for machine in (*cloud.there, "7h9k2m4n6p"):
        with pytest.raises(Rejected):
            ours.terminate(machine)
    ours.remove("sft-0-0-1")
    assert cloud.count("DELETE", "/v2/pods/") == 0


def test_a_name_is_free_again_while_its_pod_is_still_listed(
    cloud: FakeRunpod, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Runpod(**options)
    first = start(backend, launch("sleep 60"))
    ghost = cloud.there[first.machine]
    backend.remove("sft-0-0-1")
    cloud.there[first.machine] = ghost
    assert backend.instances() == []
    second = start(backend, launch("sleep 60"))
    assert (cloud.made, second.machine != first.machine) == (2, True)
    del cloud.there[first.machine]
    assert [one.machine for one in backend.instances()] == [second.machine]
    assert backend._shelf.buried() == set()


# -- what is seen of one -------------------------------------------------------------------------


def test_one_whose_image_cannot_be_had_says_so_and_ends_when_its_time_is_over(
    cloud: FakeRunpod, options: dict[str, Any]
) -> None:
    backend = Runpod(**options)
    start(backend, launch(image="missing/x"))
    assert seen(backend).phase is Phase.PENDING
    assert "manifest unknown" in seen(backend).message
    (made,) = cloud.there.values()
    made.data["createdAt"] = (datetime.now(UTC) - timedelta(minutes=31)).isoformat()
    found = seen(backend)
    assert (found.phase, found.reason) == (Phase.EXITED, "no-start")
    assert "did not run within 1800 s: error pulling image: manifest unknown" in found.message
    made.data["status"] = "ERROR"
    assert seen(backend).reason == "no-start"


def test_one_that_was_stopped_at_runpod_is_lost(cloud: FakeRunpod, options: dict[str, Any]) -> None:
    backend = Runpod(**options)
    start(backend, launch("sleep 60"))
    until(lambda: list(backend.logs("sft-0-0-1")) == [], "it begins")
    (made,) = cloud.there.values()
    made.data["container"].kill()
    found = ended(backend)
    assert (found.exit_code, found.reason) == (None, "lost")
    assert "by hand, or for lack of credit" in found.message


def begin_again(cloud: FakeRunpod) -> None:
    """Start the container of the only pod again, as RunPod does after a host was restarted."""
    (made,) = cloud.there.values()
    old, body = made.data["container"], made.data["body"]
    old.kill()
    made.data["container"] = Container(body["args"], body["env"], cloud.folder / made.id)
    made.data["container"].lines[:0] = old.lines  # the stream has both lives


def earlier(cloud: FakeRunpod) -> None:
    """Put the beginning of the only pod's program some seconds back."""
    (made,) = cloud.there.values()
    lines = made.data["container"].lines
    until(lambda: lines != [], "it begins")
    head, _, second = lines[0][1].rpartition(" ")
    lines[0] = (lines[0][0], f"{head} {int(second) - 100}")


def test_one_that_runpod_started_again_is_lost_and_not_run_twice_unseen(
    cloud: FakeRunpod, options: dict[str, Any]
) -> None:
    backend = Runpod(**options)
    start(backend, launch("echo life; sleep 60"))
    earlier(cloud)
    until(lambda: seen(backend).phase is Phase.RUNNING, "it runs")
    begin_again(cloud)
    found = ended(backend)
    assert (found.reason, found.exit_code) == ("lost", None)
    assert "started its container again" in found.message


def test_one_that_had_ended_before_it_was_started_again_has_ended(
    cloud: FakeRunpod, options: dict[str, Any]
) -> None:
    first = Runpod(**options)
    start(first, launch("echo life; exit 4"))
    earlier(cloud)
    ended(first)
    begin_again(cloud)
    (made,) = cloud.there.values()
    until(lambda: len(made.data["container"].lines) >= 5, "it ran again")
    found = ended(Runpod(**options))
    assert (found.exit_code, found.reason) == (4, "error")
    assert [line.text for line in Runpod(**options).logs("sft-0-0-1")] == ["life"]


def test_ports_are_where_runpod_publishes_them(cloud: FakeRunpod, options: dict[str, Any]) -> None:
    backend = Runpod(**{**options, "public_ports": True})
    start(backend, launch("sleep 60", ports=(Port(8000),)))
    until(lambda: seen(backend).phase is Phase.RUNNING, "it runs")
    assert dict(seen(backend).ports) == {8000: ("203.0.113.7", 18_000)}
    assert seen(backend).address == "203.0.113.7"


def test_a_code_of_a_program_that_prints_a_lot_is_found(options: dict[str, Any]) -> None:
    backend = Runpod(**options)
    start(backend, launch("seq 1 3000; exit 9"))
    assert ended(backend).exit_code == 9
    assert [line.text for line in backend.logs("sft-0-0-1", tail=2)] == ["2999", "3000"]
    backend.release("sft-0-0-1", keep_s=0)
    assert [line.text for line in backend.logs("sft-0-0-1")] == [str(n) for n in range(1, 3001)]


class Look:
    """What is seen of a program that never stops to print, where a look at it ends."""

    def __init__(self, backend: Runpod, *, patience_s: float) -> None:
        self.found: list[Any] = []
        self._backend = backend
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._asking.start()
        self._asking.join(patience_s)

    def _ask(self) -> None:
        with contextlib.suppress(BackendError, NotFound):  # it is taken away where it would not end
            self.found.append(seen(self._backend).phase)
            self.found.append({line.text for line in self._backend.logs("sft-0-0-1")})

    def end(self) -> None:
        self._asking.join()


CHATTY = "while :; do echo more; sleep 0.05; done"


def test_one_that_never_stops_to_print_is_looked_at_all_the_same(options: dict[str, Any]) -> None:
    backend = Runpod(**options)
    start(backend, launch(CHATTY))
    until(lambda: seen(backend).phase is Phase.RUNNING, "it runs")
    assert Look(backend, patience_s=60.0).found == [Phase.RUNNING, {"more"}]


def test_a_look_that_waits_for_silence_alone_is_caught(
    cloud: FakeRunpod, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Pods.output
    monkeypatch.setattr(Pods, "output", lambda self, pod, **more: output(self, pod, **{**more, "live": True}))
    start(Runpod(**options), launch(CHATTY))
    look = Look(Runpod(**options), patience_s=3.0)
    found = list(look.found)
    cloud.reset()
    look.end()
    assert found == []


def test_output_is_followed_over_a_stream_that_breaks(
    cloud: FakeRunpod, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Runpod(**options)
    start(backend, launch("for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done"))
    output = Pods.output
    streams: list[str] = []

    def short(self: Pods, pod: Any, **more: Any) -> Any:
        """End each stream after two lines."""
        streams.append(more.get("after", ""))
        for count, line in enumerate(output(self, pod, **more)):
            if count == 2:
                return
            yield line

    monkeypatch.setattr(Pods, "output", short)
    assert [line.text for line in backend.logs("sft-0-0-1", follow=True)] == list("123456")
    assert len(streams) > 2


def test_a_registrys_key_is_handed_in_and_taken_back(cloud: FakeRunpod, options: dict[str, Any]) -> None:
    backend = Runpod(**options)
    private = launch("sleep 60", registry_secret=("registry", "${{ secrets.r }}"))
    start(backend, private, registry="me:pass:word")
    (made,) = cloud.registries.values()
    assert (made["username"], made["password"]) == ("me", "pass:word")
    assert next(iter(cloud.there.values())).data["body"]["registry"] == made["id"]
    backend.remove("sft-0-0-1")
    assert cloud.registries == {}
    cloud.refuse(*CREATE, *REFUSED[0][1:3])
    with pytest.raises(NoCapacity):
        start(backend, private, registry="me:pass:word")
    assert cloud.registries == {}


def test_a_registrys_key_stays_while_there_may_be_a_pod_and_goes_with_the_next_one(
    cloud: FakeRunpod, options: dict[str, Any]
) -> None:
    private = launch("sleep 60", registry_secret=("registry", "${{ secrets.r }}"))
    cloud.refuse(*CREATE, 0, None, after=True)  # it was made, and nobody heard of it
    with pytest.raises(Unreachable):
        start(Runpod(**options), private, registry="me:word")
    (pod,) = cloud.there.values()
    assert pod.data["body"]["registry"] in cloud.registries
    start(Runpod(**options), private, registry="me:word")
    Runpod(**options).remove("sft-0-0-1")
    assert (cloud.there, cloud.registries) == ({}, {})


def die(*_: object, **__: object) -> None:
    """End as a process does that is killed."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("status", [0, 502])
def test_a_registrys_key_that_no_pod_came_to_use_is_replaced(
    cloud: FakeRunpod, options: dict[str, Any], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = launch("sleep 60", registry_secret=("registry", "${{ secrets.r }}"))
    cloud.refuse(*CREATE, status, None)
    with pytest.raises((Unreachable, Busy)):
        start(Runpod(**options), private, registry="me:word")
    (left,) = cloud.registries
    with monkeypatch.context() as patched:
        patched.setattr(Pods, "create", die)
        with pytest.raises(KeyboardInterrupt):
            start(Runpod(**options), private, registry="me:word")
    start(Runpod(**options), private, registry="me:word")
    assert len(cloud.registries) == 1
    assert left not in cloud.registries


# -- planted faults ------------------------------------------------------------------------------


def test_one_that_forgets_to_look_makes_two(
    cloud: FakeRunpod, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "made_once", lambda *, find, make, end: make())
    monkeypatch.setattr(Runpod, "_pod_of", lambda self, name: None)
    with pytest.raises(AssertionError):
        test_a_pod_whose_answer_was_lost_is_found(cloud, options)


def test_one_that_trusts_a_second_life_is_caught(
    cloud: FakeRunpod, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runpod, "_glance", lambda self, pod: (self._tail(pod), False))
    monkeypatch.setattr("tests.backends.runpod.test_runpod.ended", lambda backend: seen(backend))
    with pytest.raises(AssertionError):
        test_one_that_runpod_started_again_is_lost_and_not_run_twice_unseen(cloud, options)


def test_one_that_does_not_know_its_own_is_caught(
    cloud: FakeRunpod, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runpod, "_ours", lambda self: self._pods.list())
    with pytest.raises(AssertionError):
        test_pods_of_others_are_left_alone(cloud, options)


# -- a run, as a user sees it --------------------------------------------------------------------

SPEC = """\
type: task
name: sft
image: busybox
commands: ["echo $((6 * 7)); exit {code}"]
backends: [runpod]
resources: {{gpu: H100}}
retry: false
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_from_plan_to_end_shows_its_key_nowhere(
    cloud: FakeRunpod,
    options: dict[str, Any],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELYARD_CONFIG", "config.yaml")
    monkeypatch.setenv("MODELYARD_DATABASE_URL", f"sqlite:///{tmp_path}/state.db")
    Path("config.yaml").write_text(json.dumps({"backends": [{"type": "runpod", **options}]}))
    Path("sft.yaml").write_text(SPEC.format(code=code))
    said: list[str] = []

    def prompt(*arguments: str) -> int:
        found = modelyard(list(arguments))
        said.append("".join(capsys.readouterr()))
        return found

    assert prompt("plan", "-f", "sft.yaml") == 0
    assert "US-KS-2" in said[-1]
    assert prompt("plan", "-f", "sft.yaml", "--out", "plan.json") == 0
    assert prompt("apply", "-y", "plan.json") == (1 if code else 0), said[-1]
    prompt("logs", "sft")
    assert said[-1] == "42\n"
    prompt("show", "sft")
    assert ("failed" if code else "succeeded") in said[-1]
    prompt("events", "sft")
    assert f"{H100} in US-KS-2 at $" in said[-1]
    assert prompt("backend", "check") == 0
    prompt("gc")
    assert cloud.there == {}
    assert cloud.started == ["sft-0-0-0"]
    said.append(subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout)
    assert not [text for text in said if API_KEY in text]
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in kept if API_KEY.encode() in path.read_bytes()]
