import json
import re

import numpy as np
import pytest

from clv.evaluate.report import charts
from clv.forecast.distributions import Prediction, hurdle_lognormal


def traces(html: str) -> dict[str, dict]:
    """The traces of a chart's HTML fragment, by name."""
    found = re.search(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*\{", html, flags=re.DOTALL)
    assert found is not None
    return {trace["name"]: trace for trace in json.loads(found[1])}


def test_cohort_bars_are_the_totals_and_the_hover_text_their_ratio() -> None:
    prediction = Prediction(value=np.array([1.0, 2.0, 4.0]))
    bars = traces(charts.cohorts("c", [2.0, 2.0, 2.0], prediction, ["2010Q1", "2010Q1", "2010Q2"], "GBP"))
    assert set(bars) == {"predicted", "actual"}
    assert bars["predicted"]["hovertext"] == [
        "2 customers<br>predicted / actual 0.75",
        "1 customers<br>predicted / actual 2.00",
    ]
    assert bars["actual"]["x"] == ["2010Q1", "2010Q2"]


def test_a_model_without_a_distribution_has_no_pit_histogram(rng: np.random.Generator) -> None:
    y = rng.lognormal(3, 1, 400)
    assert charts.pit("p", y, Prediction(value=y), 0) == ""
    quantiles = hurdle_lognormal(np.ones(400), np.full(400, 3.0), np.ones(400))
    assert 'id="p"' in charts.pit("p", y, Prediction(value=y, quantiles=quantiles), 0)


def test_charts_show_our_model_the_well_known_and_the_best_baselines() -> None:
    scores = {"a": 0.1, "clv": 0.5, "b": 0.9, "past_spend": 0.0, "c": 0.8}
    assert charts.charted_models("clv", scores, ("bgnbd_gg", "past_spend")) == ["clv", "past_spend", "b", "c"]
    assert charts.charted_models("clv", scores, ("bgnbd_gg", "past_spend"), most=2) == ["clv", "past_spend"]


@pytest.mark.parametrize(("low", "high"), [(3.0, 800.0), (40.0, 41.0), (0.01, 1e7)])
def test_value_classes_are_round_and_few(low: float, high: float) -> None:
    edges = charts.round_edges(low, high)
    assert 1 <= len(edges) <= 12
    assert (np.diff(edges) > 0).all()
    assert all(float(f"{edge:.0e}") == pytest.approx(edge) for edge in edges)
