"""The Docker backend's decisions, without an engine: bodies sent, answers read, words explained."""

from __future__ import annotations

import json
import struct
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.devices import choose, of_kind
from backends.docker import Docker
from backends.docker.container import archive, create_body, held, to_instance
from backends.docker.engine import Endpoint, find_endpoint
from backends.docker.images import PullError, explained, pull_progress
from backends.docker.streams import LONGEST_LINE, engine_time, frames, log_lines
from backends.machine import Device
from orchestrator.backend import (
    Can,
    File,
    Launch,
    Mount,
    Phase,
    Port,
    Probe,
    Resources,
)
from orchestrator.errors import AuthFailed, Busy, ConfigError, NoCapacity, Rejected

LAUNCH = Launch("chat-0-0-2", "chat", attempt=2, spec_hash="abc", image="img:1", command=("serve",))
L4 = Device(0, "GPU-a", "NVIDIA L4", 23034 * 2**20, "nvidia", (8, 9), ("/dev/nvidia0",))
MI300X = Device(
    0, "0xAB", "AMD Instinct MI300X", 2**37, "amd", None, ("/dev/kfd", "/dev/dri/renderD128"), "0000:05:00.0"
)


def body(launch: Launch = LAUNCH, **options: Any) -> Any:
    """Return what would be sent to the engine."""
    return create_body(launch, **{"image": "img:1", "namespace": "modelyard", "secrets": {}, **options})


# -- what is sent --------------------------------------------------------------------------------


def test_nvidia_accelerators_are_asked_for_by_uuid() -> None:
    sent = body(devices=[L4, replace(L4, uuid="GPU-b")], memory_bytes=64 * 2**30)
    host = sent["HostConfig"]
    assert host["DeviceRequests"] == [
        {"Driver": "nvidia", "DeviceIDs": ["GPU-a", "GPU-b"], "Capabilities": [["gpu"]]}
    ]
    assert "Devices" not in host
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {"memlock": -1, "stack": 67_108_864}
    assert host["ShmSize"] == 32 * 2**30
    assert sent["Labels"]["modelyard.dev/devices"] == "GPU-a,GPU-b"
    assert not any(pair.startswith("NVIDIA_VISIBLE_DEVICES") for pair in sent["Env"])


def test_amd_accelerators_are_device_files_with_their_groups() -> None:
    second = replace(MI300X, paths=("/dev/kfd", "/dev/dri/renderD129"), bus="0000:06:00.0")
    host = body(devices=[MI300X, second], groups=("44", "109"))["HostConfig"]
    assert [device["PathOnHost"] for device in host["Devices"]] == [
        "/dev/kfd",
        "/dev/dri/renderD128",
        "/dev/dri/renderD129",
    ]
    assert host["GroupAdd"] == ["44", "109"]
    assert "DeviceRequests" not in host


def test_tags_are_labels_and_ours_win() -> None:
    sent = body(replace(LAUNCH, tags=(("example.com/team", "a"), ("modelyard.dev/run", "theirs"))))
    assert sent["Labels"]["example.com/team"] == "a"
    assert sent["Labels"]["modelyard.dev/run"] == "chat"


def test_work_without_accelerators_sees_none() -> None:
    sent = body()
    assert "NVIDIA_VISIBLE_DEVICES=void" in sent["Env"]
    assert "Ulimits" not in sent["HostConfig"]
    own = body(replace(LAUNCH, env=(("NVIDIA_VISIBLE_DEVICES", "all"),)))
    assert own["Env"] == ["NVIDIA_VISIBLE_DEVICES=all"]


def test_shared_memory_as_asked_wins() -> None:
    launch = replace(LAUNCH, resources=Resources(memory_bytes=2**33, shm_bytes=2**30))
    assert body(launch, devices=[L4])["HostConfig"]["ShmSize"] == 2**30


def test_secrets_are_in_the_environment_and_nowhere_else() -> None:
    launch = replace(LAUNCH, secrets=(("HF_TOKEN", "secrets.hf"),), registry_secret=("registry", "secrets.r"))
    sent = body(launch, secrets={"HF_TOKEN": "s3cr3t", "registry": "user:p4ss"})
    assert "HF_TOKEN=s3cr3t" in sent.pop("Env")
    assert "s3cr3t" not in json.dumps(sent)
    assert "p4ss" not in json.dumps(sent)


def test_probe_of_the_launch_silences_the_image_s() -> None:
    assert body(replace(LAUNCH, probe=Probe(port=80)))["Healthcheck"] == {"Test": ["NONE"]}
    assert "Healthcheck" not in body()


def test_mounts_and_ports_are_spelled_as_the_engine_does() -> None:
    launch = replace(
        LAUNCH,
        mounts=(Mount("data", "/data"), Mount("/srv/models", "/models", "folder", read_only=True)),
        ports=(Port(8000), Port(80, 8080)),
    )
    sent = body(launch, bind="0.0.0.0")
    assert sent["HostConfig"]["Mounts"] == [
        {"Type": "volume", "Source": "modelyard-data", "Target": "/data", "ReadOnly": False},
        {"Type": "bind", "Source": "/srv/models", "Target": "/models", "ReadOnly": True},
    ]
    assert sent["HostConfig"]["PortBindings"] == {
        "8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": ""}],
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}],
    }


def test_empty_entrypoint_is_sent_and_no_entrypoint_is_not() -> None:
    assert body(replace(LAUNCH, entrypoint=()))["Entrypoint"] == []
    assert "Entrypoint" not in body()


def test_files_are_packed_where_they_belong() -> None:
    packed = archive([File("/etc/a", b"1", 0o600), File("b/c", b"22")], working_dir="/work", user="1000:1001")
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        seen = {(one.name, one.size, one.mode, one.uid, one.gid) for one in tar.getmembers()}
    assert seen == {("etc/a", 1, 0o600, 1000, 1001), ("work/b/c", 2, 0o644, 1000, 1001)}


# -- what is read --------------------------------------------------------------------------------


def answer(status: str = "running", *, name: str = "/modelyard-chat-0-0-2", **state: Any) -> dict[str, Any]:
    """Return an inspection as Engine API 1.41 gives it, cut to what is read."""
    started = "2026-11-25T17:27:01.123456789Z"
    return {
        "Id": "f00d",
        "Name": name,
        "State": {
            "Status": status,
            "OOMKilled": False,
            "ExitCode": 0,
            "Error": "",
            "StartedAt": started,
            "FinishedAt": "0001-01-01T00:00:00Z",
            **state,
        },
        "RestartCount": 2,
        "Config": {"Labels": body(devices=[L4])["Labels"], "ExposedPorts": {"80/tcp": {}}},
        "HostConfig": {"NetworkMode": "default"},
        "NetworkSettings": {
            "Ports": {
                "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "49153"}, {"HostIp": "::", "HostPort": "49153"}],
                "9/tcp": None,
            },
            "Networks": {"bridge": {"IPAddress": "172.17.0.2"}},
        },
    }


def test_running_container_becomes_an_instance() -> None:
    seen = to_instance(answer(), address="10.0.0.5")
    assert (seen.name, seen.run, seen.attempt, seen.spec_hash) == ("chat-0-0-2", "chat", 2, "abc")
    assert (seen.phase, seen.reason, seen.exit_code) == (Phase.RUNNING, "", None)
    assert seen.ports == {80: ("10.0.0.5", 49153)}
    assert (seen.address, seen.devices, seen.restarts) == ("172.17.0.2", ("GPU-a",), 2)
    assert seen.started_at == datetime(2026, 11, 25, 17, 27, 1, 123456, tzinfo=UTC)
    assert seen.finished_at is None


def test_program_too_quick_for_the_engine_did_not_end_before_it_began() -> None:
    seen = to_instance(answer("exited", FinishedAt="2026-11-25T17:27:01.120000000Z"))
    assert seen.finished_at == seen.started_at


@pytest.mark.parametrize(
    ("status", "state", "expected"),
    [
        ("created", {}, (Phase.PENDING, "")),
        ("created", {"ExitCode": 127, "Error": "exec: nosuch"}, (Phase.EXITED, "no-start")),
        ("paused", {}, (Phase.RUNNING, "")),
        ("restarting", {"ExitCode": 1}, (Phase.RUNNING, "")),
        ("exited", {}, (Phase.EXITED, "")),
        ("exited", {"ExitCode": 3}, (Phase.EXITED, "error")),
        ("exited", {"ExitCode": 143}, (Phase.EXITED, "error")),
        ("exited", {"ExitCode": 137, "OOMKilled": True}, (Phase.EXITED, "oom")),
        ("exited", {"ExitCode": 0, "OOMKilled": True}, (Phase.EXITED, "")),
        ("dead", {"ExitCode": 1}, (Phase.EXITED, "lost")),
    ],
)
def test_end_is_told_by_what_the_engine_says(
    status: str, state: Mapping[str, Any], expected: tuple[Phase, str]
) -> None:
    seen = to_instance(answer(status, **state))
    assert (seen.phase, seen.reason) == expected


@pytest.mark.parametrize(
    ("killed", "told"),
    [(True, "restarting after killed: out of memory"), (False, "restarting after exit code 137 (SIGKILL)")],
)
def test_a_restart_after_the_kernel_s_kill_says_so(killed: bool, told: str) -> None:
    assert to_instance(answer("restarting", ExitCode=137, OOMKilled=killed)).message == told


@pytest.mark.parametrize("code", [0, 1, 137, 143])
@pytest.mark.parametrize("status", ["exited", "created"])
def test_asked_to_stop_is_stopped_whatever_the_code(status: str, code: int) -> None:
    state = {} if status == "created" else {"ExitCode": code}
    seen = to_instance(answer(status, name="/modelyard-chat-0-0-2.stopped", **state))
    assert (seen.phase, seen.reason) == (Phase.EXITED, "stopped")
    assert seen.exit_code == (None if status == "created" else code)


@pytest.mark.parametrize(
    ("health", "ready"),
    [
        (None, None),
        ({"Status": "none"}, None),
        ({"Status": "starting"}, False),
        ({"Status": "healthy"}, True),
    ],
)
def test_health_is_readiness(health: object, ready: bool | None) -> None:
    assert to_instance(answer(Health=health)).ready is ready


def test_host_network_reaches_the_port_itself() -> None:
    seen = answer()
    seen["HostConfig"]["NetworkMode"] = "host"
    assert to_instance(seen).ports == {80: ("127.0.0.1", 80)}


def test_ended_containers_hold_nothing() -> None:
    labels = body(
        replace(LAUNCH, resources=Resources(cpu=2, memory_bytes=2**30)),
        devices=[L4, replace(L4, uuid="GPU-b")],
    )["Labels"]

    def listed(state: str, name: str = "/modelyard-chat-0-0-2") -> dict[str, Any]:
        return {"State": state, "Labels": labels, "Names": [name]}

    assert held([listed("running")]) == (2.0, 2**30, {"GPU-a", "GPU-b"})
    assert held([listed("created"), listed("exited")])[0] == 2.0
    nothing = [listed("exited"), listed("dead"), listed("created", "/modelyard-chat-0-0-2.stopped")]
    assert held(nothing) == (0, 0, frozenset())


# -- accelerators --------------------------------------------------------------------------------

FEW = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["nvidia", "amd"])), max_size=5, unique=False
).map(lambda kinds: [Device(n, f"id-{n}", name, 1, vendor) for n, (name, vendor) in enumerate(kinds)])


@given(
    devices=FEW,
    count=st.integers(1, 4),
    taken=st.sets(st.integers(0, 4).map("id-{}".format)),
    name=st.sampled_from([None, "a", "b", "c"]),
    vendor=st.sampled_from([None, "nvidia"]),
)
def test_chosen_accelerators_are_free_alike_and_as_many_as_asked(
    devices: list[Device], count: int, taken: set[str], name: str | None, vendor: str | None
) -> None:
    wanted = Resources(accelerator=name, vendor=vendor, accelerators=count)
    chosen = choose(devices, wanted, taken)
    if chosen is None:
        free = [device for device in of_kind(devices, wanted) if device.key not in taken]
        assert all(sum(one.name == kind for one in free) < count for kind in ("a", "b"))
        return
    assert len(chosen) == len({device.key for device in chosen}) == count
    assert len({device.name for device in chosen}) == 1
    assert not any(device.key in taken for device in chosen)
    assert all(vendor in (None, device.vendor) for device in chosen)


def test_unknown_name_is_no_guess_among_several_kinds() -> None:
    wanted = Resources(accelerator="H100-80GB", accelerators=1)
    assert of_kind([L4, MI300X], wanted) == ()
    assert of_kind([L4], wanted) == (L4,)


# -- streams -------------------------------------------------------------------------------------


def frame(stream: int, payload: bytes) -> bytes:
    """Return one frame of the engine's."""
    return struct.pack(">BxxxL", stream, len(payload)) + payload


@given(st.data())
def test_frames_do_not_depend_on_where_chunks_end(data: st.DataObject) -> None:
    sent = [(1, b"2026-11-25T17:27:01.000000001Z out\n"), (2, b"2026-11-25T17:27:02Z err\n"), (1, b"")]
    stream = b"".join(frame(*one) for one in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert list(frames(chunks)) == [("stderr" if n == 2 else "stdout", payload) for n, payload in sent]


def test_pieces_of_a_long_line_are_joined() -> None:
    pieces = [("stdout", b"2026-01-01T00:00:00Z ab"), ("stderr", b"2026-01-01T00:00:01Z x\n")]
    rest = [("stdout", b"2026-01-01T00:00:02.5Z cd\r\n"), ("stdout", b"2026-01-01T00:00:03Z last")]
    seen = [(line.stream, line.text, stamp) for line, stamp in log_lines(iter([*pieces, *rest]))]  # type: ignore[list-item]  # literals
    assert seen == [
        ("stderr", "x", "2026-01-01T00:00:01Z"),
        ("stdout", "abcd", "2026-01-01T00:00:02.5Z"),
        ("stdout", "last", "2026-01-01T00:00:03Z"),
    ]


def test_line_without_an_end_is_cut_before_it_fills_the_memory() -> None:
    def endless() -> Iterator[tuple[Any, bytes]]:
        while True:
            yield "stdout", b"2026-01-01T00:00:00Z " + b"." * 16_384

    line, _ = next(log_lines(endless()))
    assert len(line.text) == LONGEST_LINE


def test_time_keeps_its_microseconds() -> None:
    moment = datetime(2026, 11, 25, 17, 27, 1, 123456, tzinfo=UTC)
    assert engine_time(moment) == f"{(moment - timedelta(microseconds=123456)).timestamp():.0f}.123456"
    assert engine_time(None) is None


# -- finding the engine --------------------------------------------------------------------------


def test_engine_is_found_in_the_order_of_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / ".docker"
    digest = sha256(b"lab").hexdigest()
    meta = folder / "contexts" / "meta" / digest / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"Endpoints": {"docker": {"Host": "tcp://lab:2376"}}}))
    (folder / "contexts" / "tls" / digest / "docker").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"currentContext": "lab"}))
    certificates = folder / "contexts" / "tls" / digest / "docker"

    def found(host: str | None, **environ: str) -> Endpoint:
        return find_endpoint(host, environ=environ, home=tmp_path)

    assert found("unix:///a", DOCKER_HOST="tcp://b:1").url == "unix:///a"
    assert found(None, DOCKER_HOST="tcp://b:1", DOCKER_CONTEXT="lab").url == "tcp://b:1"
    assert found(None) == Endpoint("tcp://lab:2376", certificates)
    assert found(None, DOCKER_CONTEXT="default").url == "unix:///var/run/docker.sock"
    assert found(None, DOCKER_HOST="tcp://b:1", DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH="/c") == Endpoint(
        "tcp://b:1", Path("/c")
    )


def test_broken_configuration_of_docker_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[")
    seen = find_endpoint(None, environ={"DOCKER_CONFIG": str(tmp_path)}, home=tmp_path)
    assert seen.url == "unix:///var/run/docker.sock"


def test_folders_are_mounted_only_where_the_engine_is_here() -> None:
    assert Can.MOUNTS in Docker(host="unix:///x").can
    assert Can.MOUNTS not in Docker(host="tcp://elsewhere:2375").can


@pytest.mark.parametrize(
    "options", [{"namespace": "a b"}, {"namespace": ""}, {"bind": "everywhere"}, {"pull": "sometimes"}]
)
def test_option_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="backend 'docker'"):
        Docker(**options)


# -- pulling -------------------------------------------------------------------------------------


# Words of dockerd 20.10 and 28, as users report them.
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("manifest for x:1 not found: manifest unknown: manifest unknown", Rejected),
        ("invalid reference format", Rejected),
        (
            "pull access denied for x, repository does not exist or may require 'docker login':"
            " denied: requested access to the resource is denied",
            AuthFailed,
        ),
        ("Head https://r/v2/x/manifests/1: no basic auth credentials", AuthFailed),
        ("unauthorized: authentication required", AuthFailed),
        ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", NoCapacity),
        ("Get https://r/v2/: dial tcp: lookup r on 10.0.0.2:53: no such host", Busy),
        ("Get https://r/v2/: net/http: TLS handshake timeout", Busy),
        ("toomanyrequests: You have reached your pull rate limit.", Busy),
    ],
)
def test_pull_that_fails_is_explained(text: str, kind: type[Exception]) -> None:
    error = explained("x:1", text, has_login=False, backend="docker")
    assert type(error) is kind
    assert error.fix
    assert "x:1" in str(error) or kind is NoCapacity


def test_progress_counts_all_layers_and_never_falls() -> None:
    def layer(name: str, current: int) -> dict[str, Any]:
        return {"status": "Downloading", "id": name, "progressDetail": {"current": current, "total": 100}}

    messages = [layer("a", 50), layer("b", 0), layer("a", 100), {"status": "Download complete", "id": "b"}]
    assert list(pull_progress(messages)) == ["pulling 50%", "pulling 100%"]


def test_error_in_the_stream_is_raised() -> None:
    with pytest.raises(PullError, match="manifest unknown"):
        list(pull_progress([{"status": "Pulling"}, {"error": "manifest unknown"}]))
