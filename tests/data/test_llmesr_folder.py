"""LLM-ESR's folder `handled/`."""

import json
import pickle

import numpy as np
import pytest

from nullrec_lib.data import load
from nullrec_lib.data.formats import llmesr
from nullrec_lib.data.splits import split

INTER = "1 2\n1 3\n1 1\n2 3\n2 3\n7 2\n1 2\n"
ROWS = np.arange(8.0).reshape(4, 2)


@pytest.fixture
def folder(write, tmp_path):
    write("inter.txt", INTER, tmp_path / "fashion" / "handled")
    return tmp_path / "fashion" / "handled"


def test_reads_sequences_alone(folder, sequences):
    got = load(folder)
    assert (got.name, got.clock, got.embeddings) == ("fashion", "position", {})
    assert sequences(got) == {"1": [("2", 0), ("3", 1), ("1", 2), ("2", 3)], "2": [("3", 0), ("3", 1)], "7": [("2", 0)]}
    assert got.items.to_numpy().tolist() == [[str(i), "", ""] for i in (1, 2, 3)]
    assert got.notes[0] == "Recognised: LLM-ESR sequences (inter.txt)."
    assert not any("do not occur" in note for note in got.notes)
    assert got.describe()["items_with_title"] == 0


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_row_i_is_item_i_plus_1(folder, protocol, write_pickle):
    (folder / "itm_emb_np.pkl").write_bytes((write_pickle("x", ROWS, protocol) / "x").read_bytes())
    (folder / "pca64_itm_emb_np.pkl").write_bytes(b"not even a pickle")
    (folder / "id_map.json").write_text(json.dumps({"id2item": {str(i): f"B{i}" for i in range(1, 5)}}))
    got = load(folder)
    assert got.items["item_id"].tolist() == ["B1", "B2", "B3", "B4"]  # B4 has a row and no interaction: cold
    assert list(got.embeddings) == ["itm_emb_np"] and got.embeddings["itm_emb_np"].dtype == np.float32
    np.testing.assert_array_equal(got.embeddings["itm_emb_np"], ROWS)
    assert got.describe()["embeddings itm_emb_np"] == "4 x 2"


def test_leave_one_out_holds_out_what_llmesr_does(folder):
    parts = split(load(folder), "leave-one-out")
    assert parts.items.tolist() == [1, 2, 0, 1, 2, 2, 1]
    # Users with fewer than three items train with all of them.
    assert (parts.valid.tolist(), parts.test.tolist()) == ([2], [3])
    assert np.flatnonzero(parts.owned).tolist() == [0, 1, 4, 5, 6]


@pytest.mark.parametrize("line", ["1", "1 2 3", "0 1", "1 0", "1 -2", "1 x", "1 2.0", "1 ²"])
def test_wrong_lines(folder, write, refused, line):
    write("inter.txt", INTER + line + "\n", folder)
    assert refused(load, folder) == f"{folder}/inter.txt, line 8: {line!r} is not `user item` with ids from 1."


def put(folder, rows=None, ids=None):
    """`itm_emb_np.pkl` and `id_map.json`, or neither."""
    for name, value, dump in ((llmesr.EMBEDDINGS, rows, pickle.dumps),
                              (llmesr.IDS, ids, lambda ids: json.dumps({"id2item": ids}).encode())):
        (folder / name).unlink(missing_ok=True)
        if value is not None:
            (folder / name).write_bytes(dump(value))


def numbered(count):
    return {str(item): f"B{item}" for item in range(1, count + 1)}


THREE = 1 + np.arange(6.0).reshape(3, 2)
ZEROS = np.zeros((1, 2))


@pytest.mark.parametrize("ids", [None, numbered(3)], ids=["by the largest id", "by id_map.json"])
@pytest.mark.parametrize(("rows", "where"), [(np.vstack([ZEROS, THREE]), "first"), (np.vstack([THREE, ZEROS]), "last")])
def test_a_padding_row_belongs_to_no_item(folder, rows, where, ids):
    put(folder, rows, ids)
    got = load(folder)
    np.testing.assert_array_equal(got.embeddings["itm_emb_np"], THREE)
    assert got.n_items == 3
    assert [where in note for note in got.notes if "padding" in note] == [True]


@pytest.mark.parametrize("ids", [None, numbered(3)], ids=["by the largest id", "by id_map.json"])
@pytest.mark.parametrize("rows", [
    np.vstack([THREE[:1], THREE]), np.vstack([THREE, THREE[:1]]), np.vstack([ZEROS + 0.1, THREE]),
    np.vstack([ZEROS, THREE[:2], ZEROS]), np.vstack([ZEROS, THREE, ZEROS]), np.vstack([ZEROS, THREE, THREE]),
], ids=["a row in front", "a row behind", "nearly zeros", "zeros at both ends", "two of zeros", "three more"])
def test_other_rows_than_items_are_refused(folder, refused, rows, ids):
    """No item may get its neighbour's vector without a word."""
    put(folder, rows, ids)
    text = refused(load, folder)
    assert text.startswith(f"{folder}/itm_emb_np.pkl: holds {len(rows)} rows") and "3 items" in text
    assert "id_map.json" in text


def test_a_row_of_zeros_within_is_an_items(folder):
    for rows in (np.vstack([THREE[:2], ZEROS]), np.vstack([ZEROS, THREE[:2]])):
        put(folder, rows)
        np.testing.assert_array_equal(load(folder).embeddings["itm_emb_np"], rows)


def test_items_are_those_of_the_id_map(folder, refused):
    put(folder, ids=numbered(5))
    assert load(folder).items["item_id"].tolist() == ["B1", "B2", "B3", "B4", "B5"]
    put(folder, ROWS, numbered(5))
    assert "holds 4 rows" in refused(load, folder) and "5 items" in refused(load, folder)


@pytest.mark.parametrize("item", [30_000_000, 10**17])
def test_numbers_between_are_no_items(folder, write, refused, item):
    write("inter.txt", f"1 2\n1 {item}\n2 5\n", folder)
    got = load(folder)
    assert got.items["item_id"].tolist() == ["2", "5", str(item)]
    assert [f"{item - 3:,}" in note for note in got.notes if "do not occur" in note] == [True]
    for rows, ids in ((ROWS, None), (None, numbered(4)), (ROWS, numbered(4))):
        put(folder, rows, ids)
        text = refused(load, folder)  # line 2 is the first with an item above 4
        assert text.startswith(f"{folder}/inter.txt, line 2: item {item} has no ")


@pytest.mark.parametrize("line", ["1 " + "9" * 19, "1 " + "9" * 5000, "9" * 5000 + " 1", "1 " + "0" * 5000])
def test_numbers_of_many_digits(folder, write, refused, line):
    write("inter.txt", INTER + line + "\n", folder)
    text = refused(load, folder)
    assert text.startswith(f"{folder}/inter.txt, line 8: ") and "ids from 1" in text and len(text) < 300


def test_wrong_companions(folder, refused):
    put(folder, ROWS[:2])
    assert refused(load, folder).startswith(f"{folder}/inter.txt, line 2: item 3 has no row in itm_emb_np.pkl")


@pytest.mark.parametrize(("text", "words"), [
    ("{}", "id2item"), ("[", "JSON"), ("[]", "id2item"), ("null", "id2item"), ("7", "id2item"), ('"id2item"', "id2item"),
    ('{"id2item": []}', "id2item"), ('{"id2item": {}}', "id2item"), ('{"id2item": "abc"}', "id2item"),
    ('{"id2item": ["a", "b", "c"]}', "id2item"), ("[" * 100_000, "JSON"), ('{"id2item": ' * 100_000, "JSON"),
    ('{"id2item": {"1": "a", "2": "b"}}', "line 2: item 3 has no entry in id_map.json"),
    ('{"id2item": {"1": "a", "2": "b", "4": "d"}}', "none for item 3"),
    ('{"id2item": {"0": "z", "1": "a", "2": "b", "3": "c"}}', "none for item 4"),
    ('{"id2item": {"1": "a", "2": "b", "3": "a"}}', "'a' for two items"),
    ('{"id2item": {"1": "1", "2": 1, "3": "a"}}', "'1' for two items"),
    ('{"id2item": {"1": "a", "2": "b", "3": "c", "3": "d"}}', "each number once"),
    ('{"id2item": {"1": "a", "2": "b", "3": null}}', "NoneType for item 3"),
    ('{"id2item": {"1": "a", "2": "b", "3": ["c"]}}', "list for item 3"),
    ('{"id2item": {"1": "a", "2": "b", "3": 1.5}}', "float for item 3"),
    ('{"id2item": {"1": "a", "2": "b", "3": true}}', "bool for item 3"),
    ('{"id2item": {"1": "a", "2": "b", "3": " "}}', "' ' for item 3"),
    ('{"id2item": {"1": "a", "2": "b", "3": "\\ud800"}}', "for item 3"),
    ('{"id2item": {"1": "a", "2": "b", "3": %s}}' % ("9" * 5000), "JSON"),
])
def test_wrong_id_maps(folder, refused, text, words):
    (folder / "id_map.json").write_text(text)
    sentence = refused(load, folder)
    assert words in sentence and "id_map.json" in sentence and len(sentence) < 400


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_id_map_with_a_byte_order_mark(folder, encoding):
    (folder / "id_map.json").write_text(json.dumps({"id2item": numbered(3)}), encoding=encoding)
    assert load(folder).items["item_id"].tolist() == ["B1", "B2", "B3"]
    (folder / "id_map.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match="id_map.json: expected a JSON object"):
        load(folder)
