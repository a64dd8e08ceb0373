"""Batch scoring: the list of valuable customers who are likely to leave."""

from __future__ import annotations

import pandas as pd

from clv.cluster import scoring


def test_valuable_and_leaving_are_those_above_the_threshold_who_will_rather_not_buy() -> None:
    table = pd.DataFrame({"clv_mean": [10.0, 50.0, 90.0, 90.0], "churn_probability": [0.9, 0.9, 0.4, 0.5]})
    chosen = scoring.valuable_and_leaving(table, 50.0)
    assert chosen["value_at_risk"].tolist() == [45.0, 45.0]
