"""The policy of a rollout refuses what contradicts itself."""

import math
from typing import Any

import pytest

from clv.serve.rollout.policy import RolloutPolicy


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"canary_share": 0.1, "shadow_share": 0.1}, "two rollouts: give one of canary_share and shadow_share"),
        ({"deadline_s": 0}, "deadline_s must be above 0"),
        ({"watch_s": -1}, r"watch_s at least 0, .*, not 300, 60, -1 and 0\.01"),
        ({"error_share": 1}, r"error_share within \[0, 1\)"),
        ({"max_total_change": -0.1}, r"max_total_change must be at least 0, not -0\.1"),
        ({"max_total_change": float("nan")}, "max_total_change must be at least 0, not nan"),
    ],
)
def test_an_impossible_policy_is_refused_with_its_values(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutPolicy(**wrong)


@pytest.mark.parametrize(
    ("ratio", "tolerated"), [(1.0, True), (1.5, True), (1.51, False), (0.67, True), (0.66, False), (math.nan, False)]
)
def test_a_total_may_grow_or_shrink_by_the_same_factor(ratio: float, tolerated: bool) -> None:
    assert RolloutPolicy(max_total_change=0.5).tolerates(ratio) is tolerated
