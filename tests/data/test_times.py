"""Times: units, zones, sentinels, and positions that only look like times."""

import numpy as np
import pytest

from nullrec_lib.data.times import Clock, interpret

T = 1_500_000_000.0
USERS = np.array([0, 1, 0, 1])


def read(values, users=USERS, **options):
    return interpret(np.array(values, np.float64), np.asarray(users), **options)


@pytest.mark.parametrize(("values", "clock"), [
    ([0, 0, 1, 1], "position"),
    ([1, 1, 0, 0], "position"),  # in any order of rows
    ([0, 0, 1, 2], "position"),  # a gap
    ([1, 1, 2, 2], "position"),
    ([1, 2, 2, 3], "position"),  # not from one number for all
    ([0, 1, 2, 3], "position"),  # counted over the whole file
    ([0, 0, 0, 1], "position"),  # a repeat
    ([0, 0, 1, 1.5], "position"),
    ([-1, -2, -3, -4], "position"),
    ([2010, 2011, 2015, 2020], "position"),  # years
    ([7, 7, 7, 7], "position"),
    ([T, T, T, T], "position"),  # no order at all but that of the file
    ([T, T, T + 1, T + 1], "position"),  # no clock starts alike for all and ticks in ones
    ([T, T + 1, T + 1, T + 3], "time"),
    ([0, T + 1, T + 1, T + 3], "time"),  # a sentinel
    ([0, 1, 2, T], "position"),  # mostly none
])
def test_what_cannot_be_unix_time_is_not_taken_for_it(values, clock):
    got, clock_read, notes = read(values)
    assert (got.tolist(), clock_read) == (values, clock)
    assert len(notes) == (clock == "position" or min(values) < T)
    for given in ("time", "position"):
        got, clock_read, notes = read(values, clock=given)
        assert (got.tolist(), clock_read, notes) == (values, given, ())


@pytest.mark.parametrize("unit", ["seconds", "milliseconds"])
@pytest.mark.parametrize(("name", "scale"), [("seconds", 1), ("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)])
def test_a_unit_that_is_plainly_another_is_read_as_that(unit, name, scale):
    times = np.array([T, T + 5, T + 7, T + 30])
    got, clock, notes = interpret(times * scale, USERS, unit)
    np.testing.assert_allclose(got, times, atol=1e-3)
    assert clock == "time" and len(notes) == (name != unit)
    if notes:
        assert "4 of 4" in notes[0] and name in notes[0]


def test_units_may_be_mixed_and_sentinels_are_counted_with_an_example():
    got, clock, notes = interpret(np.array([T, (T + 5) * 1000, 0, 253402300799]), USERS, "seconds")
    assert clock == "time" and got.tolist() == [T, T + 5, 0, 253402300799]
    assert "1 of 4" in notes[0] and "milliseconds" in notes[0]
    assert "milliseconds" in read([(T + 5) * 1000, -1, -2, 0])[2][0]  # among positions too
    assert "2 of 4" in notes[1] and "such as 0 " in notes[1] and "1970-01-01" in notes[1]


@pytest.mark.parametrize(("values", "days"), [
    ([20150304, 20150305, 20160101, 20150304], [0, 1, 303, 0]),
    ([20150304120000, 20150305120000, 20150304120000, 20150306000000], [0.5, 1.5, 0.5, 2]),
])
def test_dates_written_as_one_number(values, days):
    got, clock, notes = read(values)
    assert clock == "time" and "dates" in notes[0]
    assert ((got - 1425427200) / 86_400).tolist() == days
    assert read([20150304, 20150399, 20160101, 20150304])[1] == "position"  # no 99th of March


@pytest.mark.parametrize(("text", "seconds"), [
    ("2018-07-07 22:09:11", 1531001351), ("2018-07-07", 1530921600), ("2018/07/07", 1530921600),
    ("2018-07-07T22:09:11Z", 1531001351), ("2018-07-08T00:09:11+02:00", 1531001351), ("20180707T220911", 1531001351),
    ("2018-07-07 14:09:11-0800", 1531001351), ("2018-07-07T22:09:11.5", 1531001351.5),
    ("Sat, 07 Jul 2018 22:09:11 GMT", 1531001351), ("Sun, 08 Jul 2018 00:09:11 +0200", 1531001351),
    ("1e3", 1000), (" 12 ", 12), (7, 7),
])
def test_dates_and_their_zones(text, seconds):
    assert Clock().read(text) == seconds
    if isinstance(text, str) and ":" in text:
        assert Clock("milliseconds").read(text) == seconds * 1000


@pytest.mark.parametrize("value", [None, True, "", "soon", "nan", "inf", "1e999", "1_000", "0x10", "2018-13-01", "03/04/2018",
                                   [], {}, float("nan"), 10**400, "9" * 5000, "2018-07-07 25:00:00",
                                   "Sat, 07 Jul 2018 22:09:11 CEST", "07 July 2018 10:09:11 PM", "2018-07-07 10:09:11 PM",
                                   "Sat Jul 07 2018 22:09:11 GMT+0200 (CEST)", "07 Jul 2018 10:09:11 PM", "0001-01-01T00:00+23:59"])
def test_what_is_no_time(value):
    read = Clock().read(value)
    assert read != read or abs(read) < 1e12 and str(value).startswith("0001")  # the year 1 is a date, of no shop


def test_dates_with_and_without_a_zone_are_noted_together():
    clock = Clock()
    for text in ("2018-07-07", "2018-07-07T00:00Z", "2018-07-08T00:00Z"):
        clock.read(text)
    assert "2 dates name their zone and 1 do not" in clock.notes()[0]
