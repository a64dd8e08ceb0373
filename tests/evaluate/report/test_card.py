from dataclasses import replace

import numpy as np
import pytest

from clv.evaluate.report import verdict
from clv.evaluate.report.card import evaluation_lines
from clv.evaluate.report.findings import evaluate_panel
from clv.forecast.distributions import Prediction
from tests.evaluate.report.panels import noisy_panel


def test_the_card_names_the_reason_of_an_undefined_decile_mape() -> None:
    """A perfect order puts all buyers first, so its last tenth of the customers spent nothing."""
    one = noisy_panel(0.0, 1.0)
    one = replace(one, predictions={**one.predictions, "perfect": Prediction(value=one.y + 0.01)})
    text = "\n".join(evaluation_lines([evaluate_panel(one, draws=20)]))
    assert "The decile MAPE of perfect is undefined: a tenth of the customers spent nothing." in text
    row = next(line for line in text.splitlines() if line.startswith("| perfect "))
    assert row.split(" | ")[7] == "–"


def test_several_origins_are_compared_together_first() -> None:
    """Four origins prove small gains that no single origin can."""
    found = [evaluate_panel(noisy_panel(0.0, 0.17, seed, f"2024-0{seed + 1}-01"), draws=400) for seed in range(4)]
    together = verdict.compare("bgnbd_gg", [(f.replicates["clv"], f.replicates["bgnbd_gg"]) for f in found])
    assert together.lead.estimate == pytest.approx(np.mean([f.comparisons[0].lead.estimate for f in found]))
    widths = [f.comparisons[0].lead.high - f.comparisons[0].lead.low for f in found]
    assert together.lead.high - together.lead.low < 0.7 * np.mean(widths)
    text = "\n".join(evaluation_lines(found))
    assert together.sentence in text
    assert text.count("not run: no features") == 4
    assert text.count("Data: **") == 4


def test_without_a_held_out_origin_the_card_states_that_the_quality_is_unknown() -> None:
    assert evaluation_lines([]) == [
        "The log is too short to hold out a past origin, so the quality of these forecasts is unknown."
    ]
