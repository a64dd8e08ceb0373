"""The demo's last screen."""

import json
from pathlib import Path

import numpy as np

from clv.evaluate.baselines.run import BASELINES
from clv.evaluate.panel import Panel
from clv.evaluate.report import html_page
from clv.evaluate.report.findings import evaluate_panel
from clv.forecast.distributions import Prediction
from ray_jobs import demo


def test_the_last_screen_compares_all_models_and_ours_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.gamma(1.0, 20.0, 200) * (rng.random(200) < 0.5)
    ran = {name: Prediction(value=y * rng.lognormal(0, 0.5, 200)) for name in ("clv", *BASELINES)}
    panel = Panel(
        origin=demo.ORIGIN,
        horizon_days=demo.HORIZON_DAYS,
        y=y,
        orders=(y > 0).astype(float),
        predictions=ran | {"seasonal_naive": {"not_run": "the log reaches back 276 days"}},
        cohort=np.full(200, "2017Q1"),
        log_days=276,
    )
    (tmp_path / "metrics.json").write_text(json.dumps(html_page.metrics_json([evaluate_panel(panel, draws=20)])))
    _, title, header, *rows = demo.comparison(tmp_path)
    assert title == "origin 2017-10-04, 90 days"
    assert header.split() == [
        "model",
        "ngini",
        "spearman",
        "auc",
        "mae",
        "rmse",
        "bias",
        "decile_mape",
        "crps",
        "pit80",
    ]
    assert [row.split()[0] for row in rows] == ["clv", *BASELINES]
    assert rows[-1].endswith("not run: the log reaches back 276 days")
