"""Gamma-Gamma model of spend per purchase day (Fader & Hardie 2013, "The Gamma-Gamma Model of Monetary Value").

z | ν ~ Gamma(p, ν) on each purchase day, ν ~ Gamma(q, v); the spend is independent of the number of purchases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma, gammaln

from clv.btyd.likelihood import Floats, Loss, maximise

MIN_ROWS = 10
_MAX_PRIOR_RATIO = 3.0
_BOUNDS = [(-4.0, 9.0), (-4.0, 9.0), (-9.0, 14.0)]  # log p, log q, log(v / mean spend)


@dataclass(frozen=True)
class GammaGamma:
    """Parameters p, q (no unit) and v (shop currency).

    `fallback` is the reason why the conditional mean does not use p, q and v: fewer than MIN_ROWS repeat buyers, no
    finite mean (q <= 1), or a prior mean more than three times the observed one (with q barely above 1, an unobserved
    tail determines the mean of customers without a repeat purchase). The estimate is then the mean of the customer and
    of the population, weighted x : `fallback_weight`.
    """

    p: float
    q: float
    v: float
    observed_mean: float  # shop currency per repeat purchase day
    log_likelihood: float
    stderr: dict[str, float]  # of the log parameters
    num_rows: float
    fallback: str | None = None
    fallback_weight: float = 1.0

    @classmethod
    def fit(cls, frequency: ArrayLike, monetary: ArrayLike, weights: ArrayLike | None = None) -> GammaGamma:
        """Fit on the rows with frequency > 0 and monetary > 0, the mean value of the repeat purchase days; (N,) each.

        Raises ValueError for unequal lengths, and for a repeat buyer whose mean value is not finite.
        """
        x, z, weight = _usable(frequency, monetary, weights)
        num_rows = float(weight.sum())
        mean = float((weight * x * z).sum() / (weight * x).sum()) if num_rows > 0 else 0.0
        if num_rows < MIN_ROWS:
            text = f"{num_rows:g} customers with a repeat purchase of positive value; at least {MIN_ROWS} are needed"
            return cls(np.nan, np.nan, np.nan, mean, np.nan, {}, num_rows, text)
        scale = float(np.average(z, weights=weight))
        starts = np.log([(1.0, 3.0, 2.0), (6.0, 3.0, 0.4), (2.0, 10.0, 5.0), (20.0, 1.5, 0.05)])
        top = maximise(_loss(x, z / scale, weight), list(starts), _BOUNDS)
        p, q, v = (np.exp(top.theta) * [1, 1, scale]).tolist()
        log_likelihood = top.log_likelihood - num_rows * float(np.log(scale))
        stderr = dict(zip(("p", "q", "v"), top.stderr.tolist(), strict=True))
        return cls(p, q, v, mean, log_likelihood, stderr, num_rows, _unusable(p, q, v, mean))

    def expected_value(self, frequency: ArrayLike, monetary: ArrayLike) -> Floats:
        """E[spend per purchase day | x days of mean z], shape (N,), shop currency; z below 0 counts as 0 (eq. 5)."""
        x = np.asarray(frequency, np.float64)
        z = np.maximum(np.asarray(monetary, np.float64), 0.0)
        if self.fallback:
            return np.asarray((self.fallback_weight * self.observed_mean + x * z) / (self.fallback_weight + x))
        return np.asarray(self.p * (self.v + x * z) / (self.p * x + self.q - 1))


def _usable(frequency: ArrayLike, monetary: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    x, z = np.asarray(frequency, np.float64), np.asarray(monetary, np.float64)
    weight = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if not (len(x) == len(z) == len(weight)):
        raise ValueError(f"frequency, monetary and weights have {len(x)}, {len(z)} and {len(weight)} rows: need equal")
    if not np.isfinite(z[x > 0]).all():
        i = int(np.flatnonzero((x > 0) & ~np.isfinite(z))[0])
        raise ValueError(f"monetary is {z[i]} in row {i}: a customer with repeat purchases needs a finite mean value")
    keep = (x > 0) & (z > 0) & (weight > 0)
    return x[keep], z[keep], weight[keep]


def _unusable(p: float, q: float, v: float, observed: float) -> str | None:
    if q <= 1:
        return f"the mean spend is not finite under the fit (q = {q:.3g} <= 1)"
    prior = p * v / (q - 1)
    if prior > _MAX_PRIOR_RATIO * observed:
        return f"the fitted mean spend {prior:.4g} is more than {_MAX_PRIOR_RATIO:g} times the observed {observed:.4g}"
    return None


def _loss(x: Floats, z: Floats, weight: Floats) -> Loss:
    """Negative log-likelihood of log (p, q, v) and its gradient (eq. 1a of the note)."""
    log_x, log_z = np.log(x), np.log(z)
    distinct, x_index = np.unique(x, return_inverse=True)

    def loss(theta: Floats) -> tuple[float, Floats]:
        p, q, v = np.exp(theta)
        px = p * distinct
        total = px + q
        log_rate = np.log(x * z + v)
        values = (
            (gammaln(total) - gammaln(px) - gammaln(q))[x_index]
            + q * np.log(v)
            + (p * x - 1) * log_z
            + p * x * log_x
            - total[x_index] * log_rate
        )
        psi = digamma(total)
        d_p = x * ((psi - digamma(px))[x_index] + log_z + log_x - log_rate)
        d_q = (psi - digamma(q))[x_index] + np.log(v) - log_rate
        d_v = q / v - total[x_index] / (x * z + v)
        return -float(weight @ values), -np.array([weight @ d_p * p, weight @ d_q * q, weight @ d_v * v])

    return loss
