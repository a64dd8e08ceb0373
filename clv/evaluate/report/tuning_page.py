"""Report of a search for settings (hyperparameter tuning): a table of trials, and a page with a chart per setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.subplots import make_subplots

Row = Mapping[str, Any]
OWN = ("trial", "scores", "best", "failed")


def write(folder: Path, trials: Sequence[Row], title: str) -> None:
    """Write trials.csv and report.html into `folder`.

    A trial holds `trial` (its name), its settings, `scores` after each epoch, `best` and `failed`.
    """
    table = pd.DataFrame([{**row, "epochs_run": len(row["scores"])} for row in trials]).drop(columns="scores")
    table.to_csv(folder / "trials.csv", index=False)
    (folder / "report.html").write_text(page(trials, title), encoding="utf-8")


def page(trials: Sequence[Row], title: str) -> str:
    """One self-contained HTML page: the score of each trial by epoch, and the best score against each setting."""
    scored = [row for row in trials if row["scores"]]
    names = [name for name in trials[0] if name not in OWN]
    figure = make_subplots(rows=len(names) + 1, cols=1, vertical_spacing=0.25 / (len(names) + 1))
    for row in scored:
        epochs = list(range(1, len(row["scores"]) + 1))
        figure.add_scatter(x=epochs, y=list(row["scores"]), name=row["trial"], mode="lines+markers", row=1, col=1)
    figure.update_xaxes(title_text="epoch", row=1, col=1)
    for number, name in enumerate(names, start=2):
        values = [row[name] for row in scored]
        numbers = all(isinstance(value, float) for value in values)
        figure.add_scatter(
            x=values if numbers else [str(value) for value in values],
            y=[row["best"] for row in scored],
            text=[row["trial"] for row in scored],
            mode="markers",
            marker={"color": "#1f6feb"},
            showlegend=False,
            row=number,
            col=1,
        )
        log = numbers and min(values) > 0 and max(values) > 10 * min(values)
        figure.update_xaxes(title_text=name, type="log" if log else None if numbers else "category", row=number, col=1)
    figure.update_yaxes(title_text="held-out score")
    figure.update_layout(template="plotly_white", title=title, height=320 * (len(names) + 1))
    return str(figure.to_html(include_plotlyjs=True, config={"displaylogo": False}))
