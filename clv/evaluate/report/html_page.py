"""HTML report: one self-contained page with the quality of the forecasts, compared with the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from clv.evaluate import metrics
from clv.evaluate.bootstrap import interval
from clv.evaluate.report import charts, verdict
from clv.evaluate.report.findings import Findings, compare_over_origins
from clv.forecast.distributions import Prediction

TEMPLATE = Path(__file__).with_name("report.html.j2")
SYMBOLS = {"GBP": "£", "USD": "$", "EUR": "€", "JPY": "¥", "CNY": "¥", "INR": "₹"}
COLUMNS = {
    "ngini": ("nGini", "ranking by value, 1 = perfect"),
    "spearman": ("Spearman", "rank correlation"),
    "auc": ("AUC", "who buys again, 1 = perfect"),
    "mae_over_mean": ("MAE", "mean error / mean spend, 0 = perfect"),
    "rmse_over_mean": ("RMSE", "as MAE, with more weight on large errors"),
    "bias": ("Total", "predicted / actual, 1 = right"),
    "decile_mape": ("Decile MAPE", "relative error by tenth, 0 = perfect; – where a tenth spent nothing"),
    "top_decile_capture": ("Top 10 %", "share of spend by the best tenth"),
    "crps": ("CRPS", "error of the distribution, in currency"),
    "pit80": ("Coverage", "of the 80 % interval, should be 0.80"),
}


def metrics_json(found: Sequence[Findings]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """The content of metrics.json: origin -> horizon -> model -> metric -> number, or {"not_run": reason}."""
    out: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for f in found:
        models = {name: dict(values) for name, values in f.metrics.items()}
        out.setdefault(f.panel.origin, {})[str(f.panel.horizon_days)] = models
    return out


def details_json(found: Sequence[Findings]) -> dict[str, dict[str, dict[str, Any]]]:
    """The content of details.json: origin -> horizon -> advice, sufficiency, uncertainty, one-order customers, ..."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for f in found:
        out.setdefault(f.panel.origin, {})[str(f.panel.horizon_days)] = f.to_json()
    return out


def format_amount(amount: float, currency: str | None) -> str:
    """Text of an amount: £1,234 or £12.50, with decimals only below 100; a plain number without a currency."""
    text = f"{amount:,.2f}" if abs(amount) < 100 else f"{amount:,.0f}"
    if not currency:
        return text
    return f"{SYMBOLS[currency]}{text}" if currency in SYMBOLS else f"{text} {currency}"


def render(
    found: Sequence[Findings],
    *,
    title: str,
    currency: str | None = None,
    notices: Sequence[str] = (),
    seed: int = 0,
    churn_threshold: float = 0.5,
) -> str:
    """The page as text. It loads nothing from the network; most of its 5 MB is plotly's script.

    `currency` is an ISO code, `notices` are shown at the top, `seed` is that of the randomised PIT, and customers count
    as leaving where the probability of no purchase is at least `churn_threshold`. Without findings the page holds the
    notices alone.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["amount"] = lambda amount: format_amount(float(amount), currency)
    environment.filters["number"] = _number
    sections = [_section(i, f, currency or "shop currency", seed, churn_threshold) for i, f in enumerate(found)]
    together = compare_over_origins(found) if len(found) > 1 and len({f.panel.horizon_days for f in found}) == 1 else ()
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return page.render(
        title=title,
        sections=sections,
        together=together,
        advice=verdict.recommendation(together) if together else "",
        notices=notices,
        columns=COLUMNS,
        model=found[0].model if found else "",
        plotly=Markup(get_plotlyjs()) if found else "",
    )


def _section(number: int, f: Findings, unit: str, seed: int, threshold: float) -> dict[str, Any]:
    panel, model, models = f.panel, f.model, f.panel.models()
    y, orders, ours = np.asarray(panel.y, float), np.asarray(panel.orders, float), models[model]
    scores = {name: float(np.nan_to_num(r["ngini"][0], nan=-1.0)) for name, r in f.replicates.items()}
    shown = charts.charted_models(model, scores, ("bgnbd_gg", "past_spend"))
    cohort = np.repeat("all customers", len(y)) if panel.cohort is None else panel.cohort
    names = {name: verdict.model_label(name) for name in panel.predictions}
    one_order = panel.one_order()

    def rows(values: Mapping[str, Any]) -> list[tuple[str, bool, Any]]:
        """Rows of the template's table of models: name, whether it is our model, and its numbers."""
        return [(verdict.model_label(name), name == model, found) for name, found in values.items()]

    return {
        "id": f"s{number}",
        "findings": f,
        "origin": panel.origin,
        "horizon": panel.horizon_days,
        "customers": len(y),
        "buyers": int(np.sum(orders > 0)),
        "actual": float(y.sum()),
        "predicted": float(ours.value.sum()),
        "bias": f.metrics[model]["bias"],
        "capture": f.metrics[model]["top_decile_capture"],
        "metric_rows": _metric_rows(f, scores, names),
        "churn": metrics.churn_report(orders, ours.p_purchase, threshold) if ours.p_purchase is not None else None,
        "uncertainty": rows(f.uncertainty),
        "coverage": verdict.coverage_sentence(f.uncertainty[model]) if model in f.uncertainty else "",
        "one_order": {
            "customers": int(one_order.sum()),
            "buyers": int(np.sum(orders[one_order] > 0)),
            "rows": rows(f.one_order),
        },
        "visitor_rows": [] if f.visitors is None else rows(f.visitors.models),
        "lift": Markup(charts.lift(f"lift{number}", y, {n: models[n] for n in shown}, names)),
        "deciles": Markup(charts.deciles(f"deciles{number}", y, ours, unit)),
        "cohorts": Markup(charts.cohorts(f"cohorts{number}", y, ours, cohort, unit)),
        "cohort_rows": cohort_rows(cohort, y, orders, ours),
        "distribution": Markup(charts.value_distribution(f"values{number}", y, ours, unit)),
        "pit": Markup(charts.pit(f"pit{number}", y, ours, seed)),
    }


def cohort_rows(cohort: Any, y: Any, orders: Any, ours: Prediction) -> list[dict[str, Any]]:
    """Per acquisition cohort, oldest first: customers, mean value and share of buyers, predicted and actual."""
    return [
        {
            "name": str(name),
            "customers": int(some.sum()),
            "predicted": float(np.mean(ours.value[some])),
            "actual": float(np.mean(y[some])),
            "chance": None if ours.p_purchase is None else float(np.mean(ours.p_purchase[some])),
            "bought": float(np.mean(orders[some] > 0)),
        }
        for name in np.unique(cohort)
        for some in [np.asarray(cohort) == name]
    ]


def _number(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _metric_rows(f: Findings, scores: Mapping[str, float], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the metrics table, best nGini first, baselines that did not run last.

    A cell has the interval, `best` (best of its column) and `mark`: significantly "better" or "worse" than our model.
    """
    replicates, model = f.replicates, f.model
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
            mark = ""
            if name != model and metric in replicates[model]:
                ahead = verdict.gain(metric, [(replicates[model], replicates[name])])
                mark = "worse" if ahead.low > 0 else "better" if ahead.high < 0 else ""
            own = interval(replicates[name][metric])
            cells.append({"interval": own, "mark": mark, "best": best.get(metric) == name})
        rows.append({"model": name, "name": names[name], "cells": cells, "not_run": None})
    not_run = {n: p for n, p in f.panel.predictions.items() if not isinstance(p, Prediction)}
    return rows + [
        {"model": name, "name": names[name], "cells": [], "not_run": p.get("not_run", "no reason given")}
        for name, p in not_run.items()
    ]
