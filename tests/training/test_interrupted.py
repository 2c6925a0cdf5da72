"""Training that is interrupted in every way there is, and ends where the uninterrupted one does."""

from __future__ import annotations

import os
import signal

import pytest

from tests.training.conftest import User

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

SAME = 1e-3
NEVER = 10_000
"""More steps between checkpoints than there are: what is saved is saved because it was stopped."""
RETRIED = "retry: {on_events: [error, interruption]}\n"


@pytest.fixture(scope="session")
def whole(user: User) -> float:
    """Return the final loss of a run that nobody interrupts; it also merges its adapter."""
    user("apply", "-y", "-f", user.write("whole", merge=True))
    return user.loss("whole")


def test_killed_trainer_goes_on_from_its_last_checkpoint(user: User, whole: float) -> None:
    user("apply", "-y", "-d", "-f", user.write("killed", more=RETRIED))
    user.until_step("killed", 60)
    os.kill(user.trainer("killed"), signal.SIGKILL)
    user("wait", "killed", "--for", "ended")
    assert abs(user.loss("killed") - whole) < SAME
    assert '"note": "goes on at step ' in user.said("killed")
    assert [job["exit_code"] for job in user.shown("killed")["jobs"]] == [137, 0]


@pytest.mark.slow  # test_bucket.py stops a run as well
def test_stopped_run_is_interrupted_and_resumed_at_its_step(user: User, whole: float) -> None:
    file = user.write("stopped", save=NEVER)
    user("apply", "-y", "-d", "-f", file)
    user.until_step("stopped", 10)
    user("stop", "-y", "stopped")
    run = user.shown("stopped")
    assert (run["state"], run["jobs"][0]["reason"]) == ("stopped", "interrupted")
    saved = int(user.said("stopped").split('"interrupted": ')[1].split("}")[0])
    assert saved >= 10
    user("apply", "-y", "--resume", "-f", file)
    assert f'"resumed": {saved}' in user.said("stopped")
    assert abs(user.loss("stopped") - whole) < SAME


def test_output_with_checkpoints_is_not_written_over(user: User, whole: float) -> None:
    text = (user.folder / "whole.yaml").read_text()
    (user.folder / "other.yaml").write_text(text.replace("name: whole", "name: other"))
    refused = user("apply", "-y", "-f", "other.yaml", code=65).stderr
    assert "other.yaml:12:11: " in refused
    assert "holds what run whole left" in refused


@pytest.mark.slow
def test_trainer_that_others_terminate_goes_on_by_itself(user: User, whole: float) -> None:
    user("apply", "-y", "-d", "-f", user.write("termed", save=NEVER, more=RETRIED))
    user.until_step("termed", 10)
    os.kill(user.trainer("termed"), signal.SIGTERM)
    user("wait", "termed", "--for", "ended")
    assert abs(user.loss("termed") - whole) < SAME
    assert [job["reason"] for job in user.shown("termed")["jobs"]] == ["preempted", ""]


@pytest.mark.slow
def test_run_out_of_time_has_saved_and_is_resumed(user: User, whole: float) -> None:
    limited = "stop_duration: 5\nmax_duration: "
    file = user.write("timed", more=f"{limited}34\n")
    user("apply", "-y", "-f", file, code=1)
    run = user.shown("timed")
    assert (run["state"], run["jobs"][0]["reason"]) == ("stopped", "interrupted"), run
    user.write("timed", more=f"{limited}1h\n")
    user("apply", "-y", "--resume", "-f", file)
    assert abs(user.loss("timed") - whole) < SAME


@pytest.mark.slow
def test_preferences_are_learnt(user: User) -> None:
    user("apply", "-y", "-f", user.write("pairs", method="dpo", steps=3))
    assert [each["kind"] for each in user.shown("pairs")["artifacts"]] == ["adapter", "state"]
