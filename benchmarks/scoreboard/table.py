"""From predictions to a verdict: metrics, paired bootstrap against every baseline, the composite fixed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clv.evaluate import metrics
from clv.evaluate.bootstrap import bootstrap, interval
from clv.forecast.distributions import Prediction
from clv.train.backtest import Outcomes

SHOWN = ("ngini", "spearman", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape", "crps", "pit80")
HIGHER = ("ngini", "spearman", "auc")
CORE = ("ngini", "auc", "decile_mape")  # against every baseline
FACTOR_APPLIED = ("spearman", "mae_over_mean", "rmse_over_mean")  # against baselines that keep the money
COMPOSITE = ("ngini", "spearman", "auc", "mae_over_mean", "rmse_over_mean", "decile_mape", "bias")
TOTAL_LIMIT = 0.22
WEAK_SHARE = 0.02
# nGini of good baselines on these rows, (past_spend, bgnbd_gg, lgbm_tweedie, lgbm_l1, lgbm_hurdle, lgbm_btyd_offset).
PUBLISHED = {
    ("online_retail_ii", "2011-06-12", 90): (0.841, 0.855, 0.861, 0.851, 0.863, 0.860),
    ("online_retail_ii", "2011-03-14", 90): (0.802, 0.802, 0.817, 0.809, 0.815, 0.810),
    ("online_retail_ii", "2010-12-14", 90): (0.672, 0.712, 0.717, 0.736, 0.715, 0.709),
    ("cdnow", "1998-04-02", 90): (0.773, 0.769, 0.786, 0.631, 0.785, 0.783),
    ("cdnow", "1998-01-02", 90): (0.718, 0.701, 0.733, 0.667, 0.738, 0.729),
    ("complete_journey", "2017-10-04", 90): (0.856, 0.845, 0.869, 0.867, 0.866, 0.860),
    ("complete_journey", "2017-07-06", 90): (0.871, 0.866, 0.877, 0.878, 0.875, 0.873),
}
PUBLISHED_BASELINES = ("past_spend", "bgnbd_gg", "lgbm_tweedie", "lgbm_l1", "lgbm_hurdle", "lgbm_btyd_offset")


def row_of(
    dataset: str, horizon: int, origin: str, known: Outcomes, found: dict[str, Any], ours: Sequence[Prediction]
) -> dict[str, Any]:
    """One origin: metrics of every model (ours: mean over seeds), and where a baseline is significantly better."""
    baselines = {name: p for name, p in found.items() if isinstance(p, Prediction)}
    table, seeds, losses = judged(known.value, known.orders, baselines, ours)
    once = known.orders_past == 1
    apart = {name: p.take(once) for name, p in baselines.items()}, [p.take(once) for p in ours]
    table_once, _, losses_once = judged(known.value[once], known.orders[once], *apart)
    published = PUBLISHED.get((dataset, origin, horizon))
    weak = [
        name
        for name, wanted in zip(PUBLISHED_BASELINES, published or (), strict=bool(published))
        if name in table and (table[name]["ngini"] or 0) < wanted * (1 - WEAK_SHARE)
    ]
    return {
        "dataset": dataset,
        "origin": origin,
        "horizon_days": horizon,
        "customers": len(known.value),
        "models": table,
        "seeds": seeds,
        "not_run": {name: p["not_run"] for name, p in found.items() if not isinstance(p, Prediction)},
        "significantly_worse": losses,
        "composite": {name: composite(name, table) for name in table},
        "one_order": {"customers": int(once.sum()), "models": table_once, "significantly_worse": losses_once},
        "weak_baselines": weak,
    }


def judged(
    y: Any, orders: Any, baselines: dict[str, Prediction], ours: Sequence[Prediction]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], list[str]]:
    """(metrics of every model, `clv` as mean over seeds; those of each seed; significantly better baselines)."""
    table = {name: metrics.evaluate(y, orders, p) for name, p in baselines.items()}
    seeds = [metrics.evaluate(y, orders, p) for p in ours]
    table["clv"] = {m: _mean([s[m] for s in seeds]) for m in seeds[0]}
    return table, seeds, _losses(y, orders, baselines, ours, table)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def composite(name: str, table: dict[str, dict[str, Any]]) -> float:
    """Mean over metrics of the log ratio to the best baseline; 0 equals the best of every column (higher is better).

    bias enters as |log bias| + 0.05 and decile MAPE as itself + 0.05, so that a lucky zero does not decide. Decile MAPE
    is left out where it is undefined: a model that ranks so well that a tenth spends nothing is not worse for it.
    """
    total = []
    for metric in COMPOSITE:
        baselines = [_loss(metric, m[metric]) for other, m in table.items() if other != "clv" and m[metric] is not None]
        if metric == "decile_mape" and (not baselines or table[name][metric] is None):
            continue
        total.append(np.log(min(baselines)) - np.log(_loss(metric, table[name][metric])))
    return float(np.mean(total))


def _loss(metric: str, value: float | None) -> float:
    """Positive, smaller is better."""
    if value is None or not np.isfinite(value):
        return 10.0
    if metric in HIGHER:
        return 1.0 / max(value, 1e-6)
    if metric == "bias":
        return abs(float(np.log(max(value, 1e-6)))) + 0.05
    return value + 0.05 if metric == "decile_mape" else value


def _losses(
    y: Any, orders: Any, baselines: dict[str, Prediction], ours: Sequence[Prediction], table: dict[str, dict[str, Any]]
) -> list[str]:
    """ "baseline: metric" for every metric of the rule on which a baseline beats the mean of our seeds at 95 %."""
    mine = [bootstrap(y, orders, {"clv": p})["clv"] for p in ours]
    mean = {metric: np.mean([m[metric] for m in mine], axis=0) for metric in mine[0]}
    distance = {name: abs(float(np.log(max(m["bias"] or 1e-6, 1e-6)))) for name, m in table.items() if name != "clv"}
    level = {name for name, d in distance.items() if d <= TOTAL_LIMIT} or {min(distance, key=lambda n: distance[n])}
    out = []
    for name, theirs in bootstrap(y, orders, baselines).items():
        for metric in (*CORE, *(FACTOR_APPLIED if name in level else ())):
            gap = interval((mean[metric] - theirs[metric]) * (1 if metric in HIGHER else -1))
            if gap.high < 0:
                out.append(f"{name}: {metric} ({gap.estimate:+.3f}, {gap.low:+.3f} to {gap.high:+.3f})")
    return out


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table per row, then what the rules say."""
    lines: list[str] = []
    for row in rows:
        lines += [
            f"**{row['dataset']}, origin {row['origin']}, {row['horizon_days']} days, {row['customers']:,} customers**",
            "",
            "| model | " + " | ".join(SHOWN) + " | composite |",
            "|---|" + "---|" * (len(SHOWN) + 1),
        ]
        for name in sorted(row["models"], key=lambda n: -row["composite"][n]):
            cells = [f"{v:.3f}" if (v := row["models"][name][m]) is not None else "–" for m in SHOWN]
            shown = f"**{name}**" if name == "clv" else name
            lines.append(f"| {shown} | " + " | ".join(cells) + f" | {row['composite'][name]:+.3f} |")
        once = row["one_order"]
        lines += ["", f"A baseline significantly better: {_listed(row)}.", ""]
        lines += [f"Among the {once['customers']:,} customers with one order: {_listed(once)}.", ""]
    return "\n".join([*lines, *by_shop(rows)]) + "\n"


def _listed(row: dict[str, Any]) -> str:
    return "; ".join(row["significantly_worse"]) or "none"


def by_shop(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table: the composite, mean over the origins of a shop."""
    shops = list(dict.fromkeys(row["dataset"] for row in rows))
    of: dict[str, dict[str, float]] = {}
    for shop in shops:
        found = [row["composite"] for row in rows if row["dataset"] == shop]
        for name in dict.fromkeys(name for composites in found for name in composites):
            of.setdefault(name, {})[shop] = float(np.mean([c[name] for c in found if name in c]))
    lines = ["**Composite, mean over the origins of a shop**", "", f"| model | {' | '.join(shops)} |"]
    lines.append("|---|" + "---|" * len(shops))
    for name in sorted(of, key=lambda n: -sum(of[n].values())):
        cells = " | ".join(f"{of[name][shop]:+.3f}" if shop in of[name] else "–" for shop in shops)
        lines.append(f"| {f'**{name}**' if name == 'clv' else name} | {cells} |")
    return lines
