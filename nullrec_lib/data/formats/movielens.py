"""MovieLens: 100K (`u.data`, `u.item`), 1M and 10M (`ratings.dat`, `movies.dat`), 20M to latest (`ratings.csv`,
`movies.csv`).

The film file is the catalogue, in its order, whether a film was rated or not; genres are the description. Every rating
counts, whatever its value.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from nullrec_lib.data.lines import wrong
from nullrec_lib.data.source import Source
from nullrec_lib.data.texts import words

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""What the last 19 columns of u.item flag."""
NO_GENRES = "(no genres listed)"


def read_100k(source: Source) -> None:
    """Read `u.data` (user, item, rating, time; tabs) and `u.item` (id, title, dates, address, 19 genre flags; bars).

    Raises:
        InputError: a file is missing, or a line is malformed (file, line).
    """
    ratings, movies = source.file("u.data"), source.file("u.item")
    source.unread(movies, ("release date", "video release date", "IMDb URL"))

    def films():
        for number, row in _split(source, movies, "|", 5 + len(GENRES)):
            if not set(row[5:]) <= {"0", "1"}:
                raise wrong(movies, "a genre flag is neither 0 nor 1", number)
            yield number, row[0], row[1], [genre for genre, flag in zip(GENRES, row[5:], strict=True) if flag == "1"]

    _read(source, ratings, _split(source, ratings, "\t", 4), movies, films())


def read_1m(source: Source) -> None:
    """Read `ratings.dat` (user, item, rating, time) and `movies.dat` (id, title, genres), parted by `::`.

    Raises:
        InputError: as `read_100k`.
    """
    ratings, movies = source.file("ratings.dat"), source.file("movies.dat")
    films = ((number, *row[:2], row[2].split("|")) for number, row in _split(source, movies, "::", 3))
    _read(source, ratings, _split(source, ratings, "::", 4), movies, films)


def read_csv(source: Source) -> None:
    """Read `ratings.csv` (userId, movieId, rating, timestamp) and `movies.csv` (movieId, title, genres).

    Raises:
        InputError: as `read_100k`, or a header is another.
    """
    ratings, movies = source.file("ratings.csv"), source.file("movies.csv")
    rows = _csv(source, movies, ["movieId", "title", "genres"])
    films = ((number, *row[:2], row[2].split("|")) for number, row in rows)
    _read(source, ratings, _csv(source, ratings, ["userId", "movieId", "rating", "timestamp"]), movies, films)


def _split(source: Source, path: Path, separator: str, fields: int) -> Iterator[tuple[int, list[str]]]:
    for number, line in source.lines(path):
        row = line.split(separator)
        if len(row) != fields:
            raise wrong(path, f"the row has {len(row)} fields parted by {separator!r}, not {fields}", number)
        yield number, row


def _csv(source: Source, path: Path, header: list[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in source.lines(path):
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


def _read(source: Source, ratings: Path, rows, movies: Path, films) -> None:
    """From (number, [user, item, rating, time]) and (number, id, title, genres)."""
    source.note(f"{ratings.name}: every rating is an interaction, whatever its value.")
    for number, item, title, genres in films:
        genres = ", ".join(genre for genre in genres if genre and genre != NO_GENRES)
        source.item(source.id(item, movies, number), movies, words(title), genres=genres)
    for number, (user, item, _, time) in rows:
        source.event(source.id(user, ratings, number), source.id(item, ratings, number), time, ratings, number, "timestamp")
