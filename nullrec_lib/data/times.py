"""Where numbers and dates become times: units, zones, sentinels, and positions that only look like times."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import pandas as pd

from nullrec_lib.errors import InputError

CLOCKS = ("auto", "time", "position")
EARLIEST = 631_152_000
"""Unix seconds of 1990-01-01: no shop on the web is older."""
DAY = 86_400
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
"""Per second. From 1990 to tomorrow, no number is a time in two of them."""
_MAIL = re.compile(r"(?:[A-Za-z]{3}, )?\d{1,2} [A-Za-z]{3} \d{4} \d\d:\d\d(?::\d\d)?(?: (?:[+-]\d{4}|GMT|UTC|UT))?")
"""Dates as in mail: Sat, 07 Jul 2018 22:09:11 +0200."""
DIGITS = {"YYYYMMDD": "%Y%m%d", "YYYYMMDDhhmmss": "%Y%m%d%H%M%S"}
"""Dates written as one number."""


class Clock:
    """Reads the times of one source, value by value, and then knows what they are."""

    def __init__(self, unit: str = "seconds"):
        """`unit`: what numbers are by the layout, one of `UNITS`."""
        self.unit = unit
        self.offsets = self.naive = 0
        """Dates with and without a zone."""

    def read(self, value: Any) -> float:
        """A number, a text that is one, or a date, as a float in the source's unit; NaN for anything else."""
        try:
            if isinstance(value, bool) or isinstance(value, str) and "_" in value:  # which Python takes for 1000 in 1_000
                return math.nan
            number = float(value)
        except (TypeError, OverflowError):
            return math.nan
        except ValueError:
            return self._date(value)
        return number if math.isfinite(number) else math.nan

    def _date(self, text: str) -> float:
        text = text.strip()
        try:
            date = datetime.fromisoformat(text.replace("/", "-"))
        except ValueError:
            if not _MAIL.fullmatch(text):  # the parser passes over what it does not know, a zone or PM among it
                return math.nan
            try:
                date = parsedate_to_datetime(text)
            except (ValueError, TypeError, IndexError):
                return math.nan
        if date.tzinfo is None:
            self.naive += 1
            date = date.replace(tzinfo=UTC)
        else:
            self.offsets += 1
        try:
            return (date - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1) * UNITS[self.unit]
        except OverflowError:  # an offset beyond the first or last year
            return math.nan

    def notes(self) -> tuple[str, ...]:
        """What to say of dates."""
        if self.offsets and self.naive:
            return (f"{self.offsets:,} dates name their zone and {self.naive:,} do not: these were read as UTC.",)
        return ()


def interpret(
    values: np.ndarray, users: np.ndarray, unit: str = "seconds", clock: str = "auto"
) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """What timestamps are.

    Times lie between 1990 and tomorrow. A number that does so in another unit than the layout's is read in that unit.
    Where most numbers are no time in any, or all are one number, or they count every user's interactions in ones, they
    are positions, which order one user's interactions and nothing else. What is then left over among times stays as it
    is and is counted.

    Args:
        values: (n,) float64, finite, in `unit`.
        users: (n,) int64 whose they are, from 0, in any order.
        unit: one of `UNITS`.
        clock: `time` or `position` say what they are, and nothing is then said of strange ones; `auto` looks.

    Returns: (n,) Unix seconds, and the values themselves where positions are no times; `time` or `position`; and notes.

    Raises:
        InputError: unknown clock.
    """
    if clock not in CLOCKS:
        raise InputError(f"clock: {clock!r} is not one of {', '.join(CLOCKS)}.")
    if clock == "position":
        return values, clock, ()
    seconds, notes, outside = _seconds(values, unit)
    reason = _not_times(values, seconds, users, outside, unit) if clock == "auto" else ""
    if reason:
        note = f"{reason}: positions, not times; a cold-start split shuffles users by its seed (clock=time overrides)."
        return np.where(outside, values, seconds), "position", (*notes, note)
    if clock == "auto" and outside.any():
        example = values[outside][0]
        notes += (f"{outside.sum():,} of {len(values):,} timestamps are no time between 1990 and tomorrow, such as "
                  f"{example:.15g}{_as_date(example, unit)}; they are kept, so that they come first or last.",)
        seconds = np.where(outside, values, seconds)
    return seconds, "time", notes


def _seconds(values: np.ndarray, unit: str) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Unix seconds, notes on other units, and which values (n,) bool are no time in any unit."""
    latest = time.time() + DAY
    seconds, notes = values / UNITS[unit], ()
    outside = (seconds < EARLIEST) | (seconds > latest)
    for name, per_second in UNITS.items():
        there = outside & (values >= EARLIEST * per_second) & (values <= latest * per_second)
        if there.any():
            seconds, outside = np.where(there, values / per_second, seconds), outside & ~there
            notes += (f"{there.sum():,} of {len(values):,} timestamps are {name} and not {unit}, such as "
                      f"{values[there][0]:.15g}, and were read as that.",)
    for name, form in DIGITS.items():
        if outside.all() and (values % 1 == 0).all() and 10 ** (len(name) - 1) <= values.min() <= values.max() < 10 ** len(name):
            distinct, place = np.unique(values, return_inverse=True)
            dates = pd.to_datetime([f"{value:.0f}" for value in distinct], format=form, errors="coerce", utc=True)
            days = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
            if days.notna().all() and days.min() >= EARLIEST and days.max() <= latest:
                seconds, outside = days.to_numpy(np.float64)[place], np.zeros(len(values), bool)
                notes += (f"The timestamps are dates written as {name}, such as {distinct[0]:.0f}, and were read as that.",)
    return seconds, notes, outside


def _not_times(values: np.ndarray, seconds: np.ndarray, users: np.ndarray, outside: np.ndarray, unit: str) -> str:
    """Why they are positions; empty where they are times."""
    checked = values if outside.all() else seconds
    low, high, longest = checked.min(), checked.max(), np.bincount(users).max()
    if low == high:
        return f"The timestamps are {low:g} for every interaction"
    if high - low == longest - 1:  # as it is where each user's are counted from one number
        order = np.lexsort((checked, users))
        owner, counted = users[order], checked[order]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        if (counted == low + np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))).all():
            return "The timestamps are 0…n-1 for every user" if low == 0 else (
                f"The timestamps are {low:g} and up, in ones, for every user")
    if 2 * outside.sum() > len(values):
        low, high = values[outside].min(), values[outside].max()
        which = "The timestamps" if outside.all() else f"{outside.sum():,} of {len(values):,} timestamps"
        return f"{which} run from {low:.15g} to {high:.15g}, which is no time between 1990 and tomorrow{_as_date(high, unit)}"
    return ""


def _as_date(value: float, unit: str) -> str:
    try:
        return f" (as {unit}, {datetime.fromtimestamp(value / UNITS[unit], UTC):%Y-%m-%d})"
    except (OverflowError, ValueError, OSError):
        return ""
