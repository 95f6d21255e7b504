"""The extractive writer: keywords that are specific, in an order that nothing decides by chance."""

import pytest

from nullrec_lib.errors import InputError
from nullrec_lib.language.writers import Prompt, writer
from nullrec_lib.language.writers.extractive import Extractive

CORPUS = ["red wool scarf", "red cotton shirt", "red silk scarf", "blue wool hat", "red garden hose",
          "red brass lamp", "red clay pot", "green wool sock"]


@pytest.fixture(scope="module")
def keywords():
    return Extractive(CORPUS)


def terms(text: str) -> list[str]:
    return text.split("Likes ")[1].split(".")[0].split(", ")


def test_what_comes_back_and_is_rare_elsewhere_comes_first(keywords):
    (text,) = keywords.write([Prompt("", own=("blue wool hat", "green wool sock", "red wool scarf"))], 0)
    assert terms(text)[0] == "wool"  # 3 of 3 here, 3 of 8 in the catalogue: more than expected …
    assert "red" not in terms(text)  # … and 1 of 3 where 6 of 8 have it: less


def test_the_score_is_the_likelihood_ratio_of_poisson_counts(keywords):
    import numpy as np

    row = keywords._weights([("blue wool hat", "green wool sock")])
    found = dict(zip(keywords._names[row.indices], row.data))
    assert found["wool"] == pytest.approx(2 * np.log(2 / (2 * 3 / 8)) - (2 - 2 * 3 / 8), abs=0.01)
    assert found["hat"] == pytest.approx(1 * np.log(1 / (2 * 1 / 8)) - (1 - 2 * 1 / 8), abs=0.01)
    assert "red" not in found


def test_equal_terms_come_in_the_order_of_what_is_nearest(keywords):
    (text,) = keywords.write([Prompt("", own=("clay pot", "brass lamp"))], 0)
    assert terms(text).index("brass") < terms(text).index("clay")  # of a history the newest
    (text,) = keywords.write([Prompt("", title="a", others=("clay pot", "brass lamp"))], 0)
    assert text.index("clay") < text.index("brass")  # of others the nearest


def test_an_item_begins_with_its_title_and_does_not_repeat_it(keywords):
    asked = Prompt("", own=("red wool scarf",), others=("blue wool hat",), title="red wool scarf")
    (text,) = keywords.write([asked], 0)
    assert text == "red wool scarf. Liked along with blue, hat."
    assert keywords.write([Prompt("", own=("red wool scarf",), title="red wool scarf")], 0) == ["red wool scarf."]


def test_nothing_to_say_is_said(keywords):
    assert keywords.write([Prompt("", own=("xyzzy",))], 0) == ["Likes nothing in particular."]


def test_others_answers_do_not_depend_on_the_batch(keywords):
    asked = [Prompt("", own=(one,), others=tuple(CORPUS[:k])) for k, one in enumerate(CORPUS)]
    assert keywords.write(asked, 0) == [keywords.write([one], 5)[0] for one in asked]


def test_another_catalogue_is_another_writer(keywords):
    assert Extractive(CORPUS).revision == keywords.revision != Extractive(CORPUS[1:]).revision


@pytest.mark.parametrize("corpus", [[""] * 5, ["1 2 3", "§"], [f"only{'abcdefghij'[n % 10]}{'abcdefghij'[n // 10]}" for n in range(100)]])
def test_a_catalogue_without_keywords_is_one_sentence(corpus):
    with pytest.raises(InputError, match="texts: there are no keywords in the items'"):
        Extractive(corpus)


def test_as_many_words_as_asked_for():
    asked = Prompt("", own=("red wool scarf", "blue wool hat"), others=("brass lamp", "clay pot"))
    few = Extractive(CORPUS, own_words=1, other_words=1)
    assert few.write([asked], 0) == ["Likes wool. Similar tastes: brass."]
    assert Extractive(CORPUS, own_words=1, other_words=0).write([asked], 0) == ["Likes wool."]
    assert few.revision != Extractive(CORPUS).revision


@pytest.mark.parametrize("name, settings, said", [
    ("extractive", {"own_words": 0}, "own_words, other_words: 0 and 10 are too few"),
    ("extractiv", {}, "writer: 'extractiv' is not extractive, local:PATH or server:URL"),
    ("local:", {}, "writer: 'local:' is not"),
    ("extractive", {"temperature": 1.0}, "temperature: the extractive writer does not read it"),
])
def test_a_wrong_writer_is_one_sentence(name, settings, said):
    with pytest.raises(InputError, match=said):
        writer(name, CORPUS, **settings)
