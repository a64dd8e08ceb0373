"""The back-test's metric tables; test_flow.py runs the job."""

from ray_jobs.backtest import METRICS, metric_tables


def test_a_table_per_origin_has_a_row_per_model_and_a_dash_for_an_undefined_metric() -> None:
    found = {"2024-01-01": {"90": {"clv": {"ngini": 0.5, "auc": None}, "gbm": {"not_run": "lightgbm is missing"}}}}
    empty, origin, head, row, not_run = metric_tables(found)
    assert (empty, origin) == ("", "origin 2024-01-01, 90 days")
    assert head.split() == ["model", *(name.removesuffix("_over_mean") for name in METRICS)]
    assert row.split() == ["clv", "0.500", *["-"] * (len(METRICS) - 1)]
    assert not_run == "gbm                not run: lightgbm is missing"
