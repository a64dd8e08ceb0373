"""The policy of a rollout: canary or shadow, how long failures are watched, and which ones roll the bundle back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RolloutPolicy:
    """How a bundle is rolled out. Contradictory or impossible settings are refused."""

    canary_share: float = 0.0
    """Share of requests that the new bundle answers first, for candidate_s seconds."""
    shadow_share: float = 0.0
    """Share of requests that the new bundle computes beside the bundle in production, for candidate_s seconds and for
    comparison only."""
    candidate_s: float = 60.0
    """Seconds of the canary or shadow."""
    watch_s: float = 30.0
    """Seconds for which failures are watched after the promotion."""
    deadline_s: float = 300.0
    """Seconds within which every replica must load the bundle."""
    error_share: float = 0.01
    """Tolerated increase of the share of failed answers."""
    min_errors: int = 3
    """Fewer failures than these are always tolerated."""
    max_total_change: float = 0.5
    """A bundle whose totals differ by a larger factor than 1 + this from those in production is not promoted."""

    def __post_init__(self) -> None:
        if self.canary_share and self.shadow_share:
            raise ValueError("a canary and a shadow are two rollouts: give one of canary_share and shadow_share")
        if self.deadline_s <= 0 or min(self.candidate_s, self.watch_s) < 0 or not 0 <= self.error_share < 1:
            raise ValueError(
                "deadline_s must be above 0, candidate_s and watch_s at least 0, error_share within [0, 1), "
                f"not {self.deadline_s:g}, {self.candidate_s:g}, {self.watch_s:g} and {self.error_share:g}"
            )
        if not self.max_total_change >= 0:
            raise ValueError(f"max_total_change must be at least 0, not {self.max_total_change:g}")

    def tolerates(self, ratio: float) -> bool:
        """Returns whether max_total_change allows a total of `ratio` times the total in production; false for NaN."""
        limit = 1 + self.max_total_change
        return 1 / limit <= ratio <= limit
