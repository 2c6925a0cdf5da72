"""What the document of the API allows, and what it does not, is answered without a fault of ours."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from orchestrator.server.app import application
from orchestrator.server.desk import Desk
from orchestrator.server.site import Site
from orchestrator.wire import TokenRequest
from tests.cli.conftest import CONFIG
from tests.server.conftest import KEY


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(state=folder / "sim.jsonl"))
    site = Site(
        f"sqlite:///{folder}/state.db", config=config, complain=lambda _: None,
        environ={"HF_HUB_OFFLINE": "1", "MODELYARD_SECRET_KEY": KEY},
    )  # fmt: skip
    with site:
        yield site


def _token(site: Site) -> str:
    return Desk(site.store.access).new_token(TokenRequest(name="fuzz", role="admin", project="*")).token


EXAMPLES = settings(
    max_examples=int(os.environ.get("MODELYARD_FUZZ_EXAMPLES", "3")), deadline=None, derandomize=True,
    database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda m: m.value)
def test_nothing_is_answered_with_a_fault_of_ours(site: Site, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", application(site))
    headers = {"Authorization": f"Bearer {_token(site)}"}
    seen = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/stream"):  # they end with the server
            continue

        @EXAMPLES
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            if "project" in case.path_parameters:
                case.path_parameters["project"] = "main"
            case.call_and_validate(headers=headers, checks=[not_a_server_error, response_schema_conformance])

        try:
            ask()
        except Unsatisfiable:  # nothing wrong can be sent where anything is allowed
            continue
        seen += 1
    assert seen > 20


def test_the_document_is_openapi_3_1_and_says_who_may(site: Site) -> None:
    found = application(site).openapi()

    assert found["openapi"].startswith("3.1")
    for path, methods in found["paths"].items():
        for method in methods.values():
            assert ("x-role" in method) == (not re.fullmatch(r"/(healthz|readyz)", path)), path


def test_every_fault_in_a_route_would_be_seen(tmp_path: Path, site: Site) -> None:
    app = application(site)

    def broken() -> None:
        raise RuntimeError("a fault of ours")

    app.add_api_route("/broken", broken, methods=["GET"])
    app.openapi_schema = None
    found = schemathesis.openapi.from_asgi("/openapi.json", app)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        found["/broken"]["GET"].Case().call_and_validate(checks=[not_a_server_error])
