import numpy as np

from clv.evaluate.panel import Panel
from clv.forecast.distributions import Prediction


def test_a_panel_knows_its_models_and_the_customers_with_one_order() -> None:
    ours = Prediction(value=np.ones(3))
    panel = Panel(
        origin="2024-01-01",
        horizon_days=90,
        y=np.zeros(3),
        orders=np.zeros(3),
        predictions={"clv": ours, "linear": {"not_run": "no features"}},
    )
    assert panel.models() == {"clv": ours}
    assert panel.one_order().tolist() == [False, False, False]
    known = Panel(**{**vars(panel), "orders_past": np.array([1.0, 2.0, 1.0])})
    assert known.one_order().tolist() == [True, False, True]
