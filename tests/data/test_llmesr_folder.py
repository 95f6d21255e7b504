"""LLM-ESR's folder `handled/`."""

import json

import numpy as np
import pytest

from nullrec_lib.data import load
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
    assert got.notes[0] == "Recognised: LLM-ESR sequences (inter.txt)." and len(got.notes) == 2
    assert got.describe()["items_with_title"] == 0


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_row_i_is_item_i_plus_1(folder, protocol, write_pickle):
    (folder / "itm_emb_np.pkl").write_bytes((write_pickle("x", ROWS, protocol) / "x").read_bytes())
    (folder / "pca64_itm_emb_np.pkl").write_bytes(b"not even a pickle")
    (folder / "id_map.json").write_text(json.dumps({"id2item": {str(i): f"B{i}" for i in range(1, 6)}}))
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


def test_wrong_companions(folder, write_pickle, refused):
    (folder / "itm_emb_np.pkl").write_bytes((write_pickle("x", ROWS[:2]) / "x").read_bytes())
    assert refused(load, folder).endswith(
        "inter.txt, line 2: item 3 has no row in itm_emb_np.pkl, which ends with item 2.")
    (folder / "itm_emb_np.pkl").unlink()
    for text, words in (("{}", "there is no 'id2item' in it, though items go up to 3."),
                        ("[", "this is no JSON object"), ('{"id2item": {"1": "a", "2": "b"}}', "there is no '3' in it"),
                        ('{"id2item": {"1": "a", "2": "b", "3": "a"}}', "two items have one id.")):
        (folder / "id_map.json").write_text(text)
        assert words in refused(load, folder)
