"""Requests made from the server's own description get what it describes."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import KEPT, Address

few = settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def server(serve) -> Address:
    return serve(KEPT, tokens=200)


def test_every_operation(server: Address) -> None:
    schema, seen = schemathesis.openapi.from_url(f"{server.url}/openapi.json"), []
    for found in schema.get_all_operations():
        operation = found.ok()
        seen.append(operation.label)

        @few
        @given(case=operation.as_strategy())
        def run(case: Any) -> None:
            case.call_and_validate()

        run()
    assert len(seen) == 11 and "POST /v1/chat/completions" in seen


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_requests_that_name_the_model(server: Address, path: str) -> None:
    """What is valid by its form may still be refused for what it says, but never by a fault of the server."""
    schema, statuses = schemathesis.openapi.from_url(f"{server.url}/openapi.json"), set()

    @few
    @given(case=schema[path]["POST"].as_strategy())
    def run(case: Any) -> None:
        if isinstance(case.body, dict):
            left = {"document", "max_completion_tokens"}
            body = {name: value for name, value in case.body.items() if name not in left}
            case.body = body | {"model": "tiny", "max_tokens": 3}
        statuses.add(case.call_and_validate(excluded_checks=[positive_data_acceptance]).status_code)

    run()
    assert 200 in statuses and statuses <= {200, 400, 413}
