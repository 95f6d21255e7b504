"""The store: what is written stays, is never asked for twice, and may be shared."""

import subprocess
import sys

import pytest

from nullrec_lib.errors import InputError
from nullrec_lib.profiles.store import FILE, Profile, Store, Text, journey


def text(said="hello there", **changed) -> Text:
    return Text(**dict(text=said, writer="w", revision="r", template="t", prompt="p", seed=1) | changed)


def test_a_key_is_everything_that_made_the_text_and_not_the_text():
    assert text().key == text("other").key == text(fallback=True).key
    changed = [dict(writer="x"), dict(revision="x"), dict(template="x"), dict(prompt="x"), dict(seed=2)]
    assert len({text(**one).key for one in changed} | {text().key}) == 6


def test_the_first_text_of_a_key_stays(tmp_path):
    store = Store(tmp_path, create=True)
    store.put([text("first")])
    store.put([text("second", fallback=True), text("else", prompt="q")])
    assert store.get([text().key, text(prompt="q").key, "nobody"]) == {
        text().key: ("first", False), text(prompt="q").key: ("else", False)}


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path):
    store = Store(tmp_path, create=True)
    with pytest.raises(InputError, match="profiles.sqlite"):
        store.put([text("good"), text(None, prompt="q")])
    assert store.get([text().key]) == {}
    store.put([text("good")])  # and the store is not left in the middle of it
    assert store.get([text().key])


def test_profiles_come_back_with_their_rounds_and_cuts(tmp_path):
    store = Store(tmp_path, create=True)
    store.put([text("likes tents", prompt="a"), text("likes tents and rain", prompt="b", fallback=True)])
    keys = [text(prompt="a").key, text(prompt="b").key]
    store.name("user", ["u1", "u2"], [None, 3], 0, keys)
    store.name("user", ["u1"], [None], 1, keys[1:])
    store.name("item", ["u1"], [None], 0, keys[:1])
    assert list(store.profiles("user", "u1")) == [
        Profile("user", "u1", None, 0, "likes tents", "w", False, 0),
        Profile("user", "u1", None, 1, "likes tents and rain", "w", True, 0)]
    assert [one.cut for one in store.profiles("user")] == [None, None, 3]
    assert len(list(store.profiles())) == 4
    told = journey(list(store.profiles("user", "u1")))
    assert "round 1, w, fallback" in told and told.endswith("  + and rain")


def test_where_there_is_none_one_sentence_says_so(tmp_path):
    with pytest.raises(InputError, match="no profiles are stored here"):
        Store(tmp_path)
    assert not (tmp_path / FILE).exists()


def test_two_processes_write_at_once(tmp_path):
    Store(tmp_path, create=True).close()
    code = ("import sys; from pathlib import Path; from nullrec_lib.profiles.store import Store, Text\n"
            "store = Store(Path(sys.argv[1]))\n"
            "for n in range(150): store.put([Text(f'{sys.argv[2]} {n}', 'w', 'r', 't', f'{n % 100}', 1)])")
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path, name]) for name in ("one", "two")]
    assert [process.wait(60) for process in both] == [0, 0]
    keys = [text(prompt=str(n)).key for n in range(150)]
    assert len(Store(tmp_path).get(keys)) == 100
