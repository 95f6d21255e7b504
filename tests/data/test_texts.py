"""Cleaning texts: what is markup goes, what only looks like it stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullrec_lib.data.texts import clean, holds_text, words


@pytest.mark.parametrize(("text", "want"), [
    ('Title &quot;X&quot; &amp; Y', 'Title "X" & Y'), ("Caf&eacute; &#233; &#xe9;", "Café é é"), ("a&amp;quot;b", 'a"b'),
    ("<p>Nice <b>toy</b></p>", "Nice toy"), ("One<br>two<BR/>three<br />four", "One two three four"),
    ("un<b>believ</b>able", "unbelievable"), ("x<script>var a=1;</script>y<style>p{}</style>z", "x y z"),
    ("a<!-- hidden -->b", "a b"), ('<a href="http://x.y?a=1&b=2">link</a>', "link"), ("cut off <a href=", "cut off"),
    ("&lt;b&gt;bold&lt;/b&gt;", "bold"), ("<ul><li>One</li><li>Two</li></ul>", "One Two"), ("<br>", ""), ("&nbsp;", ""),
    (" two\t\n words\u2028here\x0c ", "two words here"), ("nul\x00l\x7f", "nul l"), ("\ufeffsoft\u00adly\u200b", "softly"),
    # What stays.
    ("I <3 you", "I <3 you"), ("a < b > c", "a < b > c"), ("AT&T and R&copy D", "AT&T and R&copy D"), ("<Artist>", "<Artist>"),
    ("5 &unknownentity; 6", "5 &unknownentity; 6"), ("Q&A; more", "Q&A; more"), ("日本語 é 🎲", "日本語 é 🎲"), ("x <- y", "x <- y"),
    ("family 👨‍👩‍👧", "family 👨‍👩‍👧"),
])
def test_clean(text, want):
    assert clean(text) == want
    assert clean(want) == want


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_clean_texts_are_one_line_and_stay(text):
    once = clean(text)
    assert once == " ".join(once.split()) and "\n" not in once
    plain = text.isalnum()
    assert not plain or once == text


@pytest.mark.parametrize(("sign", "times", "want"), [
    ("<", 100_000, "<" * 100_000), ("<script>", 20_000, ""), ("<!--", 50_000, "<!--" * 50_000), ("&", 100_000, "&" * 100_000),
    ("<a ", 50_000, " ".join(["<a"] * 50_000)), ("<!-- x --> ", 20_000, ""), ("<p>x", 20_000, " ".join("x" * 20_000))])
def test_long_rubbish_is_cleaned_in_one_pass(sign, times, want):
    assert clean(sign * times) == want  # a pattern that begins anew at every sign would take minutes here


def test_words_and_what_holds_text():
    assert words([["a", "b"], ["a", None, True, " "], ("c", 1984), {"en": "d"}]) == "a, b, c, 1984, d" and words(None) == words({}) == ""
    assert holds_text({"a": [{"b": "x"}]}) and not holds_text([1, "3.50", None, {"a": "$4"}])
