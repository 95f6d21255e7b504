"""Files that were emptied, cut, deleted or changed by one bit: the right result, or one sentence and status 2."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from nullrec_lib import training
from nullrec_lib.cli import app
from nullrec_lib.errors import InputError
from nullrec_lib.experiments import run, stored
from nullrec_lib.grid import make, run_grid
from nullrec_lib.language import encoder as encoders
from nullrec_lib.language import model, tuning
from nullrec_lib.language.encoder import embed_items, embed_texts
from nullrec_lib.language.encoders import Encoded, digest
from nullrec_lib.profiles import grpo
from nullrec_lib.profiles.build import build, examples
from nullrec_lib.profiles.grpo import Settings, train
from nullrec_lib.profiles.store import Store, Text

WAYS = ["empty", "cut", "delete", "bit 0", "bit 1", "bit 2", "bit 3"]
FEW = ["empty", "delete", "bit 0", "bit 1"]


def damage(path: Path, way: str) -> None:
    """Do to a file what `way` says; bits are drawn by the file's name and the way's number."""
    assert path.is_file(), path
    whole = path.read_bytes()
    if way == "delete":
        path.unlink()
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "cut":
        path.write_bytes(whole[: len(whole) // 3])
    else:
        drawn = np.random.default_rng([*path.name.encode(), int(way.split()[1])])
        place = int(drawn.integers(len(whole)))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(drawn.integers(8))]) + whole[place + 1 :])


def call(*words):
    """A command that ends well, or with status 2 and one line; never with a traceback."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 2), done.output
    if done.exit_code:
        lines = [line for line in done.stderr.splitlines() if line]
        assert len(lines) == 1 and lines[0].startswith("nullrec: ") and lines[0].endswith("."), done.stderr
        assert "Traceback" not in done.output
    return done


def figures(result: dict) -> dict:
    """A result without what the clock says."""
    return {name: value for name, value in result.items()
            if not name.startswith("seconds") and name not in ("peak_memory_mb", "notes")}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Runs


class Stopped(BaseException):
    pass


def stop_at(patch, epoch: int) -> None:
    whole = training._train_epoch

    def stops(model, train, optimiser, batch_size, now):
        if now == epoch:
            raise Stopped
        return whole(model, train, optimiser, batch_size, now)

    patch.setattr(training, "_train_epoch", stops)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A finished run and one that was stopped after two of three epochs, with the words that ask for them."""
    folder = tmp_path_factory.mktemp("runs")
    spec = tiny(method="base", epochs=3)
    words = ["run", "--method", "base", "--data", "shop-tiny", "--epochs", "3"]
    for name in ("encoder", "width", "negatives", "heads", "batch_size"):
        words += ["--set", f"{name}={getattr(spec, name)}"]
    result = run(spec, folder=folder / "finished")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 3)
        run(spec, folder=folder / "stopped")
    return folder, words, figures(json.loads(json.dumps(result))), spec


def again(words, folder, right) -> bool:
    """Whether the run ends well; then with the right figures."""
    done = call(*words, "--out", folder, "--json")
    if done.exit_code == 0:
        assert figures(json.loads(done.stdout.splitlines()[-1])) == right
    return done.exit_code == 0


RUN_FILES = ["result.json", "spec.json", "model.safetensors", "history.json", "ranks.safetensors", "data.json",
             "environment.json"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_finished_run(runs, tmp_path, name, way, monkeypatch):
    folder, words, right, _ = runs
    mine = tmp_path / "mine"
    shutil.copytree(folder / "finished", mine)
    told = call("recommend", folder / "finished", "--history", "item-0001", "--json").stdout
    damage(mine / name, way)
    asked = call("recommend", mine, "--history", "item-0001", "--json")
    assert asked.exit_code == 2 or asked.stdout == told
    if not again(words, mine, right):
        (mine / name).unlink(missing_ok=True)  # as the sentence says
        (mine / "result.json").unlink(missing_ok=True)
        if name == "spec.json":
            shutil.copy(folder / "finished" / name, mine)
        if name not in ("model.safetensors", "history.json"):
            monkeypatch.setattr(training, "_train_epoch", None)  # nothing is trained twice
        assert again(words, mine, right)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["checkpoint.safetensors", "model.safetensors", "spec.json", "data.json"])
def test_a_stopped_run(runs, tmp_path, name, way):
    folder, words, right, _ = runs
    mine = tmp_path / "mine"
    shutil.copytree(folder / "stopped", mine)
    damage(mine / name, way)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3)  # what cannot end well is refused before anything is trained
        try:
            refused = not again(words, mine, right)
        except (Stopped, AssertionError):
            refused = False
    if refused:
        (mine / name).unlink(missing_ok=True)
        (mine / "checkpoint.safetensors").unlink(missing_ok=True)
        if name == "spec.json":
            shutil.copy(folder / "finished" / name, mine)
    assert again(words, mine, right)


def test_a_lost_result_is_ranked_again_and_not_trained(runs, tmp_path, monkeypatch):
    folder, words, right, _ = runs
    monkeypatch.setattr(training, "_train_epoch", None)
    for lost in (["result.json"], ["ranks.safetensors"], ["result.json", "ranks.safetensors", "data.json"]):
        mine = tmp_path / "-".join(lost)
        shutil.copytree(folder / "finished", mine)
        for name in lost:
            (mine / name).unlink()
        assert again(words, mine, right)
        assert sorted(path.name for path in mine.iterdir()) == sorted(RUN_FILES)


def test_best_weights_of_the_last_epoch_come_back_from_the_checkpoint(runs, tmp_path):
    folder, words, right, _ = runs
    whole, last = (load_file(folder / "stopped" / name) for name in ("model.safetensors", "checkpoint.safetensors"))
    mine = tmp_path / "mine"
    shutil.copytree(folder / "stopped", mine)
    (mine / "model.safetensors").unlink()
    if all(torch.equal(tensor, last[f"model.{name}"]) for name, tensor in whole.items()):
        assert again(words, mine, right)
    else:  # an earlier epoch was better, and its weights are gone
        assert not again(words, mine, right)


@pytest.mark.parametrize("name", ["spec.json", "result.json", "data.json", "model.safetensors", "notes.txt"])
@pytest.mark.parametrize("content", ["mine", "{}", "[]", '{"openapi": "3.1"}'])
def test_nothing_is_written_over_what_is_not_ours(runs, tmp_path, name, content):
    _, words, right, _ = runs
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / name).write_text(content)
    assert again(words, tmp_path / "docs", right) == (name == "notes.txt")
    assert (tmp_path / "docs" / name).read_text() == content
    assert name == "notes.txt" or len(list((tmp_path / "docs").iterdir())) == 1


def test_a_finished_run_is_swept_of_what_was_left(runs, tmp_path):
    folder, words, right, _ = runs
    mine = tmp_path / "mine"
    shutil.copytree(folder / "finished", mine)
    shutil.copy(folder / "stopped" / "checkpoint.safetensors", mine)
    (mine / ".checkpoint.safetensors.abc.unfinished").write_bytes(b"half")
    assert again(words, mine, right)
    assert sorted(path.name for path in mine.iterdir()) == sorted(RUN_FILES)


# Grids


@pytest.fixture(scope="module")
def a_grid(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    spec = tiny(method="base")
    asked = make({"data": "shop-tiny", "encoder": spec.encoder, "width": 16, "negatives": 8, "epochs": 1, "heads": 2,
                  "method": ["popularity", "base", "frozen"], "seed": [1, 2]}, "mine")
    whole = run_grid(asked, root, None, jobs=1)
    of = {cell.label: [cell.at(asked.rates[0], seed) for seed in asked.seeds] for cell in asked.cells}
    return root, asked, whole, of


@pytest.mark.parametrize("way", FEW)
@pytest.mark.parametrize("name", ["result.json", "ranks.safetensors", "spec.json", "model.safetensors", "history.json"])
def test_a_grid_goes_on_with_its_other_rows(a_grid, tmp_path, name, way):
    root, asked, whole, of = a_grid
    shutil.copytree(root, tmp_path / "root")
    folder = tmp_path / "root" / stored([of["base"][1]], root)["key"].iloc[0]
    damage(folder / name, way)
    done = run_grid(asked, tmp_path / "root", None, jobs=1)
    assert done["missing"] == []
    rows, right = ({row["label"]: row for row in told["tables"][0]["rows"]} for told in (done, whole))
    for label in ("popularity", "frozen"):
        assert rows[label] == right[label]
    assert len(done["failures"]) <= 1
    if done["failures"]:
        [failed] = done["failures"]
        assert (failed["label"], failed["seed"]) == ("base", 2) and str(folder / name) in failed["error"]
        assert rows["base"]["seeds"] == 1
    else:
        assert rows["base"] == right["base"]


# Profiles

TEXTS = ["--data", "shop-tiny", "--limit-users", "6", "--rounds", "2", "--cuts", "1,3"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A finished build, what it exports, and what a run makes of it."""
    folder = tmp_path_factory.mktemp("profiles") / "p"
    assert call("profiles", "build", *TEXTS, "--out", folder).exit_code == 0
    return folder, call("profiles", "export", folder).stdout, recommended(folder)


def recommended(folder):
    done = call("run", "--method", "textknn", "--data", "shop-tiny", "--profiles", folder, "--json")
    return figures(json.loads(done.stdout.splitlines()[-1]) | {"spec": None}) if done.exit_code == 0 else None


@pytest.mark.parametrize("name, way", [
    *((name, way) for name in ("asked.json", "build.json") for way in WAYS),
    *(("profiles.sqlite", way) for way in ["empty", "cut", "delete", *(f"bit {n}" for n in range(20))])])
def test_a_build(built, tmp_path, name, way):
    folder, lines, figures_ = built
    mine = tmp_path / "p"
    shutil.copytree(folder, mine)
    damage(mine / name, way)
    for words in (["profiles", "show", "item-0001", "--out", mine], ["profiles", "export", mine]):
        done = call(*words)
        assert done.exit_code == 2 or words[1] == "show" or done.stdout == lines
    assert recommended(mine) in (None, figures_)
    done = call("profiles", "build", *TEXTS, "--out", mine)
    if done.exit_code == 2:
        for path in mine.glob(f"{name}*"):
            path.unlink()
        assert call("profiles", "build", *TEXTS, "--out", mine).exit_code == 0
    assert call("profiles", "export", mine).stdout == lines
    assert recommended(mine) == figures_


@pytest.mark.parametrize("name", ["profiles.sqlite", "profiles.sqlite-wal", "profiles.sqlite-shm", "asked.json"])
@pytest.mark.parametrize("way", FEW)
def test_a_build_that_was_killed(built, tmp_path, name, way):
    """With a write-ahead log beside it, as a killed process leaves it."""
    folder, lines, _ = built
    whole, mine = tmp_path / "whole", tmp_path / "p"
    shutil.copytree(folder, whole)
    with closing(Store(whole, create=True)) as store:
        store.put([Text("a tent", "w", "r", "t", str(n), 1) for n in range(50)])
        with closing(sqlite3.connect(whole / "profiles.sqlite")) as other:
            other.execute("delete from profiles where kind = 'user' and round > 0")
            other.commit()
            shutil.copytree(whole, mine)
    (mine / "build.json").unlink()
    damage(mine / name, way)
    done = call("profiles", "build", *TEXTS, "--out", mine)
    if done.exit_code == 2:
        for path in mine.glob(f"{name.partition('-')[0]}*"):
            path.unlink()
        assert call("profiles", "build", *TEXTS, "--out", mine).exit_code == 0
    assert call("profiles", "export", mine).stdout == lines


def test_a_damaged_text_is_written_again(built, tmp_path):
    folder, lines, _ = built
    mine = tmp_path / "p"
    shutil.copytree(folder, mine)
    with closing(sqlite3.connect(mine / "profiles.sqlite")) as base:
        base.execute("update texts set text = 'nonsense' where key in (select key from texts limit 3)")
        base.commit()
    assert call("profiles", "export", mine).exit_code == 2
    assert call("profiles", "build", *TEXTS, "--out", mine).exit_code == 0
    assert call("profiles", "export", mine).stdout == lines


# A model of one's own, what it writes, and what it learns

SMALL = dict(steps=1, sft_steps=1, hidden=32, layers=2, vocabulary=400, context=900, batch=2)
STEPS = Settings(steps=2, num_generations=2, prompts_per_step=2, max_tokens=8, refresh=1)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model, a build by it, a choice of the best, a finished training and a stopped one."""
    folder = tmp_path_factory.mktemp("learned")
    pairs, corpus = examples("shop-tiny", limit_users=12, rounds=1)
    record = model.build(pairs, corpus, folder / "model", **SMALL)
    build(folder / "profiles", data="shop-tiny", writer=f"local:{folder / 'model'}", rounds=1, limit_users=5, cuts=(1,),
          max_tokens=8, say=lambda _: None)
    chosen = ["profiles", "best", folder / "profiles", "--candidates", "2", "--max-tokens", "8"]
    assert call(*chosen, "--out", folder / "best").exit_code == 0
    whole = train(folder / "profiles", folder / "grpo", STEPS)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        def stops(*_):
            raise Stopped
        patch.setattr(grpo, "save", stops)
        train(folder / "profiles", folder / "stopped", STEPS)
    return folder, (pairs, corpus, record), chosen, whole


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "build.json", "checksums.json"])
@pytest.mark.parametrize("way", FEW)
def test_a_model(learned, tmp_path, name, way):
    folder, (pairs, corpus, record), *_ = learned
    mine = tmp_path / "model"
    shutil.copytree(folder / "model", mine)
    damage(mine / name, way)
    words = ["profiles", "build", "--writer", f"local:{mine}", "--out", tmp_path / "p", *TEXTS]
    harmless = name == "build.json" or (name, way) == ("checksums.json", "delete")
    if not harmless:
        assert call(*words).exit_code == 2 and not (tmp_path / "p").exists()
    try:
        assert model.build(pairs, corpus, mine, **SMALL) == record
        assert harmless
    except InputError as error:
        assert str(mine) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "pretraining.json"])
@pytest.mark.parametrize("way", ["empty", "delete", "bit 0"])
def test_a_stage_of_a_model(learned, tmp_path, name, way):
    folder, (pairs, corpus, record), *_ = learned
    out = tmp_path / "model"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        def stops(*_, **__):
            raise Stopped
        patch.setattr(tuning, "fine_tune", stops)
        model.build(pairs, corpus, out, **SMALL)
    [stage] = (tmp_path / ".model.building").glob("pretrained-*")
    damage(stage / name, way)
    assert model.build(pairs, corpus, out, **SMALL)["perplexity"] == record["perplexity"]
    assert (out / "model.safetensors").read_bytes() == (folder / "model" / "model.safetensors").read_bytes()
    assert not (tmp_path / ".model.building").exists()
    shutil.copytree(out, tmp_path / ".model.building")  # of one that was killed as it ended
    model.build(pairs, corpus, out, **SMALL)
    assert not (tmp_path / ".model.building").exists()


@pytest.mark.parametrize("name", ["best.json", "vectors.safetensors", "profiles.sqlite"])
@pytest.mark.parametrize("way", ["empty", "cut", "delete", "bit 0", "bit 1", "bit 2"])
def test_the_best(learned, tmp_path, name, way):
    folder, _, chosen, _ = learned
    mine = tmp_path / "best"
    shutil.copytree(folder / "best", mine)
    right = {key: tensor.clone() for key, tensor in load_file(mine / "vectors.safetensors").items()}
    figures_ = recommended(folder / "best")
    damage(mine / name, way)
    assert recommended(mine) in (None, figures_)
    done = call(*chosen, "--out", mine, "--json")
    if done.exit_code == 2:
        for path in mine.glob(f"{name}*"):
            path.unlink()
        assert call(*chosen, "--out", mine).exit_code == 0
    for key, tensor in load_file(mine / "vectors.safetensors").items():
        assert torch.equal(tensor, right[key])


def taught(folder, out, right) -> bool:
    try:
        record = train(folder / "profiles", out, STEPS)
    except InputError as error:
        assert "\n" not in str(error) and str(out) in str(error)
        return False
    assert [entry["reward"] for entry in record["history"]] == [entry["reward"] for entry in right["history"]]
    assert record["end"] == right["end"]
    return True


@pytest.mark.parametrize("name, way", [
    ("grpo.json", "empty"), ("grpo.json", "bit 0"), ("grpo.json", "delete"), ("asked.json", "delete"),
    ("asked.json", "cut"), ("history.json", "empty"), ("model/model.safetensors", "bit 1"),
    ("model/config.json", "delete")])
def test_a_training(learned, tmp_path, name, way):
    folder, _, _, right = learned
    mine = tmp_path / "grpo"
    shutil.copytree(folder / "grpo", mine)
    damage(mine / name, way)
    if not taught(folder, mine, right):
        (mine / name).unlink(missing_ok=True)
        assert taught(folder, mine, right)
    if name.startswith(("model", "history")):  # the record is right; without it all else must be
        (mine / "grpo.json").unlink(missing_ok=True)
        assert not taught(folder, mine, right)
        shutil.rmtree(mine / "model")
        assert taught(folder, mine, right)


@pytest.mark.parametrize("name, way", [
    ("model.safetensors", "bit 0"), ("current.safetensors", "cut"), ("optimizer.pt", "empty"),
    ("trainer_state.json", "delete"), ("checksums.json", "delete")])
def test_a_damaged_checkpoint_is_passed_over(learned, tmp_path, name, way):
    folder, _, _, right = learned
    mine = tmp_path / "grpo"
    shutil.copytree(folder / "stopped", mine)
    last = max((mine / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    damage(last / name, way)
    assert taught(folder, mine, right)
    assert not (mine / "checkpoints").exists()


def test_a_training_is_swept_of_what_was_left(learned, tmp_path):
    folder, _, _, right = learned
    mine = tmp_path / "grpo"
    shutil.copytree(folder / "grpo", mine)
    shutil.copytree(folder / "stopped" / "checkpoints", mine / "checkpoints")
    shutil.copytree(folder / "grpo" / "model", mine / ".model")
    assert taught(folder, mine, right)
    assert {path.name for path in mine.iterdir()} == {path.name for path in (folder / "grpo").iterdir()}


# Caches


class Counted:
    """An encoder that is quick."""

    dear = True

    def __init__(self, name):
        self.made_by = {"kind": "counted", "name": name}
        self.revision = digest(self.made_by)

    def encode(self, texts):
        rows = [np.random.default_rng(list(text.encode())).standard_normal(8) for text in texts]
        yield Encoded(range(len(texts)), np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32), tokens=7)


@pytest.mark.parametrize("what", ["embeddings/*.safetensors", "embeddings/*.json", "texts/*.sqlite", "texts/*-wal",
                                  "texts/*-shm"])
@pytest.mark.parametrize("way", WAYS)
def test_a_cache(tmp_path, monkeypatch, what, way):
    from nullrec_lib import data

    monkeypatch.setitem(encoders.KINDS, "counted", Counted)
    cache, items = tmp_path / "cache", data.load("shop-tiny").items
    texts = [f"text {n}" for n in range(40)]
    rows, of_texts = embed_items(items, "counted:x", cache), embed_texts(texts, "counted:x", cache)
    if what.startswith("texts"):
        with closing(sqlite3.connect(next((cache / "texts").glob("*.sqlite")))) as other:  # keeps the log from going
            other.execute("delete from vectors where rowid % 2")
            other.commit()
            shutil.copytree(cache, tmp_path / "copy")
        cache = tmp_path / "copy"
    for folder in ("embeddings", "texts"):
        (cache / folder / ".x.abc.unfinished").write_bytes(b"half")
    [path] = cache.glob(what)
    damage(path, way)
    np.testing.assert_array_equal(embed_items(items, "counted:x", cache), rows)
    try:
        np.testing.assert_array_equal(embed_texts(texts, "counted:x", cache), of_texts)
    except InputError as error:
        assert str(path).partition(".sqlite")[0] in str(error) and "remove it" in str(error)
        for file in (cache / "texts").glob("*.sqlite*"):
            file.unlink()
        np.testing.assert_array_equal(embed_texts(texts, "counted:x", cache), of_texts)
    assert not list(cache.rglob("*.unfinished"))


@pytest.mark.parametrize("change", ["row = zeroblob(32)", "crc32 = crc32 + 1", "row = substr(row, 1, 16)"])
def test_a_damaged_row_of_a_cache_is_encoded_again(tmp_path, monkeypatch, change):
    monkeypatch.setitem(encoders.KINDS, "counted", Counted)
    texts = [f"text {n}" for n in range(5)]
    rows = embed_texts(texts, "counted:x", tmp_path)
    with closing(sqlite3.connect(next((tmp_path / "texts").glob("*.sqlite")))) as base:
        base.execute(f"update vectors set {change} where rowid = 2")
        base.commit()
    np.testing.assert_array_equal(embed_texts(texts, "counted:x", tmp_path), rows)
