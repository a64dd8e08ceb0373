"""Degenerate-fit check of the BTYD model: likelihood ratio test of BG/NBD or MBG/NBD against NBD without dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import chdtrc

from clv.btyd.models import BGNBD, MBGNBD, NBD

DropoutVerdict = Literal["ok", "no_dropout", "boundary", "too_few_repeat_buyers"]

MIN_REPEAT_BUYERS = 50
MAX_P_VALUE = 0.01
_STDERR_LIMIT = 3.0  # of a log parameter: above it the parameter is known only within a factor of 20


@dataclass(frozen=True)
class DropoutFinding:
    """Result of the degenerate-fit check, explained by `text`; likelihood_ratio is 2 (log L − log L of NBD)."""

    verdict: DropoutVerdict
    text: str
    likelihood_ratio: float
    p_value: float

    @property
    def degenerate(self) -> bool:
        """Whether P(alive) and the churn of this fit carry no information about the customers."""
        return self.verdict in ("no_dropout", "too_few_repeat_buyers")


def check_dropout(fitted: BGNBD | MBGNBD, plain: NBD, num_repeat_buyers: float) -> DropoutFinding:
    """Test a fit with dropout against the NBD fit of the same rows.

    NBD is BG/NBD with p = 0, on the edge of the parameter space, where the likelihood ratio is not χ²-distributed: half
    of its mass is at 0 (Self & Liang 1987), and b is not identified. The test uses ½ χ²(2), which is conservative: it
    prefers "no_dropout". Raises ValueError for fits of different numbers of customers.
    """
    name = type(fitted).__name__
    if fitted.num_customers != plain.num_customers:
        raise ValueError(
            f"{name} was fitted on {fitted.num_customers:g} customers, NBD on {plain.num_customers:g}: "
            "fit both on the same rows"
        )
    ratio = 2 * (fitted.log_likelihood - plain.log_likelihood)
    p_value = 1.0 if ratio <= 0 else float(0.5 * chdtrc(2, ratio))
    vague = [key for key, error in fitted.stderr.items() if not (np.isfinite(error) and error < _STDERR_LIMIT)]
    facts = f"likelihood ratio against NBD {ratio:.1f}, p {p_value:.2g}"
    verdict: DropoutVerdict
    if num_repeat_buyers < MIN_REPEAT_BUYERS:
        verdict = "too_few_repeat_buyers"
        text = (
            f"{num_repeat_buyers:g} customers bought again, fewer than {MIN_REPEAT_BUYERS}: the {name} parameters are "
            "close to their starting values; use a longer log or an earlier first origin"
        )
    elif p_value > MAX_P_VALUE:
        verdict = "no_dropout"
        text = (
            f"the purchases show no dropout ({facts}): P(alive) and churn of {name} carry no information, "
            "its expected purchases are those of NBD; the log may be too short to show customers who leave"
        )
    elif vague:
        verdict = "boundary"
        text = (
            f"{name} shows dropout ({facts}) but does not determine {', '.join(vague)}: they lie on a bound or a flat "
            "ridge; totals are usable, single parameters and P(alive) are not to be interpreted"
        )
    else:
        verdict = "ok"
        leave = fitted.a / (fitted.a + fitted.b)
        text = f"{name} shows dropout ({facts}): on average {leave:.0%} leave after a purchase"
    return DropoutFinding(verdict, text, ratio, p_value)
