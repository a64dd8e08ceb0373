"""Panels of simulated customers, for the tests of card and report."""

import numpy as np

from clv.evaluate.panel import Panel, Visitors
from clv.evaluate.report.findings import Findings, evaluate_panel
from clv.forecast.distributions import Prediction, hurdle_lognormal


def noisy_panel(
    ours: float, baseline: float, seed: int = 0, origin: str = "2024-01-01", name: str = "bgnbd_gg"
) -> Panel:
    """1,500 customers; log noise of both models' values around the expectation."""
    rng = np.random.default_rng(seed)
    n = 1500
    p, mu = rng.beta(1, 2, n), rng.normal(3, 0.8, n)
    y = np.where(rng.random(n) < p, np.exp(mu + 0.5 * rng.normal(size=n)), 0.0)
    value = p * np.exp(mu + 0.125)

    def model(noise: float) -> Prediction:
        noisy = value * np.exp(noise * rng.normal(size=n))
        noisy *= value.sum() / noisy.sum()
        return Prediction(value=noisy, p_purchase=p, quantiles=hurdle_lognormal(p, mu, np.full(n, 0.5)))

    return Panel(
        origin=origin,
        horizon_days=90,
        y=y,
        orders=(y > 0).astype(float),
        predictions={"clv": model(ours), name: model(baseline), "linear": {"not_run": "no features"}},
        orders_past=1 + rng.poisson(1.5, n),
        log_days=900,
    )


def full_panel(n: int = 1200, noise: float = 0.0, seed: int = 0, origin: str = "2011-06-12") -> Panel:
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


def evaluate(*panels: Panel, draws: int = 100) -> list[Findings]:
    return [evaluate_panel(p, draws=draws) for p in panels]
