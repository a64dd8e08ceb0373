"""Time zones and UTC microseconds: days, origins and seasons are local to the shop, instants are stored in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

DAY_US = 86_400_000_000
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


def to_datetime(us: int) -> datetime:
    """Returns the aware datetime, in UTC, of an instant in microseconds since 1970."""
    return _EPOCH + int(us) * _MICROSECOND


def to_us(when: datetime) -> int:
    """Returns the microseconds since 1970 of an aware datetime. Raises ValueError for one without a time zone."""
    if when.tzinfo is None:
        raise ValueError(f"the time {when} has no time zone; give it one, such as datetime.UTC")
    return (when - _EPOCH) // _MICROSECOND


@dataclass(frozen=True)
class Clock:
    """Converts between instants (int64 microseconds UTC) and shop-local days (int32 days since 1970-01-01).

    `timezone` is an IANA name; any other raises ValueError.

    >>> clock = Clock("Europe/London")
    >>> clock.local_day(clock.parse("2011-06-12"))
    array(15137, dtype=int32)
    """

    timezone: str = "UTC"

    def __post_init__(self) -> None:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"timezone {self.timezone!r} is not an IANA name such as 'Europe/London'") from error

    def local_day(self, us: ArrayLike) -> Int32:
        """Returns the shop-local day of each instant, in the shape of `us`."""
        instants = np.asarray(us, dtype=np.int64)
        if self.timezone == "UTC":
            return (instants // DAY_US).astype(np.int32)
        index = pd.DatetimeIndex(instants.ravel().view("datetime64[us]"), tz="UTC").tz_convert(self.timezone)
        local = index.tz_localize(None).to_numpy().astype("datetime64[us]").view(np.int64)
        return (local // DAY_US).astype(np.int32).reshape(instants.shape)

    def day_start(self, day: ArrayLike) -> Int64:
        """Returns the instant at which each local day begins, in the shape of `day`.

        A day whose midnight a change of the clocks skips begins at the first instant after the gap.
        """
        days = np.asarray(day, dtype=np.int64)
        if self.timezone == "UTC":
            return days * DAY_US
        unique, inverse = np.unique(days.ravel(), return_inverse=True)
        naive = pd.DatetimeIndex((unique * DAY_US).view("datetime64[us]"))
        local = naive.tz_localize(self.timezone, ambiguous=np.ones(len(naive), bool), nonexistent="shift_forward")
        starts = local.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[us]").view(np.int64)
        return np.asarray(starts[inverse].reshape(days.shape), dtype=np.int64)

    def parse(self, text: str | datetime) -> int:
        """Returns the instant of "2011-06-12" (local midnight) or of an ISO time; a time without an offset is local.

        A repeated hour is read as its first time, a skipped one moves forward. Raises ValueError for any other text.
        """
        try:
            stamp = pd.Timestamp(datetime.fromisoformat(text) if isinstance(text, str) else text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a date or time: write YYYY-MM-DD or an ISO time") from error
        if pd.isna(stamp):
            raise ValueError(f"{text!r} is not a date or time: write YYYY-MM-DD or an ISO time")
        if stamp.tzinfo is None:
            stamp = stamp.tz_localize(self.timezone, ambiguous=True, nonexistent="shift_forward")
        return int(stamp.tz_convert("UTC").tz_localize(None).to_datetime64().astype("datetime64[us]").astype(np.int64))

    def format(self, us: int) -> str:
        """Returns the local date where `us` begins a day, otherwise the local ISO time with its offset."""
        stamp = pd.Timestamp(int(us), unit="us", tz="UTC").tz_convert(self.timezone)
        # Not stamp.normalize(): a day whose midnight the clock skips begins later.
        begins = int(self.day_start(self.local_day(us))) == us
        return str(stamp.date()) if begins else stamp.isoformat()
