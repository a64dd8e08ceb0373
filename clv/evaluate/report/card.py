"""The card: a model in plain words (Markdown), from the same findings as the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clv.evaluate.report import verdict
from clv.evaluate.report.findings import Findings, over_origins

SHOWN = ("ngini", "spearman", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape", "crps", "pit80")


def judgement(found: Sequence[Findings]) -> list[str]:
    """Lines of Markdown: what to use, a sentence per baseline, whether the data suffice, tables, bands.

    Several origins of one horizon are told together, then each in a table of its own.
    """
    if not found:
        return ["No past origin could be held out: the log is too short to say how good these numbers are."]
    together = over_origins(found)
    advice = verdict.recommendation(together) if len(found) > 1 else found[0].advice
    places = ", ".join(f.panel.origin for f in found)
    lines = [
        f"Judged at {places}, {found[0].panel.horizon_days} days ahead, by models that knew nothing after it.",
        "",
        f"**{advice}**",
        "",
        *(f"- {c.sentence}" for c in (together if len(found) > 1 else found[0].comparisons)),
        "",
    ]
    for f in found:
        lines += _origin(f)
    return lines


def _origin(f: Findings) -> list[str]:
    panel = f.panel
    buyers = int((panel.orders > 0).sum())
    lines = [
        f"## {panel.origin}: {len(panel.y):,} customers, {buyers:,} bought in {panel.horizon_days} days",
        "",
        f"Data: **{f.sufficiency.level}**. {'; '.join(f.sufficiency.reasons)}.",
        "",
        *_table(f.metrics),
        "",
    ]
    ours = f.uncertainty.get(f.model)
    if ours is not None:
        lines += [verdict.coverages(ours), ""]
    if f.one_order:
        lines += [f"Customers with one order before ({panel.once().sum():,}):", "", *_table(f.one_order), ""]
        worse = [c.sentence for c in f.one_order_comparisons if c.balance < 0]
        lines += [*(f"- {sentence}" for sentence in worse), ""] if worse else []
    if f.visitors is not None:
        lines += [f"Visitors ({f.visitors.visitors:,}, {f.visitors.buyers:,} bought): {f.visitors.sentence}", ""]
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
        lines += [
            "",
            f"No decile MAPE of {', '.join(undefined)}: a tenth of the customers by prediction spent nothing.",
        ]
    return lines
