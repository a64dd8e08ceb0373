"""The blend weight: how much of the model is believed; and what a held-out origin may teach."""

from dataclasses import replace

import numpy as np
import pytest

from clv.forecast.adjustment import Adjustment
from clv.forecast.network import forecast_samples
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, Setup
from clv.train.held_out import HeldOut, best_blend_weight, fit_adjustment


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({0.0: 0.0, 0.5: 0.003, 1.0: -0.02}, 0.0),  # not enough to leave the BTYD model
        ({0.0: 0.0, 0.5: -0.01, 1.0: -0.02}, 0.0),
        ({0.0: 0.0, 0.25: 0.02, 0.75: 0.0215, 1.0: 0.0205}, 1.0),  # as good as the best: the model's
        ({0.0: 0.0, 0.25: 0.02, 0.75: 0.0215, 1.0: 0.015}, 0.75),
        ({0.0: 0.0, 0.25: 0.02, 0.75: 0.01, 1.0: 0.0}, 0.25),
    ],
)
def test_the_blend_weight_leaves_the_btyd_model_for_a_gain_and_ties_go_to_the_model(
    gains: dict[float, float], expected: float
) -> None:
    assert best_blend_weight(gains) == expected


def test_the_totals_of_the_held_out_origin_are_left_to_the_level(
    setup: Setup, shop: Dataset, tiny: TrainConfig, cutoff: int
) -> None:
    rows = setup.assembler.assemble(shop.histories, cutoff, known_before=shop.data_through)
    held_out = HeldOut(replace(rows, factor_error=np.full(2, 0.1)), 0)
    raw = forecast_samples(setup.model(tiny), rows.samples, setup.assembler.value_scale)
    keep = held_out.buyers
    low = raw.rescale(raw.hazard / 4, raw.value / 4)  # so low that the origin asks for more
    said = low.blend_with_btyd(rows.base, 1.0, 1.0).p_purchase[keep, 0].mean()
    assert said < 0.6 * (held_out.labels(0)[1][keep] > 0).mean()
    adjustment, outlook = fit_adjustment(held_out, low, (1.0, 1.0))
    assert adjustment.calibration[0].customers == keep.sum()
    assert outlook.forecast.p_purchase[keep, 0].mean() == pytest.approx(said, rel=1e-6)
    assert outlook.forecast.value[keep, 0].sum() == pytest.approx(rows.base.value[keep, 0].sum(), rel=1e-6)


def test_values_drawn_together_are_spread_again_and_the_total_stays(
    setup: Setup, shop: Dataset, tiny: TrainConfig, cutoff: int
) -> None:
    rows = setup.assembler.assemble(shop.histories, cutoff, known_before=shop.data_through)
    held_out = HeldOut(replace(rows, factor_error=np.full(2, 0.1)), 0)
    keep, raw = held_out.buyers, forecast_samples(setup.model(tiny), rows.samples, setup.assembler.value_scale)
    close = raw.rescale(raw.hazard, rows.base.value**0.6)
    adjustment, outlook = fit_adjustment(held_out, close, (1.0, 1.0))
    after = outlook.forecast.value[keep, 0]
    assert adjustment.slope > 1.01
    assert Adjustment.from_json(adjustment.to_json()).slope == adjustment.slope
    assert np.log(after) == pytest.approx(
        adjustment.slope * np.log(close.value[keep, 0]) + np.log(adjustment.scale[0]), rel=1e-9
    )
    assert after.sum() == pytest.approx(rows.base.value[keep, 0].sum(), rel=1e-6)
