"""Texts embedded one by one: what is there is not encoded again, whoever put it there and however that ended."""

import hashlib
import multiprocessing
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from nullrec_lib.errors import InputError
from nullrec_lib.language import encoder
from nullrec_lib.language.encoder import embed_texts, identity
from nullrec_lib.language.encoders import Encoded, digest
from nullrec_lib.language.vectors import Vectors


def row(text: str) -> np.ndarray:
    vector = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8).astype(np.float32) - 128
    return vector / np.linalg.norm(vector)


class Counted:
    """An encoder by hash, three texts at a time and the last first; it remembers what it was asked."""

    dear = True
    asked: list[str] = []

    def __init__(self, name):
        self.made_by = {"kind": "counted", "name": name}
        self.revision = digest(self.made_by)

    def encode(self, texts):
        for places in reversed([range(i, min(i + 3, len(texts))) for i in range(0, len(texts), 3)]):
            some = [texts[i] for i in places]
            if "crash" in some:
                raise MemoryError
            Counted.asked += some
            yield Encoded(places, np.stack([row(text) for text in some]), tokens=10 * len(some))


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    monkeypatch.setitem(encoder.KINDS, "counted", Counted)
    monkeypatch.setattr(Counted, "asked", [])
    return Counted


def kept(cache):
    return sorted((cache / "texts").glob("*.sqlite"))


def test_a_text_is_encoded_once(tmp_path, asked):
    texts = ["a", "b", "", "a", "é", "c", "b"]
    rows = embed_texts(texts, "counted:x", tmp_path)
    assert rows.shape == (7, 32) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.stack([row(text) for text in texts]))
    assert sorted(asked.asked) == ["", "a", "b", "c", "é"]
    np.testing.assert_array_equal(embed_texts(texts, "counted:x", tmp_path), rows)
    assert len(asked.asked) == 5
    changed = ["c", "new", "a", "other"]
    np.testing.assert_array_equal(embed_texts(changed, "counted:x", tmp_path), np.stack([row(t) for t in changed]))
    assert asked.asked[5:] == ["new", "other"] and len(kept(tmp_path)) == 1


def test_no_encoder_reads_what_another_one_made(tmp_path, asked):
    embed_texts(["a"], "counted:x", tmp_path)
    embed_texts(["a"], "counted:y", tmp_path)
    assert asked.asked == ["a", "a"] and len(kept(tmp_path)) == 2
    assert [path.stem for path in kept(tmp_path)] == sorted(identity(f"counted:{name}")[:16] for name in "xy")


def test_an_encoding_that_fails_goes_on_from_there(tmp_path, asked):
    texts = ["crash", "b", "c", "d", "e", "f", "g"]
    with pytest.raises(MemoryError):
        embed_texts(texts, "counted:x", tmp_path)
    assert asked.asked == ["g", "d", "e", "f"]
    embed_texts(["b", *texts[1:]], "counted:x", tmp_path)
    assert asked.asked[4:] == ["b", "c"]


def test_the_file_says_what_made_it_and_what_it_took(tmp_path):
    embed_texts(["a", "b"], "counted:x", tmp_path)
    embed_texts(["b", "c"], "counted:x", tmp_path)
    [path] = kept(tmp_path)
    with closing(sqlite3.connect(path)) as database:
        about = dict(database.execute("SELECT name, value FROM about"))
        assert about == {"encoder": "counted:x", "kind": "counted", "name": "x"}
        assert b"a" not in {text for text, in database.execute("SELECT sha256 FROM vectors")}
    with closing(Vectors(path, {})) as vectors:
        assert vectors.tokens() == 30


def test_rows_of_another_width_are_another_model(tmp_path):
    with closing(Vectors(tmp_path / "v.sqlite", {})) as vectors:
        vectors.add(["a"], np.ones((1, 4), np.float32), tokens=5)
        with pytest.raises(InputError, match=r"v\.sqlite: holds embeddings of width 4 and now gets 3"):
            vectors.add(["b"], np.ones((1, 3), np.float32), tokens=5)
        assert vectors.missing(["a", "b"]) == ["b"] and vectors.tokens() == 5  # nothing of it is kept


def test_rows_and_their_tokens_are_kept_together_or_not_at_all(tmp_path):
    path = tmp_path / "v.sqlite"
    with closing(Vectors(path, {})) as vectors, closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON spent BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
        with pytest.raises(InputError, match=r"v\.sqlite: .*the disk is full"):
            vectors.add(["a", "b"], np.ones((2, 4), np.float32), tokens=5)
        assert vectors.missing(["a", "b"]) == ["a", "b"]
        other.execute("DROP TRIGGER full")
        vectors.add(["a", "b"], np.ones((2, 4), np.float32), tokens=5)
        assert vectors.missing(["a", "b"]) == [] and vectors.tokens() == 5


def fill(path, names, barrier):
    barrier.wait()
    with closing(Vectors(path, {})) as vectors:
        for name in names:
            vectors.add([name], np.full((1, 4), float(name), np.float32), tokens=1)


def test_two_processes_share_a_file(tmp_path):
    path = tmp_path / "v.sqlite"
    several = multiprocessing.get_context("fork")
    barrier = several.Barrier(2)
    names = [[str(i) for i in range(0, 60)], [str(i) for i in range(40, 100)]]
    workers = [several.Process(target=fill, args=(path, some, barrier)) for some in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    with closing(Vectors(path, {})) as vectors:
        every = [str(i) for i in range(100)]
        assert vectors.missing(every) == [] and vectors.tokens() == 120
        np.testing.assert_array_equal(vectors.rows(every)[:, 0], np.arange(100))


def test_a_damaged_file_is_one_sentence(tmp_path):
    embed_texts(["a"], "counted:x", tmp_path)
    [path] = kept(tmp_path)
    path.write_bytes(b"no database at all, " * 100)
    with pytest.raises(InputError, match=r"\.sqlite: is damaged \(file is not a database\)") as caught:
        embed_texts(["a"], "counted:x", tmp_path)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_file_from_before_there_were_checksums_is_gone_on_with(tmp_path, asked):
    rows = embed_texts(["a", "b"], "counted:x", tmp_path)
    [path] = kept(tmp_path)
    with closing(sqlite3.connect(path)) as base:
        base.executescript("alter table vectors drop column crc32; alter table spent drop column crc32;")
    np.testing.assert_array_equal(embed_texts(["a", "b", "c"], "counted:x", tmp_path)[:2], rows)
    assert sorted(asked.asked) == ["a", "b", "c"]
    with closing(Vectors(path, {})) as vectors:
        assert vectors.tokens() == 30


def test_what_cannot_be_embedded(tmp_path, asked):
    for name in ("given", "given:a_emb", "mine.safetensors"):
        with pytest.raises(InputError, match=f"the embeddings in {name} are made already and read no text"):
            embed_texts(["a"], name, tmp_path)
    with pytest.raises(InputError, match="there are no texts to embed"):
        embed_texts([], "counted:x", tmp_path)
    assert asked.asked == [] and not any(tmp_path.iterdir())


def test_where_texts_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NULLREC_CACHE", str(tmp_path / "named"))
    embed_texts(["a"], "counted:x")
    assert len(kept(tmp_path / "named")) == 1


@pytest.mark.parametrize("name, short", [
    ("server:https://api.example/v1#text-embedding-3-large", "server:text-embedding-3-large"),
    ("server:http://localhost:8000/v1#BAAI/bge-m3", "server:bge-m3"), ("lm:/models/Llama-3.1-8B", "lm:Llama-3.1-8B"),
    ("lm:gpt2", "lm:gpt2"), ("/models/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"), ("given:a_emb", "given:a_emb"),
    ("/embeddings/one.safetensors", "one.safetensors"), ("/odd#folder:x", "odd#folder:x"),
])
def test_what_tables_call_an_encoder(name, short):
    assert encoder.short_name(name) == short
