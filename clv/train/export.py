"""From a fitted run to a bundle: weights, everything fitted with them, metrics and a card in plain words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from clv.bundle import Bundle, as_json
from clv.train.config import TrainConfig
from clv.train.fit import Phases, Shop
from clv.train.run import Fitted


def to_bundle(
    shop: Shop, phases: Phases, config: TrainConfig, fitted: Fitted, dataset: dict[str, Any], notices: list[str]
) -> Bundle:
    """`dataset`: name, currency, timezone, value, horizons, discount_rate_annual and fingerprints of the source."""
    assembler = phases.final.assembler
    plain, arrays = assembler.space.to_arrays()
    held_out = None
    if phases.trial is not None:
        held_out = {"origin": _iso(phases.trial.cutoff), "horizon_days": phases.primary}
    model_settings = as_json(config.model)
    model_settings["backbone"]["pretrained"] = None  # the weights are in the bundle
    facts = {
        "dataset": dataset["name"],
        "dataset_facts": dataset,
        "cut": _iso(phases.final.cutoff),
        "cut_us": phases.final.cutoff,
        "data_through_us": min(shop.data_through, phases.final.cutoff),
        "money": assembler.money,
        "model": model_settings,
        "train": as_json(config),
        "notices": notices,
    }
    return Bundle(
        config=facts,
        vocab=plain,
        anchor=assembler.baseline.to_json(),
        calibration=fitted.adjustment.to_json(),
        metrics={"held_out": held_out, "models": fitted.metrics, "history": fitted.history},
        weights={name: tensor.numpy() for name, tensor in fitted.weights.items()},
        items=arrays,
        texts={"card.md": card(facts, fitted, held_out)},
    )


def card(facts: dict[str, Any], fitted: Fitted, held_out: dict[str, Any] | None) -> str:
    """The bundle in plain words."""
    dataset = facts["dataset_facts"]
    lines = [
        f"# {facts['dataset']}: customer lifetime value",
        "",
        f"Trained on what was known before {facts['cut']}; values in {dataset['currency'] or 'no currency'}, "
        f"days counted in {dataset['timezone']}, value is {dataset['value']}.",
        "",
    ]
    if held_out is None:
        lines.append("No past origin could be held out: the log is too short to say how good these numbers are.")
    else:
        lines += [
            f"Judged at {held_out['origin']}, {held_out['horizon_days']} days ahead, "
            "by a model that knew nothing after it:",
            "",
            "| model | " + " | ".join(METRICS) + " |",
            "|---|" + "---|" * len(METRICS),
        ]
        for name, metrics in fitted.metrics.items():
            cells = [f"{metrics[m]:.3f}" if metrics.get(m) is not None else "-" for m in METRICS]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        gate = fitted.adjustment.gate_value[0]
        verdict = (
            "The anchor (BG/NBD with Gamma-Gamma spend and seasonal level) is as good here: the model adds nothing."
            if gate == 0 and fitted.adjustment.gate_purchase[0] == 0
            else f"The model's say in the value is {gate:.0%}, the anchor's {1 - gate:.0%}."
        )
        lines += ["", verdict]
    lines += ["", *(f"- {notice}" for notice in facts["notices"]), ""]
    return "\n".join(lines)


METRICS = ("ngini", "spearman", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape", "pit80")


def _iso(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()
