"""Profiles to leaf through in a notebook."""

from __future__ import annotations

import html
from typing import Any, Iterable

from nullrec_lib.profiles.store import Profile, journey


def explorer(profiles: Iterable[Profile], most: int = 50) -> Any:
    """A list of subjects and the chosen one's profiles over the rounds.

    Choice and text are linked in the browser, not by Python: a stored notebook shows it without a kernel.

    Args:
        profiles: of any subjects; the first `most` of them are shown.
    """
    import ipywidgets

    subjects: dict[tuple[str, str], list[Profile]] = {}
    for one in profiles:
        subjects.setdefault((one.kind, one.id), []).append(one)
    shown = dict(list(subjects.items())[:most])
    if not shown:
        return ipywidgets.HTML("no profiles")
    pages = [ipywidgets.HTML(f"<pre style='white-space: pre-wrap'>{html.escape(journey(some))}</pre>")
             for some in shown.values()]
    choice = ipywidgets.Dropdown(options=[f"{kind} {one}" for kind, one in shown], description="profile")
    stack = ipywidgets.Stack(pages, selected_index=0)
    ipywidgets.jslink((choice, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([choice, stack])
