"""The configuration of places: names, options and prices, and every problem at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.places import DEFAULT, Place, Places, build, read_places


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
