"""Progress bars: one look everywhere, and only for what takes longer than two seconds."""

from __future__ import annotations

import sys
from typing import Iterable

from tqdm.auto import tqdm


def bar(iterable: Iterable | None = None, what: str = "", total: int | None = None, **options) -> tqdm:
    """A tqdm bar that appears after two seconds. TQDM_DISABLE=1 in the environment silences all of them."""
    # In a log file every update is a line: one in ten seconds is enough there.
    interval = 0.1 if sys.stderr.isatty() or "ipykernel" in sys.modules else 10
    return tqdm(iterable, desc=what, total=total, delay=2, mininterval=interval, leave=False, dynamic_ncols=True, **options)
