"""Item texts, the cache of embeddings and where encoders are found; one real encoding."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from nullrec_lib.errors import InputError
from nullrec_lib.files import cache_folder
from nullrec_lib.language import encoder
from nullrec_lib.language.encoder import DEFAULT, embed_items, identity, item_texts
from nullrec_lib.language.encoders import sentence
from nullrec_lib.language.encoders.folders import weights_sha256
from nullrec_lib.language.encoders.sentence import KNOWN_WEIGHTS, find
from nullrec_lib.nullspace import decompose

PACKAGE = sentence.OFFLINE_PACKAGES[DEFAULT]
needs_weights = pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")


def catalogue(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["item_id", "title", "description"])


ITEMS = catalogue(
    ("a", "Red chair", "Oak. Seats one."), ("b", "Lamp", ""), ("c", "", "No title"), ("d", "", "")
)


def test_texts():
    assert item_texts(ITEMS) == ["Red chair. Oak. Seats one.", "Lamp", "No title", ""]
    assert encoder.TEMPLATE == "{title}. {description}"
    braces = catalogue(("a", "{title}", "{0} {description}"))
    assert item_texts(braces) == ["{title}. {0} {description}"]


@pytest.mark.parametrize("template, texts", [
    ("{title}", ["Red chair", "Lamp", "", ""]),
    ("{description}", ["Oak. Seats one.", "", "No title", ""]),
    ("{description} ({title})", ["Oak. Seats one. (Red chair)", "Lamp", "No title", ""]),
    ("A {title}, {title}: {description}", ["A Red chair, Red chair: Oak. Seats one.", "Lamp", "No title", ""]),
])
def test_a_template_says_what_an_item_text_is(template, texts):
    assert item_texts(ITEMS, template) == texts


@pytest.mark.parametrize("template", [
    "", "text", "{brand}", "{title} {brand}", "{}", "{0}", "{title", "{title.upper}", "{title[0]}", "}", "{{title}}",
    "{title:>9}", "{title:>99999999999}", "{title!r}", "{title!a:5}", "{title:{description}}", "{title} {description:1}",
])
def test_a_template_names_fields_of_an_item(template):
    with pytest.raises(InputError, match="template: .* write a text with {title} and {description}"):
        item_texts(ITEMS, template)


# The cache


@pytest.fixture
def model(tmp_path):
    """A folder that looks like a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def encoded(monkeypatch):
    """`encode` replaced by rows made from a hash of model and text; the list of calls."""
    calls = []

    def row(name, text):
        digest = hashlib.sha256(f"{name}\x1f{text}".encode()).digest()
        vector = np.frombuffer(digest, np.uint8).astype(np.float32) - 128
        return vector / np.linalg.norm(vector)

    def fake(texts, name=DEFAULT):
        calls.append(list(texts))
        return np.stack([row(name, text) for text in texts])

    monkeypatch.setattr(encoder, "encode", fake)
    return calls


def files(cache) -> list[Path]:
    return sorted((cache / "embeddings").iterdir())


def test_embeddings_are_made_once_and_kept_with_a_record(tmp_path, model, encoded):
    cache = tmp_path / "cache"
    rows = embed_items(ITEMS, str(model), cache)
    assert rows.shape == (4, 32) and rows.dtype == np.float32
    assert encoded == [["Red chair. Oak. Seats one.", "Lamp", "No title"]]
    record_path, tensor_path = files(cache)
    assert (record_path.suffix, tensor_path.suffix) == (".json", ".safetensors")
    assert record_path.stem == tensor_path.stem
    stored = load_file(tensor_path)["embeddings"].numpy()
    np.testing.assert_allclose(stored, rows, atol=1e-6)  # those with a text are brought to unit norm once more when they are read
    record = json.loads(record_path.read_text())
    assert record["item_ids"] == ["a", "b", "c", "d"] and record["shape"] == [4, 32]
    assert record["encoder"] == str(model) and record["template"] == encoder.TEMPLATE
    assert record["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    again = embed_items(ITEMS.copy(), str(model), cache)
    np.testing.assert_array_equal(again, rows)
    assert len(encoded) == 1 and len(files(cache)) == 2


@pytest.mark.parametrize("template, key", [(None, "15b237b2dfb26fde"), ("{title}", "70e86aa2444f625d")])
def test_keys_stay_what_they_are(tmp_path, model, encoded, template, key):
    embed_items(ITEMS, str(model), tmp_path, template=template)  # users have caches under these names
    assert [path.stem for path in files(tmp_path)] == [key, key]
    assert identity(str(model)) == "5ac515b8d110b204ae842da7a97777423ec5324dc06145939106b63b831f9b06"


def test_the_second_call_cannot_encode(tmp_path, model, encoded, monkeypatch):
    rows = embed_items(ITEMS, str(model), tmp_path)
    monkeypatch.setattr(encoder, "encode", lambda *_: pytest.fail("encoded again"))
    np.testing.assert_array_equal(embed_items(ITEMS, str(model), tmp_path), rows)


def test_a_moved_model_is_the_same_model(tmp_path, model, encoded):
    embed_items(ITEMS, str(model), tmp_path)
    moved = model.rename(tmp_path / "elsewhere")
    embed_items(ITEMS, str(moved), tmp_path)
    assert len(encoded) == 1


@pytest.mark.parametrize(
    "change", ["title", "description", "item id", "order", "fewer", "template", "weights"]
)
def test_what_made_them_makes_another_key(tmp_path, model, encoded, monkeypatch, change):
    before = embed_items(ITEMS, str(model), tmp_path)
    items = ITEMS.copy()
    match change:
        case "title":
            items.loc[1, "title"] = "Lantern"
        case "description":
            items.loc[1, "description"] = "Bright"
        case "item id":
            items.loc[1, "item_id"] = "e"
        case "order":
            items = items[::-1].reset_index(drop=True)
        case "fewer":
            items = items[:3]
        case "template":
            monkeypatch.setattr(encoder, "TEMPLATE", "{title}: {description}")
        case "weights":
            (model / "model.safetensors").write_bytes(b"trained further")
    after = embed_items(items, str(model), tmp_path)
    assert len(encoded) == 2 and len(files(tmp_path)) == 4
    assert len(after) == len(items)
    if change == "order":
        np.testing.assert_array_equal(after, before[::-1])


def test_a_text_that_moves_between_items_is_another_text(tmp_path, model, encoded):
    embed_items(catalogue(("a", "x", ""), ("b", "y z", "")), str(model), tmp_path)
    embed_items(catalogue(("a", "x y", ""), ("b", "z", "")), str(model), tmp_path)
    assert len(encoded) == 2


@pytest.mark.parametrize(
    "file",
    ["pytorch_model.bin", "2_Dense/model.safetensors", "1_Pooling/config.json", "tokenizer.json"],
)
def test_two_models_never_share_embeddings(tmp_path, encoded, file):
    # Their weights are elsewhere than in a model.safetensors on top, or how they are read differs.
    rows = []
    for name in ("one", "two"):
        path = tmp_path / name / file
        path.parent.mkdir(parents=True)
        path.write_text(f"of model {name}")
        if not file.endswith(".bin"):
            (tmp_path / name / "model.safetensors").write_bytes(b"the same backbone")
        rows.append(embed_items(ITEMS, str(tmp_path / name), tmp_path / "cache"))
    assert len(encoded) == 2 and np.abs(rows[0] - rows[1]).max() > 0.01


def test_another_template_is_encoded_anew_and_the_usual_one_given_is_the_usual_one(tmp_path, model, encoded):
    usual = embed_items(ITEMS, str(model), tmp_path)
    titles = embed_items(ITEMS, str(model), tmp_path, template="{title}")
    assert encoded[1] == ["Red chair", "Lamp"] and not np.array_equal(usual, titles)
    np.testing.assert_array_equal(embed_items(ITEMS, str(model), tmp_path, template=encoder.TEMPLATE), usual)
    np.testing.assert_array_equal(embed_items(ITEMS, str(model), tmp_path, template="{title}"), titles)
    assert len(encoded) == 2
    made, _ = sorted(tmp_path.rglob("embeddings/*.safetensors"))
    with pytest.raises(InputError, match="template: the embeddings in .* are made already"):
        embed_items(ITEMS, str(made), template="{title}")


def test_an_interrupted_write_is_made_again(tmp_path, model, encoded):
    rows = embed_items(ITEMS, str(model), tmp_path)
    for lost in (0, 1):  # the record, then the tensor
        files(tmp_path)[lost].unlink()
        np.testing.assert_array_equal(embed_items(ITEMS, str(model), tmp_path), rows)
    assert len(encoded) == 3 and len(files(tmp_path)) == 2


def test_an_encoding_that_fails_leaves_nothing(tmp_path, model, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(encoder, "encode", fail)
    with pytest.raises(MemoryError):
        embed_items(ITEMS, str(model), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_where_the_cache_is(tmp_path, model, encoded, monkeypatch):
    monkeypatch.setenv("NULLREC_CACHE", str(tmp_path / "named"))
    embed_items(ITEMS, str(model))
    assert len(files(tmp_path / "named")) == 2
    monkeypatch.setenv("NULLREC_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "nullrec"


# Stored embeddings that do not belong to the items


def edit(path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def drop_row(path) -> None:
    save_file({"embeddings": load_file(path)["embeddings"][:-1].contiguous()}, path)


def store(path, *values, name="embeddings") -> None:
    save_file({name: torch.tensor(values)[:, None]}, path)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda record, _: edit(record, item_ids=["a", "b", "d", "c"]), r"other .* \(or in another order\)"),
        (lambda record, _: edit(record, item_ids=["a", "b", "c"]), "holds 4 embeddings of other items"),
        (lambda record, _: edit(record, item_ids=None), "other items"),
        (lambda _, tensor: drop_row(tensor), "holds 3 embeddings of other items than the catalogue's 4"),
        (lambda _, tensor: store(tensor, 0.0, 1, torch.nan, 1), "row 2 is not finite"),
        (lambda _, tensor: store(tensor, torch.inf, 1, 1, 1), "row 0 is not finite"),
    ],
)
@pytest.mark.parametrize("made_elsewhere", [False, True])
def test_stored_rows_that_do_not_fit_are_an_error(tmp_path, model, encoded, break_it, words, made_elsewhere):
    embed_items(ITEMS, str(model), tmp_path)
    record, tensor = files(tmp_path)
    break_it(record, tensor)
    with pytest.raises(InputError, match=words) as caught:
        embed_items(ITEMS, str(tensor) if made_elsewhere else str(model), tmp_path)
    assert str(caught.value).startswith(str(tensor)) and str(caught.value).endswith(".")
    assert len(encoded) == 1  # an error, and not silently made again


@pytest.mark.parametrize("break_it", [
    lambda _, tensor: tensor.write_bytes(tensor.read_bytes()[:-1]),
    lambda _, tensor: tensor.write_bytes(tensor.read_bytes()[:-1] + b"?"),
    lambda _, tensor: store(tensor, 1.0, 1, 1, 1, name="rows"),
    lambda record, _: record.write_text("{}"),
    lambda record, _: record.write_text(""),
    lambda record, _: record.write_text(record.read_text().replace('"a"', '"b"'))])
def test_what_is_damaged_is_made_again_in_the_cache_and_refused_elsewhere(tmp_path, model, encoded, break_it):
    rows = embed_items(ITEMS, str(model), tmp_path)
    record, tensor = files(tmp_path)
    break_it(record, tensor)
    with pytest.raises(InputError, match="make both again") as caught:
        embed_items(ITEMS, str(tensor), tmp_path)
    assert str(caught.value).startswith(str(tensor.with_suffix(""))) and "\n" not in str(caught.value)
    np.testing.assert_array_equal(embed_items(ITEMS, str(model), tmp_path), rows)
    np.testing.assert_array_equal(embed_items(ITEMS, str(tensor), tmp_path), rows)
    assert len(encoded) == 2


def test_a_file_made_elsewhere(tmp_path, encoded):
    path = tmp_path / "mine.safetensors"
    save_file({"embeddings": torch.arange(1.0, 9.0).reshape(4, 2).half()}, path)
    with pytest.raises(InputError, match=r"mine\.json beside it must both exist"):
        embed_items(ITEMS, str(path))
    (tmp_path / "mine.json").write_text(json.dumps({"item_ids": ["a", "b", "c", "d"]}))
    rows = embed_items(ITEMS, str(path))
    made = np.arange(1.0, 9.0).reshape(4, 2)
    np.testing.assert_allclose(rows, made / np.linalg.norm(made, axis=1, keepdims=True), rtol=1e-6)
    assert rows.dtype == np.float32
    save_file({"embeddings": torch.arange(-2.0, 6.0).reshape(4, 2).clamp(min=0)}, path)
    with pytest.raises(InputError, match="mine.safetensors: row 0 is zero"):
        embed_items(ITEMS, str(path))
    save_file({"embeddings": torch.from_numpy(made)}, path)
    with pytest.raises(InputError, match="other items"):
        embed_items(ITEMS[::-1], str(path))
    with pytest.raises(InputError, match="must both exist"):
        embed_items(ITEMS, str(tmp_path / "absent.safetensors"))
    assert encoded == []


# Where encoders are found


def test_a_folder_comes_first(tmp_path, model, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert find(str(model)) == model
    monkeypatch.chdir(tmp_path)
    assert find("model") == Path("model")


@needs_weights
def test_then_the_offline_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    folder = find(DEFAULT)
    assert folder.parent.name == PACKAGE and weights_sha256(folder) == KNOWN_WEIGHTS[DEFAULT]


@pytest.mark.parametrize(
    ("name", "asked"),
    [("other-model", "sentence-transformers/other-model"), ("someone/theirs", "someone/theirs")],
)
def test_then_the_hub(monkeypatch, model, name, asked):
    calls = []
    download = lambda name, **_: calls.append(name) or str(model)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find(name) == model and calls == [asked]


@pytest.mark.parametrize("name", [DEFAULT, "other-model", "someone/theirs"])
def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch, tmp_path, name):
    def refuse(*_, **__):
        raise ConnectionError("three\nlines\nof trouble")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(sentence, "OFFLINE_PACKAGES", {DEFAULT: "no_such_package_is_installed"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^encoder: '{name}' is no folder.*ConnectionError") as caught:
        find(name)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_weights_under_a_known_name_are_verified(tmp_path, encoded):
    folder = tmp_path / DEFAULT
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"someone else's")
    for call in (lambda: find(str(folder)), lambda: embed_items(ITEMS, str(folder), tmp_path / "cache")):
        with pytest.raises(InputError, match="are not those of all-MiniLM-L6-v2.*SHA-256 differs"):
            call()
    assert find(str(folder.rename(tmp_path / "mine"))) == tmp_path / "mine"
    assert encoded == [] and not (tmp_path / "cache").exists()


def test_weights_from_the_hub_are_verified_too(monkeypatch, model, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(model))
    monkeypatch.setattr(sentence, "OFFLINE_PACKAGES", {})
    monkeypatch.chdir(tmp_path)
    for name in (DEFAULT, f"sentence-transformers/{DEFAULT}"):
        with pytest.raises(InputError, match="SHA-256 differs"):
            find(name)


def test_sha256_of_weights(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"one")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"two")
    (tmp_path / "config.json").write_text("{}")
    assert weights_sha256(tmp_path) == hashlib.sha256(b"onetwo").hexdigest()


# The real thing

SENTENCES = ["A red wooden chair for the kitchen.", "Kitchen stool made of oak"]
SENTENCES += ["Strategy guide to space combat"]


@pytest.fixture(scope="session")
def real():
    pytest.importorskip(PACKAGE)
    return encoder.encode(SENTENCES)


@needs_weights
def test_a_real_encoding(real):
    assert real.shape == (3, 384) and real.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(real, axis=1), 1, atol=1e-6)
    near, far = real[0] @ real[1], real[0] @ real[2]
    assert near > 0.4 and near > far + 0.3


@needs_weights
def test_it_equals_the_mean_of_the_token_states(real):
    from transformers import AutoModel, AutoTokenizer

    folder = find(DEFAULT)
    tokens = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
    np.testing.assert_allclose(real, torch.nn.functional.normalize(mean, dim=1), atol=1e-5)


# What came with the data


def test_given_embeddings_are_brought_to_unit_norm():
    rows = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    two = {"a_emb": rows, "b_emb": -rows}
    bare = catalogue(("a", "", ""), ("b", "", ""))
    for name, given, want in (("given", {"a_emb": rows}, 1), ("given:a_emb", two, 1), ("given:b_emb", two, -1)):
        np.testing.assert_allclose(embed_items(bare, name, given=given), want * np.array([[0.6, 0.8], [0, 1]]))
        assert identity(name) == name
    for name, given, words in (
        ("given", two, "the data came with a_emb, b_emb; choose one with encoder=given:NAME."),
        ("given:c", two, "encoder: given:c is not to be had, the data came with a_emb, b_emb; "),
        ("given", {}, "encoder: given is not to be had, the data came with no embeddings, give an encoder."),
        ("given", {"z": 0 * rows}, "encoder: given:z: row 0 is zero, which is no embedding."),
        (DEFAULT, two, "no text that all-MiniLM-L6-v2 could read; use encoder=given, the embeddings that came"),
        (DEFAULT, {}, "no text that all-MiniLM-L6-v2 could read; give .safetensors instead."),
    ):
        with pytest.raises(InputError) as caught:
            embed_items(bare, name, given=given)
        assert words in str(caught.value)


def frame(*titles) -> pd.DataFrame:
    return pd.DataFrame({"item_id": [f"i{n}" for n in range(len(titles))], "title": titles, "description": ""}, dtype=str)


def test_an_item_without_text_has_the_mean_of_the_others(tmp_path, model, encoded):
    items = frame("one", "", "two", "three", "")
    for _ in range(2):  # made, then from the cache
        rows = embed_items(items, str(model), tmp_path)
        some = rows[[0, 2, 3]]
        np.testing.assert_allclose(np.linalg.norm(some, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(rows[[1, 4]], np.tile(some.mean(axis=0, dtype=np.float64), (2, 1)), atol=1e-7)
        # In the row space it is nothing at all: it lives by its ID.
        space = decompose(rows * 5, null_dim=1, width=2)
        np.testing.assert_allclose(space.project(rows * 5)[[1, 4], :1], 0, atol=1e-5)
    assert encoded == [["one", "two", "three"]]


def test_embeddings_of_other_texts_are_refused(tmp_path, model, encoded):
    first = frame("one", "", "three")
    rows = embed_items(first, str(model), tmp_path)
    stored = next((tmp_path / "embeddings").glob("*.safetensors"))
    np.testing.assert_allclose(embed_items(first, str(stored)), rows, atol=1e-6)
    with pytest.raises(InputError, match="other texts"):
        embed_items(frame("one", "", "four"), str(stored))
    with pytest.raises(InputError, match="other items"):
        embed_items(frame("one", "")[:2], str(stored))


def test_embeddings_that_came_are_taken_where_there_is_no_text_and_no_encoder_named(model):
    given = {"x": np.eye(3, dtype=np.float32)}
    np.testing.assert_array_equal(embed_items(frame("", "", ""), given=given), np.eye(3))
    for items, encoder, came in ((frame("", "", ""), str(model), given), (frame("", "", ""), DEFAULT, {**given, "y": given["x"]})):
        with pytest.raises(InputError, match="no text"):
            embed_items(items, encoder, given=came)
