"""Requests drawn from the server's own OpenAPI description, valid and invalid, get what that description says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from tests.serving.http.process import ServerProcess

TOKEN = "a-token-of-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
OPERATIONS = [
    ("POST", "/v1/recommend"),
    ("POST", "/v1/rank-comments"),
    ("GET", "/v1/videos/{id}"),
    ("GET", "/v1/users"),
    ("GET", "/v1/users/{id}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("PUT", "/v1/admin/videos/{id}"),
    ("DELETE", "/v1/admin/videos/{id}"),
    ("PUT", "/v1/admin/comments/{id}"),
    ("DELETE", "/v1/admin/comments/{id}"),
    ("POST", "/v1/admin/bundle"),
]
TAKES_NOTHING = {"/healthz", "/readyz", "/metrics"}
"""So nothing in them can be invalid."""
CASES = [
    (*operation, mode)
    for operation in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or operation[1] not in TAKES_NOTHING
]
CHECKS = [
    checks.not_a_server_error,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
]


@pytest.fixture(scope="module")
def described(bundle, tmp_path_factory):
    """The description of a server with all routes; its changes end with it."""
    limits = ("--max_history", "20", "--max_candidates", "20", "--max_batch", "5")  # so that cases stay small
    running = ServerProcess(bundle, *limits, log=tmp_path_factory.mktemp("log") / "log", token=TOKEN)
    yield schemathesis.openapi.from_url(f"http://127.0.0.1:{running.port}/openapi.json")
    assert running.ready() and running.stop() == 0
    assert not [line for line in running.events("request") if line["status"] >= 500]


def test_every_operation_is_tried(described):
    found = {(result.ok().method.upper(), result.ok().path) for result in described.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_the_server_does_what_it_says(described, method, path, mode):
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def ask(case):
        answer = case.call(headers=HEADERS)
        case.validate_response(answer, checks=CHECKS)
        if mode is GenerationMode.NEGATIVE and answer.status_code != 413:
            case.validate_response(answer, checks=[checks.negative_data_rejection])

    ask()
