"""Buy-till-you-die (BTYD) models of purchases: BG/NBD, MBG/NBD and NBD; and the BTYD model, one of them with spend.

A customer buys as a Poisson process of rate λ ~ Gamma(r, rate α) and leaves for good after a purchase with
probability p ~ Beta(a, b). In BG/NBD (Fader, Hardie & Lee 2005) the first purchase cannot be the last, so a customer
without a repeat purchase is alive for certain; in MBG/NBD (Batislam et al. 2007, Hoppe & Wagner 2007) it can.
NBD has no dropout. x counts repeat purchases, t_x is the age at the last purchase, T the age at the origin, in days.

Given x, T and that the customer is alive: λ ~ Gamma(r + x, α + T), p ~ Beta(a, b'), independent, with b' = b + x in
BG/NBD and b + x + 1 in MBG/NBD. All predictions follow from this and from P(alive).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import betaincinv, betaln, digamma, expit, gammaln

from clv.btyd.gamma_gamma import GammaGamma
from clv.btyd.likelihood import Floats, Loss, Maximum, PurchaseHistories, check_histories, group_histories, maximise

Kind = Literal["bgnbd", "mbgnbd", "nbd"]

_RATE_BOUNDS = [(-7.0, 7.0), (-12.0, 12.0)]  # log r, log(α / mean T)
_DROPOUT_BOUNDS = [(-7.0, 9.0), (-7.0, 11.0)]  # log a, log b
_CHUNK_ROWS = 20_000  # bounds the memory of (rows, nodes) arrays


# Tanh-sinh nodes and weights on (0, 1), good to 1e-12 for integrands that are smooth inside the interval.
_STEPS = np.linspace(-3.2, 3.2, 65)
_NODES = expit(np.pi * np.sinh(_STEPS))
_WEIGHTS = np.cosh(_STEPS) * _NODES * (1 - _NODES)
_WEIGHTS /= _WEIGHTS.sum()


@dataclass(frozen=True, kw_only=True)
class _PurchaseModel:
    """Common part of the three models: purchases with rate λ ~ Gamma(r, α), and predictions from P(alive)."""

    r: float
    alpha: float
    log_likelihood: float
    stderr: dict[str, float]  # of the log parameters, NaN on a ridge or a bound
    num_customers: float

    def p_alive(self, x: ArrayLike, t_x: ArrayLike, T: ArrayLike) -> Floats:
        """P(not yet left at T | x, t_x, T), shape (N,); the probability of a purchase is `p_purchase`."""
        return np.asarray(expit(-self._log_odds_gone(*check_histories(x, t_x, T))))

    def p_purchase(self, x: ArrayLike, t_x: ArrayLike, T: ArrayLike, horizon_days: float) -> Floats:
        """P(at least one purchase in (T, T + h] | x, t_x, T), shape (N,).

        Customers leave only after a purchase, so it is P(alive) · (1 − E[exp(−λh)]) with λ ~ Gamma(r + x, α + T).
        """
        x, t_x, T = check_histories(x, t_x, T)
        w = _horizon(horizon_days) / (self.alpha + T)
        return np.asarray(self.p_alive(x, t_x, T) * -np.expm1(-(self.r + x) * np.log1p(w)))

    def expected_purchases(self, x: ArrayLike, t_x: ArrayLike, T: ArrayLike, horizon_days: float) -> Floats:
        """E[number of purchases in (T, T + h] | x, t_x, T], shape (N,)."""
        x, t_x, T = check_histories(x, t_x, T)
        w = _horizon(horizon_days) / (self.alpha + T)
        return np.asarray(self.p_alive(x, t_x, T) * self._expected_if_alive(x, w))

    def _log_odds_gone(self, x: Floats, t_x: Floats, T: Floats) -> Floats:
        return np.full(len(x), -np.inf)

    def _expected_if_alive(self, x: Floats, w: Floats) -> Floats:
        """E[purchases | alive, x], w = h / (α + T)."""
        return (self.r + x) * w


@dataclass(frozen=True, kw_only=True)
class NBD(_PurchaseModel):
    """NBD, Gamma-Poisson purchases without dropout: the limit of the other two models where no customer leaves."""

    @classmethod
    def fit(cls, frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, weights: ArrayLike | None = None) -> Self:
        """Maximum likelihood; (N,) repeat purchases, days to the last, days to the origin, optional row weights."""
        rows = group_histories(frequency, recency, T, weights)
        scale = _scale(rows)
        top = maximise(_nbd_loss(rows, scale), [_nbd_start(rows), np.zeros(2)], _RATE_BOUNDS)
        return cls(**_fields(top, rows, scale))


@dataclass(frozen=True, kw_only=True)
class _DropoutModel(_PurchaseModel):
    """Dropout after a purchase with probability p ~ Beta(a, b)."""

    a: float
    b: float
    _first_can_be_last: ClassVar[int]

    @classmethod
    def fit(cls, frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, weights: ArrayLike | None = None) -> Self:
        """Maximum likelihood; (N,) repeat purchases, days to the last, days to the origin, optional row weights.

        Where the data show no dropout, the likelihood is flat in a and b and they may stop anywhere on that ridge
        or on a bound (stderr is NaN there); predictions are then those of NBD. `diagnostics.check_dropout` detects it.
        """
        rows = group_histories(frequency, recency, T, weights)
        scale = _scale(rows)
        rate = maximise(_nbd_loss(rows, scale), [_nbd_start(rows), np.zeros(2)], _RATE_BOUNDS).theta
        starts = [np.append(rate, np.log(ab)) for ab in ((0.5, 1.5), (1.0, 4.0), (0.1, 10.0), (5.0, 20.0))]
        loss = _dropout_loss(rows, scale, cls._first_can_be_last)
        top = maximise(loss, starts, _RATE_BOUNDS + _DROPOUT_BOUNDS)
        return cls(**_fields(top, rows, scale))

    def _b_alive(self, x: Floats) -> Floats:
        return self.b + x + self._first_can_be_last

    def _log_odds_gone(self, x: Floats, t_x: Floats, T: Floats) -> Floats:
        could_leave = (x > 0) | bool(self._first_can_be_last)
        chances = np.where(could_leave, self._b_alive(x) - 1, 1.0)
        odds = np.log(self.a / chances) + (self.r + x) * np.log((self.alpha + T) / (self.alpha + t_x))
        return np.where(could_leave, odds, -np.inf)

    def _expected_if_alive(self, x: Floats, w: Floats) -> Floats:
        """E over p of (1 − (1 + pw)^−(r+x)) / p, by quadrature over the quantiles of p ~ Beta(a, b').

        The closed form (a+b'−1)/(a−1)·[1 − (1+w)^−(r+x) ₂F₁(...)] is 0/0 at a = 1 and its ₂F₁ overflows or cancels
        for large x and long T; the integrand here is positive, bounded and smooth.
        """
        distinct, x_index = np.unique(x, return_inverse=True)
        p = np.maximum(betaincinv(self.a, self._b_alive(distinct)[:, None], _NODES), 1e-300)  # (X, nodes)
        # Customers of equal x and age have equal expectations: each distinct pair is computed once.
        age, ages = pd.factorize(w)
        pair, pairs = pd.factorize(x_index * len(ages) + age)
        x_index, w = pairs // len(ages), ages[pairs % len(ages)]
        out = np.empty(len(pairs))
        for start in range(0, len(pairs), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            p_rows = p[x_index[rows]]
            exponent = (self.r + distinct[x_index[rows], None]) * np.log1p(p_rows * w[rows, None])
            out[rows] = (-np.expm1(-exponent) / p_rows) @ _WEIGHTS
        return out[pair]


@dataclass(frozen=True, kw_only=True)
class BGNBD(_DropoutModel):
    """BG/NBD: P(alive) is 1 for customers without a repeat purchase, whatever their age."""

    _first_can_be_last: ClassVar[int] = 0


@dataclass(frozen=True, kw_only=True)
class MBGNBD(_DropoutModel):
    """MBG/NBD: customers can leave after the first purchase."""

    _first_can_be_last: ClassVar[int] = 1


_MODELS: dict[str, type[NBD] | type[BGNBD] | type[MBGNBD]] = {"bgnbd": BGNBD, "mbgnbd": MBGNBD, "nbd": NBD}


@dataclass(frozen=True)
class BTYDModel:
    """Expected purchase days, orders and value of each customer; a transaction is a distinct day with a purchase.

    `spend` is None where the dataset has no prices; value is then 0.
    """

    kind: Kind
    counts: NBD | BGNBD | MBGNBD
    spend: GammaGamma | None
    orders_per_day: float

    @classmethod
    def fit(cls, frame: pd.DataFrame, kind: Kind = "bgnbd") -> Self:
        """Fit on the rows of a sample frame with a purchase, all of one origin.

        Orders per purchase day are computed from `orders_past`, and are 1 without that column. Raises ValueError for an
        unknown kind, several origins, or a frame without purchases.
        """
        if kind not in _MODELS:
            raise ValueError(f"BTYD model kind {kind!r} is unknown: use one of {', '.join(_MODELS)}")
        if "origin_day" in frame and frame["origin_day"].nunique() > 1:
            days = frame["origin_day"]
            raise ValueError(
                f"the frame holds {days.nunique()} origins ({days.min()}..{days.max()}): fit a BTYD model on one"
            )
        rows = frame[frame["has_purchase"].to_numpy(bool)]
        if rows.empty:
            raise ValueError(f"none of the {len(frame)} rows has a purchase before the origin: choose a later origin")
        frequency = rows["frequency"].to_numpy(np.float64)
        counts = _MODELS[kind].fit(frequency, rows["recency"].to_numpy(), rows["T"].to_numpy())
        monetary = rows["monetary"].to_numpy(np.float64)
        spend = GammaGamma.fit(frequency, monetary) if (monetary > 0).any() else _mean_spend(rows)
        orders_per_day = float(rows["orders_past"].sum() / (frequency + 1).sum()) if "orders_past" in rows else 1.0
        return cls(kind, counts, spend, orders_per_day)

    def predict(self, frame: pd.DataFrame, horizon_days: float) -> pd.DataFrame:
        """`days` (purchase days), `p_purchase`, `orders`, `value` (undiscounted) in [o, o + h), index of the frame.

        Rows without a purchase are 0 (see `clv.btyd.conversion`). Purchase days are at most the days of the horizon.
        """
        buys = frame["has_purchase"].to_numpy(bool)
        out = np.zeros((len(frame), 4))
        if buys.any():
            rows = frame[buys]
            x, t_x, T = (rows[name].to_numpy(np.float64) for name in ("frequency", "recency", "T"))
            days = np.minimum(self.counts.expected_purchases(x, t_x, T, horizon_days), horizon_days)
            out[buys, 0] = days
            out[buys, 1] = self.counts.p_purchase(x, t_x, T, horizon_days)
            out[buys, 2] = days * self.orders_per_day
            if self.spend is not None:
                out[buys, 3] = days * self.spend.expected_value(x, rows["monetary"].to_numpy())
        return pd.DataFrame(out, columns=["days", "p_purchase", "orders", "value"], index=frame.index)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: _without_nan(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`; ValueError for any other values."""
        try:
            counts = _MODELS[plain["kind"]](**_with_nan(plain["counts"]))
            spend = GammaGamma(**_with_nan(plain["spend"])) if plain["spend"] is not None else None
            return cls(plain["kind"], counts, spend, plain["orders_per_day"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no BTYD model that to_json wrote: {error!r}") from error


def _mean_spend(rows: pd.DataFrame) -> GammaGamma | None:
    """The mean value of a purchase day for everybody, where nobody has a repeat purchase; None without prices."""
    total = float(rows["value_past"].sum()) if "value_past" in rows else 0.0
    if not total > 0:
        return None
    mean = total / float((rows["frequency"] + 1).sum())
    reason = "no customer has a repeat purchase of positive value; the mean of all purchase days is used"
    return GammaGamma(np.nan, np.nan, np.nan, mean, np.nan, {}, 0.0, fallback=reason)


def _horizon(days: float) -> float:
    if not (np.isfinite(days) and days >= 0):
        raise ValueError(f"horizon_days is {days}: a finite number of days, 0 or more, is needed")
    return float(days)


def _scale(rows: PurchaseHistories) -> float:
    """Mean age, the unit of time of the fit: its starting values and bounds then suit any unit of the data."""
    return max(float(np.average(rows.T, weights=rows.weight)), 1e-9)


def _fields(top: Maximum, rows: PurchaseHistories, scale: float) -> dict[str, Any]:
    """The fitted parameters in days; densities of purchase times per unit of scale become densities per day."""
    names = ("r", "alpha", "a", "b")
    fields: dict[str, Any] = dict(zip(names, np.exp(top.theta).tolist(), strict=False))
    fields["alpha"] *= scale
    fields["log_likelihood"] = top.log_likelihood - float(rows.weight @ rows.x) * float(np.log(scale))
    fields["stderr"] = dict(zip(names, top.stderr.tolist(), strict=False))
    return fields | {"num_customers": float(rows.weight.sum())}


def _nbd_start(rows: PurchaseHistories) -> Floats:
    """Method of moments: the mean rate, and r from the overdispersion of the counts."""
    mean = np.average(rows.x, weights=rows.weight)
    variance = np.average((rows.x - mean) ** 2, weights=rows.weight)
    r = np.clip(mean**2 / max(variance - mean, 0.1 * mean, 1e-9), 0.05, 20.0)
    return np.log([r, r / max(mean, 1e-4)])


def _nbd_loss(rows: PurchaseHistories, scale: float) -> Loss:
    T = rows.T / scale

    def loss(theta: Floats) -> tuple[float, Floats]:
        r, alpha = np.exp(theta)
        total = r + rows.distinct
        log_age = np.log(alpha + T)
        values = (gammaln(total) - gammaln(r))[rows.x_index] + r * np.log(alpha) - total[rows.x_index] * log_age
        d_r = (digamma(total) - digamma(r))[rows.x_index] + np.log(alpha) - log_age
        d_alpha = r / alpha - total[rows.x_index] / (alpha + T)
        return -float(rows.weight @ values), -np.array([rows.weight @ d_r * r, rows.weight @ d_alpha * alpha])

    return loss


def _dropout_loss(rows: PurchaseHistories, scale: float, first_can_be_last: int) -> Loss:
    """L = B(a,b')/B(a,b)·Γ(r+x)α^r/Γ(r)·[(α+T)^−(r+x) + a/(b'−1)·(α+t_x)^−(r+x)]; the last term where x can leave."""
    T, t_x = rows.T / scale, rows.t_x / scale
    could_leave = (rows.x > 0) | bool(first_can_be_last)

    def loss(theta: Floats) -> tuple[float, Floats]:
        r, alpha, a, b = np.exp(theta)
        total, b_alive = r + rows.distinct, b + rows.distinct + first_can_be_last
        shape = total[rows.x_index]
        chances = np.where(could_leave, b_alive[rows.x_index] - 1, 1.0)
        log_age, log_last = np.log(alpha + T), np.log(alpha + t_x)
        alive = -shape * log_age
        gone = np.where(could_leave, np.log(a / chances) - shape * log_last, -np.inf)
        by_x = gammaln(total) - gammaln(r) + betaln(a, b_alive) - betaln(a, b)
        values = by_x[rows.x_index] + r * np.log(alpha) + np.logaddexp(alive, gone)
        p_gone = expit(gone - alive)
        p_alive = 1 - p_gone
        d_r = (digamma(total) - digamma(r))[rows.x_index] + np.log(alpha) - p_alive * log_age - p_gone * log_last
        d_alpha = r / alpha - shape * (p_alive / (alpha + T) + p_gone / (alpha + t_x))
        both = digamma(a + b) - digamma(a + b_alive)
        d_a = both[rows.x_index] + p_gone / a
        d_b = (both + digamma(b_alive) - digamma(b))[rows.x_index] - p_gone / chances
        slopes = [rows.weight @ d for d in (d_r * r, d_alpha * alpha, d_a * a, d_b * b)]
        return -float(rows.weight @ values), -np.array(slopes)

    return loss


def _without_nan(value: Any) -> Any:
    """NaN and infinity as None, since JSON has neither."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _with_nan(fields: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_without_nan`: None becomes NaN, except in `fallback`."""
    return {
        key: _with_nan(value) if isinstance(value, dict) else np.nan if value is None and key != "fallback" else value
        for key, value in fields.items()
    }
