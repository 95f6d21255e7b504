"""YAML: what scalars mean in version 1.2, and that nothing else than one small document of plain values is read."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullrec_lib.errors import InputError
from nullrec_lib.yaml_core import DEEPEST, LARGEST, dump, parse, read


@pytest.mark.parametrize("text, value", [
    ("22", 22), ("022", 22), ("08", 8), ("-022", -22), ("+1", 1), ("0o17", 15), ("0x1F", 31), ("0", 0),
    ("1e-3", 0.001), ("1E3", 1000.0), ("1.", 1.0), (".5", 0.5), ("-.5e+2", -50.0), ("1.0e-05", 1e-5),
    (".inf", math.inf), ("-.INF", -math.inf),
    ("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None), ("# nothing", None),
    *((word, word) for word in [
        "1:30", "1:30:00", "190:20:30.15", "yes", "No", "on", "OFF", "y", "1_000", "0b1", "-0o7", "017_7", "tRUE", "nULL",
        "2024-01-01", "2024-01-01T10:00:00Z", "<<", "=", "1e", "e3", ".", "+", "-.", "inf", "nan", "0x", "٣"]),
    ("'22'", "22"), ('"true"', "true"), ("!!str 22", "22"), ("!!int '022'", 22), ("!!float 1", 1.0),
    ("|\n  022\n", "022\n"),
], ids=repr)
def test_what_a_scalar_means(text, value):
    for form, wanted in ((text, value), (f"a: {text}", {"a": value}), (f"- {text}", [value])):
        meant = parse(form)
        assert meant == wanted and repr(meant) == repr(wanted)  # 1, 1.0 and True are equal
    assert math.isnan(parse(".nan"))


@pytest.mark.parametrize("text, line, said", [
    ("a: 1\nb: 2\n\n\na: 3", 5, "a is given twice"), ("x:\n  - {b: 1,\n     b: 2}", 3, "b is given twice"),
    ("0x1: a\n1: b", 2, "1 is given twice"),
    ("a: &b 1", 1, "anchors"), ("a: 1\nc: *b", 2, "alias"), ("&a [*a]", 1, "anchors"), ("&a {x: *a}", 1, "anchors"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", 1, "anchors"),
    ("a: 1\n<<: *b", 2, "alias"), ("[" * 100_000, 1, "deep"), ("{a: " * 1000, 1, "deep"), ("- " * 1000 + "a", 1, "deep"),
    *((f"a: 1\nb: {tag}", 2, "tag") for tag in [
        "!!python/object/apply:os.getcwd []", "!!python/name:os.system x", "!!binary aGk=", "!!timestamp 2024-01-01",
        "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!own x", "!!merge x"]),
    ("a: 1\nb: !!int x", 2, "not int"), ("a: !!bool yes", 1, "not bool"), ("a: !!map [1]", 1, "mapping"),
    ("a: !!seq {b: 1}", 1, "sequence"), ("a: !!str [b]", 1, "scalar"),
    ("[a]: 1", 1, "key"), ("? {a: 1}\n: b", 1, "key"),
    ("a: 1\n---\nb: 2", 2, "document"), ("a: [1", 1, "expected"), ("a: 1\nb: 'x", 2, "end of stream"),
    ("a: 1\n\tb: 2", 2, "\\t"), ("a: b: c", 1, "mapping"), ("a: 1\nb: @x", 2, "@"),
    ("a: 1\nb: \0", 2, "U+0000"), ("a: 1\nb: \x07", 2, "U+0007"), ("a\ud800", 1, "U+D800"),
    ("a: 1\nb: " + "9" * 5000, 2, "number"), ("0x" + "f" * 5000, 1, "number"), ("1." + "0" * 5000, 1, "number"),
], ids=lambda value: repr(value)[:30])
def test_what_is_not_read_is_one_sentence_with_its_line(text, line, said):
    with pytest.raises(InputError) as error:
        parse(text)
    assert str(error.value).startswith(f"line {line}: ") and said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_as_deep_as_allowed_is_read():
    assert parse("[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1)) and parse("a: " + "x" * 5000) == {"a": "x" * 5000}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marked_encodings_are_read(encoding, tmp_path):
    (tmp_path / "a.yaml").write_bytes("name: Amélie\n".encode(encoding))
    assert parse(read(tmp_path / "a.yaml")) == {"name": "Amélie"}


@pytest.mark.parametrize("data, said", [
    ("a: 1\nb: Amélie\n".encode("latin-1"), "line 2: the text is not UTF-8"), (b"\xff\xfe\x41", "UTF-16"),
    (b"x" * (LARGEST + 1), "bytes"),
], ids=["latin-1", "half a character", "long"])
def test_another_encoding_or_too_much_is_one_sentence(data, said, tmp_path):
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(InputError, match=said):
        read(tmp_path / "a.yaml")


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
ODD = st.sampled_from(["022", "1:30", "yes", "1e-3", "0o17", "null", "~", "", "<<", "2024-01-01", ".inf", "- a", "a: b", "#"])
SCALARS = st.none() | st.booleans() | st.integers(-(10**90), 10**90) | st.floats(allow_nan=False) | TEXTS | ODD


@given(st.dictionaries(TEXTS | ODD, SCALARS | st.lists(SCALARS | st.dictionaries(ODD, SCALARS, max_size=3), max_size=3), max_size=4))
def test_what_is_written_is_read_back(content):
    again = parse(dump(content))
    assert again == content and repr(again) == repr(content)


def test_shared_lists_are_written_out_and_what_has_no_word_is_refused():
    shared = [1, 2]
    assert parse(dump({"a": shared, "b": shared})) == {"a": [1, 2], "b": [1, 2]}
    with pytest.raises(InputError, match="YAML"):
        dump({"a": object()})
