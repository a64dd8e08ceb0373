"""The sentences of card and report: true, one for each peer, and BG/NBD where it does."""

import numpy as np
import pytest

from clv.evaluate import verdict
from clv.evaluate.bootstrap import Interval, bootstrap
from clv.evaluate.card import judgement
from clv.evaluate.findings import find
from clv.evaluate.panel import Panel
from clv.evaluate.prediction import Prediction, hurdle_lognormal


def panel(ours: float, peer: float, seed: int = 0, origin: str = "2024-01-01", name: str = "bgnbd_gg") -> Panel:
    """1,500 customers; log noise of both models' values around the expectation."""
    rng = np.random.default_rng(seed)
    n = 1500
    p, mu = rng.beta(1, 2, n), rng.normal(3, 0.8, n)
    y = np.where(rng.random(n) < p, np.exp(mu + 0.5 * rng.normal(size=n)), 0.0)
    value = p * np.exp(mu + 0.125)

    def model(noise: float) -> Prediction:
        said = value * np.exp(noise * rng.normal(size=n))
        said *= value.sum() / said.sum()
        return Prediction(value=said, p_purchase=p, quantiles=hurdle_lognormal(p, mu, np.full(n, 0.5)))

    return Panel(
        origin=origin,
        horizon_days=90,
        y=y,
        orders=(y > 0).astype(float),
        predictions={"clv": model(ours), name: model(peer), "linear": {"not_run": "no features"}},
        orders_past=1 + rng.poisson(1.5, n),
        log_days=900,
    )


def test_a_peer_that_is_beaten_gets_a_sentence_with_the_gain_and_its_interval() -> None:
    (comparison,) = find(panel(0.0, 1.0)).comparisons
    assert comparison.outcome == "better"
    assert comparison.lead.low > 0
    text = comparison.sentence
    assert text.startswith("This model beats BG/NBD + Gamma-Gamma here: ranking +0.")
    assert f"(95 % interval {comparison.lead.low:+.3f} to {comparison.lead.high:+.3f})" in text
    assert text.count(". ") == 0
    assert text.endswith(".")


@pytest.mark.parametrize(("name", "advice"), [("bgnbd_gg", "BG/NBD"), ("anchor", "BG/NBD with its seasonal level")])
def test_where_bgnbd_is_better_the_card_says_to_use_it(name: str, advice: str) -> None:
    found = find(panel(1.0, 0.0, name=name))
    assert found.comparisons[0].sentence.endswith(f"; use {advice} here.")
    assert found.advice.startswith(f"Use {advice} here: significantly better")
    assert f"**Use {advice} here" in "\n".join(judgement([found]))


def test_where_the_model_is_no_better_than_bgnbd_the_simpler_one_is_advised() -> None:
    found = find(panel(0.02, 0.02))
    assert found.comparisons[0].outcome == "even"
    assert "too close to call" in found.comparisons[0].sentence
    assert found.advice.startswith("Use BG/NBD here: this model is significantly better than it on no measure")


def test_where_the_model_is_better_than_all_it_is_advised() -> None:
    assert (
        find(panel(0.0, 1.0)).advice == "Use this model: on balance better than 1 of 1 alternatives, worse than none."
    )


def test_several_origins_are_told_together() -> None:
    """Small gains that no origin alone can prove are proven by four."""
    found = [find(panel(0.0, 0.17, seed, f"2024-0{seed + 1}-01"), draws=400) for seed in range(4)]
    together = verdict.compare("bgnbd_gg", [(f.replicates["clv"], f.replicates["bgnbd_gg"]) for f in found])
    assert together.lead.estimate == pytest.approx(np.mean([f.comparisons[0].lead.estimate for f in found]))
    widths = [f.comparisons[0].lead.high - f.comparisons[0].lead.low for f in found]
    assert together.lead.high - together.lead.low < 0.7 * np.mean(widths)
    text = "\n".join(judgement(found))
    assert together.sentence in text
    assert text.count("not run: no features") == 4
    assert text.count("Data: **") == 4


def test_a_shop_without_prices_is_compared_by_who_buys() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 2, 1000)
    hit = (rng.random(1000) < p).astype(float)
    models = {"clv": Prediction(value=0 * p, p_purchase=p), "b": Prediction(value=0 * p, p_purchase=rng.random(1000))}
    found = bootstrap(0 * p, hit, models, 100)
    sentence = verdict.compare("b", [(found["clv"], found["b"])]).sentence
    assert sentence.startswith("This model beats b here: who buys again +0.")
    assert "nan" not in sentence


def test_enough_data_is_judged_by_buyers_repeat_buyers_log_season_and_precision() -> None:
    sharp, vague = (Interval(estimate=0.7, low=0.7 - d, high=0.7 + d) for d in (0.02, 0.1))
    half = np.r_[np.ones(400), np.zeros(400)]
    fine = verdict.sufficiency(half, 90, 900, sharp, 300)
    assert fine.level == "enough"
    assert "900 days of log, 10 times the horizon, the season seen before" in fine.reasons
    assert verdict.sufficiency(half, 90, 900, vague).level == "limited"
    unseen = verdict.sufficiency(half, 90, 544, sharp)
    assert unseen.level == "limited"
    assert unseen.reasons[0].startswith(
        "no season was seen: the log before the origin has 544 days, a season needs 545"
    )
    assert verdict.sufficiency(half, 90, 120, sharp).level == "too little"
    few = verdict.sufficiency(half, 90, 900, sharp, 49)
    assert few.level == "too little"
    assert few.reasons[0].startswith("only 49 customers had ordered more than once")
