import base64
import json
import re
from typing import Any

import numpy as np
import pytest

from clv.evaluate.report import charts
from clv.forecast.distributions import Prediction, hurdle_lognormal


def traces(html: str) -> dict[str, dict]:
    """The traces of a chart's HTML fragment, by name."""
    found = re.search(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*\{", html, flags=re.DOTALL)
    assert found is not None
    return {trace["name"]: trace for trace in json.loads(found[1])}


def numbers(values: Any) -> list[float]:
    """The numbers of a trace, which plotly writes as a list or in base64."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()
    return list(values)


def test_our_model_has_the_thickest_line_of_the_lift_chart() -> None:
    y = np.array([0.0, 1.0, 2.0, 7.0])
    shown = {"clv": Prediction(value=y), "naive": Prediction(value=-y)}
    lines = traces(charts.lift("l", y, shown, {"clv": "our model", "naive": "past spend"}))
    assert list(lines) == ["our model", "past spend", "perfect order", "no order"]
    assert {name: trace["line"]["width"] for name, trace in lines.items()} == {
        "our model": 3, "past spend": 1.6, "perfect order": 1.2, "no order": 1.2,
    }  # fmt: skip
    assert numbers(lines["our model"]["y"]) == numbers(lines["perfect order"]["y"])
    assert numbers(lines["our model"]["x"])[-1] == numbers(lines["past spend"]["y"])[-1] == 100
    assert numbers(lines["past spend"]["y"])[0] == 0


def test_decile_bars_are_the_means_of_tenths_best_first() -> None:
    value = np.arange(20.0)
    bars = traces(charts.deciles("d", 2 * value, Prediction(value=value), "GBP"))
    assert numbers(bars["predicted"]["y"]) == pytest.approx([18.5 - 2 * tenth for tenth in range(10)])
    assert numbers(bars["actual"]["y"]) == pytest.approx([37 - 4 * tenth for tenth in range(10)])
    assert bars["actual"]["x"] == [str(tenth) for tenth in range(1, 11)]


def test_value_classes_hold_all_customers_by_the_distribution_or_by_the_mean() -> None:
    y = np.r_[np.zeros(5), np.linspace(10, 90, 15)]
    bars = traces(charts.value_distribution("v", y, Prediction(value=np.full(20, 30.0)), "GBP"))
    classes = ["nothing", "under 20", "20 – 50", "50+"]
    assert bars["actual"]["x"] == classes
    assert numbers(bars["actual"]["y"]) == pytest.approx([25, 10, 25, 40])
    assert numbers(bars["predicted"]["y"]) == pytest.approx([0, 0, 100, 0])
    # Without any purchase there are three classes; a hurdle distribution splits every customer among the classes.
    quantiles = hurdle_lognormal(np.full(4, 0.6), np.zeros(4), np.full(4, 0.3))
    bars = traces(charts.value_distribution("v", np.zeros(4), Prediction(value=np.ones(4), quantiles=quantiles), "GBP"))
    assert bars["actual"]["x"] == ["nothing", "under 1", "1+"]
    assert numbers(bars["actual"]["y"]) == [100, 0, 0]
    assert numbers(bars["predicted"]["y"]) == pytest.approx([40, 30, 30], abs=4)


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
    chart = charts.pit("p", y, Prediction(value=y, quantiles=quantiles), 0, bins=4)
    bars = traces(chart)["customers"]
    assert numbers(bars["x"]) == [0.125, 0.375, 0.625, 0.875]
    assert sum(numbers(bars["y"])) == pytest.approx(100)
    # Of 400 customers, 25 % with a standard error of 2.165 % lie in each quarter.
    (band,) = [shape for shape in re.findall(r'"y0":([\d.]+),"y1":([\d.]+)', chart) if shape[0] != shape[1]]
    assert [float(end) for end in band] == pytest.approx([25 - 1.96 * 2.1651, 25 + 1.96 * 2.1651], abs=1e-3)


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
    assert charts.round_edges(3, 80).tolist() == [5, 10, 20, 50]
    assert charts.round_edges(3e9, 4e10).tolist() == [5e9]
