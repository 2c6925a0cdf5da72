"""Training in a container, whose machine goes down and comes back."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests import images
from tests.training.conftest import User, needed
from tests.training.test_interrupted import NEVER, SAME
from tests.training.test_interrupted import whole as whole  # the fixture

pytestmark = [pytest.mark.training, pytest.mark.docker, pytest.mark.timeout(600)]


def test_container_that_is_restarted_goes_on_at_its_step(user: User, whole: float) -> None:
    images.require_engine()
    import docker

    mounts = ", ".join(f'"{path}:{path}"' for path in needed(user.python))
    boxed = {"PATH": f"{user.python.parent}:/bin", "HOME": "/tmp"}
    file = user.write("boxed", save=NEVER, env=boxed, more=f"volumes: [{mounts}]\nresources: {{gpu: 0}}\n")
    text = (user.folder / file).read_text()
    (user.folder / file).write_text(
        text.replace("backends: [process]", f"backends: [docker]\nimage: {images.python()}")
    )
    user("apply", "-y", "-d", "-f", file)
    user.until_step("boxed", 10)
    with closing(docker.APIClient(version="auto", timeout=200)) as engine:
        [found] = engine.containers(filters={"label": "modelyard.dev/run=boxed"})
        engine.restart(found["Id"], timeout=100)
    user("wait", "boxed", "--for", "ended")
    said = user.said("boxed")
    saved = int(said.split('"interrupted": ')[1].split("}")[0])
    assert saved >= 10
    assert f'"resumed": {saved}' in said
    assert abs(user.loss("boxed") - whole) < SAME
    left = user.shown("boxed")["artifacts"]
    assert all(each["image"].startswith(f"{images.python()}@sha256:") for each in left), left
