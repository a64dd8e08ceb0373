from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import gamma

from clv.btyd.gamma_gamma import GammaGamma


def test_gamma_gamma_reproduces_the_published_cdnow_parameters() -> None:
    from importlib.metadata import PackageNotFoundError, files

    import pandas as pd

    try:
        name = "cdnow_customers_summary_with_transactions.csv"
        (path,) = [f.locate() for f in files("lifetimes") or [] if f.name == name]
    except PackageNotFoundError:
        pytest.skip("the CDNOW sample comes with the package lifetimes, which is not installed")
    table = pd.read_csv(str(path))
    fit = GammaGamma.fit(table["x"], table["zbar"])
    assert (round(fit.p, 2), round(fit.q, 2)) == (6.25, 3.74)
    assert fit.v == pytest.approx(15.44, abs=0.01)
    assert fit.num_rows == 946


def test_expected_value_is_the_posterior_mean() -> None:
    fit = GammaGamma(6.25, 3.74, 15.44, 38.0, 0.0, {}, 946)
    for x, z in ((1, 22.35), (7, 73.74)):
        # ν | x, z̄ ~ Gamma(p x + q, rate v + x z̄); E[spend] = E[p / ν]
        posterior = gamma(6.25 * x + 3.74, scale=1 / (15.44 + x * z))
        mean = quad(lambda nu, d=posterior: 6.25 / nu * d.pdf(nu), 0, np.inf)[0]
        assert fit.expected_value(x, z) == pytest.approx(mean, rel=1e-6)
    assert fit.expected_value(0, 0) == pytest.approx(6.25 * 15.44 / (3.74 - 1))


def test_parameters_are_recovered_from_simulated_spend() -> None:
    rng, n = np.random.default_rng(3), 20_000
    x = rng.integers(1, 12, n)
    nu = rng.gamma(4.0, 1 / 20.0, n)
    z = rng.gamma(5.0 * x, 1 / (x * nu))
    fit = GammaGamma.fit(x, z)
    for name, truth in (("p", 5.0), ("q", 4.0), ("v", 20.0)):
        assert abs(np.log(getattr(fit, name) / truth)) < 4 * fit.stderr[name]


def test_too_few_repeat_buyers_fall_back_to_means_with_the_reason() -> None:
    fit = GammaGamma.fit([1, 3, 0, 2], [10.0, 20.0, 0.0, -5.0])
    assert fit.fallback == "2 customers with a repeat purchase of positive value; at least 10 are needed"
    np.testing.assert_allclose(fit.expected_value([0, 3], [0.0, 20.0]), [17.5, (17.5 + 60) / 4])


def test_spend_without_a_finite_mean_falls_back() -> None:
    rng, n = np.random.default_rng(0), 5_000
    nu = rng.gamma(0.6, 1 / 10.0, n)
    fit = GammaGamma.fit(np.ones(n), np.minimum(rng.gamma(3.0, 1 / nu), 1e9))
    assert fit.q < 1
    assert "not finite under the fit" in str(fit.fallback)
    assert np.isfinite(fit.expected_value([0, 5], [0, 10])).all()


def test_missing_mean_of_a_repeat_buyer_is_refused() -> None:
    with pytest.raises(ValueError, match="monetary is nan in row 1"):
        GammaGamma.fit([0, 2], [0.0, np.nan])
