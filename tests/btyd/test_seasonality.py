"""The level: season found where a year was seen, nothing invented where there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from clv.btyd.seasonality import ERRORS, SeasonalFactor, log_error

Level = Callable[[np.ndarray], np.ndarray]


def season(day: np.ndarray) -> np.ndarray:
    """Log level of a day: a peak of some ten weeks once a year."""
    apart = (day - 330 + 182.6) % 365.2425 - 182.6
    return 0.7 * np.exp(-0.5 * (apart / 35) ** 2) - 0.12


def wave(day: np.ndarray) -> np.ndarray:
    """A season that is half of the year above and half below."""
    return 0.35 * np.cos(2 * np.pi * (day - 330) / 365.2425)


def flat(day: np.ndarray) -> np.ndarray:
    return np.zeros(len(day))


def series(
    level: Level, num_days: int, seed: int, error: float = 0.03, horizons: tuple[int, ...] = (30, 90)
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, error * np.sqrt(90), num_days + 400)  # daily, so that overlapping windows share it
    rows = []
    for origin in range(30, num_days, 14):
        for h in horizons:
            days = np.arange(origin, origin + h)
            ratio = np.exp(level(days).mean() + noise[days].mean())
            rows.append((origin, h, 1000.0, 1000.0 * ratio, error * np.sqrt(90 / h), origin))
    return pd.DataFrame(rows, columns=list(ERRORS))


def true_log(level: Level, origin: int, horizon: int) -> float:
    return float(level(np.arange(origin, origin + horizon)).mean())


def forecast_errors(level: Level, cut: int, origins: range, horizon: int, seeds: int = 5) -> np.ndarray:
    """(forecast, ignored) absolute log errors of forecasts made at each origin, stacked over seeds."""
    out = []
    for seed in range(seeds):
        table = series(level, cut, seed)
        for origin in origins:
            got = np.log(SeasonalFactor.fit(table, origin).level(origin, horizon)[0])
            out.append((abs(got - true_log(level, origin, horizon)), abs(true_log(level, origin, horizon))))
    return np.array(out)


def test_season_is_recovered_once_it_was_seen_a_year_before() -> None:
    errors = forecast_errors(season, 1000, range(630, 900, 30), 90)
    assert errors[:, 0].mean() < 0.35 * errors[:, 1].mean()
    assert errors[:, 0].max() < 0.2


def test_a_season_that_swings_slowly_is_carried_on_before_its_year_is_over() -> None:
    errors = forecast_errors(wave, 1000, range(330, 450, 30), 90)
    assert errors[:, 0].mean() < 0.5 * errors[:, 1].mean()


@pytest.mark.parametrize("origin", [250, 400, 700])
def test_shop_without_season_keeps_its_btyd_model(origin: int) -> None:
    errors = forecast_errors(flat, 1000, range(origin, origin + 60, 30), 90, seeds=8)
    assert errors[:, 0].mean() < 0.02


def test_short_log_gives_level_one_and_admits_a_wide_error() -> None:
    index = SeasonalFactor.fit(series(season, 170, 0), 260)
    level, error = index.level(260, 90)
    assert len(index.origin_day) == 0
    assert level == 1.0
    assert error > 0.15


def test_nothing_after_the_known_day_matters() -> None:
    table = series(season, 900, 0)
    future = table["origin_day"] + table["horizon_days"] > 600
    scrambled = table.assign(realised=np.where(future, table["realised"] * 7, table["realised"]))
    assert SeasonalFactor.fit(table, 600).level(600, 90) == SeasonalFactor.fit(scrambled, 600).level(600, 90)
    assert SeasonalFactor.fit(table, 600).level(600, 90) != SeasonalFactor.fit(scrambled, 900).level(600, 90)


def test_lasting_bias_of_the_newest_origins_is_carried_forward_in_part() -> None:
    table = series(lambda day: np.full(len(day), 0.2), 700, 1)
    level, _ = SeasonalFactor.fit(table, 700).level(700, 90)
    assert 1.08 < level < 1.25


def test_noisier_ratios_are_followed_less() -> None:
    table = series(season, 900, 2)
    sure = np.log(SeasonalFactor.fit(table, 640).level(640, 90)[0])
    unsure = np.log(SeasonalFactor.fit(table.assign(log_error=0.6), 640).level(640, 90)[0])
    assert abs(unsure) < 0.5 * abs(sure)


def test_stated_error_covers_the_forecast() -> None:
    score = []
    for seed in range(6):
        table = series(season, 1000, seed)
        for origin in range(640, 900, 40):
            level, error = SeasonalFactor.fit(table, origin).level(origin, 90)
            score.append((np.log(level) - true_log(season, origin, 90)) / error)
    assert np.mean(np.abs(score) < 2) > 0.9
    assert np.std(score) > 0.2


def test_levels_of_every_day_equal_single_ones_and_survive_json() -> None:
    index = SeasonalFactor.fit(series(season, 900, 0), 900)
    again = SeasonalFactor.from_json(index.to_json())
    levels, errors = again.levels(np.arange(900, 1265), 90)
    assert (levels[7], errors[7]) == pytest.approx(index.level(907, 90), rel=1e-12)
    assert np.isfinite(levels).all()
    with pytest.raises(ValueError, match="no seasonal index written by to_json"):
        SeasonalFactor.from_json('{"known_day": 3}')


def test_missing_columns_are_named() -> None:
    with pytest.raises(ValueError, match="lacks log_error, log_days"):
        SeasonalFactor.fit(series(flat, 300, 0).drop(columns=["log_error", "log_days"]), 300)


def test_log_error_is_that_of_a_bootstrap() -> None:
    rng, n = np.random.default_rng(0), 3_000
    expected = rng.gamma(0.5, 20, n)
    realised = expected * rng.gamma(0.3, 1 / 0.3, n)
    draws = rng.integers(0, n, (2_000, n))
    ratios = np.log(realised[draws].sum(axis=1) / expected[draws].sum(axis=1))
    assert log_error(expected, realised) == pytest.approx(ratios.std(), rel=0.1)
    assert log_error(expected, np.zeros(n)) == np.inf
