"""Findings of one panel: metrics, comparisons and coverage, computed once for card, report and details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clv.evaluate import leakage, metrics, probabilistic
from clv.evaluate.bootstrap import Interval, bootstrap, interval
from clv.evaluate.panel import Panel, Visitors
from clv.evaluate.report import verdict
from clv.evaluate.report.verdict import MetricComparison, Replicates, Sufficiency
from clv.forecast import distributions, portfolio
from clv.forecast.distributions import Array, Prediction

NEAR_CERTAIN = 0.9  # purchase probability above which the plain coverage of the 80 % interval should be 80 %
PINBALL_LEVELS = (0.1, 0.5, 0.9)
MIN_GROUP = 30  # customers or visitors, below which a group is not evaluated separately


@dataclass(frozen=True, kw_only=True)
class VisitorFindings:
    """Visitors: metrics per model, and a sentence that compares our model with the conversion baseline."""

    visitors: int
    buyers: int
    models: Mapping[str, Mapping[str, float | None]]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Evaluation of `model` on one panel; `replicates` are those of the paired bootstrap."""

    panel: Panel
    model: str
    metrics: Mapping[str, Mapping[str, Any]]
    replicates: Mapping[str, Replicates]
    comparisons: tuple[MetricComparison, ...]
    advice: str
    sufficiency: Sufficiency
    leak: leakage.LeakageFinding | None
    uncertainty: Mapping[str, Mapping[str, float | None]]
    cells: Mapping[str, Mapping[str, float]]
    one_order: Mapping[str, Mapping[str, Any]]
    one_order_comparisons: tuple[MetricComparison, ...]
    visitors: VisitorFindings | None

    def to_json(self) -> dict[str, Any]:
        """The content of details.json for this panel, plain JSON values: all that metrics.json does not hold."""
        return {
            "advice": self.advice,
            "sufficiency": asdict(self.sufficiency),
            "against": {c.baseline: _comparison_json(c) for c in self.comparisons},
            "uncertainty": {name: dict(found) for name, found in self.uncertainty.items()},
            "uncertainty_by_cell": {name: _finite(found) for name, found in self.cells.items()},
            "one_order": {
                "customers": int(self.panel.one_order().sum()),
                "models": {name: dict(found) for name, found in self.one_order.items()},
                "against": {c.baseline: _comparison_json(c) for c in self.one_order_comparisons},
            },
            "visitors": None if self.visitors is None else asdict(self.visitors),
        }


def evaluate_panel(panel: Panel, *, model: str = "clv", draws: int = 1000, seed: int = 0) -> Findings:
    """Findings of `model` on one panel, with `draws` bootstrap draws. Raises ValueError where `model` did not run."""
    models = panel.models()
    if model not in models:
        raise ValueError(f"origin {panel.origin}, horizon {panel.horizon_days}: no prediction of model {model!r}")
    y, orders = np.asarray(panel.y, float), np.asarray(panel.orders, float)
    replicates = bootstrap(y, orders, models, draws, seed)
    comparisons = _comparisons(model, replicates)
    found = {
        name: dict(metrics.evaluate(y, orders, p, seed)) if isinstance(p, Prediction) else dict(p)
        for name, p in panel.predictions.items()
    }
    once = panel.one_order()
    # Customers with one order are evaluated separately, unless they are too few.
    part = {} if once.sum() < MIN_GROUP else {name: p.take(once) for name, p in models.items()}
    again = None if panel.orders_past is None else int(np.sum(np.asarray(panel.orders_past) > 1))
    ranking = interval(replicates[model]["ngini"])
    return Findings(
        panel=panel,
        model=model,
        metrics=found,
        replicates=replicates,
        comparisons=comparisons,
        advice=verdict.recommendation(comparisons),
        sufficiency=verdict.sufficiency(orders, panel.horizon_days, panel.log_days, ranking, again),
        leak=leakage.too_good(found, model) if len(models) > 1 else None,
        uncertainty={name: _uncertainty(y, p, seed) for name, p in models.items() if p.quantiles is not None},
        cells=_cells(panel, models[model], seed),
        one_order={name: metrics.evaluate(y[once], orders[once], p, seed) for name, p in part.items()},
        one_order_comparisons=_comparisons(model, bootstrap(y[once], orders[once], part, draws, seed)),
        visitors=None if panel.visitors is None else _visitors(panel.visitors, model, draws, seed),
    )


def compare_over_origins(found: Sequence[Findings]) -> tuple[MetricComparison, ...]:
    """Comparison of our model with every baseline that ran at all origins, by the mean over the origins."""
    names = [n for n in found[0].replicates if n != found[0].model and all(n in f.replicates for f in found)]
    return tuple(verdict.compare(n, [(f.replicates[f.model], f.replicates[n]) for f in found]) for n in names)


def _comparisons(model: str, replicates: Mapping[str, Replicates]) -> tuple[MetricComparison, ...]:
    return tuple(verdict.compare(n, [(replicates[model], r)]) for n, r in replicates.items() if n != model)


def _uncertainty(y: Array, p: Prediction, seed: int) -> dict[str, float | None]:
    """CRPS, pinball losses and width in currency, and coverages of the 80 % interval with their numbers of cases.

    None where undefined.
    """
    assert p.quantiles is not None
    q = p.quantiles
    certain = np.zeros(len(y), bool) if p.p_purchase is None else p.p_purchase > NEAR_CERTAIN
    out = {"crps": float(probabilistic.crps(y, q).mean()) if len(y) else float("nan")}
    for level in PINBALL_LEVELS:
        out[f"pinball_{level:g}"] = float(probabilistic.pinball(y, q.quantile(level)[:, 0], level).mean())
    out["customers"] = float(len(y))
    out["pit80"] = probabilistic.pit80(distributions.pit(y, q, seed))
    out["width"] = probabilistic.coverage_and_width(y, q)[1]
    out["near_certain_customers"] = float(certain.sum())
    out["near_certain_coverage"] = probabilistic.coverage_and_width(y[certain], q.take(certain))[0]
    out["sums_coverage"] = portfolio.group_coverage(y, p, seed=seed)
    out["sums_groups"] = float(len(y) // portfolio.GROUP)
    return _finite(out)


def _cells(panel: Panel, ours: Prediction, seed: int) -> dict[str, dict[str, float]]:
    if panel.cell is None or ours.quantiles is None:
        return {}
    found = probabilistic.by_cell(panel.y, ours.quantiles, panel.cell, seed)
    return {name: f for name, f in found.items() if f["customers"] >= MIN_GROUP}


def _visitors(v: Visitors, model: str, draws: int, seed: int) -> VisitorFindings | None:
    if len(v.y) == 0:
        return None
    hit = np.asarray(v.orders, float) > 0
    replicates = bootstrap(v.y, v.orders, v.predictions, draws, seed)
    numbers = {}
    for name, p in v.predictions.items():
        chance = metrics.purchase_score(p)
        found = {
            "auc": metrics.auc(hit, chance),
            "ngini": metrics.ngini(v.y, p.value),
            "conversion_bias": metrics.bias(hit.astype(float), chance),
            "calibration_error": metrics.calibration_error(hit, chance),
            "bias": metrics.bias(v.y, p.value),
        }
        numbers[name] = _finite(found)
    sentence = f"{int(hit.sum())} of {len(hit):,} visitors bought: too few to compare the models."
    if len(hit) >= MIN_GROUP and 10 <= hit.sum() < len(hit) and "conversion" in replicates:
        sentence = _against_conversion(verdict.gain("auc", [(replicates[model], replicates["conversion"])]))
    return VisitorFindings(visitors=len(hit), buyers=int(hit.sum()), models=numbers, sentence=sentence)


def _against_conversion(ahead: Interval) -> str:
    facts = f"{ahead.estimate:+.3f} AUC (95 % interval {ahead.low:+.3f} to {ahead.high:+.3f})"
    if ahead.low > 0:
        return f"This model ranks the visitors who will buy significantly better than the conversion baseline: {facts}."
    if ahead.high < 0:
        return f"The conversion baseline ranks the visitors who will buy significantly better than this model: {facts}."
    return f"This model and the conversion baseline rank the visitors equally well: {facts}, not significant."


def _comparison_json(c: MetricComparison) -> dict[str, Any]:
    lead = _finite(asdict(c.lead))
    return {"outcome": c.outcome, "gains": c.gains, "losses": c.losses, "lead": lead, "sentence": c.sentence}


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}
