import pytest

from clv.evaluate import leakage


def test_results_far_above_every_baseline_are_suspicious() -> None:
    baselines = {
        "bgnbd_gg": {"ngini": 0.855, "auc": 0.82, "mae_over_mean": 0.84},
        "seasonal_naive": {"not_run": "short"},
    }
    good = {"clv": {"ngini": 0.875, "auc": 0.84, "mae_over_mean": 0.79, "crps": None}}
    leak = {"clv": {"ngini": 0.99, "auc": 0.84, "mae_over_mean": 0.3}}
    assert not leakage.too_good(baselines | good).suspicious
    found = leakage.too_good(baselines | leak)
    assert found.suspicious
    assert any("bgnbd_gg" in reason and "ngini" in reason for reason in found.reasons)
    with pytest.raises(ValueError, match="no metrics of model 'clv'"):
        leakage.too_good(baselines)
