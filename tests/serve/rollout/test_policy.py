"""The policy of a rollout refuses what contradicts itself."""

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
    ],
)
def test_an_impossible_policy_is_refused_with_its_values(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutPolicy(**wrong)
