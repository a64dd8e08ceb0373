from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clv.data.clock import DAY_US, Clock, to_datetime, to_us

HOUR_US = 3_600_000_000
ZONES = ("UTC", "Europe/London", "America/Sao_Paulo", "Asia/Shanghai", "America/Havana", "Pacific/Apia")


def local_day(us: int, zone: str) -> int:
    """The same by the standard library, one instant at a time."""
    local = datetime.fromtimestamp(us // 1_000_000, UTC).astimezone(ZoneInfo(zone))
    return local.toordinal() - datetime(1970, 1, 1).toordinal()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ZONES), st.integers(-86_400 * 3_000, 86_400 * 24_000))
def test_days_agree_with_the_standard_library(zone: str, second: int) -> None:
    clock, us = Clock(zone), second * 1_000_000
    day = clock.local_day(us)
    assert day.dtype == np.int32
    assert day == local_day(us, zone)


@pytest.mark.parametrize("zone", ZONES)
def test_a_day_begins_at_the_first_instant_that_belongs_to_it(zone: str) -> None:
    clock = Clock(zone)
    days = np.arange(14_900, 18_500)
    days = days[days != 15_338] if zone == "Pacific/Apia" else days  # 2011-12-30 did not happen there
    starts = clock.day_start(days)
    assert starts.dtype == np.int64
    assert (np.diff(starts) > 0).all()
    assert np.array_equal(clock.local_day(starts), days)
    assert np.array_equal(clock.local_day(starts - 1) < days, np.ones(len(days), bool))


def test_the_day_is_23_hours_long_when_london_springs_forward_and_25_when_it_falls_back() -> None:
    clock = Clock("Europe/London")
    for date, hours in (("2011-03-26", 24), ("2011-03-27", 23), ("2011-10-30", 25), ("2011-10-31", 24)):
        day = clock.local_day(clock.parse(date))
        assert clock.day_start(day + 1) - clock.day_start(day) == hours * HOUR_US
    assert clock.parse("2011-06-12") == clock.parse("2011-06-11T23:00:00Z")
    assert clock.parse("2011-12-12") == clock.parse("2011-12-12T00:00:00Z")


def test_a_repeated_hour_is_read_as_its_first_time_and_a_skipped_one_moves_forward() -> None:
    clock = Clock("Europe/London")
    assert clock.parse("2011-10-30T01:30") == clock.parse("2011-10-30T00:30:00Z")
    assert clock.parse("2011-03-27T01:30") == clock.parse("2011-03-27T01:00:00Z")


def test_a_midnight_that_the_clock_skips_is_replaced_by_the_first_instant_after_it() -> None:
    clock = Clock("America/Sao_Paulo")
    begin = clock.parse("2017-10-15")
    assert begin == clock.parse("2017-10-15T03:00:00Z")  # 01:00 summer time; 00:00 did not exist
    day = clock.local_day(begin)
    assert clock.day_start(day) == begin
    assert clock.local_day(begin - 1) == day - 1
    assert clock.day_start(day + 1) - begin == 23 * HOUR_US
    assert clock.format(begin) == "2017-10-15"


def test_shanghai_is_eight_hours_ahead_all_year() -> None:
    clock = Clock("Asia/Shanghai")
    assert clock.parse("2014-11-18") == clock.parse("2014-11-17T16:00:00Z")
    assert clock.parse("2014-06-18") == clock.parse("2014-06-17T16:00:00Z")


def test_shapes_are_kept() -> None:
    clock = Clock("Europe/London")
    grid = clock.day_start([[15_000, 15_100, 15_200], [15_200, 15_000, 15_001]])
    assert grid.shape == (2, 3)
    assert grid[0, 0] == grid[1, 1]
    assert clock.local_day(grid).tolist() == [[15_000, 15_100, 15_200], [15_200, 15_000, 15_001]]
    assert clock.local_day(grid[0, 0]).shape == ()
    assert clock.day_start(np.zeros(0, int)).shape == (0,)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("text", ["2011-06-12", "2016-02-29", "2017-10-15", "2011-10-30"])
def test_a_date_survives_parse_and_format(zone: str, text: str) -> None:
    clock = Clock(zone)
    assert clock.format(clock.parse(text)) == text


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ZONES), st.integers(0, 86_400 * 20_000 * 1_000_000))
def test_an_instant_survives_format_and_parse(zone: str, us: int) -> None:
    clock = Clock(zone)
    assert clock.parse(clock.format(us)) == us


def test_times_with_an_offset_and_datetimes_are_taken_as_they_are() -> None:
    clock = Clock("Europe/London")
    expected = 1_307_880_000_000_000
    assert clock.parse("2011-06-12T12:00:00Z") == expected
    assert clock.parse("2011-06-12T14:00:00+02:00") == expected
    assert clock.parse("2011-06-12 13:00") == expected
    assert clock.parse(datetime(2011, 6, 12, 12, tzinfo=UTC)) == expected
    assert clock.parse(datetime(2011, 6, 12, 13)) == expected
    assert DAY_US == 86_400 * 10**6


@pytest.mark.parametrize("text", ["", "foo", "2011-13-01", "12/31/20x1", "NaT", "1/2/24", "today"])
def test_what_is_no_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text!r} is not a date or time: write YYYY-MM-DD"):
        Clock().parse(text)


@pytest.mark.parametrize("name", ["", "Nowhere/Land", "../London", "europe london"])
def test_an_unknown_timezone_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"timezone '{name}' is not an IANA name such as 'Europe/London'"):
        Clock(name)


@given(us=st.integers(-(10**15), 4 * 10**15))
def test_microseconds_survive_the_way_through_a_datetime(us: int) -> None:
    assert to_us(to_datetime(us)) == us
    assert abs(to_datetime(us).timestamp() - us / 1e6) < 1e-5


def test_a_datetime_of_any_zone_has_its_microseconds_and_one_without_a_zone_is_refused() -> None:
    local = datetime(2011, 6, 12, 2, 0, 0, 7, tzinfo=ZoneInfo("Europe/Berlin"))
    assert to_us(local) == 1_307_836_800_000_007
    assert to_datetime(1_307_836_800_000_007).isoformat() == "2011-06-12T00:00:00.000007+00:00"
    with pytest.raises(ValueError, match="the time 2011-06-12 00:00:00 has no time zone; give it one"):
        to_us(datetime(2011, 6, 12))
