"""Expected orders and value of simulated customers are the mean of what happens, by simulation and by brute force."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from clv.simulate.small import simulate
from clv.simulate.truth import mean_orders
from tests.simulate.outcomes import outcome


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exact_btyd": True},
        {"dropout": None},
        {"regularity": 1, "season": 0.8},
        {"drift": 0.5, "changes_per_year": 0.0},
        {"visitors": 0.7, "sessions": 1.0, "tastes": 0.3, "promotion": 0.5},
        {"visitors": 0.3, "coupons": (40, 0.4, 0.5)},
    ],
    ids=["default", "exact", "nobody leaves", "poisson", "drift", "visitors", "coupons"],
)
def test_expected_orders_and_value_are_the_mean_of_what_happens(options: dict[str, object]) -> None:
    table = pd.concat([outcome(simulate(3_000, seed=seed, **options)) for seed in range(4)])  # type: ignore[arg-type]
    for name in ("orders", "value"):
        gap = table[f"{name}_real"] - table[name]
        assert abs(gap.sum()) < 4 * np.sqrt((gap**2).sum())
        bucket = pd.qcut(table[name].rank(method="first"), [0.7, 0.8, 0.9, 1.0])
        real, want = table.groupby(bucket, observed=True)[[f"{name}_real", name]].sum().to_numpy().T
        np.testing.assert_allclose(real, want, rtol=0.12)


@pytest.mark.parametrize("leave", [0.0, 0.15])
def test_mean_orders_agrees_with_brute_force(leave: float) -> None:
    rng, k, u, phase, n = np.random.default_rng(0), 3, 2.2, 2, 400_000
    count = (phase + rng.poisson(k * u, n)) // k
    if leave > 0:
        count = np.minimum(count, rng.geometric(leave, n))
    mean = mean_orders(np.array([u]), np.array([phase]), np.array([leave]), k)[0]
    assert mean == pytest.approx(count.mean(), abs=4 * count.std() / np.sqrt(n))


def test_a_window_outside_the_simulation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"leaves the simulation: stay within the 731 days"):
        simulate(10).truth.expected("2024-12-01", 90)
