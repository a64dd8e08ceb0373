"""LiveBackend: warm-up, pinned versions and health."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from clv.registry import Candidate
from clv.serve.scoring.backend import LiveBackend
from clv.serve.scoring.protocol import NotReady

AS_OF = 1_307_836_800_000_000


def test_a_bundle_that_scores_nobody_is_not_put_in_service(backend: Any, make_predictor: Callable[..., Any]) -> None:
    predictor = make_predictor("v2")
    predictor.predict = lambda histories, as_of, horizons: make_predictor().predict(histories, 0, horizons)
    with pytest.raises(ValueError, match="scores none of the warm-up customers"):
        backend.install(predictor)
    assert backend.scorer().facts.version == "v1"


def test_a_request_is_pinned_to_a_loaded_version_only(backend: LiveBackend, make_predictor: Callable[..., Any]) -> None:
    backend.start_candidate(backend.prepare(make_predictor("v2")), Candidate("v2", 1e-9, shadow=False))
    assert [backend.scorer(pinned).facts.version for pinned in (None, "v1", "v2", "v9")] == ["v1", "v1", "v2", "v1"]
    backend.end_candidate()
    assert backend.scorer("v2").facts.version == "v1"


def test_a_replica_without_a_bundle_or_with_a_stuck_prediction_is_unhealthy(
    backend: LiveBackend, predictor: Any
) -> None:
    with pytest.raises(NotReady):  # noqa: PT011
        LiveBackend().check_health(1.0)
    backend.check_health(1.0)
    problems: list[str] = []

    def stuck(histories: pa.Table) -> None:
        try:
            backend.check_health(0.0)
        except RuntimeError as error:
            problems.append(str(error))

    predictor.before = stuck
    asyncio.run(backend.scorer().score(backend.stored(["A"]), AS_OF, (30,)))
    assert problems == ["a prediction with v1 has run for over 0 s"]
