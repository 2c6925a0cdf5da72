"""The configuration of places: names, options and prices, and every problem at its line."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.places import DEFAULT, Place, Places, Recorded, build, read_mirrors, read_places
from orchestrator.planner.mirrors import Mirrors


def read(tmp_path: Path, text: str) -> tuple[Place, ...]:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return read_places(path)


def test_a_type_alone_is_a_place_of_that_name(tmp_path: Path) -> None:
    assert read(tmp_path, "backends: [docker, process]") == (
        Place("docker", "docker"),
        Place("process", "process"),
    )


def test_options_and_prices_are_told_apart(tmp_path: Path) -> None:
    (place,) = read(tmp_path, "backends: [{name: lab, type: sim, capacity: 3, prices: {H100-80GB: 2.5}}]")
    assert (place.name, place.options, place.prices) == ("lab", {"capacity": 3}, {"H100-80GB": 2.5})
    assert Places([place]).price_usd_hour("lab", "H100-80GB") == 2.5
    assert Places([place]).price_usd_hour("lab", None) == 0.0


def test_a_price_is_taken_by_any_name_of_one_accelerator(tmp_path: Path) -> None:
    (place,) = read(tmp_path, "backends: [{type: sim, prices: {L4: 0.5, rtx 4090: 0.3, machine: 0.1}}]")
    assert place.prices == {"L4-24GB": 0.5, "RTX4090-24GB": 0.3, "machine": 0.1}


@pytest.mark.parametrize(("more", "is_read"), [("", False), (", prices: {L4: 1}", True)])
def test_the_catalog_is_read_only_where_prices_are_set(tmp_path: Path, more: str, is_read: bool) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"backends: [{{type: sim{more}}}]")
    program = (
        "import sys; from pathlib import Path; from orchestrator.places import read_places;"
        "read_places(Path(sys.argv[1])); print('orchestrator.catalog.hardware' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{is_read}\n"


@pytest.mark.parametrize("number", [".nan", ".inf", "1e400", "9" * 30])
@pytest.mark.parametrize("text", ["capacity: {}", "prices: {{L4: {}}}"])
def test_a_number_that_nobody_can_read_is_refused_once(tmp_path: Path, text: str, number: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"backends: [{{type: sim, {text.format(number)}}}]")
    assert caught.value.what.count("config.yaml:1:") == 1


@pytest.mark.parametrize("text", ["", "backends:", "# nothing\n"])
def test_an_empty_configuration_is_the_default(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == DEFAULT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backends: [dokcer]", "config.yaml:1:12: unknown backend type 'dokcer'"),
        ("backends: [dokcer]", "did you mean 'docker'?"),
        ("backend: [docker]", "config.yaml:1:1: unknown key 'backend'"),
        ("backends: {a: b}", "config.yaml:1:11: expected a list of backends"),
        ("- docker", "expected a mapping with the key 'backends'"),
        ("backends: [docker, docker]", "two backends are called 'docker'"),
        ("backends: [{name: x}]", "expected a backend with its type"),
        ("backends: [{type: sim, prices: {L4-24GB: 0}}]", "expected dollars an hour above 0, got 0"),
        (
            "backends: [{type: sim, prices: {H100: 2}}]",
            "yaml:1:33: prices: 'H100' may be any of 4 accelerators",
        ),
        (
            "backends: [{type: sim, prices: {H100: 2}}]",
            "one of: H100-80GB, H100-80GB-PCIE, H100-94GB-NVL, H100-96GB",
        ),
        ("backends:\n- type: sim\n  prices:\n    H1OO: 2", "yaml:4:5: prices: unknown accelerator 'H1OO'"),
        (
            "backends: [{type: sim, prices: {H1OO: 2}}]",
            "nearest: H100-80GB, H100-80GB-PCIE, H100-94GB-NVL, H100-96GB",
        ),
        ("backends: [{type: sim, prices: {machines: 2}}]", "nearest: machine"),
        ("backends: [{type: sim, prices: {xy: 2}}]", "modelyard catalog list accelerators has the names"),
        (
            "backends: [{type: sim, prices: {L4: 2, L4-24GB: 3}}]",
            "yaml:1:40: prices: L4-24GB: L4-24GB has a price already",
        ),
        ("backends: [{type: sim, prices: [2]}]", "yaml:1:32: expected prices by accelerator"),
        ("backends: [docker", "broken YAML"),
    ],
)
def test_what_is_wrong_is_told_at_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert caught.value.exit_code == 78


def test_an_option_that_a_type_does_not_know_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        build(Place("lab", "docker", {"hots": "x"}))
    assert str(caught.value) == "backend 'lab' has no option 'hots'\n  fix     did you mean 'host'?"


# Mirrors ------------------------------------------------------------------------------------------


def test_mirrors_are_read_beside_the_backends(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "mirrors: {registries: {docker.io: reg.lan/hub}, hub: 'http://hub.lan/'}\nbackends: [docker]\n"
    )
    assert read_mirrors(path) == Mirrors({"docker.io": "reg.lan/hub"}, "http://hub.lan")
    assert read_places(path) == (Place("docker", "docker"),)
    path.write_text("backends: [docker]\n")
    assert read_mirrors(path) == read_mirrors(None) == Mirrors()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mirrors: [a]", "config.yaml:1:10: expected registries, hub or both"),
        ("mirrors: {registry: {}}", "config.yaml:1:11: unknown key 'registry'"),
        ("mirrors: {registries: {docker.io: 'https://reg.lan'}}", "registries: expected names"),
        ("mirrors: {registries: [docker.io]}", "registries: expected names"),
        ("mirrors: {hub: hub.lan}", "hub: expected an address, got 'hub.lan'"),
    ],
)
def test_what_is_wrong_with_mirrors_is_told_by_both_readers(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    for ask in (read_mirrors, read_places):
        with pytest.raises(ConfigError) as caught:
            ask(path)
        assert said in str(caught.value)


def test_who_read_the_record_before_a_fleet_was_applied_does_not_take_it_back() -> None:
    rack = Place("rack", "ssh", {"hosts": ["a"]})
    answers = iter([Recorded(), Recorded(), Recorded((rack,))])
    others: list[threading.Thread] = []

    def read() -> Recorded:
        answer = next(answers)
        if len(others) == 1:  # whoever reads now has an answer from before, and is overtaken
            others.append(threading.Thread(target=places.refresh))
            others[1].start()
            others[1].join(timeout=0.2)
        return answer

    places = Places([], recorded=read)
    others.append(threading.Thread(target=places.refresh))
    others[0].start()
    for each in others:
        each.join()
    assert list(places) == ["rack"]
