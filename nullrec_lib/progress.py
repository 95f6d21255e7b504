"""Progress bars: one look everywhere, and only for what takes longer than two seconds."""

from __future__ import annotations

from typing import Iterable

from tqdm.auto import tqdm


def bar(iterable: Iterable | None = None, what: str = "", total: int | None = None, **options) -> tqdm:
    """A tqdm bar that appears after two seconds. TQDM_DISABLE=1 in the environment silences all of them."""
    return tqdm(iterable, desc=what, total=total, delay=2, leave=False, dynamic_ncols=True, **options)
