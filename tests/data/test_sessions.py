"""Sessions and funnel, counted by hand."""

from __future__ import annotations

import numpy as np

from clv.data.events import TYPES
from clv.data.sessions import sessions

MINUTE = 60_000_000


def events(*events: tuple[int, float, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns owner, time (us) and type code of events given as (owner, minute, type)."""
    owner, minute, kind = zip(*events, strict=True)
    time = (np.array(minute) * MINUTE).astype(np.int64)
    return np.array(owner, np.int64), time, np.array([TYPES[k] for k in kind], np.int16)


def test_a_pause_of_more_than_half_an_hour_or_another_customer_begins_a_session() -> None:
    found = sessions(
        *events((0, 0, "view"), (0, 30, "cart"), (0, 60.1, "view"), (1, 60.2, "view"), (1, 61, "purchase"))
    )
    assert found.owner.tolist() == [0, 0, 1]
    assert (found.start / MINUTE).round(1).tolist() == [0, 60.1, 60.2]
    assert found.carted.tolist() == [True, False, False]
    assert found.bought.tolist() == [False, False, True]
    assert found.funnel() == {
        "sessions": 3, "sessions_viewed": 3, "sessions_carted": 1, "sessions_bought": 1, "carts_left": 1,
    }  # fmt: skip


def test_what_the_shop_does_keeps_no_session_open_and_begins_none() -> None:
    found = sessions(
        *events((0, 0, "view"), (0, 20, "message"), (0, 40, "impression"), (0, 45, "view"), (0, 90, "return"))
    )
    assert len(found) == 2
    assert len(sessions(*(a[:0] for a in events((0, 0, "view"))))) == 0
