"""One self-contained HTML page that tells a marketing person how good the model is, against what, and how sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from clv.evaluate import charts, leaks, metrics, verdict
from clv.evaluate.bootstrap import bootstrap, interval
from clv.evaluate.prediction import Array, Prediction

TEMPLATE = Path(__file__).with_name("report.html.j2")
SYMBOLS = {"GBP": "£", "USD": "$", "EUR": "€", "JPY": "¥", "CNY": "¥", "INR": "₹"}
COLUMNS = {
    "ngini": ("nGini", "ranking by value, 1 = perfect"),
    "spearman": ("Spearman", "rank correlation"),
    "auc": ("AUC", "who buys again, 1 = perfect"),
    "mae_over_mean": ("MAE", "mean error ÷ mean spend, 0 = perfect"),
    "rmse_over_mean": ("RMSE", "like MAE, big misses count more"),
    "bias": ("Total", "predicted ÷ realised, 1 = right"),
    "decile_mape": ("Decile MAPE", "level by group, 0 = perfect"),
    "top_decile_capture": ("Top 10 %", "share of spend in the best tenth"),
    "crps": ("CRPS", "error of the whole forecast, in currency"),
    "pit80": ("PIT 80 %", "should be 0.80"),
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One origin and horizon: what happened and what every model said, arrays (n,) over the same customers.

    `origin` is a date text, `cohort` any labels of the acquisition period, `predictions` a Prediction per model or
    {"not_run": reason}; `log_days` the days of data before the origin, if known.
    """

    origin: str
    horizon_days: int
    y: Array
    orders: Array
    predictions: Mapping[str, Prediction | Mapping[str, str]]
    cohort: Any = None
    log_days: int | None = None

    def models(self) -> dict[str, Prediction]:
        """The models that ran."""
        return {name: p for name, p in self.predictions.items() if isinstance(p, Prediction)}


def metrics_of(panels: Sequence[Panel], seed: int = 0) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """The content of metrics.json: origin -> horizon -> model -> metric -> number, or {"not_run": reason}."""
    out: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for panel in panels:
        found: dict[str, dict[str, Any]] = {}
        for name, p in panel.predictions.items():
            ran = isinstance(p, Prediction)
            found[name] = dict(metrics.evaluate(panel.y, panel.orders, p, seed)) if ran else dict(p)  # type: ignore[arg-type]
        out.setdefault(panel.origin, {})[str(panel.horizon_days)] = found
    return out


def money(amount: float, currency: str | None) -> str:
    """An amount for people: £1,234, 12.5 after the point only under 100; without a currency a plain number."""
    text = f"{amount:,.2f}" if abs(amount) < 100 else f"{amount:,.0f}"
    if not currency:
        return text
    return f"{SYMBOLS[currency]}{text}" if currency in SYMBOLS else f"{text} {currency}"


def render(
    panels: Sequence[Panel],
    *,
    title: str,
    currency: str | None = None,
    model: str = "clv",
    draws: int = 1000,
    seed: int = 0,
    churn_threshold: float = 0.5,
) -> str:
    """The page as text. It loads nothing from anywhere; its size is mostly plotly's script, about 5 MB."""
    for panel in panels:
        if model not in panel.models():
            raise ValueError(f"origin {panel.origin}, horizon {panel.horizon_days}: no prediction of model {model!r}")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["money"] = lambda amount: money(float(amount), currency)
    sections = [_section(i, p, model, currency, draws, seed, churn_threshold) for i, p in enumerate(panels)]
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return page.render(title=title, sections=sections, columns=COLUMNS, model=model, plotly=Markup(get_plotlyjs()))


def write(path: Path, panels: Sequence[Panel], **options: Any) -> Path:
    """Write `render(panels, **options)` to a file, UTF-8; returns the path."""
    path.write_text(render(panels, **options), encoding="utf-8")
    return path


def _section(
    number: int, panel: Panel, model: str, currency: str | None, draws: int, seed: int, threshold: float
) -> dict[str, Any]:
    y, orders = np.asarray(panel.y, float), np.asarray(panel.orders, float)
    models = panel.models()
    ours = models[model]
    replicates = bootstrap(y, orders, models, draws, seed)
    scores = {name: float(np.nan_to_num(r["ngini"][0], nan=-1.0)) for name, r in replicates.items()}
    comparisons = [verdict.compare(n, replicates[model], r) for n, r in replicates.items() if n != model]
    unit = currency or "shop currency"
    shown = charts.chosen(model, scores, ("bgnbd_gg", "past_spend"))
    cohort = np.repeat("all customers", len(y)) if panel.cohort is None else panel.cohort
    found = metrics_of([panel], seed)[panel.origin][str(panel.horizon_days)]
    names = {name: verdict.label(name) for name in panel.predictions}
    ranking = interval(replicates[model]["ngini"])
    return {
        "id": f"s{number}",
        "origin": panel.origin,
        "horizon": panel.horizon_days,
        "customers": len(y),
        "buyers": int(np.sum(orders > 0)),
        "realised": float(y.sum()),
        "predicted": float(ours.value.sum()),
        "bias": found[model]["bias"],
        "capture": found[model]["top_decile_capture"],
        "sufficiency": verdict.sufficiency(orders, panel.horizon_days, panel.log_days, ranking),
        "comparisons": comparisons,
        "best": _recommendation(comparisons),
        "ladder": _ladder(panel, model, replicates, scores, names),
        "leak": leaks.too_good(found, model) if len(models) > 1 else None,
        "churn": metrics.churn_report(orders, ours.p_purchase, threshold) if ours.p_purchase is not None else None,
        "lift": Markup(charts.lift(f"lift{number}", y, {n: models[n] for n in shown}, names)),
        "deciles": Markup(charts.deciles(f"deciles{number}", y, ours, unit)),
        "cohorts": Markup(charts.cohorts(f"cohorts{number}", y, ours, cohort, unit)),
        "distribution": Markup(charts.value_distribution(f"values{number}", y, ours, unit)),
        "pit": Markup(charts.pit(f"pit{number}", y, ours, seed)),
    }


def _recommendation(comparisons: Sequence[verdict.Comparison]) -> str:
    worse = [c for c in comparisons if c.outcome == "worse"]
    if not comparisons:
        return "No other model ran, so there is nothing to compare with."
    if worse:
        best = max(worse, key=lambda c: len(c.losses) - len(c.gains))
        return f"Use {verdict.label(best.peer)} here: significantly better than this model on more measures than worse."
    better = sum(c.outcome == "better" for c in comparisons)
    return f"Use this model: on balance better than {better} of {len(comparisons)} alternatives, worse than none."


def _ladder(
    panel: Panel,
    model: str,
    replicates: Mapping[str, Mapping[str, Array]],
    scores: Mapping[str, float],
    names: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Rows of the table, best nGini first: value, interval and whether it differs from ours; not-run models last."""
    best: dict[str, str] = {}
    for metric in COLUMNS:
        known = {n: float(verdict.distance(metric, r[metric])[0]) for n, r in replicates.items() if metric in r}
        known = {n: d for n, d in known.items() if np.isfinite(d)}
        if len(known) > 1:
            best[metric] = min(known, key=lambda n: known[n])
    rows: list[dict[str, Any]] = []
    for name in sorted(replicates, key=lambda n: (-scores[n], n)):
        cells: list[dict[str, Any] | None] = []
        for metric in COLUMNS:
            if metric not in replicates[name] or not np.isfinite(replicates[name][metric][0]):
                cells.append(None)
                continue
            own = interval(replicates[name][metric])
            mark = ""
            if name != model and metric in replicates[model]:
                ahead = verdict.gain(metric, replicates[model], replicates[name])
                mark = "worse" if ahead.low > 0 else "better" if ahead.high < 0 else ""
            cells.append({"interval": own, "mark": mark, "best": best.get(metric) == name})
        rows.append({"model": name, "name": names[name], "cells": cells, "not_run": None})
    for name, p in panel.predictions.items():
        if not isinstance(p, Prediction):
            rows.append(
                {"model": name, "name": names[name], "cells": [], "not_run": p.get("not_run", "no reason given")}
            )
    return rows
