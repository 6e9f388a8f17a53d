"""Requests drawn from the server's own OpenAPI description, valid and invalid, get what that description says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi import checks

from tests.serving.http.process import ServerProcess

TOKEN = "a-token-of-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CHECKS = [
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
    checks.negative_data_rejection,
    checks.ignored_auth,
    schemathesis.checks.not_a_server_error,
]


@pytest.fixture(scope="module")
def fuzzed(bundle, tmp_path_factory):
    """The description of a server with all routes; changes end with it."""
    running = ServerProcess(bundle, log=tmp_path_factory.mktemp("log") / "log", token=TOKEN)
    yield schemathesis.openapi.from_url(f"http://127.0.0.1:{running.port}/openapi.json")
    assert running.ready() and running.stop() == 0
    assert not [line for line in running.events("request") if line["status"] >= 500]


schema = schemathesis.pytest.from_fixture("fuzzed")


@schema.parametrize()
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_server_does_what_it_says(case):
    case.call_and_validate(headers=HEADERS, checks=CHECKS)
