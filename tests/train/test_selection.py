"""The gate: how much of the model is believed."""

import pytest

from clv.train.selection import best_gate


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({0.0: 0.0, 0.5: 0.003, 1.0: -0.02}, 0.0),  # not enough to leave the anchor
        ({0.0: 0.0, 0.5: -0.01, 1.0: -0.02}, 0.0),
        ({0.0: 0.0, 0.25: 0.02, 0.75: 0.0215, 1.0: 0.0205}, 1.0),  # as good as the best: the model's
        ({0.0: 0.0, 0.25: 0.02, 0.75: 0.0215, 1.0: 0.015}, 0.75),
        ({0.0: 0.0, 0.25: 0.02, 0.75: 0.01, 1.0: 0.0}, 0.25),
    ],
)
def test_the_gate_leaves_the_anchor_for_a_gain_and_ties_go_to_the_model(
    gains: dict[float, float], expected: float
) -> None:
    assert best_gate(gains) == expected
