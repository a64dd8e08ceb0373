"""Fits a model on a DataFrame of simulated orders and compares the forecast with the truth: the notebook API.

`python examples/fit_and_predict.py [--customers 200]`
"""

from __future__ import annotations

import argparse

import clv
from clv.simulate.small import simulate
from clv.train.config import TrainConfig

ORIGIN, HORIZON_DAYS = "2024-04-01", 90


def main() -> None:
    """Prints the best customers, the total with its interval, and the rank correlation with the expected value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=200)
    customers = parser.parse_args().customers

    shop = simulate(customers, "2023-01-01", "2024-07-01", seed=7)
    log = shop.events.to_pandas()
    columns = {name: name for name in ("customer_id", "event_time", "order_id", "item_id", "quantity", "amount")}
    model = clv.fit(
        log,
        columns,
        event_type={"column": "event_type", "other": "keep"},
        currency="EUR",
        origin=ORIGIN,
        # Few steps and past origins, for a quick look; leave `config` out for the defaults.
        config=TrainConfig(epochs=1, samples_per_epoch=512, num_origins=4),
        on_epoch=lambda row: print(f"trained {row['phase']}, epoch {row['epoch']}"),
    )
    scores = model.predict(log, as_of=ORIGIN, horizons_days=[HORIZON_DAYS])
    best = scores.nlargest(5, "value_mean")
    print(best[["customer_id", "p_purchase", "value_mean", "value_p10", "value_p90"]].round(2).to_string(index=False))

    total = model.portfolio(log, as_of=ORIGIN, horizons_days=[HORIZON_DAYS]).iloc[0]
    print(f"total of {len(scores)} customers: {total['value_mean']:.0f} EUR "
          f"({total['value_p10']:.0f} to {total['value_p90']:.0f})")  # fmt: skip
    truth = shop.truth.expected(ORIGIN, HORIZON_DAYS)
    both = scores.merge(truth, on="customer_id")
    print(f"rank correlation with the truth: {both['value_mean'].corr(both['value'], method='spearman'):.2f}")


if __name__ == "__main__":
    main()
