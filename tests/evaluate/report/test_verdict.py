from collections.abc import Mapping

import numpy as np
import pytest

from clv.evaluate.bootstrap import Interval, bootstrap
from clv.evaluate.report import html_page, verdict
from clv.evaluate.report.card import evaluation_lines
from clv.evaluate.report.findings import evaluate_panel
from clv.forecast.distributions import Prediction
from tests.evaluate.report.panels import noisy_panel

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


def test_a_model_with_gains_alone_beats_the_baseline_with_the_size_of_each() -> None:
    found = against({m: BETTER[m] for m in ("ngini", "auc", "mae_over_mean")})
    assert (found.outcome, found.gains, found.losses) == ("better", ("ngini", "auc", "mae_over_mean"), ())
    assert found.sentence.startswith(
        "This model beats LightGBM L1 on every measure that differs significantly (3 of 6): "
        "ranking (nGini) higher by 0.050 (95 % interval 0.043 to 0.058); "
    )
    assert "typical error (MAE) smaller by 6.0% of the mean spend (95 % interval 5" in found.sentence
    assert not any(word in found.sentence for word in ("lower", "larger", "farther", "loses", "use "))


def test_a_model_with_losses_alone_loses_with_the_size_of_each() -> None:
    found = against({m: WORSE[m] for m in ("rmse_over_mean", "bias", "decile_mape")})
    assert (found.outcome, found.gains, found.losses) == ("worse", (), ("rmse_over_mean", "bias", "decile_mape"))
    assert found.sentence.startswith(
        "This model loses to LightGBM L1 on every measure that differs significantly (3 of 6): "
        "error on big spenders (RMSE) larger by 10.0% of the mean spend (95 % interval 9"
    )
    assert "total (predicted / actual) farther from 1 by 0.200 (" in found.sentence
    assert found.sentence.endswith("; use LightGBM L1 here.")
    assert not any(word in found.sentence for word in ("beats", "higher", "smaller", "closer"))
    assert verdict.recommendation([found]) == (
        "Use LightGBM L1 here: it is significantly better than this model on 3 measures and worse on none."
    )


def test_gains_and_losses_are_listed_separately_and_more_losses_recommend_the_baseline() -> None:
    found = against({"ngini": BETTER["ngini"], "decile_mape": WORSE["decile_mape"]})
    assert found.outcome == "mixed"
    wins, losses = found.sentence.split("it loses with ")
    assert wins.startswith(
        "This model beats LightGBM L1 on 1 of 6 measures and loses to it on 1: it wins with ranking (nGini) higher by "
    )
    assert losses.startswith("error of the mean by tenth (decile MAPE) larger by 0.200 (")
    assert "use " not in found.sentence
    assert verdict.recommendation([found]) == (
        "On balance this model is neither better nor worse than any of 1 alternatives."
    )
    more = against({"ngini": BETTER["ngini"], "decile_mape": WORSE["decile_mape"], "auc": WORSE["auc"]})
    assert more.sentence.endswith("; use LightGBM L1 here.")
    assert verdict.recommendation([found, more]).startswith(
        "Use LightGBM L1 here: it is significantly better than this model on 2 measures and worse on 1."
    )


def test_without_a_significant_difference_no_model_beats_the_other() -> None:
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
def test_coverage_is_compared_with_80_percent_given_its_sampling_error(share: float, count: float, words: str) -> None:
    assert verdict.coverage_verdict(share, count) == words


def test_card_and_report_show_the_coverage_of_customers_and_sums_with_their_numbers() -> None:
    found = evaluate_panel(noisy_panel(0.0, 1.0), draws=50)
    ours = found.uncertainty["clv"]
    assert (ours["customers"], ours["sums_groups"]) == (1500, 15)
    text = verdict.coverage_sentence({**ours, "sums_coverage": 1.0})
    assert "; 100% of 15 sums of 100 customers (expected 80% ± 20.2%: within the sampling error)." in text
    assert "of 1,500 customers by the randomised PIT (expected 80% ± 2.0%: " in text
    text = verdict.coverage_sentence({**ours, "sums_coverage": 1.0, "sums_groups": 150.0})
    assert "100% of 150 sums of 100 customers (expected 80% ± 6.4%: over-coverage, too wide)" in text
    assert verdict.coverage_sentence(ours) in "\n".join(evaluation_lines([found]))
    assert verdict.coverage_sentence(ours) in html_page.render([found], title="t")
    none = {"pit80": None, "near_certain_coverage": None, "sums_coverage": None, "customers": 0.0}
    none |= {"near_certain_customers": 0.0, "sums_groups": 0.0}
    assert verdict.coverage_sentence(none).startswith("There are too few customers")


def test_a_baseline_that_is_beaten_gets_a_sentence_with_the_gain_and_its_interval() -> None:
    (comparison,) = evaluate_panel(noisy_panel(0.0, 1.0)).comparisons
    assert comparison.outcome == "better"
    assert comparison.lead.low > 0
    text = comparison.sentence
    assert text.startswith("This model beats BG/NBD + Gamma-Gamma on every measure that differs significantly (")
    assert f"(95 % interval {comparison.lead.low:.3f} to {comparison.lead.high:.3f})" in text
    assert text.count(". ") == 0
    assert text.endswith(".")


@pytest.mark.parametrize(("name", "advice"), [("bgnbd_gg", "BG/NBD"), ("btyd", "BG/NBD with its seasonal factor")])
def test_where_bgnbd_is_better_the_card_recommends_it(name: str, advice: str) -> None:
    found = evaluate_panel(noisy_panel(1.0, 0.0, name=name))
    assert found.comparisons[0].sentence.endswith(f"; use {advice} here.")
    assert found.advice.startswith(f"Use {advice} here: it is significantly better")
    assert f"**Use {advice} here" in "\n".join(evaluation_lines([found]))


def test_where_the_model_is_no_better_than_bgnbd_the_simpler_one_is_recommended() -> None:
    found = evaluate_panel(noisy_panel(0.02, 0.02))
    assert found.comparisons[0].outcome == "even"
    assert "differ significantly on none of" in found.comparisons[0].sentence
    assert found.advice.startswith(
        "Use BG/NBD here: it is simpler, and this model is significantly better on no measure."
    )


def test_a_model_that_is_better_than_all_is_recommended() -> None:
    assert (
        evaluate_panel(noisy_panel(0.0, 1.0)).advice
        == "Use this model: on balance it is better than 1 of 1 alternatives and worse than none."
    )


def test_a_dataset_without_prices_is_compared_by_who_buys() -> None:
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


def test_sufficiency_depends_on_buyers_repeat_buyers_log_season_and_precision() -> None:
    sharp, vague = (Interval(estimate=0.7, low=0.7 - d, high=0.7 + d) for d in (0.02, 0.1))
    half = np.r_[np.ones(400), np.zeros(400)]
    fine = verdict.sufficiency(half, 90, 900, sharp, 300)
    assert fine.grade == "enough"
    assert "900 days of log, 10 times the horizon, enough for a seasonal factor" in fine.reasons
    assert verdict.sufficiency(half, 90, 900, vague).grade == "limited"
    short = verdict.sufficiency(half, 90, 544, sharp)
    assert short.grade == "limited"
    assert short.reasons[0].startswith("the log before the origin has 544 days, a seasonal factor needs 545")
    assert verdict.sufficiency(half, 90, 120, sharp).grade == "too little"
    few = verdict.sufficiency(half, 90, 900, sharp, 49)
    assert few.grade == "too little"
    assert few.reasons[0].startswith("only 49 customers had ordered more than once")
