"""The sentences of card and report: true, one for each baseline, and BG/NBD where it does."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from clv.evaluate.bootstrap import Interval, bootstrap
from clv.evaluate.panel import Panel
from clv.evaluate.report import html_page, verdict
from clv.evaluate.report.card import evaluation_lines
from clv.evaluate.report.findings import evaluate_panel
from clv.forecast.distributions import Prediction, hurdle_lognormal


def panel(ours: float, baseline: float, seed: int = 0, origin: str = "2024-01-01", name: str = "bgnbd_gg") -> Panel:
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
        predictions={"clv": model(ours), name: model(baseline), "linear": {"not_run": "no features"}},
        orders_past=1 + rng.poisson(1.5, n),
        log_days=900,
    )


# Metric: what this model has and what a baseline has where this model is better, and where it is worse.
BETTER = {"ngini": (0.75, 0.7), "auc": (0.82, 0.8), "mae_over_mean": (0.9, 0.96), "bias": (1.1, 0.7)}
WORSE = {"rmse_over_mean": (2.0, 1.9), "decile_mape": (0.3, 0.1), "auc": (0.8, 0.82), "bias": (0.7, 1.1)}
ALIKE = {"ngini": 0.7, "auc": 0.8, "mae_over_mean": 0.9, "rmse_over_mean": 2.0, "bias": 1.1, "decile_mape": 0.2}


def against(differences: Mapping[str, tuple[float, float]], name: str = "lgbm_l1") -> verdict.MetricComparison:
    """Constructed replicates: `differences` are certain, all other metrics scatter around no difference."""
    rng = np.random.default_rng(0)
    ours, theirs = ({m: value + 0.01 * np.r_[0, rng.normal(size=400)] for m, value in ALIKE.items()} for _ in range(2))
    for metric, (mine, other) in differences.items():
        noise = 0.004 * np.r_[0, rng.normal(size=400)]
        ours[metric], theirs[metric] = mine + noise, np.full(401, other)
    return verdict.compare(name, [(ours, theirs)])


def test_a_model_that_only_wins_beats_with_each_gain_and_its_size() -> None:
    found = against({m: BETTER[m] for m in ("ngini", "auc", "mae_over_mean")})
    assert (found.outcome, found.gains, found.losses) == ("better", ("ngini", "auc", "mae_over_mean"), ())
    assert found.sentence.startswith(
        "This model beats LightGBM L1 on every measure that differs significantly (3 of 6): "
        "ranking (nGini) higher by 0.050 (95 % interval 0.043 to 0.058); "
    )
    assert "typical error (MAE) smaller by 6.0% of the mean spend (95 % interval 5" in found.sentence
    assert not any(word in found.sentence for word in ("lower", "larger", "farther", "loses", "use "))


def test_a_model_that_only_loses_does_not_beat_and_each_loss_has_its_size() -> None:
    found = against({m: WORSE[m] for m in ("rmse_over_mean", "bias", "decile_mape")})
    assert (found.outcome, found.gains, found.losses) == ("worse", (), ("rmse_over_mean", "bias", "decile_mape"))
    assert found.sentence.startswith(
        "This model loses to LightGBM L1 on every measure that differs significantly (3 of 6): "
        "error on big spenders (RMSE) larger by 10.0% of the mean spend (95 % interval 9"
    )
    assert "total (predicted ÷ actual) farther from 1 by 0.200 (" in found.sentence
    assert found.sentence.endswith("; use LightGBM L1 here.")
    assert not any(word in found.sentence for word in ("beats", "higher", "smaller", "closer"))
    assert verdict.recommendation([found]) == (
        "Use LightGBM L1 here: significantly better than this model on 3 measures, worse on none."
    )


def test_gains_and_losses_are_named_apart_and_more_losses_than_gains_advise_the_baseline() -> None:
    found = against({"ngini": BETTER["ngini"], "decile_mape": WORSE["decile_mape"]})
    assert found.outcome == "mixed"
    wins, losses = found.sentence.split("it loses with ")
    assert wins.startswith(
        "This model beats LightGBM L1 on 1 of 6 measures and loses to it on 1: it wins with ranking (nGini) higher by "
    )
    assert losses.startswith("error of the mean by tenth (decile MAPE) larger by 0.200 (")
    assert "use " not in found.sentence
    assert verdict.recommendation([found]) == (
        "This model is on balance neither better nor worse than any of 1 alternatives."
    )
    more = against({"ngini": BETTER["ngini"], "decile_mape": WORSE["decile_mape"], "auc": WORSE["auc"]})
    assert more.sentence.endswith("; use LightGBM L1 here.")
    assert verdict.recommendation([found, more]).startswith(
        "Use LightGBM L1 here: significantly better than this model on 2 measures, worse on 1."
    )


def test_without_a_significant_difference_nobody_beats_anybody() -> None:
    found = against({})
    assert (found.outcome, found.gains, found.losses) == ("even", (), ())
    assert found.sentence.startswith(
        "This model and LightGBM L1 differ significantly on none of 6 measures: ranking (nGini) higher by 0.000 ("
    )
    assert not any(word in found.sentence for word in ("beats", "loses", "use "))


def test_a_difference_that_resampling_alone_makes_is_not_significant() -> None:
    """Decile MAPE of a model with ties grows when customers are resampled; on the data both are alike."""
    rng = np.random.default_rng(0)
    ours = {m: value + 0.01 * rng.normal(size=401) for m, value in ALIKE.items()}
    theirs = {m: value + 0.01 * rng.normal(size=401) for m, value in ALIKE.items()}
    ours["decile_mape"][0], theirs["decile_mape"] = 0.3, np.r_[0.2, 0.4 + 0.01 * rng.normal(size=400)]
    assert "decile_mape" not in verdict.compare("lgbm_l1", [(ours, theirs)]).gains


def test_undefined_measures_are_not_counted() -> None:
    nan = np.full(401, np.nan)
    ours = {m: nan if m == "decile_mape" else np.full(401, value) for m, value in ALIKE.items()}
    assert "on none of 5 measures" in verdict.compare("b", [(ours, ours)]).sentence
    ours = dict.fromkeys(ALIKE, nan)
    assert verdict.compare("b", [(ours, ours)]).sentence == "b: no comparison possible, every measure is undefined."


@pytest.mark.parametrize(
    ("share", "count", "words"),
    [
        (1.0, 12, "expected 80% ± 22.6%: within the sampling error"),
        (1.0, 43, "expected 80% ± 12.0%: over-coverage, too wide"),
        (0.6, 43, "expected 80% ± 12.0%: under-coverage, too narrow"),
        (0.81, 5000, "expected 80% ± 1.1%: within the sampling error"),
        (0.82, 5000, "expected 80% ± 1.1%: over-coverage, too wide"),
    ],
)
def test_coverage_is_held_against_its_nominal_value_and_the_error_of_its_count(
    share: float, count: float, words: str
) -> None:
    assert verdict.coverage_verdict(share, count) == words


def test_card_and_report_show_the_coverage_of_customers_and_sums_with_their_numbers() -> None:
    found = evaluate_panel(panel(0.0, 1.0), draws=50)
    ours = found.uncertainty["clv"]
    assert (ours["customers"], ours["sums_groups"]) == (1500, 15)
    text = verdict.coverage_sentence({**ours, "sums_coverage": 1.0})
    assert "; 100% of 15 sums of 100 customers (expected 80% ± 20.2%: within the sampling error)." in text
    assert "of 1,500 customers by the randomised PIT (expected 80% ± 2.0%: " in text
    text = verdict.coverage_sentence({**ours, "sums_coverage": 1.0, "sums_groups": 150.0})
    assert "100% of 150 sums of 100 customers (expected 80% ± 6.4%: over-coverage, too wide)" in text
    assert verdict.coverage_sentence(ours) in "\n".join(evaluation_lines([found]))
    assert verdict.coverage_sentence(ours) in html_page.render([found], title="t")
    none = {"pit80": None, "sure_coverage": None, "sums_coverage": None, "customers": 0.0}
    none |= {"sure_customers": 0.0, "sums_groups": 0.0}
    assert verdict.coverage_sentence(none).startswith("Too few customers")


def test_the_card_names_the_reason_of_an_undefined_decile_mape() -> None:
    """A perfect order puts all buyers first, so its last tenth of the customers spent nothing."""
    shop = panel(0.0, 1.0)
    shop = replace(shop, predictions={**shop.predictions, "perfect": Prediction(value=shop.y + 0.01)})
    text = "\n".join(evaluation_lines([evaluate_panel(shop, draws=20)]))
    assert "No decile MAPE of perfect: a tenth of the customers by prediction spent nothing." in text
    row = next(line for line in text.splitlines() if line.startswith("| perfect "))
    assert row.split(" | ")[7] == "–"


def test_a_baseline_that_is_beaten_gets_a_sentence_with_the_gain_and_its_interval() -> None:
    (comparison,) = evaluate_panel(panel(0.0, 1.0)).comparisons
    assert comparison.outcome == "better"
    assert comparison.lead.low > 0
    text = comparison.sentence
    assert text.startswith("This model beats BG/NBD + Gamma-Gamma on every measure that differs significantly (")
    assert f"(95 % interval {comparison.lead.low:.3f} to {comparison.lead.high:.3f})" in text
    assert text.count(". ") == 0
    assert text.endswith(".")


@pytest.mark.parametrize(("name", "advice"), [("bgnbd_gg", "BG/NBD"), ("btyd", "BG/NBD with its seasonal level")])
def test_where_bgnbd_is_better_the_card_says_to_use_it(name: str, advice: str) -> None:
    found = evaluate_panel(panel(1.0, 0.0, name=name))
    assert found.comparisons[0].sentence.endswith(f"; use {advice} here.")
    assert found.advice.startswith(f"Use {advice} here: significantly better")
    assert f"**Use {advice} here" in "\n".join(evaluation_lines([found]))


def test_where_the_model_is_no_better_than_bgnbd_the_simpler_one_is_advised() -> None:
    found = evaluate_panel(panel(0.02, 0.02))
    assert found.comparisons[0].outcome == "even"
    assert "differ significantly on none of" in found.comparisons[0].sentence
    assert found.advice.startswith("Use BG/NBD here: this model is significantly better than it on no measure")


def test_where_the_model_is_better_than_all_it_is_advised() -> None:
    assert (
        evaluate_panel(panel(0.0, 1.0)).advice
        == "Use this model: on balance better than 1 of 1 alternatives, worse than none."
    )


def test_several_origins_are_told_together() -> None:
    """Small gains that no origin alone can prove are proven by four."""
    found = [evaluate_panel(panel(0.0, 0.17, seed, f"2024-0{seed + 1}-01"), draws=400) for seed in range(4)]
    together = verdict.compare("bgnbd_gg", [(f.replicates["clv"], f.replicates["bgnbd_gg"]) for f in found])
    assert together.lead.estimate == pytest.approx(np.mean([f.comparisons[0].lead.estimate for f in found]))
    widths = [f.comparisons[0].lead.high - f.comparisons[0].lead.low for f in found]
    assert together.lead.high - together.lead.low < 0.7 * np.mean(widths)
    text = "\n".join(evaluation_lines(found))
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
    assert sentence.startswith(
        "This model beats b on every measure that differs significantly (1 of 1): who buys again (AUC) higher by 0."
    )
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
