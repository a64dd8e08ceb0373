"""Buy-till-you-die peers: BG/NBD and MBG/NBD with Gamma-Gamma spend, fitted on everybody known at the test origin."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clv.anchor.btyd import Kind
from clv.evaluate.peer_inputs import Context
from clv.evaluate.prediction import Prediction


def _predict(kind: Kind, test: pd.DataFrame, horizon: int, context: Context) -> Prediction:
    forecast = context.expect(kind, test, horizon)
    p = np.clip(forecast["p_purchase"].to_numpy(float), 0.0, 1.0)
    return Prediction(value=np.maximum(forecast["value"].to_numpy(float), 0.0), p_purchase=p)


def bgnbd_gg(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """BG/NBD (Fader, Hardie and Lee 2005) with Gamma-Gamma spend (Fader and Hardie 2013)."""
    return _predict("bgnbd", test, horizon, context)


def mbgnbd_gg(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """MBG/NBD (Batislam, Denizel and Filiztekin 2007) with Gamma-Gamma spend."""
    return _predict("mbgnbd", test, horizon, context)
