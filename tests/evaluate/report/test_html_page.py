import json
import re

import numpy as np
import pytest

from clv.evaluate.panel import Panel, Visitors
from clv.evaluate.report import html_page
from clv.evaluate.report.findings import Findings, evaluate_panel
from clv.forecast.distributions import Prediction, hurdle_lognormal


def panel(n: int = 1200, noise: float = 0.0, seed: int = 0, origin: str = "2011-06-12") -> Panel:
    rng = np.random.default_rng(seed)
    p, mu = rng.beta(1, 2, n), rng.normal(3, 0.8, n)
    y = np.where(rng.random(n) < p, np.exp(mu + 0.5 * rng.normal(size=n)), 0.0)
    value = p * np.exp(mu + 0.125)
    ours = Prediction(
        value=value * np.exp(noise * rng.normal(size=n)),
        p_purchase=p,
        quantiles=hurdle_lognormal(p, mu, np.full(n, 0.5)),
    )
    chance = rng.beta(0.4, 4, 300)
    actual = (rng.random(300) < chance).astype(float)
    visitors = {
        "clv": Prediction(value=30 * chance, p_purchase=chance),
        "conversion": Prediction(value=np.full(300, 30 * chance.mean()), p_purchase=np.full(300, chance.mean())),
    }
    return Panel(
        origin=origin,
        horizon_days=90,
        y=y,
        orders=(y > 0).astype(float),
        predictions={
            "clv": ours,
            "bgnbd_gg": Prediction(value=value * np.exp(0.8 * rng.normal(size=n)), p_purchase=p),
            "seasonal_naive": {"not_run": "the log <reaches> back 90 days"},
        },
        cohort=rng.choice(["2010Q1", "2010Q2"], n),
        log_days=700,
        orders_past=1 + rng.poisson(1.2, n),
        cell=rng.choice(["young, one purchase day", "old, 4 or more"], n),
        visitors=Visitors(y=30 * actual, orders=actual, predictions=visitors),
    )


def found(*panels: Panel, draws: int = 100) -> list[Findings]:
    return [evaluate_panel(p, draws=draws) for p in panels]


@pytest.fixture(scope="module")
def page() -> str:
    both = found(panel(), panel(seed=1, origin="2011-09-12"))
    return html_page.render(both, title="A shop & co", currency="GBP", notices=["the log is <short>"])


def without_scripts(text: str) -> str:
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    tags = re.findall(r"<(?:script|link|img|iframe|object|embed)\b[^>]*>", page.replace(html_page.get_plotlyjs(), ""))
    assert tags
    assert not [t for t in tags if re.search(r"\b(?:src|href|data)\s*=", t)]
    assert "http" not in without_scripts(page)
    assert not re.search(r"@import|url\(", without_scripts(page))
    assert page.count(html_page.get_plotlyjs()) == 1


def test_every_figure_and_table_is_there(page: str) -> None:
    for number in (0, 1):
        for name in ("lift", "deciles", "cohorts", "values", "pit"):
            assert f'id="{name}{number}"' in page
    body = without_scripts(page)
    assert "A shop &amp; co" in body
    assert "£" in body
    assert "not run: the log &lt;reaches&gt; back 90 days" in body
    assert "This model beats BG/NBD + Gamma-Gamma on every measure that differs significantly (" in body
    assert "The 80 % intervals cover " in body
    assert "the log is &lt;short&gt;" in body
    assert "mean over the dates" in body
    for heading in ("How sure?", "By age and frequency", "Customers with one order", "Visitors"):
        assert body.count(f"<h3>{heading}") + body.count(f'px">{heading}') == 2, heading
    assert "Is there enough data?" in body
    assert "precision" in body


def test_cohorts_stand_in_a_table_with_what_a_customer_was_worth(page: str) -> None:
    shop = panel()
    ours = shop.models()["clv"]
    rows = html_page.cohort_rows(shop.cohort, shop.y, shop.orders, ours)
    assert [row["name"] for row in rows] == ["2010Q1", "2010Q2"]
    for row in rows:
        some = shop.cohort == row["name"]
        assert row["customers"] == some.sum()
        assert row["actual"] == pytest.approx(shop.y[some].sum() / some.sum())
        assert row["bought"] == pytest.approx((shop.y[some] > 0).mean())
        predicted = html_page.format_amount(row["predicted"], "GBP")
        shown = f"<tr><td>{row['name']}</td><td>{row['customers']:,}</td><td>{predicted}</td>"
        assert shown in page


def test_a_baseline_that_is_better_is_recommended() -> None:
    body = without_scripts(html_page.render(found(panel(noise=2.0)), title="t"))
    assert "Use BG/NBD here" in body
    assert "use BG/NBD here." in body


def test_a_shop_without_buyers_still_gets_a_page() -> None:
    zeros = np.zeros(30)
    models = {"clv": Prediction(value=zeros + 1, p_purchase=zeros + 0.5), "past_spend": Prediction(value=zeros)}
    empty = Panel(origin="2011-06-12", horizon_days=90, y=zeros, orders=zeros, predictions=models, log_days=100)
    body = without_scripts(html_page.render(found(empty, draws=20), title="t"))
    assert "too little" in body
    assert "only 0 customers bought" in body


def test_metrics_json_has_the_shape_of_the_contract() -> None:
    models = json.loads(json.dumps(html_page.metrics_json(found(panel())), allow_nan=False))["2011-06-12"]["90"]
    assert models["seasonal_naive"] == {"not_run": "the log <reaches> back 90 days"}
    assert models["bgnbd_gg"]["crps"] is None
    assert models["clv"]["pit80"] == pytest.approx(0.8, abs=0.05)


def test_details_hold_bands_visitors_and_customers_with_one_order() -> None:
    one = panel()
    details = json.loads(json.dumps(html_page.details_json(found(one)), allow_nan=False))["2011-06-12"]["90"]
    sure = details["uncertainty"]["clv"]
    assert set(details["uncertainty"]) == {"clv"}
    assert sure["pit80"] == pytest.approx(0.8, abs=0.05)
    assert sure["sums_coverage"] == pytest.approx(0.8, abs=0.15)
    assert sure["sure_customers"] == (one.models()["clv"].p_purchase > 0.9).sum()
    assert 0 < sure["pinball_0.1"] < sure["pinball_0.5"] < sure["crps"]
    assert details["one_order"]["customers"] == (one.orders_past == 1).sum() > 100
    assert set(details["one_order"]["models"]) == {"clv", "bgnbd_gg"}
    assert details["one_order"]["models"]["clv"]["ngini"] > details["one_order"]["models"]["bgnbd_gg"]["ngini"]
    assert details["one_order"]["against"]["bgnbd_gg"]["outcome"] == "better"
    visitors = details["visitors"]
    assert one.visitors is not None
    assert (visitors["visitors"], visitors["buyers"]) == (300, one.visitors.orders.sum())
    assert visitors["models"]["clv"]["auc"] > 0.7 > visitors["models"]["conversion"]["auc"] == 0.5
    assert visitors["models"]["clv"]["conversion_bias"] == pytest.approx(1, abs=0.3)
    assert visitors["models"]["clv"]["calibration_error"] < 0.06
    assert "is told better by this model than by the conversion baseline: +0." in visitors["sentence"]
    assert sum(cell["customers"] for cell in details["uncertainty_by_cell"].values()) == 1200


def test_a_page_without_findings_holds_the_notices_alone() -> None:
    page = html_page.render([], title="t", notices=["the log is too short"])
    assert "the log is too short" in page
    assert len(page) < 20_000


def test_a_panel_without_our_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no prediction of model 'other'"):
        evaluate_panel(panel(), model="other")


def test_money_is_written_for_people() -> None:
    assert html_page.format_amount(1234.5, "GBP") == "£1,234"
    assert html_page.format_amount(12.5, "EUR") == "€12.50"
    assert html_page.format_amount(1e6, "CHF") == "1,000,000 CHF"
    assert html_page.format_amount(3, None) == "3.00"
