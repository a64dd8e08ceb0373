"""Comparison of a new bundle with the bundle in production on the same customers, before the new one scores anybody.

The smoke test compares a service with the bundle's own arithmetic, so a bundle whose scores are impossible passes it;
here the totals of two bundles are compared, and a total that changes too much ends the rollout.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from clv.data.clock import to_us
from clv.serve.rollout.policy import RolloutPolicy
from clv.serve.scoring.protocol import PredictorProtocol
from clv.serve.store.factory import open_store
from clv.serve.store.protocol import StoreUnavailableError

LOG = logging.getLogger(__name__)

MAX_CUSTOMERS = 1_000  # of a sample
TOTALS = ("value_mean", "orders_mean")
P_MOVED = 0.2  # difference of a customer's p_purchase that the log counts


@dataclass(frozen=True)
class HorizonComparison:
    """Two bundles on the same customers at one horizon: `before` is the bundle in production, `after` the new one.

    Both hold the totals of value_mean (shop currency) and orders_mean and the mean of p_purchase, by column.
    """

    horizon_days: int
    customers: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    share_p_moved: float

    def ratio(self, column: str) -> float:
        """Returns after / before; 1 where both are 0, infinity or NaN where only `before` is 0 or one is not finite."""
        before, after = self.before[column], self.after[column]
        return 1.0 if before == after else float(np.divide(after, before))

    def summary(self) -> str:
        """Returns one line for the log."""
        changes = (f"{name} {self.before[name]:,.6g} -> {self.after[name]:,.6g}" for name in self.before)
        ratios = (f"{self.ratio(name):.4g}" for name in TOTALS)
        return (
            f"{self.horizon_days} days, {self.customers} customers: {', '.join(changes)}; ratios of the totals "
            f"{' and '.join(ratios)}; p_purchase of {self.share_p_moved:.1%} moved by more than {P_MOVED:g}"
        )


def compare_scores(before: pa.Table, after: pa.Table) -> list[HorizonComparison]:
    """Compares SCORES of the same customers and horizons in the same order, one result per horizon, ascending."""
    days = before["horizon_days"].to_numpy()
    columns = [{name: table[name].to_numpy() for name in (*TOTALS, "p_purchase")} for table in (before, after)]
    found = []
    for horizon in np.unique(days):
        rows = days == horizon
        sums = [
            {name: float(np.mean(x[rows]) if name == "p_purchase" else np.sum(x[rows])) for name, x in one.items()}
            for one in columns
        ]
        moved = np.abs(columns[1]["p_purchase"] - columns[0]["p_purchase"])[rows] > P_MOVED
        found.append(HorizonComparison(int(horizon), int(rows.sum()), sums[0], sums[1], float(moved.mean())))
    return found


class TotalsCheck:
    """Compares the bundle of `predictor` with the bundle in production on `samples`: histories by what to call them.

    Both bundles score the customers at `as_of` (microseconds UTC) or at the end of their training data where that is
    later, for the horizons that both have learned; without a common one, for those of the new bundle.
    """

    def __init__(self, predictor: PredictorProtocol, samples: Mapping[str, pa.Table], as_of: int) -> None:
        self._predictor, self._samples, self._as_of = predictor, samples, as_of

    def run(self, production: PredictorProtocol, policy: RolloutPolicy) -> str | None:
        """Logs a line per sample and horizon. Returns why the rollout must end: a number that is not finite, or a total
        that changes by more than the policy's max_total_change; None when there is no such number."""
        new = self._predictor
        origin = max(self._as_of, to_us(production.cut), to_us(new.cut))
        horizons = tuple(sorted({*new.horizons} & {*production.horizons})) or new.horizons
        objections = []
        for name, histories in self._samples.items():
            before, after = (bundle.predict(histories, origin, horizons) for bundle in (production, new))
            if len(before) == 0:
                LOG.info(f"{name}: none has an event before the prediction time, so there is nothing to compare")
            for result in compare_scores(before, after):
                LOG.info(f"{name}: {result.summary()}")
                if objection := _objection(result, policy):
                    objections.append(f"{objection} ({name})")
        if not objections:
            return None
        return f"{new.version} differs from {production.version} in production: {objections[0]}"


def _objection(result: HorizonComparison, policy: RolloutPolicy) -> str | None:
    for name, after in result.after.items():
        before = result.before[name]
        what = f"{name} over {result.horizon_days} days, {before:,.6g} before and {after:,.6g} after,"
        if not np.isfinite(after):
            return f"{what} is not finite: train the bundle again"
        if not np.isfinite(before):
            return f"{what} is not finite in production: replace that bundle with python -m ray_jobs.promote"
        if name in TOTALS and not policy.tolerates(result.ratio(name)):
            limit = 1 + policy.max_total_change
            return (
                f"the total of {name} over {result.horizon_days} days is {after:,.6g} instead of {before:,.6g}, a "
                f"ratio of {result.ratio(name):.4g} outside [{1 / limit:.4g}, {limit:.4g}]. If this change is right, "
                f"give a --max-total-change above {policy.max_total_change:g}, and a --reason for it"
            )
    return None


def sample_customers(address: str, count: int = MAX_CUSTOMERS, seed: int = 0) -> pa.Table:
    """Returns the histories of `count` customers of the online store, drawn by `seed`, or of all where it holds fewer.

    Reads the whole store once, in parts. Raises ValueError for a store that does not exist or does not answer.
    """
    rng = np.random.default_rng(seed)
    ids, keys = np.empty(0, object), np.empty(0)
    store = open_store(address)
    try:
        for part in store.dump():
            ids = np.append(ids, part["customer_id"].to_numpy())
            keys = np.append(keys, rng.random(len(part)))
            drawn = np.argsort(keys, kind="stable")[:count]
            ids, keys = ids[drawn], keys[drawn]
        return store.get(ids.tolist())
    except StoreUnavailableError as error:
        raise ValueError(f"the comparison needs the online store: {error}") from error
    finally:
        store.close()
