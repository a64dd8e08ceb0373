"""Sessions and funnel: events of a customer without a pause of half an hour, and the furthest step of each session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clv.data.events import PURCHASE, TYPES
from clv.data.histories import changes

PAUSE_US = 30 * 60 * 1_000_000
# Only actions of the customer form sessions; impressions, messages and returns do not.
ACTS = np.array([TYPES[name] for name in ("purchase", "view", "cart", "favourite", "click", "rating", "review")])
STEPS = {"viewed": TYPES["view"], "carted": TYPES["cart"], "bought": PURCHASE}


@dataclass(frozen=True)
class Sessions:
    """S sessions: `owner` ascending, `start` in us, and whether the session holds a view, a cart event, a purchase."""

    owner: NDArray[np.int64]
    start: NDArray[np.int64]
    viewed: NDArray[np.bool_]
    carted: NDArray[np.bool_]
    bought: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.owner)

    def funnel(self) -> dict[str, int]:
        """Returns the numbers of sessions, of those with a view, a cart event, a purchase, and of abandoned carts."""
        return {
            "sessions": len(self),
            "sessions_viewed": int(self.viewed.sum()),
            "sessions_carted": int(self.carted.sum()),
            "sessions_bought": int(self.bought.sum()),
            "carts_left": int((self.carted & ~self.bought).sum()),
        }


def sessions(owner: NDArray[np.int64], time: NDArray[np.int64], kind: NDArray[Any]) -> Sessions:
    """Returns the sessions of events ordered by owner, then by time (us); `kind` holds codes of `events.TYPES`."""
    acts = np.flatnonzero(np.isin(kind, ACTS))
    owner, time, kind = owner[acts], time[acts], kind[acts]
    new = changes(owner)
    new[1:] |= np.diff(time) > PAUSE_US
    number = np.cumsum(new) - 1
    start = np.flatnonzero(new)
    found = {name: np.bincount(number[kind == code], minlength=len(start)) > 0 for name, code in STEPS.items()}
    return Sessions(owner[start], time[start], **found)
