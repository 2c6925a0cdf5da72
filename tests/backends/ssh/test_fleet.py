"""``type: fleet`` from the command line, on real hosts: applied, used, changed, emptied and deleted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.ssh import Ssh
from orchestrator.apply import host_names
from orchestrator.places import fleet_place
from orchestrator.spec.models import Fleet
from tests import images
from tests.backends.ssh.farm import Farm, Machine, Sshd, disconnect, generate_key
from tests.cli.conftest import Cli, cli

__all__ = ["cli"]

pytestmark = pytest.mark.docker

Document = Callable[..., str]


@pytest.fixture
def prompt(cli: Cli, folders: Path, namespace: str) -> Cli:
    """Lend a prompt that knows no place but the sim, and whose fleets have a namespace of the test's."""
    assert folders
    assert namespace
    return cli


@pytest.fixture
def rack(prompt: Cli, own_farm: Farm, namespace: str, machine: Machine) -> Document:
    """Return a function that writes a fleet's document and returns its path."""

    def write(*hosts: Sshd, name: str = "rack", **more: Any) -> str:
        options = own_farm.options(*hosts, machine=machine)
        config = {
            "user": options["user"],
            "identity_file": options["identity_file"],
            "config_file": options["ssh_config"],
            "namespace": namespace,
            "hosts": options["hosts"],
        }
        document = {"type": "fleet", "name": name, "blocks": 4, "ssh_config": {**config, **more}}
        return prompt.write(f"{name}.yaml", yaml.safe_dump(document))

    return write


def task(prompt: Cli, name: str, script: str, **more: Any) -> str:
    """Write a task for the fleet and return its path."""
    document = {
        "type": "task", "name": name, "image": images.busybox(), "commands": [script], "fleets": ["rack"],
        "resources": {"cpu": "1..", "memory": "64MB..", "disk": None}, **more,
    }  # fmt: skip
    return prompt.write(f"{name}.yaml", yaml.safe_dump(document))


def hosts_of(prompt: Cli, fleet: str = "rack") -> dict[str, dict[str, Any]]:
    """Return the hosts of a fleet as the command line tells them."""
    (found,) = json.loads(prompt("fleet", "show", fleet, "--json").out)["fleets"]
    return {host["name"]: host for host in found["hosts"]}


def test_a_fleet_is_applied_used_changed_and_deleted(
    prompt: Cli, rack: Document, own_farm: Farm, machine: Machine
) -> None:
    first, second = own_farm.add(), own_farm.add(machine=machine)

    made = prompt("apply", "-y", "-f", rack(first))
    assert made.code == 0, made.err
    assert f"hosts    {first.address}" in made.err
    assert hosts_of(prompt)[first.address]["state"] == "ready"
    assert prompt("apply", "-y", "-f", rack(first)).out.startswith("rack  fleet  unchanged")

    grown = prompt("apply", "-y", "-f", rack(first, second))
    assert grown.code == 0, grown.err
    assert set(hosts_of(prompt)) == {first.address, second.address}

    ran = prompt("apply", "-y", "-f", task(prompt, "six", "echo $((6 * 7))"))
    assert (ran.code, ran.out.strip()) == (0, "42"), ran.err
    assert "rack" in prompt("show", "six").out

    listed = prompt("fleet", "list").out
    assert "2 ready" in listed
    assert "a spec" in listed

    shrunk = prompt("apply", "-y", "-f", rack(first))
    assert shrunk.code == 0, shrunk.err
    assert f"leaves   {second.address}" in shrunk.err
    gone = prompt("fleet", "delete", "rack", "-y")
    assert gone.code == 0, gone.err
    assert prompt("fleet", "list").out == "no fleets\n"
    assert prompt("delete", "-y", "six").code == 0  # its place is no more, and so is what it left there


def test_a_run_of_the_same_folder_goes_to_the_fleet_beside_it(
    prompt: Cli, rack: Document, own_farm: Farm
) -> None:
    fleet, work = rack(own_farm.add()), task(prompt, "six", "echo 42")
    planned = prompt("plan", "-f", fleet, "-f", work)
    assert planned.code == 0, planned.err
    assert "2 to create" in planned.out
    assert prompt("fleet", "list").out == "no fleets\n"  # a plan leaves nothing
    ran = prompt("apply", "-y", "-f", fleet, "-f", work)
    assert (ran.code, ran.out.strip()) == (0, "42"), ran.err


def test_variables_of_a_fleet_reach_its_runs_and_bare_ones_have_to_have_a_value(
    prompt: Cli, rack: Document, own_farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(rack(own_farm.add()))
    path.write_text(path.read_text() + "env: {REGION: eu, OWN: theirs, FLEET_TOKEN: }\n")
    missing = prompt("apply", "-y", "-f", str(path))
    assert (missing.code, "FLEET_TOKEN has no value" in missing.err) == (65, True)
    monkeypatch.setenv("FLEET_TOKEN", "planted-98421")
    assert prompt("apply", "-y", "-f", str(path)).code == 0
    monkeypatch.delenv("FLEET_TOKEN")
    work = task(prompt, "six", "echo $REGION $OWN ${#FLEET_TOKEN}", env={"OWN": "mine"}, backends=["rack"])
    assert prompt("validate", "-f", work).code == 0  # a fleet is a place
    ran = prompt("apply", "-y", "-f", work)
    assert (ran.code, ran.out.strip()) == (0, "eu mine 13"), ran.err
    told = (
        prompt("show", "six", "--json").out
        + prompt("events", "six").out
        + prompt("plan", "-f", str(path)).out
    )
    assert "planted-98421" not in told


def test_a_host_with_runs_leaves_only_once_it_is_empty(
    prompt: Cli, rack: Document, own_farm: Farm, machine: Machine
) -> None:
    first, second = own_farm.add(), own_farm.add(machine=machine)
    prompt("apply", "-y", "-f", rack(first, second))
    kept = task(prompt, "kept", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")
    assert prompt("apply", "-y", "-d", "-f", kept).code == 0
    on = next(name for name, host in hosts_of(prompt).items() if host["runs"] == ["kept"])
    other = second if on == first.address else first

    refused = prompt("apply", "-y", "-f", rack(other))
    assert refused.code == 64
    assert f"host '{on}' would leave fleet 'rack' with runs on it: kept" in refused.err
    assert f"modelyard fleet drain rack {on}" in refused.err
    in_use = prompt("fleet", "delete", "rack", "-y")
    assert (in_use.code, "fleet 'rack' is in use: kept" in in_use.err) == (64, True)

    early = prompt("fleet", "drain", "rack", on, "--timeout", "1s")
    assert (early.code, f"{on} is not empty: kept" in early.err) == (1, True)
    drained = prompt("fleet", "drain", "rack", on, "--evict", "--reason", "a fan")
    assert drained.code == 0, drained.err
    host = hosts_of(prompt)[on]
    assert (host["state"], host["why"], host["runs"]) == ("draining", "drained: a fan", [])
    assert prompt("apply", "-y", "-f", rack(other)).code == 0
    assert set(hosts_of(prompt)) == {other.address}


def test_nothing_starts_on_a_host_that_is_cordoned_and_the_plan_says_why(
    prompt: Cli, rack: Document, own_farm: Farm
) -> None:
    host = own_farm.add()
    prompt("apply", "-y", "-f", rack(host))
    work = task(prompt, "six", "echo 42")
    unknown = prompt("fleet", "cordon", "rack", "127.0.0.2")
    assert (unknown.code, f"did you mean '{host.address}'?" in unknown.err) == (64, True)
    assert prompt("fleet", "cordon", "rack", host.address, "--reason", "a loud fan").code == 0

    refused = prompt("apply", "-y", "-f", work)
    assert refused.code == 75
    assert "cordoned: a loud fan" in refused.err
    assert "fleet uncordon lets launches start there again" in refused.err
    assert "cordoned: a loud fan" in prompt("offers").out
    shown = prompt("show", "rack").out
    assert f"{host.address}: cordoned: a loud fan" in shown
    assert f"modelyard fleet uncordon rack {host.address}" in shown

    assert prompt("fleet", "uncordon", "rack", host.address).code == 0
    assert prompt("apply", "-y", "-f", work).out.strip() == "42"


IDLE = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"


@pytest.fixture
def frail(machine: Machine) -> Iterator[Machine]:
    """Lend the second machine to be turned off, and see that it is on afterwards."""
    yield machine
    if machine.engine is None:
        machine.start()


def test_after_a_host_was_restarted_services_come_back_and_tasks_follow_their_retry(
    prompt: Cli, own_farm: Farm, frail: Machine, namespace: str
) -> None:
    host = own_farm.add(machine=frail)
    options = own_farm.options(host, machine=frail)
    config = {key: options[key] for key in ("user", "identity_file", "hosts")}
    config |= {"config_file": options["ssh_config"], "namespace": namespace}
    fleet = {"type": "fleet", "name": "rack", "blocks": 8, "ssh_config": config}
    prompt("apply", "-y", "-f", prompt.write("rack.yaml", yaml.safe_dump(fleet)))
    small = {"resources": {"cpu": "0.1..", "memory": "16MB..", "disk": None}}
    again = {"retry": {"on_events": ["interruption"]}}
    for name, more in (("once", small), ("again", {**small, **again})):
        assert prompt("apply", "-y", "-d", "-f", task(prompt, name, IDLE, **more)).code == 0
    web = task(prompt, "web", "exec httpd -f -p 8080 -h /etc", type="service", port=8080, **small)
    assert prompt("apply", "-y", "-f", web).code == 0

    frail.lose_power()
    silent = prompt("ps").out
    assert silent.count("unknown since ") == 3
    frail.start()
    disconnect(Path(os.environ["XDG_RUNTIME_DIR"]))  # as every connection of a host that went down

    assert prompt("wait", "web", "--for", "ready", "--timeout", "60s").code == 0
    assert prompt("wait", "again", "--for", "started", "--timeout", "60s").code == 0
    prompt("wait", "once", "--for", "ended", "--timeout", "60s")
    runs = {run["name"]: run for run in json.loads(prompt("ps", "-a", "--json").out)["runs"]}
    assert runs["once"]["state"] == "failed"
    assert "was restarted" in runs["once"]["reason"]
    assert (runs["again"]["state"], runs["web"]["state"]) == ("running", "ready")
    told = prompt("events", "again").out
    assert "again-0-0-0" in told
    assert "lost" in told


def test_a_gang_finds_its_ranks_and_ends_with_the_node_that_failed(
    prompt: Cli, rack: Document, own_farm: Farm, machine: Machine
) -> None:
    first, second = own_farm.add(), own_farm.add(machine=machine)
    network = f"{machine.address.rpartition('.')[0]}.0/30"
    prompt("apply", "-y", "-f", rack(first, second, network=network))
    script = (
        "echo rank $MODELYARD_NODE_RANK of $MODELYARD_NODES_NUM under $MODELYARD_MASTER_NODE_IP; "
        "df -k /dev/shm | tail -n 1 | awk '{print $2}'; "
        f"test $MODELYARD_NODE_RANK = 0 || exit 3; {IDLE}"
    )
    sized = {"resources": {"cpu": "0.5..", "memory": "64MB..", "disk": None, "shm_size": "48MiB"}}
    ran = prompt("apply", "-y", "-f", task(prompt, "ring", script, nodes=2, **sized))
    assert ran.code == 1
    assert "ring-0-1-0: exit code 3" in ran.err
    assert f"node 1 on {second.address} ended first: exit code 3" in prompt("events", "ring").out
    master = machine.address.removesuffix("2") + "1"
    for rank in (0, 1):
        lines = prompt("logs", "ring", "--node", str(rank)).out.splitlines()
        assert lines[:2] == [f"rank {rank} of 2 under {master}", str(48 * 1024)]
    assert "node-failed" in prompt("show", "ring").out

    before = {name: host["blocks_held"] for name, host in hosts_of(prompt).items()}  # others run here, too
    alone = prompt("apply", "-y", "-f", task(prompt, "trio", "echo 1", nodes=3, **sized))
    assert (alone.code, "2 of 3 hosts have room now" in alone.err) == (1, True)
    assert {name: host["blocks_held"] for name, host in hosts_of(prompt).items()} == before  # all or none


def test_no_credential_is_in_plans_events_the_record_or_the_process_list(
    prompt: Cli, rack: Document, own_farm: Farm, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "planted-6f1ed002ab5595859014ebf0951522d9"
    monkeypatch.setenv("API_TOKEN", secret)
    key = own_farm.key.read_text().splitlines()[1]
    fleet = rack(own_farm.add())
    work = task(prompt, "kept", f'test -n "$API_TOKEN" && echo has it; {IDLE}', env=["API_TOKEN"])
    said = [prompt("plan", "-f", fleet, "-f", work, "--out", str(prompt.folder / "plan.json"))]
    said.append(prompt("apply", "-y", "-d", "-f", fleet, "-f", work))
    assert prompt("wait", "kept", "--for", "started", "--timeout", "60s").code == 0
    assert "has it" in prompt("logs", "kept").out
    told = [("events",), ("show", "kept", "--json"), ("show", "rack", "--json"), ("offers", "--json")]
    said += [prompt(*words) for words in [*told, ("plan", "-f", fleet, "--json"), ("backend", "check")]]
    said.append(prompt("fleet", "cordon", "rack", "127.0.0.1", "--reason", "looked at"))
    texts = [part.encode() for result in said for part in (result.out, result.err)]
    kept = [*prompt.folder.rglob("*.json"), *prompt.folder.rglob("*.db"), *folders.rglob("state/**/*")]
    texts += [path.read_bytes() for path in kept if path.is_file()]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            texts.append(path.read_bytes())
    assert len(texts) > 30
    assert not [text for text in texts if secret.encode() in text or key.encode() in text]


def test_a_fleet_whose_hosts_are_all_silent_is_told_with_the_fix(
    prompt: Cli, rack: Document, own_farm: Farm
) -> None:
    host = own_farm.add()
    host.stop()
    made = prompt("apply", "-y", "-f", rack(host))
    assert made.code == 1
    assert "fleet rack: no host answers" in made.err
    assert f"start sshd on '{host.address}', or correct port" in made.err
    assert hosts_of(prompt)[host.address]["state"] == "silent"


def test_each_bad_host_of_a_fleet_is_told_with_its_fix(
    prompt: Cli, rack: Document, own_farm: Farm, namespace: str
) -> None:
    good, dead, changed, unknown, stranger, bare = (
        own_farm.add(address=f"127.0.0.{n}", known=n != 4) for n in range(1, 7)
    )
    dead.stop()
    changed.stop()
    changed.new_key()
    changed.start()
    other_key = own_farm.folder / "other_key"
    generate_key(other_key)
    hosts = own_farm.options(good, dead, changed, unknown, stranger, bare)["hosts"]
    hosts[4]["identity_file"] = str(other_key)
    hosts[5]["engine_socket"] = "/nonexistent/docker.sock"
    made = prompt("apply", "-y", "-f", rack(good, hosts=hosts))
    assert made.code == 0, made.err  # the good one can be used
    told = {name: (host["state"], host["why"], host["fix"]) for name, host in hosts_of(prompt).items()}
    assert told.pop(good.address) == ("ready", "", "")
    assert {state for state, _, _ in told.values()} == {"silent"}
    for host, why, fix in (
        (dead, "Connection refused", f"start sshd on '{dead.address}'"),
        (
            changed,
            "has changed since it was last seen",
            f"ssh-keygen -R '[{changed.address}]:{changed.port}'",
        ),
        (unknown, "is not known", "set host_keys: accept-new"),
        (stranger, "refuses the login of 'root'", "authorized_keys"),
        (bare, "no Docker engine listens at /nonexistent/docker.sock", "install and start Docker there"),
    ):
        assert why in told[host.address][1]
        assert fix in told[host.address][2]
        assert told[host.address][1] in made.err
        assert told[host.address][2] in made.err
        assert f"'{host.address}'" in told[host.address][1]
        assert "it has never answered" in told[host.address][1]

    ran = prompt("apply", "-y", "-f", task(prompt, "six", "echo $((6 * 7))"))
    assert (ran.code, ran.out.strip()) == (0, "42"), ran.err

    twice = prompt("validate", "-f", rack(good, good))
    assert (twice.code, f"'{good.address}' is there twice" in twice.err) == (65, True)
    assert namespace


STUBS = {
    "full": (
        "df",
        "echo Filesystem 1024-blocks Used Available Capacity Mounted; echo /dev/x 1000 900 100 90% /",
    ),
    "late": ("date", "echo $(( $(/usr/bin/date +%s) - 600 ))"),
    "driverless": ("nvidia-smi", "echo 'NVIDIA-SMI has failed: no driver is loaded.'; exit 9"),
}
"""Hosts with one program that says something else: what it is called, and what it does."""


def stubbed(own_farm: Farm, kind: str, address: str) -> Sshd:
    """Return a host on which something is wrong."""
    program, does = STUBS[kind]
    folder = own_farm.folder / kind
    folder.mkdir()
    (folder / program).write_text(f"#!/bin/sh\n{does}\n")
    (folder / program).chmod(0o755)
    return own_farm.add(address=address, extra=f"SetEnv SHLVL=2 PATH={folder}:/usr/sbin:/usr/bin:/sbin:/bin")


def test_each_host_that_is_not_well_is_told_with_its_fix(prompt: Cli, rack: Document, own_farm: Farm) -> None:
    own_farm.folder.chmod(0o755)  # for the public keys in it
    full, late, driverless = (
        stubbed(own_farm, kind, f"127.0.0.{n}") for n, kind in enumerate(STUBS, 1)
    )  # fmt: skip
    outsider = own_farm.add(address="127.0.0.9", extra="UsePAM yes")
    hosts = own_farm.options(full, late, driverless, outsider)["hosts"]
    hosts[3]["user"] = "postgres"
    made = prompt("apply", "-y", "-f", rack(full, hosts=hosts))
    assert made.code == 0, made.err
    told = {name: (host["state"], host["why"], host["fix"]) for name, host in hosts_of(prompt).items()}
    for host, state, why, fix in (
        (full, "unwell", "its disk is full: 100 KiB free", "docker system prune"),
        (late, "ready", " s from this machine's", "set up NTP on both"),
        (
            driverless,
            "ready",
            "NVIDIA-SMI has failed: no driver is loaded",
            "install the vendor's driver there",
        ),
        (outsider, "silent", "user 'postgres' may not use the Docker engine", "usermod -aG docker postgres"),
    ):
        assert told[host.address][0] == state
        assert why in told[host.address][1]
        assert fix in told[host.address][2]
        assert why in made.err  # the clock was looked at twice, and may be a second further by then
        assert told[host.address][2] in made.err

    wants = task(prompt, "six", "echo 42", resources={"gpu": 1, "disk": None})
    none = prompt("plan", "-f", wants)
    assert (none.code, "no accelerator" in none.err) == (75, True), none.err
    assert "its disk is full: 100 KiB free" in prompt("offers").out


def test_a_name_of_a_configured_place_is_no_name_for_a_fleet(
    prompt: Cli, rack: Document, own_farm: Farm
) -> None:
    refused = prompt("plan", "-f", rack(own_farm.add(), name="sim"))
    assert (refused.code, "a configured backend is called 'sim' already" in refused.err) == (64, True)


@pytest.mark.parametrize(
    "hosts",
    [["a", "b"], [{"hostname": "a", "port": 23}, "a"], ["A", {"hostname": "b", "port": 22, "blocks": 2}]],
)
def test_hosts_bear_the_same_names_in_plans_and_places(hosts: list[Any]) -> None:
    fleet = Fleet.model_validate({"name": "rack", "ssh_config": {"user": "ops", "hosts": hosts}})
    place = fleet_place(fleet)
    assert tuple(Ssh(place.name, **place.options).host_names()) == host_names(fleet)
