import numpy as np
import pandas as pd
import pytest
import torch

from clv.evaluate.baselines.inputs import Context, NotRun
from clv.evaluate.baselines.ziln import ziln_mlp
from tests.evaluate.baselines.frames import H


def test_the_network_has_a_hurdle_distribution_and_leaves_the_random_state(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train, test = data
    before = torch.get_rng_state()
    found = ziln_mlp(train, test, H, 1, Context())
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(found.value, ziln_mlp(train, test, H, 1, Context()).value)
    assert not np.array_equal(found.value, ziln_mlp(train, test, H, 2, Context()).value)
    assert found.p_purchase is not None
    assert found.quantiles is not None
    assert found.p_purchase == pytest.approx(1 - found.quantiles.p_zero)
    assert np.corrcoef(found.p_purchase, test[f"orders_{H}"] > 0)[0, 1] > 0.3
    assert found.value.max() <= train[f"value_{H}"].max()


def test_a_network_needs_customers_who_spent(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    train, test = data
    with pytest.raises(NotRun, match="no training customer spent anything in the horizon"):
        ziln_mlp(train.assign(**{f"value_{H}": 0.0}), test, H, 1, Context())
