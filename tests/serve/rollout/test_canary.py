"""A bundle that is tried: as a canary it answers and may fail, as a shadow it is compared and never seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clv.registry import Candidate
from clv.serve.rollout.canary import ShadowComparison, shadow_report
from clv.serve.scoring.backend import LiveBackend

AS_OF = 1_307_836_800_000_000


def fail(histories: object) -> None:
    raise RuntimeError("not today")


def ask(backend: LiveBackend, times: int = 1) -> list[str]:
    """Versions that answered."""

    async def go() -> list[str]:
        found = []
        for _ in range(times):
            scorer = backend.scorer()
            await scorer.score(backend.stored(["A", "B"]), AS_OF, (30, 90))
            found.append(scorer.facts.version)
            await asyncio.gather(*backend.comparison.running)
        return found

    return asyncio.run(go())


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_canary_answers_its_share(backend: LiveBackend, make_predictor: Callable[..., Any], share: float) -> None:
    backend.start_candidate(backend.prepare(make_predictor("v2")), Candidate("v2", share, shadow=False))
    found = ask(backend, 400)
    assert found.count("v2") / 400 == pytest.approx(share, abs=0.08)
    assert backend.candidate_scorer is not None
    assert backend.candidate_scorer.counts.answered == found.count("v2")
    backend.end_candidate()
    assert set(ask(backend, 20)) == {"v1"}


def test_where_a_canary_fails_the_bundle_in_service_answers(
    backend: LiveBackend, make_predictor: Callable[..., Any]
) -> None:
    candidate = make_predictor("v2")
    backend.start_candidate(backend.prepare(candidate), Candidate("v2", 1.0, shadow=False))
    candidate.before = fail
    assert ask(backend, 3) == ["v1"] * 3
    assert backend.candidate_scorer is not None
    assert (backend.candidate_scorer.counts.errors, backend.candidate_scorer.counts.answered) == (3, 3)


def test_a_shadow_is_compared_and_its_failures_are_not_seen(
    backend: LiveBackend, make_predictor: Callable[..., Any]
) -> None:
    candidate = make_predictor("v2")
    backend.start_candidate(backend.prepare(candidate), Candidate("v2", 1.0, shadow=True))
    assert ask(backend, 2) == ["v1"] * 2
    rows = shadow_report([backend.comparison.to_json()])
    assert [(row["horizon_days"], row["customers"]) for row in rows] == [(30, 4), (90, 4)]
    assert rows[0]["total_candidate_over_current"] == pytest.approx(1.0)
    assert (rows[0]["share_off_by_5_percent"], rows[0]["p_purchase_mean_abs_difference"]) == (0, 0)
    candidate.before = fail
    assert ask(backend) == ["v1"]
    assert shadow_report([backend.comparison.to_json()]) == rows


def scores(value: np.ndarray, p: np.ndarray, days: int = 90) -> pa.Table:
    names = [f"c{i}" for i in range(len(value))]
    return pa.table({"customer_id": names, "horizon_days": [days] * len(value), "value_mean": value, "p_purchase": p})


def test_a_comparison_of_several_replicas_is_that_of_all_their_customers(rng: np.random.Generator) -> None:
    value, p = rng.lognormal(3, 1, 900), rng.uniform(size=900)
    other, q = value * rng.choice([0.5, 0.97, 1.0, 1.1, 1.6], 900), np.clip(p + 0.02, 0, 1)
    parts = []
    for part in np.array_split(np.arange(900), 3):
        made = ShadowComparison()
        for some in np.array_split(part, 2):
            made.add(scores(value[some], p[some]), scores(other[some], q[some]))
        parts.append(made.to_json())
    (row,) = shadow_report(parts)
    assert row["customers"] == 900
    assert row["total_candidate_over_current"] == pytest.approx(other.sum() / value.sum())
    assert row["correlation_log_value"] == pytest.approx(np.corrcoef(np.log1p(value), np.log1p(other))[0, 1])
    assert row["p_purchase_mean_abs_difference"] == pytest.approx(np.abs(p - q).mean())
    ratio = other / value
    assert row["share_off_by_5_percent"] == pytest.approx(np.mean((ratio <= 0.95) | (ratio >= 1.05)))
    assert row["share_off_by_25_percent"] == pytest.approx(np.mean((ratio <= 0.75) | (ratio >= 1.25)))


def test_scores_of_other_customers_are_not_compared() -> None:
    one = scores(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="other customers: 2 rows instead of 3"):
        ShadowComparison().add(one, one.slice(0, 2))
