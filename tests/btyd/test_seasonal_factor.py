from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from clv.btyd.seasonal_factor import ERRORS, MAX_LOG_FACTOR, SeasonalFactorModel, log_error

Season = Callable[[np.ndarray], np.ndarray]


def season(day: np.ndarray) -> np.ndarray:
    """Log factor of a day: a peak of about ten weeks once a year."""
    distance = (day - 330 + 182.6) % 365.2425 - 182.6
    return 0.7 * np.exp(-0.5 * (distance / 35) ** 2) - 0.12


def wave(day: np.ndarray) -> np.ndarray:
    """A log factor that is above 0 in one half of the year and below in the other."""
    return 0.35 * np.cos(2 * np.pi * (day - 330) / 365.2425)


def flat(day: np.ndarray) -> np.ndarray:
    return np.zeros(len(day))


def series(
    season_of: Season, num_days: int, seed: int, error: float = 0.03, horizons: tuple[int, ...] = (30, 90)
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, error * np.sqrt(90), num_days + 400)  # daily, so that overlapping windows share it
    rows = []
    for origin in range(30, num_days, 14):
        for h in horizons:
            days = np.arange(origin, origin + h)
            ratio = np.exp(season_of(days).mean() + noise[days].mean())
            rows.append((origin, h, 1000.0, 1000.0 * ratio, error * np.sqrt(90 / h), 10_000.0, origin, 10_000.0))
    return pd.DataFrame(rows, columns=list(ERRORS))


def fit(errors: pd.DataFrame, known_day: int, known_repeats: float = 10_000.0) -> SeasonalFactorModel:
    return SeasonalFactorModel.fit(errors, known_day, known_repeats)


def forecast_one(model: SeasonalFactorModel, origin: int, horizon: int) -> tuple[float, float]:
    factor, error = model.forecast(origin, horizon)
    return float(factor[0]), float(error[0])


def true_log(season_of: Season, origin: int, horizon: int) -> float:
    return float(season_of(np.arange(origin, origin + horizon)).mean())


def forecast_errors(season_of: Season, cut: int, origins: range, horizon: int, seeds: int = 5) -> np.ndarray:
    """(forecast, ignored) absolute log errors of forecasts made at each origin, stacked over seeds."""
    out = []
    for seed in range(seeds):
        table = series(season_of, cut, seed)
        for origin in origins:
            got = np.log(forecast_one(fit(table, origin), origin, horizon)[0])
            out.append((abs(got - true_log(season_of, origin, horizon)), abs(true_log(season_of, origin, horizon))))
    return np.array(out)


def test_a_season_is_forecast_once_the_log_holds_a_year() -> None:
    errors = forecast_errors(season, 1000, range(630, 900, 30), 90)
    assert errors[:, 0].mean() < 0.35 * errors[:, 1].mean()
    assert errors[:, 0].max() < 0.2


def test_a_slow_season_is_forecast_before_its_year_is_over() -> None:
    errors = forecast_errors(wave, 1000, range(330, 450, 30), 90)
    assert errors[:, 0].mean() < 0.6 * errors[:, 1].mean()


@pytest.mark.parametrize("origin", [250, 400, 700])
def test_a_log_without_a_season_gets_a_factor_near_one(origin: int) -> None:
    errors = forecast_errors(flat, 1000, range(origin, origin + 60, 30), 90, seeds=8)
    assert errors[:, 0].mean() < 0.02


def test_a_short_log_gives_factor_one_with_a_wide_error() -> None:
    model = fit(series(season, 170, 0), 260)
    factor, error = forecast_one(model, 260, 90)
    assert len(model.origin_day) == 0
    assert factor == 1.0
    assert error > 0.15


def test_errors_after_the_known_day_are_ignored() -> None:
    table = series(season, 900, 0)
    future = table["origin_day"] + table["horizon_days"] > 600
    scrambled = table.assign(actual=np.where(future, table["actual"] * 7, table["actual"]))
    assert forecast_one(fit(table, 600), 600, 90) == forecast_one(fit(scrambled, 600), 600, 90)
    assert forecast_one(fit(table, 600), 600, 90) != forecast_one(fit(scrambled, 900), 600, 90)


def test_a_lasting_error_of_the_newest_origins_is_forecast_in_part() -> None:
    table = series(lambda day: np.full(len(day), 0.2), 700, 1)
    factor, _ = forecast_one(fit(table, 700), 700, 90)
    assert 1.08 < factor < 1.25


def test_noisier_errors_have_less_weight() -> None:
    table = series(season, 900, 2)
    sure = np.log(forecast_one(fit(table, 640), 640, 90)[0])
    unsure = np.log(forecast_one(fit(table.assign(log_error=0.6), 640), 640, 90)[0])
    assert abs(unsure) < 0.5 * abs(sure)


def test_stated_error_covers_the_forecast() -> None:
    score = []
    for seed in range(6):
        table = series(season, 1000, seed)
        for origin in range(640, 900, 40):
            factor, error = forecast_one(fit(table, origin), origin, 90)
            score.append((np.log(factor) - true_log(season, origin, 90)) / error)
    assert np.mean(np.abs(score) < 2) > 0.9
    assert np.std(score) > 0.2


def test_factors_of_many_days_equal_single_ones_and_survive_json() -> None:
    model = fit(series(season, 900, 0), 900)
    again = SeasonalFactorModel.from_json(json.loads(json.dumps(model.to_json())))
    factors, errors = again.forecast(np.arange(900, 1265), 90)
    assert (factors[7], errors[7]) == pytest.approx(forecast_one(model, 907, 90), rel=1e-12)
    assert np.isfinite(factors).all()
    with pytest.raises(ValueError, match="no seasonal factor that to_json wrote"):
        SeasonalFactorModel.from_json({"known_day": 3})


def test_missing_columns_are_named() -> None:
    with pytest.raises(ValueError, match="lacks log_error, log_days"):
        fit(series(flat, 300, 0).drop(columns=["log_error", "log_days"]), 300)


def test_the_log_error_is_that_of_a_bootstrap() -> None:
    rng, n = np.random.default_rng(0), 3_000
    expected = rng.gamma(0.5, 20, n)
    actual = expected * rng.gamma(0.3, 1 / 0.3, n)
    draws = rng.integers(0, n, (2_000, n))
    ratios = np.log(actual[draws].sum(axis=1) / expected[draws].sum(axis=1))
    assert log_error(expected, actual) == pytest.approx(ratios.std(), rel=0.1)
    assert log_error(expected, np.zeros(n)) == np.inf


def test_an_origin_at_which_hardly_anybody_had_bought_again_says_nothing() -> None:
    table = series(flat, 700, 0)
    early = table["origin_day"] < 400
    table = table.assign(
        actual=np.where(early, table["actual"] * 1e9, table["actual"]), repeats=np.where(early, 9.0, 10_000.0)
    )
    alone = fit(table[~early], 700)
    assert forecast_one(fit(table, 700), 700, 90) == forecast_one(alone, 700, 90)
    assert abs(np.log(forecast_one(alone, 700, 90)[0])) < 0.05


def test_errors_of_an_inexperienced_btyd_model_are_not_carried_on() -> None:
    """Totals exceed the expected ones by less and less the more repeat purchases the BTYD model has seen."""
    table = series(flat, 460, 0)
    repeats = 20 + 2 * np.maximum(table["origin_day"] - 180, 0)
    table = table.assign(actual=table["actual"] * np.exp(3 / np.sqrt(repeats)))
    blind = forecast_one(fit(table, 460), 460, 90)[0]
    aware = forecast_one(fit(table.assign(repeats=repeats), 460, 600.0), 460, 90)[0]
    assert aware == pytest.approx(np.exp(3 / np.sqrt(600)), rel=0.03)
    assert blind > 1.2


def test_totals_of_few_orders_move_the_factor_little_and_a_total_of_nothing_is_finite() -> None:
    double = series(lambda day: np.full(len(day), 0.7), 700, 1)
    many, few = (forecast_one(fit(double.assign(expected_orders=n), 700), 700, 90)[0] for n in (10_000.0, 3.0))
    assert 1.6 < many < 2.2
    assert 0.9 < few < 1.15
    gone = double.assign(actual=np.where(double["origin_day"] > 500, 0.0, double["actual"]), log_error=np.inf)
    factor, error = forecast_one(fit(gone, 700), 700, 90)
    assert np.exp(-MAX_LOG_FACTOR) <= factor < 1
    assert np.isfinite(error)


def test_no_error_of_the_past_moves_a_factor_beyond_its_bound() -> None:
    huge = series(lambda day: np.full(len(day), 8.0), 700, 1)
    tiny = series(lambda day: np.full(len(day), -8.0), 700, 1)
    factors = [forecast_one(fit(table, 700), 700, 90)[0] for table in (huge, tiny)]
    np.testing.assert_allclose(np.log(factors), [MAX_LOG_FACTOR, -MAX_LOG_FACTOR])


def test_a_horizon_longer_than_the_log_before_an_origin_does_not_count_there() -> None:
    table = series(flat, 700, 0, horizons=(300,))
    early = table["origin_day"] < 300
    wild = table.assign(actual=np.where(early, table["actual"] * 5, table["actual"]))
    assert forecast_one(fit(wild, 700), 700, 300) == forecast_one(fit(table, 700), 700, 300)
