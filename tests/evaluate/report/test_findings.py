import json
from dataclasses import replace

import pytest

from clv.evaluate.report.findings import compare_over_origins, evaluate_panel
from tests.evaluate.report.panels import evaluate, full_panel


def test_findings_hold_coverage_visitors_and_customers_with_one_order() -> None:
    one = full_panel()
    details = json.loads(json.dumps(evaluate(one)[0].to_json(), allow_nan=False))
    ours = details["uncertainty"]["clv"]
    assert set(details["uncertainty"]) == {"clv"}
    assert ours["pit80"] == pytest.approx(0.8, abs=0.05)
    assert ours["sums_coverage"] == pytest.approx(0.8, abs=0.15)
    assert ours["near_certain_customers"] == (one.models()["clv"].p_purchase > 0.9).sum()
    assert 0 < ours["pinball_0.1"] < ours["pinball_0.5"] < ours["crps"]
    assert details["one_order"]["customers"] == (one.orders_past == 1).sum() > 100
    assert set(details["one_order"]["models"]) == {"clv", "bgnbd_gg"}
    assert details["one_order"]["models"]["clv"]["ngini"] > details["one_order"]["models"]["bgnbd_gg"]["ngini"]
    assert details["one_order"]["against"]["bgnbd_gg"]["outcome"] == "better"
    visitors = details["visitors"]
    assert one.visitors is not None
    assert (visitors["visitors"], visitors["buyers"]) == (300, one.visitors.orders.sum())
    assert visitors["models"]["clv"]["auc"] > 0.7 > visitors["models"]["conversion"]["auc"] == 0.5
    assert visitors["models"]["clv"]["conversion_bias"] == pytest.approx(1, abs=0.3)
    assert visitors["models"]["clv"]["calibration_error"] < 0.06
    assert (
        "This model ranks the visitors who will buy significantly better than the conversion baseline: +0."
        in visitors["sentence"]
    )
    assert sum(cell["customers"] for cell in details["uncertainty_by_cell"].values()) == 1200


def test_a_panel_without_our_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no prediction of model 'other'"):
        evaluate_panel(full_panel(), model="other")


def test_only_baselines_of_all_origins_are_compared_over_origins() -> None:
    first, second = evaluate(full_panel(), full_panel(seed=1))
    assert [c.baseline for c in compare_over_origins([first, second])] == ["bgnbd_gg"]
    alone = replace(second, replicates={"clv": second.replicates["clv"]})
    assert compare_over_origins([first, alone]) == ()
