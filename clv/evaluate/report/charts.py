"""Charts of the HTML report, as HTML fragments for plotly's script, which the page holds once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from clv.evaluate import metrics
from clv.forecast import distributions
from clv.forecast.distributions import Array, Prediction

OURS, ACTUAL, BASELINE_COLOURS = "#2457d6", "#f2994a", ("#6b7280", "#0f9d76", "#a855c7", "#b8860b")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

LEGEND_ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def _html(
    figure: go.Figure, name: str, x: str, y: str, height: int = 340, legend: Mapping[str, object] = LEGEND_ABOVE
) -> str:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 64, "r": 16, "t": 12, "b": 52},
        font={"family": FONT, "size": 13, "color": "#1f2937"},
        legend=dict(legend),
        xaxis_title=x,
        yaxis_title=y,
        bargap=0.25,
    )
    config = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=name))


def _bars(x: Sequence[str], predicted: ArrayLike, actual: ArrayLike, hover: Sequence[str] | None = None) -> go.Figure:
    pairs = (("predicted", predicted, OURS), ("actual", actual, ACTUAL))
    return go.Figure([go.Bar(x=x, y=y, name=name, marker_color=colour, hovertext=hover) for name, y, colour in pairs])


def lift(name: str, y: ArrayLike, shown: Mapping[str, Prediction], labels: Mapping[str, str]) -> str:
    """Lift chart: share of all spend by the best-ranked share of customers; the first of `shown` is our model."""
    figure = go.Figure()
    colours = (OURS, *BASELINE_COLOURS)
    for i, (model, prediction) in enumerate(shown.items()):
        fraction, share = metrics.lift(y, prediction.value)
        line = {"color": colours[i % len(colours)], "width": 3 if i == 0 else 1.6}
        figure.add_scatter(x=100 * fraction, y=100 * share, name=labels[model], line=line, mode="lines")
    fraction, share = metrics.lift(y, y)
    dashed = {"color": "#9ca3af", "width": 1.2, "dash": "dot"}
    figure.add_scatter(x=100 * fraction, y=100 * share, name="perfect order", line=dashed, mode="lines")
    figure.add_scatter(x=[0, 100], y=[0, 100], name="no order", line=dashed | {"dash": "dash"}, mode="lines")
    inside = {"orientation": "v", "x": 0.99, "xanchor": "right", "y": 0.02, "yanchor": "bottom", "font": {"size": 12}}
    return _html(figure, name, "customers contacted, best first (%)", "spend captured (%)", legend=inside)


def deciles(name: str, y: ArrayLike, prediction: Prediction, unit: str) -> str:
    """Bar chart of mean predicted and mean actual value in tenths of the customers, best first."""
    real, predicted = metrics.deciles(y, prediction.value)
    figure = _bars([f"{i}" for i in range(1, 11)], predicted, real)
    return _html(figure, name, "tenth of customers, highest prediction first", f"mean spend ({unit})")


def cohorts(name: str, y: ArrayLike, prediction: Prediction, cohort: ArrayLike, unit: str) -> str:
    """Bar chart of predicted and actual totals by acquisition cohort."""
    found = metrics.bias_by(y, prediction.value, cohort)
    text = [f"{f['customers']:,.0f} customers<br>predicted / actual {f['bias']:.2f}" for f in found.values()]
    predicted, real = ([f[key] for f in found.values()] for key in ("predicted", "actual"))
    figure = _bars(list(found), predicted, real, text)
    figure.update_xaxes(type="category")
    return _html(figure, name, "first purchase in", f"total spend ({unit})")


def value_distribution(name: str, y: ArrayLike, prediction: Prediction, unit: str) -> str:
    """Bar chart of customers by spend, actual and predicted: by the distributions, or by the means without any."""
    real = np.maximum(np.asarray(y, float), 0.0)
    positive = real[real > 0]
    edges = round_edges(*np.quantile(positive, [0.02, 0.995]).tolist()) if len(positive) else np.array([1.0])
    classes = ["nothing", f"under {edges[0]:,.3g}"]
    classes += [f"{a:,.6g} – {b:,.6g}" for a, b in pairwise(edges)] + [f"{edges[-1]:,.6g}+"]
    bounds = np.r_[-np.inf, 1e-9, edges, np.inf]
    values, weights = prediction.value, None
    if prediction.quantiles is not None:
        values = prediction.quantiles.values
        weights = np.broadcast_to(prediction.quantiles.weights(), values.shape)
    predicted, actual = np.histogram(values, bounds, weights=weights)[0], np.histogram(real, bounds)[0]
    num = max(len(real), 1)
    figure = _bars(classes, 100 * (predicted / num), 100 * (actual / num))
    return _html(figure, name, f"spend in the horizon ({unit})", "customers (%)")


def round_edges(low: float, high: float) -> Array:
    """At most twelve steps of 1, 2 and 5 times powers of ten between low and high."""
    steps = [m * 10.0**e for e in range(-3, 10) for m in (1, 2, 5)]
    inside = [s for s in steps if low <= s <= high] or [steps[int(np.searchsorted(steps, high)) - 1]]
    return np.array(inside[:: -(-len(inside) // 12)])


def pit(name: str, y: ArrayLike, prediction: Prediction, seed: int, bins: int = 20) -> str:
    """Histogram of the randomised PIT, flat for a calibrated model; empty without distributions."""
    if prediction.quantiles is None:
        return ""
    u = distributions.pit(y, prediction.quantiles, seed)
    share = 100 * np.histogram(u, bins, (0, 1))[0] / max(len(u), 1)
    even = 1 / bins
    band = 196 * np.sqrt(even * (1 - even) / max(len(u), 1))
    centres = (np.arange(bins) + 0.5) / bins
    figure = go.Figure(go.Bar(x=centres, y=share, marker_color=OURS, name="customers", width=0.9 / bins))
    figure.add_hrect(y0=100 * even - band, y1=100 * even + band, fillcolor="#9ca3af", opacity=0.3, line_width=0)
    figure.add_hline(y=100 * even, line={"color": "#6b7280", "dash": "dash", "width": 1})
    figure.update_layout(showlegend=False)
    position = "position of the actual value in the predicted distribution"
    return _html(figure, name, position, "customers (%)", height=300)


def charted_models(model: str, scores: Mapping[str, float], always: Sequence[str], most: int = 4) -> list[str]:
    """Models of a chart: ours, then those of `always`, then the best by score; at most `most` of them."""
    baselines = sorted((p for p in scores if p != model), key=lambda p: -scores[p])
    ranked = [p for p in always if p in baselines] + [p for p in baselines if p not in always]
    return [model, *ranked[: most - 1]]
