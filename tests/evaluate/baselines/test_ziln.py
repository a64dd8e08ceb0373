import numpy as np
import pandas as pd
import pytest
import torch

from clv.evaluate.baselines.inputs import Context, NotRun
from clv.evaluate.baselines.ziln import ziln_mlp
from tests.evaluate.baselines.frames import H
from tests.evaluate.baselines.lognormal import spread_and_mean


def test_the_network_has_a_hurdle_distribution_and_leaves_the_random_state(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train, test = data
    before = torch.get_rng_state()
    found = ziln_mlp(train, test, H, 1, Context())
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.array_equal(found.value, ziln_mlp(train, test, H, 2, Context()).value)
    assert found.p_purchase is not None
    assert found.quantiles is not None
    assert found.p_purchase == pytest.approx(1 - found.quantiles.p_zero)
    assert np.corrcoef(found.p_purchase, test[f"orders_{H}"] > 0)[0, 1] > 0.3
    likely = found.p_purchase > 0.1
    mean, limit = spread_and_mean(found.quantiles, likely)[1], train[f"value_{H}"].max()
    assert found.value[likely] == pytest.approx(np.minimum(mean, found.p_purchase[likely] * limit))
    # With the same seed the forecast is the same, in a currency of tiny values as well.
    scaled = ziln_mlp(train.assign(**{f"value_{H}": 1e-4 * train[f"value_{H}"]}), test, H, 1, Context())
    assert scaled.value == pytest.approx(1e-4 * found.value, rel=1e-3)


def test_a_network_needs_customers_who_spent(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    train, test = data
    with pytest.raises(NotRun, match="no training customer spent anything in the horizon"):
        ziln_mlp(train.assign(**{f"value_{H}": 0.0}), test, H, 1, Context())
