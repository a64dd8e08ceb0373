"""Building a bundle from a fitted run: weights, all that was fitted with them, metrics and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clv.bundle import Bundle, plain_json
from clv.data.clock import to_datetime
from clv.evaluate.report import html_page
from clv.evaluate.report.card import evaluation_lines
from clv.evaluate.report.findings import Findings, evaluate_panel
from clv.forecast.horizons import TAIL_YEARS, tail_years
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, Phases
from clv.train.trainer import Fitted


def to_bundle(
    dataset: Dataset,
    phases: Phases,
    config: TrainConfig,
    fitted: Fitted,
    dataset_facts: dict[str, Any],
    notices: list[str],
) -> Bundle:
    """`dataset_facts`: name, currency, timezone, value, horizons, annual discount rate, fingerprints of the source."""
    assembler = phases.final.assembler
    plain, arrays = assembler.space.to_arrays()
    held_out = None
    if phases.holdout is not None:
        held_out = {"origin": to_datetime(phases.holdout.cutoff).isoformat(), "horizon_days": phases.primary}
    model_settings = plain_json(config.model.with_merged_adapters)
    model_settings["backbone"]["pretrained"] = None  # the weights are in the bundle
    facts = {
        "dataset": dataset_facts["name"],
        "dataset_facts": dataset_facts,
        "cut": to_datetime(phases.final.cutoff).isoformat(),
        "cut_us": phases.final.cutoff,
        "data_through_us": min(dataset.data_through, phases.final.cutoff),
        "value_scale": assembler.value_scale,
        "population_average": assembler.population_average.tolist(),
        "model": model_settings,
        "train": plain_json(config),
        "notices": notices,
    }
    found = [evaluate_panel(fitted.panel)] if fitted.panel is not None else []
    text = card(facts, fitted, found, tail_years(assembler.btyd))
    page = html_page.render(
        found,
        title=f"{dataset_facts['name']}: how good is bundle cut at {to_datetime(phases.final.cutoff).date()}",
        currency=dataset_facts["currency"],
        notices=notices if found else [evaluation_lines(found)[0], *notices],
    )
    return Bundle(
        config=facts,
        vocab=plain,
        btyd=assembler.btyd.to_json(),
        calibration=fitted.adjustment.to_json(),
        metrics={
            "held_out": held_out,
            "models": {name: dict(values) for f in found for name, values in f.metrics.items()},
            "details": found[0].to_json() if found else None,
            "history": fitted.history,
        },
        weights={name: tensor.numpy() for name, tensor in fitted.weights.items()},
        items=arrays,
        texts={"card.md": text, "report.html": page},
    )


def card(facts: dict[str, Any], fitted: Fitted, found: Sequence[Findings], tail: int) -> str:
    """The model card (Markdown). tail: years beyond the longest horizon that `clv_mean` counts."""
    dataset_facts = facts["dataset_facts"]
    lines = [
        f"# {facts['dataset']}: customer lifetime value",
        "",
        f"Trained on what was known before {facts['cut']}; values in {dataset_facts['currency'] or 'no currency'}, "
        f"days counted in {dataset_facts['timezone']}, value is {dataset_facts['value']}.",
        "",
        *evaluation_lines(found),
    ]
    if found:
        blend_weight = fitted.adjustment.blend_value[0]
        lines += [
            "The BTYD model (BG/NBD, Gamma-Gamma, seasonal factor) is as good here: the network adds nothing."
            if blend_weight == 0 and fitted.adjustment.blend_purchase[0] == 0
            else f"The network's weight in the value is {blend_weight:.0%}, the BTYD model's {1 - blend_weight:.0%}.",
            "",
        ]
    lines += [lifetime(dataset_facts, tail), "", *(f"- {notice}" for notice in facts["notices"]), ""]
    return "\n".join(lines)


def lifetime(dataset_facts: dict[str, Any], tail: int) -> str:
    """A sentence that defines `clv_mean`."""
    text = (
        f"`clv_mean` is what a customer spends in the next {dataset_facts['horizons'][-1]} days and the {tail} "
        f"years after them, discounted at {dataset_facts['discount_rate_annual']:.0%} a year; the years are "
        "the BTYD model's, not learned."
    )
    if tail < TAIL_YEARS:
        text += (
            f" This log does not show that customers leave, and without that they would buy for ever: {tail} years are "
            f"counted instead of {TAIL_YEARS}. Do not report it as revenue."
        )
    return text
