"""Whatever fits the document, or nearly does, gets an answer that the document describes, and never a failure."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from clv.serve.http.routes import create_app
from clv.serve.http.security import Keys
from clv.serve.scoring.backend import LiveBackend

KEY = "a-key-of-twenty-char"
AUTHORISED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def api(backend: LiveBackend) -> Any:
    app = create_app(backend, Keys.parse([f"admin={KEY}"]), metrics=backend.metrics)
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def operations() -> list[tuple[str, GenerationMode]]:
    """Each with what fits its document, and, where something can be given, with what does not."""
    found = []
    for path, methods in create_app(LiveBackend()).openapi()["paths"].items():
        for method, operation in methods.items():
            found.append((f"{method.upper()} {path}", GenerationMode.POSITIVE))
            if "requestBody" in operation or "parameters" in operation:
                found.append((f"{method.upper()} {path}", GenerationMode.NEGATIVE))
    return found


@pytest.mark.parametrize(("name", "mode"), operations())
def test_no_failure_and_no_answer_that_is_not_documented(api: Any, name: str, mode: GenerationMode) -> None:
    method, path = name.split()
    operation = api[path][method]

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            case.body = in_time(case.body)
        # Two customers of one id fit the document, and are refused all the same.
        answer = case.call_and_validate(headers=AUTHORISED, excluded_checks=[positive_data_acceptance])
        statuses.add(answer.status_code)

    statuses: set[int] = set()
    ask()
    if mode is GenerationMode.POSITIVE and "{customer_id}" not in name:
        assert 200 in statuses, "nothing came past the checks of the request"


def in_time(body: Any) -> Any:
    """The body with times that the bundle may be asked about: any year would fit the document."""
    if isinstance(body, list):
        return [in_time(one) for one in body]
    if not isinstance(body, dict):
        return body
    times = {"event_time": "2011-06-03T10:00:00Z", "known_at": None, "as_of": "2011-06-12"}
    return {name: times[name] if name in times else in_time(value) for name, value in body.items()}
