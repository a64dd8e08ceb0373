import numpy as np
import pandas as pd
import pytest

from clv.btyd.models import BTYDModel
from clv.evaluate.baselines.btyd import bgnbd_gg, mbgnbd_gg
from clv.evaluate.baselines.inputs import Context
from tests.evaluate.baselines.frames import H


@pytest.mark.parametrize(("baseline", "kind"), [(bgnbd_gg, "bgnbd"), (mbgnbd_gg, "mbgnbd")])
def test_the_baseline_is_the_btyd_model_of_the_test_origin(
    baseline, kind: str, data: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    _, test = data
    found = baseline(test.iloc[:0], test, H, 0, Context())
    expected = BTYDModel.fit(test, kind=kind).predict(test, H)
    assert np.array_equal(found.value, expected["value"])
    assert np.array_equal(found.p_purchase, expected["p_purchase"])
    assert found.quantiles is not None
    assert found.quantiles.mean().sum() == pytest.approx(found.value.sum(), rel=0.1)
