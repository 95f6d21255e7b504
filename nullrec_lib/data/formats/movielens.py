"""MovieLens: 100K (`u.data`, `u.item`), 1M and 10M (`ratings.dat`, `movies.dat`), 20M to latest (`ratings.csv`,
`movies.csv`).

The film file is the catalogue, in its order, whether a film was rated or not; genres are the description. Ratings
themselves are left unread: every one counts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from nullrec_lib.data.formats.lines import Log, Texts, description, lines, one, time_of, words, wrong
from nullrec_lib.data.interactions import Dataset

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""What the last 19 columns of u.item flag."""
NO_GENRES = "(no genres listed)"


def read_100k(folder: Path | str, clock: str = "auto") -> Dataset:
    """Read `u.data` (user, item, rating, time; tabs) and `u.item` (id, title, …, 19 genre flags; bars, Latin-1).

    Raises:
        InputError: a file is missing, or a line is malformed (file, line).
    """

    def films(path: Path):
        for number, row in _split(path, "|", 5 + len(GENRES), "latin-1"):
            if not set(row[5:]) <= {"0", "1"}:
                raise wrong(path, "a genre flag is neither 0 nor 1", number)
            yield number, row[0], row[1], [genre for genre, flag in zip(GENRES, row[5:], strict=True) if flag == "1"]

    ratings, movies = one(Path(folder), "u.data"), one(Path(folder), "u.item")
    return _read(ratings, _split(ratings, "\t", 4), movies, films(movies), clock)


def read_1m(folder: Path | str, clock: str = "auto") -> Dataset:
    """Read `ratings.dat` (user, item, rating, time) and `movies.dat` (id, title, genres; UTF-8 or Latin-1), parted by `::`.

    Raises:
        InputError: as `read_100k`.
    """
    ratings, movies = one(Path(folder), "ratings.dat"), one(Path(folder), "movies.dat")
    try:  # any bytes are Latin-1, and hardly any Latin-1 is UTF-8 by chance
        movies.read_bytes().decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = "latin-1"
    films = ((number, *row[:2], row[2].split("|")) for number, row in _split(movies, "::", 3, encoding))
    return _read(ratings, _split(ratings, "::", 4), movies, films, clock)


def read_csv(folder: Path | str, clock: str = "auto") -> Dataset:
    """Read `ratings.csv` (userId, movieId, rating, timestamp) and `movies.csv` (movieId, title, genres).

    Raises:
        InputError: as `read_100k`, or a header is another.
    """
    ratings, movies = one(Path(folder), "ratings.csv"), one(Path(folder), "movies.csv")
    films = ((number, *row[:2], row[2].split("|")) for number, row in _csv(movies, ["movieId", "title", "genres"]))
    return _read(ratings, _csv(ratings, ["userId", "movieId", "rating", "timestamp"]), movies, films, clock)


def _split(path: Path, separator: str, fields: int, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    for number, line in lines(path, encoding):
        row = line.split(separator)
        if len(row) != fields:
            raise wrong(path, f"the row has {len(row)} fields parted by {separator!r}, not {fields}", number)
        yield number, row


def _csv(path: Path, header: list[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines(path):
        try:
            row = next(csv.reader([line]))
        except csv.Error as error:
            raise wrong(path, f"the row is no CSV ({error})", number) from None
        if number == 1 and row != header:
            raise wrong(path, f"the header is {','.join(row)!r:.80}, not {','.join(header)}", 1)
        if len(row) != len(header):
            raise wrong(path, f"the row has {len(row)} fields, the header {len(header)}", number)
        if number > 1:
            yield number, row


def _read(ratings: Path, rows, movies: Path, films, clock: str) -> Dataset:
    """From (number, [user, item, rating, time]) and (number, id, title, genres)."""
    texts: Texts = {}
    for number, item, title, genres in films:
        if not item.strip() or item in texts:
            raise wrong(movies, f"film {item!r:.60} has a line already" if item.strip() else "the id is empty", number)
        texts[item] = words(title), description(genres=", ".join(g for g in genres if g and g != NO_GENRES))
    log = Log()
    for number, (user, item, _, time) in rows:
        if not user.strip() or not item.strip():
            raise wrong(ratings, "an id is empty", number)
        log.add(user, item, time_of(time, "timestamp", ratings, number))
    catalogue = [*texts, *(item for item in log.items if item not in texts)]
    notes = (f"{ratings.name}: every rating is an interaction, whatever its value.",)
    return log.dataset(ratings.resolve().parent.name, catalogue, texts, movies.name, clock, notes)
