"""Sample frames of simulated customers, for the tests of the baselines."""

import numpy as np
import pandas as pd

H = 90
TRAIN_ORIGINS = tuple(range(330, 511, 60))
TEST_ORIGIN = 600


def sample_frames(origins: tuple[int, ...], seed: int = 0, n: int = 700) -> pd.DataFrame:
    """Sample frames of customers with their own rate and basket, some of whom left, at several origins."""
    rng = np.random.default_rng(seed)
    rate, basket = rng.gamma(0.8, 0.02, n), rng.lognormal(3, 0.7, n)
    life, born = rng.exponential(600, n), rng.uniform(0, 300, n)
    days = [np.sort(born[i] + np.r_[0.0, rng.uniform(0, 900, rng.poisson(rate[i] * 900))]) // 1 for i in range(n)]
    days = [np.unique(d[d <= born[i] + max(life[i], 1)]) for i, d in enumerate(days)]
    frames = []
    for origin in origins:
        rows = []
        for i, d in enumerate(days):
            past, future = d[d < origin], d[(d >= origin) & (d < origin + H)]
            value = basket[i] * np.ones(len(past))
            if not len(past):
                continue
            row = {
                "customer_id": str(i),
                "origin_day": origin,
                "frequency": len(past) - 1,
                "recency": past[-1] - past[0],
                "T": origin - past[0],
                "monetary": basket[i] if len(past) > 1 else 0.0,
                "has_purchase": True,
                "value_past": value.sum(),
                "orders_past": len(past),
                "f_recency": origin - past[-1],
                "f_tenure": origin - past[0],
                "f_orders": len(past),
                "f_spend": value.sum(),
                "f_aov": basket[i],
                "f_gap_mean": np.diff(past).mean() if len(past) > 1 else np.nan,
                f"f_spend_same_window_year_ago_{H}": value[(past >= origin - 365) & (past < origin - 365 + H)].sum(),
                f"value_{H}": basket[i] * len(future) * rng.lognormal(0, 0.2),
                f"orders_{H}": float(len(future)),
                f"days_{H}": float(len(future)),
                f"observed_{H}": True,
            }
            for w in (30, 90, 180, 365):
                row |= {f"f_orders_{w}": (past >= origin - w).sum(), f"f_spend_{w}": value[past >= origin - w].sum()}
            rows.append(row)
        frames.append(pd.DataFrame(rows))
    return pd.concat(frames, ignore_index=True)
