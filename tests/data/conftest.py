"""Shared by the readers' tests: files from rows, and the one sentence that a wrong file must give."""

import gzip
import json
import pickle

import pytest

from nullrec_lib.errors import InputError


@pytest.fixture
def write(tmp_path):
    """`write(name, rows)` → the file's folder, `set` under the test's own. Rows are JSON objects, text or bytes;
    a name that ends with .gz is gzipped."""
    folder = tmp_path / "set"

    def write(name, rows, folder=folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not isinstance(rows, (str, bytes)):
            rows = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        raw = rows if isinstance(rows, bytes) else rows.encode()
        (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return folder

    return write


@pytest.fixture
def write_pickle(tmp_path):
    """`write_pickle(name, value, protocol)` → the file's folder."""

    def write_pickle(name, value, protocol=4):
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(value, protocol))
        return folder

    return write_pickle


@pytest.fixture(scope="session")
def refused():
    """`refused(call, *args)` → the message of the InputError it must raise; every one is a single sentence."""

    def refused(call, *args):
        with pytest.raises(InputError) as caught:
            call(*args)
        text = str(caught.value)
        assert "\n" not in text and text.endswith(".") and not text.endswith("..") and ". " not in text
        return text

    return refused


@pytest.fixture(scope="session")
def sequences():
    """`sequences(dataset)` → each user's (item id, timestamp) pairs."""

    def sequences(dataset):
        ids = dataset.items["item_id"].to_numpy()
        rows = dataset.interactions.groupby("user", sort=False)
        return {dataset.user_ids[user]: list(zip(ids[group["item"]], group["timestamp"], strict=True))
                for user, group in rows}

    return sequences
