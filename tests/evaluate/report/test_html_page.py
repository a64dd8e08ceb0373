import json
import re

import numpy as np
import pytest

from clv.evaluate.panel import Panel
from clv.evaluate.report import html_page
from clv.forecast.distributions import Prediction
from tests.evaluate.report.panels import evaluate, full_panel


@pytest.fixture(scope="module")
def page() -> str:
    both = evaluate(full_panel(), full_panel(seed=1, origin="2011-09-12"))
    return html_page.render(both, title="A shop & co", currency="GBP", notices=["the log is <short>"])


def without_scripts(text: str) -> str:
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_page_loads_nothing_from_the_network(page: str) -> None:
    tags = re.findall(r"<(?:script|link|img|iframe|object|embed)\b[^>]*>", page.replace(html_page.get_plotlyjs(), ""))
    assert tags
    assert not [t for t in tags if re.search(r"\b(?:src|href|data)\s*=", t)]
    assert "http" not in without_scripts(page)
    assert not re.search(r"@import|url\(", without_scripts(page))
    assert page.count(html_page.get_plotlyjs()) == 1


def test_the_page_has_every_chart_and_table(page: str) -> None:
    for number in (0, 1):
        for name in ("lift", "deciles", "cohorts", "values", "pit"):
            assert f'id="{name}{number}"' in page
    body = without_scripts(page)
    assert "A shop &amp; co" in body
    assert "£" in body
    assert "not run: the log &lt;reaches&gt; back 90 days" in body
    assert "This model beats BG/NBD + Gamma-Gamma on every measure that differs significantly (" in body
    assert "Coverage of the 80 % interval: " in body
    assert "the log is &lt;short&gt;" in body
    assert "mean over the dates" in body
    for heading in (
        "How certain are the forecasts?",
        "Coverage by age and frequency",
        "Customers with one order",
        "Visitors",
    ):
        assert body.count(f"<h3>{heading}") + body.count(f'px">{heading}') == 2, heading
    assert "Is there enough data?" in body
    assert "precision" in body


def test_a_table_has_the_value_of_a_customer_of_each_cohort(page: str) -> None:
    one = full_panel()
    ours = one.models()["clv"]
    rows = html_page.cohort_rows(one.cohort, one.y, one.orders, ours)
    assert [row["name"] for row in rows] == ["2010Q1", "2010Q2"]
    for row in rows:
        some = one.cohort == row["name"]
        assert row["customers"] == some.sum()
        assert row["actual"] == pytest.approx(one.y[some].sum() / some.sum())
        assert row["bought"] == pytest.approx((one.y[some] > 0).mean())
        predicted = html_page.format_amount(row["predicted"], "GBP")
        shown = f"<tr><td>{row['name']}</td><td>{row['customers']:,}</td><td>{predicted}</td>"
        assert shown in page


def test_a_baseline_that_is_better_is_recommended() -> None:
    body = without_scripts(html_page.render(evaluate(full_panel(noise=2.0)), title="t"))
    assert "Use BG/NBD here" in body
    assert "use BG/NBD here." in body


def test_a_panel_without_buyers_has_a_page() -> None:
    zeros = np.zeros(30)
    models = {"clv": Prediction(value=zeros + 1, p_purchase=zeros + 0.5), "past_spend": Prediction(value=zeros)}
    empty = Panel(origin="2011-06-12", horizon_days=90, y=zeros, orders=zeros, predictions=models, log_days=100)
    body = without_scripts(html_page.render(evaluate(empty, draws=20), title="t"))
    assert "too little" in body
    assert "only 0 customers bought" in body


def test_metrics_json_has_numbers_by_origin_horizon_and_model() -> None:
    models = json.loads(json.dumps(html_page.metrics_json(evaluate(full_panel())), allow_nan=False))["2011-06-12"]["90"]
    assert models["seasonal_naive"] == {"not_run": "the log <reaches> back 90 days"}
    assert models["bgnbd_gg"]["crps"] is None
    assert models["clv"]["pit80"] == pytest.approx(0.8, abs=0.05)


def test_details_json_has_the_findings_by_origin_and_horizon() -> None:
    (one,) = evaluate(full_panel(), draws=20)
    assert html_page.details_json([one]) == {"2011-06-12": {"90": one.to_json()}}


def test_a_page_without_findings_holds_the_notices_alone() -> None:
    page = html_page.render([], title="t", notices=["the log is too short"])
    assert "the log is too short" in page
    assert len(page) < 20_000


def test_amounts_have_their_currency_and_few_digits() -> None:
    assert html_page.format_amount(1234.5, "GBP") == "£1,234"
    assert html_page.format_amount(12.5, "EUR") == "€12.50"
    assert html_page.format_amount(1e6, "CHF") == "1,000,000 CHF"
    assert html_page.format_amount(3, None) == "3.00"
