"""A hub's data set: its columns and rows by its card, and what happens where nobody knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Denied, ModelError
from orchestrator.facts import Hub, resolve_dataset
from orchestrator.facts.datasets import DatasetFacts, Unknown
from tests.facts.hub_server import SHA, FakeHub, serving

PLAIN = {
    "features": [{"name": "chosen", "list": []}, {"name": "rejected", "list": []}],
    "splits": [{"name": "train", "num_examples": 640}, {"name": "test", "num_examples": 64}],
}
TWO = [{"config_name": "default", **PLAIN}, {"config_name": "chat", "features": [{"name": "messages"}]}]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving(FakeHub(card={"dataset_info": PLAIN})) as running:
        yield running


def asked(hub: FakeHub, folder: Path, **how: Any) -> DatasetFacts | Unknown:
    return resolve_dataset(
        "acme/tiny", hub=Hub(hub.url, token=how.pop("token", None)), cache_dir=folder, **how
    )


def test_card_says_columns_and_rows_of_the_split(hub: FakeHub, tmp_path: Path) -> None:
    columns = frozenset({"chosen", "rejected"})
    assert asked(hub, tmp_path) == DatasetFacts("acme/tiny", SHA, False, columns, 640)
    assert asked(hub, tmp_path, split="test") == DatasetFacts("acme/tiny", SHA, False, columns, 64)
    assert set(hub.paths()) == {"/api/datasets/acme/tiny/revision/main"}


def test_what_was_said_is_kept_for_offline_and_silent_hubs(hub: FakeHub, tmp_path: Path) -> None:
    first = asked(hub, tmp_path)
    before = len(hub.asked)
    assert asked(hub, tmp_path, offline=True) == first
    assert len(hub.asked) == before
    hub.status = 503
    assert asked(hub, tmp_path) == first


def test_nothing_kept_is_said(hub: FakeHub, tmp_path: Path) -> None:
    found = asked(hub, tmp_path, offline=True)
    assert found == Unknown("HF_HUB_OFFLINE is set, and nothing is kept of it")
    hub.status = 503
    silent = asked(hub, tmp_path)
    assert isinstance(silent, Unknown)
    assert "the hub answered 503" in silent.why


@pytest.mark.parametrize(("config", "columns"), [(None, "chosen"), ("chat", "messages")])
def test_configuration_is_the_one_that_is_asked_for(
    hub: FakeHub, tmp_path: Path, config: str | None, columns: str
) -> None:
    hub.card = {"dataset_info": TWO}
    found = asked(hub, tmp_path, config=config)
    assert isinstance(found, DatasetFacts)
    assert columns in (found.columns or ())


def test_card_without_columns_leaves_them_open(hub: FakeHub, tmp_path: Path) -> None:
    hub.card = {"license": "mit"}
    assert asked(hub, tmp_path) == DatasetFacts("acme/tiny", SHA)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"split": "trian"}, "acme/tiny has no split 'trian'"),
        ({"config": "chta"}, "acme/tiny has no configuration 'chta'"),
    ],
)
def test_split_and_configuration_that_are_not_there(
    hub: FakeHub, tmp_path: Path, how: dict[str, str], said: str
) -> None:
    hub.card = {"dataset_info": TWO}
    with pytest.raises(ModelError, match=said):
        asked(hub, tmp_path, **how)


def test_set_that_is_not_there_or_may_not_be_read(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the hub has no data set 'acme/tiyn'"):
        resolve_dataset("acme/tiyn", hub=Hub(hub.url), cache_dir=tmp_path)
    hub.token = "secret"
    with pytest.raises(Denied) as caught:
        asked(hub, tmp_path)
    assert "/datasets/acme/tiny" in (caught.value.fix or "")
    assert asked(hub, tmp_path, token="secret") != Unknown("")
    with pytest.raises(ModelError, match="is no hub id"):
        resolve_dataset("rows of mine.jsonl", hub=Hub(hub.url), cache_dir=tmp_path)
