"""Leakage check: results that are too good are reported as a suspected leak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A model that removes more than this share of the best baseline's remaining error is suspected of a leak.
SUSPICIOUS_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class LeakageFinding:
    """Whether results look like a leak, and the reasons for people."""

    suspicious: bool
    reasons: tuple[str, ...]


def too_good(
    metrics: Mapping[str, Mapping[str, Any]], model: str = "clv", share: float = SUSPICIOUS_SHARE
) -> LeakageFinding:
    """Compare `model` with the best baseline of one origin and horizon; `metrics` is model -> metric -> number.

    A model is suspicious that removes more than `share` of the best baseline's remaining error in ranking (nGini, AUC,
    Spearman, distance from 1) or in size (MAE, RMSE, CRPS, distance from 0): real progress over fitted baselines is a
    few per cent. Raises ValueError where `metrics` has no such model.
    """
    if model not in metrics:
        raise ValueError(f"no metrics of model {model!r}; there are {list(metrics)}")
    reasons = []
    for metric in ("ngini", "auc", "spearman", "mae_over_mean", "rmse_over_mean", "crps"):
        ideal = 1 if metric in ("ngini", "auc", "spearman") else 0
        rest = {name: abs(m[metric] - ideal) for name, m in metrics.items() if m.get(metric) is not None}
        remainder = rest.pop(model, None)
        if remainder is None or not rest:
            continue
        best = min(rest, key=lambda name: rest[name])
        if rest[best] > 0 and remainder < (1 - share) * rest[best]:
            ours, theirs = (metrics[name][metric] for name in (model, best))
            reasons.append(
                f"{metric} is {ours:.3g} against {theirs:.3g} of the best baseline, {best}: the model removes "
                f"{1 - remainder / rest[best]:.0%} of its remaining error, more than {share:.0%}; look for data after "
                "the origin in the features or in the choice of customers"
            )
    return LeakageFinding(suspicious=bool(reasons), reasons=tuple(reasons))
