"""The count models against published parameters, closed forms, simulation and their own distributions."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.optimize import check_grad
from scipy.special import hyp2f1
from scipy.stats import gamma

from clv.btyd.likelihood import group_histories
from clv.btyd.models import BGNBD, MBGNBD, NBD, BTYDModel, _dropout_loss

WEEKS = {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426}


def cdnow(name: str = "cdnow_customers_summary_with_transactions.csv") -> pd.DataFrame:
    try:
        files = importlib.metadata.files("lifetimes") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the CDNOW sample comes with the package lifetimes, which is not installed")
    found = [Path(str(f.locate())) for f in files if f.name == name]
    assert len(found) == 1
    return pd.read_csv(found[0])


def model(kind: type[BGNBD] | type[MBGNBD], r: float, alpha: float, a: float, b: float) -> BGNBD | MBGNBD:
    return kind(r=r, alpha=alpha, a=a, b=b, log_likelihood=0.0, stderr={}, num_customers=1.0)


def test_bgnbd_reproduces_the_published_cdnow_parameters() -> None:
    table = cdnow("cdnow_customers_summary.csv")
    fit = BGNBD.fit(table["frequency"], table["recency"], table["T"])
    assert {name: round(getattr(fit, name), 3) for name in WEEKS} == WEEKS
    assert fit.log_likelihood == pytest.approx(-9582.4, abs=0.05)


def test_mbgnbd_reproduces_the_published_cdnow_parameters() -> None:
    table = cdnow("cdnow_customers_summary.csv")
    fit = MBGNBD.fit(table["frequency"], table["recency"], table["T"])
    assert [round(v, 3) for v in (fit.r, fit.alpha, fit.a, fit.b)] == [0.525, 6.183, 0.891, 1.614]


def test_conditional_expectation_of_the_published_example_customer() -> None:
    """Fader, Hardie & Lee (2005), "Implementing the BG/NBD model in Excel": customer 1 in 39 weeks: 1.226."""
    fit = model(BGNBD, **WEEKS)
    assert fit.expected_purchases([2], [30.43], [38.86], 39)[0] == pytest.approx(1.226, abs=5e-4)


def test_equal_rows_and_weights_give_the_same_fit() -> None:
    rng = np.random.default_rng(0)
    x, T = rng.poisson(2, 400), rng.integers(30, 60, 400)
    t_x = np.where(x > 0, np.minimum(rng.integers(1, 60, 400), T), 0)
    once = BGNBD.fit(np.repeat(x, 3), np.repeat(t_x, 3), np.repeat(T, 3))
    weighted = BGNBD.fit(x, t_x, T, weights=np.full(400, 3.0))
    assert repr(once) == repr(weighted)  # NaN standard errors differ under ==
    assert once.num_customers == 1200


def test_fit_does_not_depend_on_the_unit_of_time() -> None:
    table = cdnow("cdnow_customers_summary.csv")
    weeks = MBGNBD.fit(table["frequency"], table["recency"], table["T"])
    days = MBGNBD.fit(table["frequency"], table["recency"] * 7, table["T"] * 7)
    np.testing.assert_allclose(
        [days.r, days.alpha / 7, days.a, days.b], [weeks.r, weeks.alpha, weeks.a, weeks.b], rtol=1e-3
    )


@pytest.mark.parametrize("first_can_be_last", [0, 1])
def test_gradient_is_that_of_the_likelihood(first_can_be_last: int) -> None:
    rows = group_histories([0, 1, 3, 12, 0], [0, 4.0, 9.0, 40.0, 0], [5.0, 20.0, 9.0, 41.0, 70.0])
    loss = _dropout_loss(rows, 20.0, first_can_be_last)
    point = np.log([0.6, 0.9, 0.8, 1.7])
    error = check_grad(lambda t: loss(t)[0], lambda t: loss(t)[1], point)
    assert error < 1e-5 * np.abs(loss(point)[1]).max()


@pytest.mark.parametrize("kind", [BGNBD, MBGNBD])
@pytest.mark.parametrize("a", [0.3, 0.793, 2.5])
def test_expectation_equals_the_closed_form_where_that_is_stable(kind: type[BGNBD], a: float) -> None:
    """Fader, Hardie & Lee (2005), eq. 10; MBG/NBD has b + 1 for b (Hoppe & Wagner 2007)."""
    fit = model(kind, 0.7, 30.0, a, 2.4)
    x, T, h = np.array([0.0, 1, 4, 20]), np.array([100.0, 40, 200, 300]), 90
    b, c = fit.b + (kind is MBGNBD) + x, a + fit.b + (kind is MBGNBD) + x - 1
    closed = c / (a - 1) * (1 - hyp2f1(fit.r + x, a - 1, c, -h / (fit.alpha + T)))
    alive = fit.p_alive(x, np.where(x > 0, T, 0), T)
    assert (b > 0).all()
    np.testing.assert_allclose(fit.expected_purchases(x, np.where(x > 0, T, 0), T, h), alive * closed, rtol=1e-9)


@pytest.mark.parametrize("kind", [BGNBD, MBGNBD])
def test_predictions_agree_with_simulated_customers_of_the_same_history(kind: type[BGNBD]) -> None:
    """Brute force: λ, p from the prior, whole lives simulated, those kept that look like (x, t_x about, T)."""
    fit = model(kind, 1.5, 20.0, 0.8, 2.0)
    rng, n, T, h = np.random.default_rng(1), 1_500_000, 60.0, 45.0
    rate, leave = rng.gamma(fit.r, 1 / fit.alpha, n), rng.beta(fit.a, fit.b, n)
    last = rng.geometric(leave) - (kind is MBGNBD)
    times = np.cumsum(rng.exponential(1 / rate[:, None], (n, 12)), axis=1)
    times[np.arange(12) >= last[:, None]] = np.inf
    x = (times <= T).sum(axis=1)
    t_x = np.where(x > 0, np.take_along_axis(times, np.maximum(x - 1, 0)[:, None], axis=1)[:, 0], 0.0)
    future = ((times > T) & (times <= T + h)).sum(axis=1)
    for want, age in ((0, 0.0), (1, 20.0), (2, 45.0)):
        same = (x == want) & (np.abs(t_x - age) < 2.5)
        error = 5 / np.sqrt(same.sum())
        assert same.sum() > 4_000
        assert future[same].mean() == pytest.approx(fit.expected_purchases(want, age, T, h)[0], abs=2 * error)
        assert (future[same] > 0).mean() == pytest.approx(fit.p_purchase(want, age, T, h)[0], abs=error)
        assert (last[same] > want).mean() == pytest.approx(fit.p_alive(want, age, T)[0], abs=error)


@pytest.mark.parametrize("kind", [BGNBD, MBGNBD])
def test_the_chance_of_a_purchase_is_its_integral_over_the_purchase_rate(kind: type[BGNBD]) -> None:
    fit = model(kind, 0.5, 6.0, 0.9, 1.6)
    history = ([0, 1, 5, 40], [0, 3.0, 30.0, 80.0], [50.0, 60.0, 35.0, 82.0])
    rates = [gamma(fit.r + x, scale=1 / (fit.alpha + T)) for x, _, T in zip(*history, strict=True)]
    chance = [quad(lambda q, rate=rate: -np.expm1(-30 * rate.ppf(q)), 0, 1)[0] for rate in rates]
    np.testing.assert_allclose(fit.p_purchase(*history, 30), fit.p_alive(*history) * chance, rtol=1e-8)


@pytest.mark.parametrize("a", [0.999_999, 1.0, 1.000_001])
def test_expectation_is_smooth_through_a_equal_one(a: float) -> None:
    here, near = model(BGNBD, 0.5, 6.0, a, 1.6), model(BGNBD, 0.5, 6.0, 1.0, 1.6)
    assert here.expected_purchases(3, 10, 20, 30)[0] == pytest.approx(
        near.expected_purchases(3, 10, 20, 30)[0], rel=1e-5
    )


def test_expectation_stays_finite_and_monotone_for_heavy_buyers_and_long_horizons() -> None:
    fit = model(BGNBD, 0.24, 30.0, 0.79, 2.4)
    values = np.array(
        [fit.expected_purchases([2000, 300, 0], [3990, 3990, 0], [4000, 4000, 4000], h) for h in (1, 30, 3650)]
    )
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=0) > 0).all()


def test_one_time_buyers_are_alive_for_certain_in_bgnbd_only() -> None:
    assert model(BGNBD, 0.5, 6.0, 0.9, 1.6).p_alive([0], [0], [900]) == [1.0]
    assert model(MBGNBD, 0.5, 6.0, 0.9, 1.6).p_alive([0], [0], [900])[0] < 0.2


def test_impossible_histories_are_refused_with_their_row() -> None:
    with pytest.raises(ValueError, match=r"row 1 is no purchase history: frequency 2, recency 9, T 5"):
        BGNBD.fit([0, 2], [0, 9], [5, 5])
    with pytest.raises(ValueError, match="row 0 is no purchase history"):
        NBD.fit([0], [3], [5])
    with pytest.raises(ValueError, match="no rows"):
        NBD.fit([], [], [])


def sample_frame() -> pd.DataFrame:
    table = cdnow().rename(columns={"x": "frequency", "t_x": "recency", "zbar": "monetary"})
    table = table.assign(recency=table["recency"] * 7, T=table["T"] * 7, has_purchase=True, origin_day=10_000)
    table["orders_past"] = (table["frequency"] + 1) * 1.25
    return table


def test_btyd_model_joins_counts_spend_and_orders_per_day() -> None:
    frame = sample_frame()
    btyd_model = BTYDModel.fit(frame, "mbgnbd")
    out = btyd_model.predict(frame, 90)
    assert list(out.columns) == ["days", "p_purchase", "orders", "value"]
    assert btyd_model.orders_per_day == pytest.approx(1.25)
    np.testing.assert_allclose(out["orders"], out["days"] * 1.25)
    spend = btyd_model.spend.expected_value(frame["frequency"], frame["monetary"])
    np.testing.assert_allclose(out["value"], out["days"] * spend)
    assert (out["p_purchase"] <= out["days"] + 1e-12).all()


def test_rows_without_a_purchase_get_zeros() -> None:
    frame = sample_frame().head(50)
    btyd_model = BTYDModel.fit(frame)
    visitors = frame.assign(has_purchase=np.arange(50) % 2 == 0, T=np.where(np.arange(50) % 2 == 0, frame["T"], np.nan))
    out = btyd_model.predict(visitors, 90)
    assert (out.to_numpy()[1::2] == 0).all()
    assert (out["days"].to_numpy()[::2] > 0).all()


def test_a_dataset_without_prices_has_no_spend_and_zero_value() -> None:
    frame = sample_frame().assign(monetary=0.0)
    btyd_model = BTYDModel.fit(frame)
    assert btyd_model.spend is None
    assert (btyd_model.predict(frame, 30)["value"] == 0).all()
    assert BTYDModel.from_json(btyd_model.to_json()) == btyd_model


@pytest.mark.parametrize("kind", ["bgnbd", "mbgnbd", "nbd"])
def test_btyd_model_survives_json_bit_for_bit(kind: str) -> None:
    frame = sample_frame()
    btyd_model = BTYDModel.fit(frame, kind)  # type: ignore[arg-type]
    again = BTYDModel.from_json(json.loads(json.dumps(btyd_model.to_json(), allow_nan=False)))
    pd.testing.assert_frame_equal(again.predict(frame, 77), btyd_model.predict(frame, 77), check_exact=True)
    with pytest.raises(ValueError, match="no BTYD model that to_json wrote"):
        BTYDModel.from_json({"kind": "bgnbd"})


def test_unusable_frames_are_refused() -> None:
    frame = sample_frame().head(20)
    with pytest.raises(ValueError, match=r"the frame holds 2 origins \(10000\.\.10019\)"):
        BTYDModel.fit(frame.assign(origin_day=np.where(np.arange(20) < 10, 10_000, 10_019)))
    with pytest.raises(ValueError, match="none of the 20 rows has a purchase"):
        BTYDModel.fit(frame.assign(has_purchase=False))
    with pytest.raises(ValueError, match="BTYD model kind 'pareto' is unknown"):
        BTYDModel.fit(frame, "pareto")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="horizon_days is -1"):
        BTYDModel.fit(frame).predict(frame, -1)
