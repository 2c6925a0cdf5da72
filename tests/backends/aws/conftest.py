"""Fixtures of the aws backend: an account that moto keeps, and machines that a real sshd answers for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends.aws.cloud import Cloud, cloud
from tests.backends.ssh.farm import disconnect, farm


@pytest.fixture(scope="session")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Lend an account that tests share."""
    with farm() as lent, cloud(lent, tmp_path_factory.mktemp("cloud") / "ec2") as made:
        yield made


@pytest.fixture
def aws(account: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """Lend the account with nothing wrong and nothing there, and folders of the test's own."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-of-the-test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    account.reset()
    with tempfile.TemporaryDirectory(prefix="my-vm-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_CACHE_HOME", str(account.folder / "cache"))  # instance types, for all tests
        for name in ("RUNTIME_DIR", "STATE_HOME", "CONFIG_HOME", "DATA_HOME"):
            monkeypatch.setenv(f"XDG_{name}", folder if name == "RUNTIME_DIR" else f"{folder}/{name}")
        yield account
        disconnect(Path(folder))
        for one in account.instances():
            one.terminate()
        account.pull_out()


@pytest.fixture
def options(aws: Cloud) -> dict[str, Any]:
    """Return the options of a backend on the account."""
    return aws.options()
