import json
import re

import numpy as np
import pytest

from clv.evaluate import report, verdict
from clv.evaluate.bootstrap import Interval
from clv.evaluate.prediction import Prediction, hurdle_lognormal


def panel(n: int = 1200, noise: float = 0.0, seed: int = 0) -> report.Panel:
    rng = np.random.default_rng(seed)
    p, mu = rng.beta(1, 2, n), rng.normal(3, 0.8, n)
    y = np.where(rng.random(n) < p, np.exp(mu + 0.5 * rng.normal(size=n)), 0.0)
    value = p * np.exp(mu + 0.125)
    ours = Prediction(
        value=value * np.exp(noise * rng.normal(size=n)),
        p_purchase=p,
        quantiles=hurdle_lognormal(p, mu, np.full(n, 0.5)),
    )
    return report.Panel(
        origin="2011-06-12",
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
    )


@pytest.fixture(scope="module")
def page() -> str:
    return report.render([panel(), panel(seed=1)], title="A shop & co", currency="GBP", draws=100)


def without_scripts(text: str) -> str:
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    tags = re.findall(r"<(?:script|link|img|iframe|object|embed)\b[^>]*>", page.replace(report.get_plotlyjs(), ""))
    assert tags
    assert not [t for t in tags if re.search(r"\b(?:src|href|data)\s*=", t)]
    assert "http" not in without_scripts(page)
    assert not re.search(r"@import|url\(", without_scripts(page))
    assert page.count(report.get_plotlyjs()) == 1


def test_every_figure_and_table_is_there(page: str) -> None:
    for number in (0, 1):
        for name in ("lift", "deciles", "cohorts", "values", "pit"):
            assert f'id="{name}{number}"' in page
    body = without_scripts(page)
    assert "A shop &amp; co" in body
    assert "£" in body
    assert "not run: the log &lt;reaches&gt; back 90 days" in body
    assert "This model ranks customers better than BG/NBD + Gamma-Gamma" in body
    assert "Is there enough data?" in body
    assert "precision" in body


def test_a_peer_that_is_better_is_recommended() -> None:
    body = without_scripts(report.render([panel(noise=2.0)], title="t", draws=100))
    assert "Use BG/NBD + Gamma-Gamma here" in body


def test_a_shop_without_buyers_still_gets_a_page() -> None:
    zeros = np.zeros(30)
    models = {"clv": Prediction(value=zeros + 1, p_purchase=zeros + 0.5), "past_spend": Prediction(value=zeros)}
    empty = report.Panel(origin="2011-06-12", horizon_days=90, y=zeros, orders=zeros, predictions=models, log_days=100)
    body = without_scripts(report.render([empty], title="t", draws=20))
    assert "too little" in body
    assert "only 0 customers bought" in body


def test_metrics_json_has_the_shape_of_the_contract() -> None:
    found = json.loads(json.dumps(report.metrics_of([panel()]), allow_nan=False))
    assert found["2011-06-12"]["90"]["seasonal_naive"] == {"not_run": "the log <reaches> back 90 days"}
    assert found["2011-06-12"]["90"]["bgnbd_gg"]["crps"] is None
    assert found["2011-06-12"]["90"]["clv"]["pit80"] == pytest.approx(0.8, abs=0.05)


def test_a_panel_without_our_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no prediction of model 'other'"):
        report.render([panel()], title="t", model="other")


def test_money_is_written_for_people() -> None:
    assert report.money(1234.5, "GBP") == "£1,234"
    assert report.money(12.5, "EUR") == "€12.50"
    assert report.money(1e6, "CHF") == "1,000,000 CHF"
    assert report.money(3, None) == "3.00"


def test_enough_data_is_judged_by_buyers_log_and_precision() -> None:
    sharp, vague = (Interval(estimate=0.7, low=0.7 - d, high=0.7 + d) for d in (0.02, 0.1))
    half = np.r_[np.ones(400), np.zeros(400)]
    assert verdict.sufficiency(half, 90, 900, sharp).level == "enough"
    assert verdict.sufficiency(half, 90, 900, vague).level == "limited"
    assert verdict.sufficiency(half, 90, 200, sharp).level == "limited"
    assert verdict.sufficiency(half, 90, 120, sharp).level == "too little"
