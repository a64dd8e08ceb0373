"""The smoke test compares the answers of a running service with the scores of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clv.serve.rollout.smoke_test import SmokeTest, SmokeTestError
from clv.serve.scoring.backend import LiveBackend


def test_equal_scores_pass_and_another_bundle_or_other_scores_fail(
    backend: LiveBackend, predictor: Any, make_predictor: Callable[..., Any], serve_replicas: Any
) -> None:
    with serve_replicas([backend]) as made:
        assert SmokeTest.create(predictor, made.url).run(1) == 4
        with pytest.raises(SmokeTestError, match="answers with v1 instead of v2"):
            SmokeTest.create(make_predictor("v2"), made.url).run(1)
        test, predict = SmokeTest.create(predictor, made.url), predictor.predict

        def wrong(*given: Any) -> pa.Table:
            scores = predict(*given)
            column = scores.schema.get_field_index("value_p90")
            return scores.set_column(column, "value_p90", pa.array(scores["value_p90"].to_numpy() * 1.001))

        backend.install(replaced := make_predictor())
        replaced.predict = wrong
        backend.install(replaced)
        with pytest.raises(SmokeTestError, match=r"value_p90 over 30 days is .* in v1, but .* in the answer"):
            test.run(1)


def test_implausible_scores_and_requests_without_events_are_refused(predictor: Any, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text('{"customers": [{"customer_id": "00001"}]}')
    with pytest.raises(SmokeTestError, match="needs as_of, and the events of every customer"):
        SmokeTest.create(predictor, "http://localhost", file=file)
    predict = predictor.predict

    def impossible(*given: Any) -> pa.Table:
        scores = predict(*given)
        column = scores.schema.get_field_index("p_purchase")
        return scores.set_column(column, "p_purchase", pa.array(scores["p_purchase"].to_numpy() + 1))

    predictor.predict = impossible
    with pytest.raises(SmokeTestError, match="gives a customer of the smoke test p_purchase 1"):
        SmokeTest.create(predictor, "http://localhost")
