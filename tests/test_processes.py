"""Side by side: every call's outcome, whoever dies."""

import os
import signal
from functools import partial

import pytest

from nullrec_lib.processes import outcomes


def work(item, folder):
    """Module level, so that a child can import it. Leaves a line per attempt."""
    with (folder / f"tried-{item}").open("a") as file:
        file.write("x")
    tries = (folder / f"tried-{item}").stat().st_size
    if item == "dies" or item == "dies once" and tries == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "fails":
        raise ValueError("two\nlines")
    return item.upper()


def test_a_killed_process_takes_nobody_with_it(tmp_path):
    items = ["dies", "a", "fails", "dies once", "b", "c"]
    found = {item: (result, error) for item, result, error in outcomes(partial(work, folder=tmp_path), items, jobs=2)}
    assert found == {"a": ("A", None), "b": ("B", None), "c": ("C", None), "dies once": ("DIES ONCE", None),
                     "fails": (None, "ValueError: two lines"),
                     "dies": (None, "the process died (killed or out of memory)")}
    tries = {item: (tmp_path / f"tried-{item}").stat().st_size for item in items}
    assert tries == {"dies": 2, "dies once": 2, "a": 1, "b": 1, "c": 1, "fails": 1}


def test_in_this_process(tmp_path):
    assert list(outcomes(partial(work, folder=tmp_path), ["a", "fails", "b"], jobs=1)) == [
        ("a", "A", None), ("fails", None, "ValueError: two lines"), ("b", "B", None)]
    assert list(outcomes(work, [], jobs=3)) == []


def seen(name):
    return os.environ.get(name)


def test_children_see_the_environment_as_it_is_now(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("NULLREC_SEEN", value)
        assert [result for _, result, _ in outcomes(seen, ["NULLREC_SEEN"] * 2, jobs=2)] == [value] * 2
    monkeypatch.delenv("NULLREC_SEEN")
    assert [result for _, result, _ in outcomes(seen, ["NULLREC_SEEN"] * 2, jobs=2)] == [None] * 2


def interrupted(_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_is_nobodys_error(jobs):
    with pytest.raises(KeyboardInterrupt):
        list(outcomes(interrupted, ["a", "b", "c"], jobs))
