"""Baseline: the zero-inflated lognormal (ZILN) network of Wang, Liu and Miao 2019 (arXiv:1912.07753)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clv.evaluate.baselines.inputs import Context, NotRun, labels, log_features
from clv.forecast.distributions import Prediction, hurdle_lognormal

HIDDEN = (64, 32)
EPOCHS = 15
BATCH = 512
MIN_SIGMA, MAX_SIGMA = 0.05, 2.0


def ziln_mlp(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """A feed-forward network with outputs p, mu and sigma, trained on the ZILN log-likelihood."""
    try:
        import torch
    except ImportError as error:
        raise NotRun("torch is not installed") from error
    from torch import nn
    from torch.nn import functional as F

    value, bought = labels(train, horizon)
    paid = value > 0
    if not paid.any():
        raise NotRun("no training customer spent anything in the horizon")
    x, x_test = log_features(train, test)
    logs = np.log(np.maximum(value, 1e-12))
    centre, spread = float(logs[paid].mean()), max(float(logs[paid].std()), 0.1)
    inputs, outputs = torch.tensor(x, dtype=torch.float32), torch.tensor(x_test, dtype=torch.float32)
    target = torch.tensor(np.where(paid, (logs - centre) / spread, 0.0), dtype=torch.float32)
    hit, pay = (torch.tensor(a, dtype=torch.float32) for a in (bought, paid))

    # The random state of the caller does not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        width = inputs.shape[1]
        for size in HIDDEN:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(0.1)]
            width = size
        net = nn.Sequential(*layers, nn.Linear(width, 3))
        steps = EPOCHS * -(-len(inputs) // BATCH)
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(inputs)).split(BATCH):
                logit, mu, raw = net(inputs[rows]).T
                sigma = F.softplus(raw).clamp(MIN_SIGMA / spread, MAX_SIGMA / spread)
                density = 0.5 * ((target[rows] - mu) / sigma) ** 2 + sigma.log()
                cross = F.binary_cross_entropy_with_logits(logit, hit[rows], reduction="sum")
                loss = (cross + (pay[rows] * density).sum()) / len(rows)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        net.eval()
        with torch.no_grad():
            logit, mu, raw = (column.double() for column in net(outputs).T)
            p = torch.sigmoid(logit).numpy()
            scale = F.softplus(raw).numpy() * spread
            location = np.asarray(mu.numpy() * spread + centre, float)
    scale = np.clip(scale, MIN_SIGMA, MAX_SIGMA)
    location = np.clip(location, logs[paid].min(), logs[paid].max())
    value_mean = p * np.minimum(np.exp(location + scale**2 / 2), float(value.max()))
    return Prediction(value=value_mean, p_purchase=p, quantiles=hurdle_lognormal(p, location, scale))
