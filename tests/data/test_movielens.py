"""MovieLens in its three layouts: the same four ratings of three films, however they are written."""

import pytest

from nullrec_lib.data import load

RATINGS = [("1", "20", "5", "1500000300"), ("2", "10", "3", "1500000250"), ("1", "10", "1", "1500000100"), ("1", "20", "5", "1500000300")]
FILMS = [("10", "Léon (1994)", ["Crime", "Drama"]), ("20", "A, B & C (1995)", []), ("30", "Unseen", ["Children's"])]
FLAGS = ("unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror "
         "Musical Mystery Romance Sci-Fi Thriller War Western").split()


def flags(genres):
    return "|".join(str(int(genre in genres)) for genre in FLAGS)


LAYOUTS = {
    "MovieLens 100K": {
        "u.data": "".join("\t".join(row) + "\n" for row in RATINGS),
        "u.item": "".join(f"{i}|{t}|01-Jan-1995||http://x|{flags(g)}\n" for i, t, g in FILMS).encode("latin-1"),
    },
    "MovieLens 1M or 10M": {
        "ratings.dat": "".join("::".join(row) + "\r\n" for row in RATINGS),
        "movies.dat": "".join(f"{i}::{t}::{'|'.join(g)}\n" for i, t, g in FILMS).encode("latin-1"),
    },
    "MovieLens 20M or later": {
        "ratings.csv": "userId,movieId,rating,timestamp\n" + "".join(",".join(row) + "\n" for row in RATINGS),
        "movies.csv": "movieId,title,genres\r\n" + "".join(
            f'{i},"{t}",{"|".join(g) or "(no genres listed)"}\r\n' for i, t, g in FILMS),
    },
}


@pytest.fixture(params=LAYOUTS)
def layout(request, write):
    for name, text in LAYOUTS[request.param].items():
        folder = write(name, text)
    return request.param, folder, *LAYOUTS[request.param]


def test_reads(layout, sequences):
    name, folder, ratings, _ = layout
    got = load(folder)
    assert (got.name, got.clock, got.user_ids.tolist()) == ("set", "time", ["1", "2"])
    assert sequences(got) == {"1": [("10", 1500000100), ("20", 1500000300), ("20", 1500000300)], "2": [("10", 1500000250)]}
    # The film file is the catalogue: an unseen film is in it.
    assert got.items.to_numpy().tolist() == [["10", "Léon (1994)", "genres: Crime, Drama"],
                                             ["20", "A, B & C (1995)", ""], ["30", "Unseen", "genres: Children's"]]
    notes = [note for note in got.notes if "is not UTF-8" not in note and "are not used" not in note]
    assert notes == [f"Recognised: {name} ({ratings}).",
                     f"{ratings}: every rating is an interaction, whatever its value.",
                     "1 interactions are there again, same user, item and time; all are kept."]


def test_films_in_utf_8_are_read_as_such(write):
    films = "".join(f"{i}::{t}::{'|'.join(g)}\n" for i, t, g in FILMS).encode("utf-8")  # as 10M has them
    folder = [write(name, text) for name, text in (LAYOUTS["MovieLens 1M or 10M"] | {"movies.dat": films}).items()][0]
    assert load(folder).items["title"].tolist() == ["Léon (1994)", "A, B & C (1995)", "Unseen"]


def test_a_rated_film_without_a_line_stays(layout):
    _, folder, ratings, films = layout
    path = folder / films
    path.write_bytes(path.read_bytes().replace(b"20|A", b"40|A").replace(b"20::", b"40::").replace(b"20,", b"40,"))
    got = load(folder)
    assert got.items["title"].tolist() == ["Léon (1994)", "A, B & C (1995)", "Unseen", ""]
    assert got.items["item_id"].tolist()[3] == "20"
    assert any(note.startswith(f"{films}: 1 of 4 items have no text (1 no line") for note in got.notes)


def test_wrong_ratings(layout, refused):
    _, folder, ratings, films = layout
    path, first = folder / ratings, 1 + ratings.endswith("csv")
    good = path.read_bytes()
    path.write_bytes(good.replace(b"1500000250", b"soon"))
    assert refused(load, folder) == f"{path}, line {first + 1}, column timestamp: 'soon' is neither a finite number nor a date like 2018-07-07 22:09:11."
    path.write_bytes(good.replace(b"1500000250", b"2\t5:: 0,"))
    assert f"{path}, line {first + 1}: the row has 5 fields" in refused(load, folder)
    path.write_bytes(good + b"\n")
    assert refused(load, folder) == f"{path}, line {first + 4}: the line is blank, delete it."
    path.write_bytes(b"")
    assert refused(load, folder) == f"{path}: the file is empty."


def test_wrong_films(layout, refused):
    _, folder, _, films = layout
    path, last = folder / films, 3 + films.endswith("csv")
    good = path.read_bytes()
    path.write_bytes(good.replace(b"30", b"10", 1))
    assert any("1 lines describe an item again, 1 of them otherwise" in note for note in load(folder).notes)
    path.write_bytes(good.replace(b"30", b"  ", 1))
    assert refused(load, folder) == f"{path}, line {last}: '  ' is not an id."
    path.unlink()
    assert refused(load, folder).endswith(f"expected exactly one file {films}, found none.")


def test_a_flag_and_a_header_are_checked(write, refused):
    for name, text in LAYOUTS["MovieLens 100K"].items():
        folder = write(name, text)
    write("u.item", "10|T||||" + "2|" * 18 + "0\n")
    assert refused(load, folder).endswith("u.item, line 1: a genre flag is neither 0 nor 1.")
    other = folder.parent / "csv"
    write("movies.csv", LAYOUTS["MovieLens 20M or later"]["movies.csv"], other)
    write("ratings.csv", "user,item,rating,time\n1,10,5,3\n", other)
    assert refused(load, other).endswith(
        "line 1: the header is 'user,item,rating,time', not userId,movieId,rating,timestamp.")
    write("ratings.csv", "userId,movieId,rating,timestamp\n1,10,5," + "9" * 200_000 + "\n", other)
    assert refused(load, other).endswith("line 2: the row is no CSV (field larger than field limit (131072)).")
