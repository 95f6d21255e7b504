"""Notebook parameters: a value has the type of the default, or is refused in one sentence that names it."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullrec_lib.errors import InputError
from nullrec_lib.notebooks import PRESETS, REQUIRED, _plan, _parameters_in, _read
from nullrec_lib.parameters import declared, read

ROOT = Path(__file__).resolve().parent.parent
STORED = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CELL = """
seeds = [22, 23]  # of training
rates = [0.5]
names = ["a"]
anything = []
epochs = 3
lr = 0.1
word = "x"
keep = None
flag = True
width = 128  # of a vector; None: as wide as it comes
long = [
    1,  # None stands for all
]
"""
PARAMETERS = declared(CELL, Path("notebooks/01_a.ipynb"))


@pytest.mark.parametrize("name, value", [
    ("seeds", [1]), ("rates", []), ("rates", [0.5, 1]), ("names", ["b", "c"]), ("anything", [1, "a", True, 0.5]),
    ("epochs", -1), ("lr", 0.5), ("lr", 2), ("word", ""), ("keep", None), ("keep", "first:3"), ("keep", 3), ("keep", 0.5),
    ("keep", True), ("flag", False), ("width", None), ("width", 64), ("long", None),
], ids=str)
def test_a_value_of_the_default_s_type_is_taken_as_it_is(name, value):
    taken = PARAMETERS[name].taken(value)
    assert taken == value and type(taken) is type(value)


def test_a_tuple_will_do_for_a_list():
    assert PARAMETERS["seeds"].taken((1, 2)) == [1, 2]


@pytest.mark.parametrize("name, value, said", [
    ("seeds", 22, "write [22]"), ("seeds", [], "empty list"), ("seeds", [22, 22], "twice"), ("names", "b", "write ['b']"), ("rates", 1, "write [1]"), ("anything", 1, "write [1]"),
    ("seeds", "fast", "whole number"), ("seeds", ["a"], "whole number"), ("seeds", [1.5], "whole number"),
    ("seeds", [True], "whole number"), ("seeds", [None], "whole number"), ("seeds", [[1]], "whole number"),
    ("seeds", None, "None"), ("seeds", {1: 2}, "list"), ("seeds", {1}, "list"), ("names", [1], "text"),
    ("rates", [math.nan], "finite"), ("rates", [10**400], "finite"), ("anything", [[1]], "plain"),
    ("epochs", 1.0, "whole number"), ("epochs", True, "whole number"), ("epochs", "3", "whole number"),
    ("epochs", [3], "single"), ("epochs", None, "None"), ("lr", math.inf, "finite"), ("lr", "nan", "finite"),
    ("lr", True, "finite"), ("lr", None, "None"), ("lr", 10**400, "finite"), ("lr", 1j, "finite"),
    ("word", 1, "text"), ("word", None, "None"), ("word", b"x", "text"), ("word", "\ud800", "text"),
    ("keep", [1], "single"), ("keep", {}, "single"), ("keep", b"x", "plain"), ("keep", ..., "plain"),
    ("keep", math.nan, "plain"), ("anything", [None], "plain"), ("flag", 1, "true or false"), ("flag", "true", "true or false"), ("flag", None, "None"),
    ("width", 1.5, "whole number"),
], ids=lambda value: str(value)[:20].encode("ascii", "replace").decode())
def test_another_type_is_refused(name, value, said):
    with pytest.raises(InputError) as error:
        PARAMETERS[name].taken(value)
    assert str(error.value).startswith(f"{name}: ") and said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("text, value", [
    ("none", None), ("NONE", None), ("None", None), ("true", True), ("False", False), ("FALSE", False), ("3", 3),
    ("1e-3", 0.001), ("[1, 2]", [1, 2]), ("1,2", (1, 2)), ("'none'", "none"), ("first:3", "first:3"), ("", ""), ("a b", "a b"),
    ("nan", "nan"), ("{title}", "{title}"), ("[1", "[1"), ("022", "022"), ("9" * 5000, "9" * 5000), ("[" * 5000, "[" * 5000),
    ("a\0b", "a\0b"),
], ids=lambda value: str(value)[:20].replace("\0", "NUL"))
def test_what_a_value_on_a_command_line_means(text, value):
    meant = read(text)
    assert meant == value and type(meant) is type(value)


@given(st.text(max_size=20))
def test_any_text_means_something_or_is_refused(text):
    for parameter in PARAMETERS.values():
        try:
            parameter.taken(read(text))
        except InputError as error:
            assert str(error).startswith(f"{parameter.name}: ")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_taken_by_every_notebook(preset):
    plan = _plan(STORED, preset, {})
    assert len(plan) == len(STORED) and any(plan)
    for path, chosen in zip(STORED, plan, strict=True):
        known = _parameters_in(_read(path), path)
        assert chosen == {name: value for name, value in PRESETS[preset].items() if name in known}
        for name, parameter in known.items():  # and so is every default, and a name for what all are given
            parameter.taken(parameter.default)
        assert [known[name].taken("x") for name in REQUIRED] == ["x"] * len(REQUIRED)


@pytest.mark.parametrize("name, value", [
    ("seeds", 22), ("null_dims", 64), ("lr", "fast"), ("epochs", 0.5), ("width", None), ("patience", None),
    ("table_seeds", "all"), ("jobs", [2]), ("methods", "base"),
])
def test_the_stored_notebooks_refuse_another_type(name, value):
    with pytest.raises(InputError, match=f"^{name}: "):
        _plan(STORED, "quick", {name: value})


@pytest.mark.parametrize("name", ["keep", "jobs", "tail_user", "limit_users", "model", "profiles", "drawn_users"])
def test_none_is_taken_where_it_means_something(name):
    assert any(chosen.get(name, "") is None for chosen in _plan(STORED, "standard", {name: None}))
