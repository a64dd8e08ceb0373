from __future__ import annotations

import numpy as np
import pytest

from clv.btyd.diagnostics import check_dropout
from clv.btyd.models import BGNBD, MBGNBD, NBD


def lives(n: int, leave: float, seed: int, mean_gap: float = 30.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, t_x, T): Poisson buyers who leave after each repeat purchase with probability `leave`."""
    rng = np.random.default_rng(seed)
    T = rng.uniform(100, 400, n)
    times = np.cumsum(rng.exponential(1, (n, 100)) / rng.gamma(2, 1 / (2 * mean_gap), n)[:, None], axis=1)
    last = rng.geometric(leave, n) if leave > 0 else np.full(n, 100)
    times[np.arange(100) >= last[:, None]] = np.inf
    x = (times <= T[:, None]).sum(axis=1)
    return x, np.where(x > 0, np.take_along_axis(times, np.maximum(x - 1, 0)[:, None], axis=1)[:, 0], 0.0), T


@pytest.mark.parametrize("kind", [BGNBD, MBGNBD])
def test_a_dataset_without_dropout_is_reported(kind: type[BGNBD]) -> None:
    history = lives(1_500, 0.0, seed=1)
    fit, plain = kind.fit(*history), NBD.fit(*history)
    found = check_dropout(fit, plain, 1_500)
    assert found.verdict == "no_dropout"
    assert found.degenerate
    assert "show no dropout" in found.text
    np.testing.assert_allclose(fit.expected_purchases(*history, 90), plain.expected_purchases(*history, 90), rtol=0.05)


def test_false_alarms_of_dropout_are_rare() -> None:
    found = [
        check_dropout(BGNBD.fit(*h), NBD.fit(*h), 400).verdict for h in (lives(400, 0.0, seed) for seed in range(20))
    ]
    assert found.count("no_dropout") >= 19


def test_a_dataset_with_dropout_passes() -> None:
    history = lives(3_000, 0.2, seed=2)
    found = check_dropout(BGNBD.fit(*history), NBD.fit(*history), float((history[0] > 0).sum()))
    assert found.verdict in ("ok", "boundary")  # every customer has one p: Beta(a, b) is a spike, a and b a ridge
    assert not found.degenerate
    assert found.likelihood_ratio > 104


def test_mixed_dropout_is_measured_and_reported() -> None:
    rng = np.random.default_rng(5)
    parts = [lives(60, p, seed) for seed, p in enumerate(rng.beta(1.0, 4.0, 60))]
    history = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    found = check_dropout(BGNBD.fit(*history), NBD.fit(*history), 3_000)
    assert found.verdict == "ok"
    assert "leave after a purchase" in found.text


def test_too_few_repeat_buyers_are_reported_before_any_other_verdict() -> None:
    history = lives(60, 0.2, seed=3, mean_gap=2_000)
    repeat = float((history[0] > 0).sum())
    assert repeat < 50
    found = check_dropout(MBGNBD.fit(*history), NBD.fit(*history), repeat)
    assert found.verdict == "too_few_repeat_buyers"
    assert f"{repeat:g} customers bought again, fewer than 50" in found.text


def test_fits_of_different_rows_are_refused() -> None:
    history = lives(100, 0.2, seed=4)
    with pytest.raises(ValueError, match="BGNBD was fitted on 100 customers, NBD on 99"):
        check_dropout(BGNBD.fit(*history), NBD.fit(*(column[1:] for column in history)), 90)
