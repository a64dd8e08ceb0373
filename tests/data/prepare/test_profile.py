"""Statistics of a log: those of shards add up to those of the whole, and shares follow from the histogram."""

import numpy as np
import pytest

from clv.data.clock import Clock
from clv.data.histories import build
from clv.data.prepare import profile
from clv.simulate.small import simulate


def test_statistics_of_shards_add_up_to_those_of_the_whole_log() -> None:
    table = build(simulate(120, "2024-01-01", "2024-07-01", seed=1, return_share=0.2).events, Clock("UTC"))
    whole = profile.measure(table)
    merged = profile.merge([profile.measure(table.slice(0, 50)), profile.measure(table.slice(50))])
    assert merged.keys() == whole.keys()
    for name, value in whole.items():
        if isinstance(value, float | list):
            np.testing.assert_allclose(merged[name], value, err_msg=name)
        elif isinstance(value, dict):
            assert merged[name] == pytest.approx(value), name
        else:
            assert merged[name] == value, name


def test_a_shard_without_customers_changes_nothing() -> None:
    table = build(simulate(20, "2024-01-01", "2024-07-01", seed=1).events, Clock("UTC"))
    stats = profile.measure(table)
    assert profile.merge([profile.measure(table.slice(0, 0)), stats]) == profile.merge([stats])


def test_the_top_tenth_of_buyers_has_the_share_that_it_spent() -> None:
    spend = np.array([10.0] * 9 + [910.0])
    edges = profile.SPEND_EDGES
    counts, sums = np.histogram(spend, edges)[0], np.histogram(spend, edges, weights=spend)[0]
    stats = {"spend_counts": counts.tolist(), "spend_sums": sums.tolist()}
    assert profile.top_share(stats, 0.1) == pytest.approx(0.91)
    assert np.isnan(profile.top_share({"spend_counts": [0], "spend_sums": [0.0]}, 0.1))
