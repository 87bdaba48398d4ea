"""What Prometheus reads is what happened."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import Address

TEXT = "To be, or not to be, that is the question. " * 4


def metrics(server: Address) -> dict[str, float]:
    text = server.call("GET", "/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {f"{s.name}{','.join(s.labels.values())}": s.value for s in samples}


@pytest.fixture
def server(serve) -> Address:
    return serve()


def test_what_is_counted(server: Address) -> None:
    before = metrics(server)
    assert before["namm_active"] == before["namm_held_bytes"] == before["namm_queued"] == 0
    document = server.read(TEXT, raw=True)
    asked = {"model": "tiny", "prompt": "Why?", "max_tokens": 7, "temperature": 0}
    for more in ({}, {"document": document}):
        assert server.call("POST", "/v1/completions", json=asked | more).status_code == 200
    server.call("POST", "/v1/completions", json=asked | {"n": 2})
    server.call("GET", "/nowhere")
    found = metrics(server)
    assert found["namm_requests_totalanswered"] == 2 and found["namm_requests_totalread"] == 1
    assert found["namm_tokens_totalread"] == len(TEXT) + 8 and found["namm_tokens_totalsaid"] == 14
    assert found["namm_time_to_first_token_seconds_count"] == 2 and found["namm_time_per_token_seconds_count"] == 12
    assert found["namm_kept_fraction_count"] == 3 and found["namm_kept_fraction_bucket0.75"] >= 1
    assert found["namm_http_responses_total/v1/completions,200"] == 2
    assert found["namm_http_responses_total/v1/completions,400"] == 1
    assert found["namm_http_responses_totalother,404"] == 1
    assert found["namm_documents_in_memory"] == 1 and found["namm_active"] == 0
    held = server.call("GET", f"/v1/documents/{document}").json()["bytes"]
    assert found["namm_held_bytes"] == found["namm_reserved_bytes"] == held


def test_health(server: Address) -> None:
    assert server.call("GET", "/health").json() == {"status": "ok"}
    server.engine.close()
    assert server.call("GET", "/health").status_code == 503
    assert server.call("GET", "/metrics").status_code == 200
