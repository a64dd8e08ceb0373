"""Evaluation part of the model card (Markdown), from the same findings as the HTML report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clv.evaluate.report import verdict
from clv.evaluate.report.findings import Findings, compare_over_origins

SHOWN = ("ngini", "spearman", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape", "crps", "pit80")


def evaluation_lines(found: Sequence[Findings]) -> list[str]:
    """Lines of Markdown: the recommendation, a sentence per baseline, sufficiency of the data, metrics, coverage.

    Several origins of one horizon are compared together first, then each has its own section.
    """
    if not found:
        return ["The log is too short to hold out a past origin, so the quality of these forecasts is unknown."]
    together = compare_over_origins(found)
    origins = ", ".join(f.panel.origin for f in found)
    lines = [
        f"Evaluated at {origins}, {found[0].panel.horizon_days} days ahead; the models used no data after the origin.",
        "",
        f"**{verdict.recommendation(together)}**",
        "",
        *(f"- {c.sentence}" for c in together),
        "",
    ]
    for f in found:
        lines += _origin_section(f)
    return lines


def _origin_section(f: Findings) -> list[str]:
    panel, buyers = f.panel, (f.panel.orders > 0).sum()
    lines = [
        f"## {panel.origin}: {len(panel.y):,} customers, {buyers:,} bought in {panel.horizon_days} days",
        "",
        f"Data: **{f.sufficiency.grade}**. {'; '.join(f.sufficiency.reasons)}.",
        "",
        *_table(f.metrics),
        "",
    ]
    if f.model in f.uncertainty:
        lines += [verdict.coverage_sentence(f.uncertainty[f.model]), ""]
    if f.one_order:
        heading = f"Customers with one order before the origin ({panel.one_order().sum():,}):"
        lines += [heading, "", *_table(f.one_order), ""]
        worse = [f"- {c.sentence}" for c in f.one_order_comparisons if c.balance < 0]
        lines += [*worse, ""] if worse else []
    if v := f.visitors:
        lines += [f"Visitors ({v.visitors:,}, {v.buyers:,} of them bought): {v.sentence}", ""]
    return lines


def _table(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| model | " + " | ".join(SHOWN) + " |", "|---|" + "---|" * len(SHOWN)]
    for name, values in models.items():
        if "not_run" in values:
            lines.append(f"| {name} | not run: {values['not_run']} |" + " |" * (len(SHOWN) - 1))
            continue
        cells = [f"{values[m]:.3f}" if values.get(m) is not None else "–" for m in SHOWN]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    undefined = [name for name, values in models.items() if "not_run" not in values and values["decile_mape"] is None]
    if undefined:
        names = ", ".join(undefined)
        lines += ["", f"The decile MAPE of {names} is undefined: a tenth of the customers spent nothing."]
    return lines
