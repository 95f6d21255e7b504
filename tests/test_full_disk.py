"""Where there is no room or no right to write: one sentence, nothing half-written, and the same command goes on later."""

import json
import os
import resource
import shutil
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nullrec_lib.cli import app
from nullrec_lib.experiments import run
from nullrec_lib.grid import make, run_grid
from nullrec_lib.language import encoder as encoders
from nullrec_lib.language import model
from nullrec_lib.language.encoder import embed_items, embed_texts
from nullrec_lib.profiles.build import build, examples
from nullrec_lib.profiles.grpo import Settings, train

SMALL = dict(steps=1, sft_steps=1, hidden=32, layers=2, vocabulary=400, context=900, batch=2)
STEPS = Settings(steps=2, num_generations=2, prompts_per_step=2, max_tokens=8, refresh=1)


def in_child(work, limit: int | None = None, user: int | None = None) -> str:
    """Call `work` in a process of its own, in which no file grows beyond `limit` bytes or which another user runs; what
    was raised, or nothing."""
    read, write = os.pipe()
    if not (child := os.fork()):
        said = ""
        try:
            torch.set_num_threads(1)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, said.encode()[:4000])
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as told:
        said = told.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def assert_one_sentence(said: str) -> None:
    assert said.startswith("InputError: ") and said.endswith(".") and "\n" not in said, said
    assert "make room" in said and ("cannot be written" in said or "cannot be used" in said), said


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith((".unfinished", "-journal"))]


def through(limits, work, folder: Path) -> int:
    """Do work under one limit after the other, each going on from where the last one stopped; how many were too low."""
    refused = 0
    for limit in limits:
        if said := in_child(work, limit):
            assert_one_sentence(said)
            refused += 1
        assert not leftovers(folder)
    assert in_child(work) == ""
    return refused


def without_clock(result):
    return {name: value for name, value in result.items() if not name.startswith("seconds") and name != "peak_memory_mb"}


def test_a_run(tiny, tmp_path):
    spec = tiny(method="base", epochs=2)
    right = run(spec, folder=tmp_path / "right")
    sizes = sorted(path.stat().st_size for path in (tmp_path / "right").iterdir())
    ask = lambda: run(spec, folder=tmp_path / "full")
    assert through([10, 600, *(size - 1 for size in sizes)], ask, tmp_path / "full") >= 4
    full = json.loads((tmp_path / "full" / "result.json").read_text())
    assert without_clock(full) == without_clock(json.loads(json.dumps(right)))


def test_a_grid(tiny, tmp_path):
    asked = make({"data": "shop-tiny", "encoder": tiny().encoder, "width": 16, "negatives": 8, "epochs": 1, "heads": 2,
                  "method": ["popularity", "base"]}, "mine")

    def rows_of_two():
        done = run_grid(asked, tmp_path / "root", tmp_path / "reports", jobs=1)
        if done["failures"]:
            assert all("make room" in one["error"] for one in done["failures"])
            raise ValueError([row["label"] for table in done["tables"] for row in table["rows"]])

    said = in_child(rows_of_two, 9_000)  # enough for popularity, whose ranks are all it keeps
    assert said in ("ValueError: ['popularity']", "ValueError: []") or said.startswith("InputError") and "make room" in said
    assert in_child(rows_of_two) == "" and not leftovers(tmp_path)
    assert "popularity" in (tmp_path / "reports" / "mine" / "results.md").read_text()


def test_profiles(tmp_path):
    ask = lambda: build(tmp_path / "p", data="shop-tiny", rounds=1, limit_users=6, cuts=(1,), say=len)
    build(tmp_path / "right", data="shop-tiny", rounds=1, limit_users=6, cuts=(1,), say=len)
    assert through([10, 300, 5_000, 30_000, 60_000], ask, tmp_path / "p") >= 3
    lines = [CliRunner().invoke(app, ["profiles", "export", str(tmp_path / name)]).stdout for name in ("p", "right")]
    assert lines[0] == lines[1] and lines[0]


def test_a_model_and_what_it_learns(tmp_path):
    pairs, corpus = examples("shop-tiny", limit_users=12, rounds=1)
    right = model.build(pairs, corpus, tmp_path / "right", **SMALL)
    ask = lambda: model.build(pairs, corpus, tmp_path / "model", **SMALL)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "right").iterdir())
    assert through([10, *(size - 1 for size in sizes[-3:])], ask, tmp_path / "model") == 4
    assert model.build(pairs, corpus, tmp_path / "model", **SMALL)["perplexity"] == right["perplexity"]
    assert not (tmp_path / ".model.building").exists()

    build(tmp_path / "p", data="shop-tiny", writer=f"local:{tmp_path / 'model'}", rounds=1, limit_users=5, cuts=(1,),
          max_tokens=8, say=len)
    learn = lambda: train(tmp_path / "p", tmp_path / "grpo", STEPS)
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert through([10, weights // 2, weights + 1000, 2 * weights - 1000], learn, tmp_path / "grpo") == 4
    assert len(train(tmp_path / "p", tmp_path / "grpo", STEPS)["history"]) == 2
    assert not (tmp_path / "grpo" / "checkpoints").exists()


def test_a_cache(tmp_path, monkeypatch):
    from nullrec_lib import data
    from test_damage import Counted

    monkeypatch.setitem(encoders.KINDS, "counted", Counted)
    items = data.load("shop-tiny").items
    texts = [f"text {n}" for n in range(2000)]
    assert through([10, 3_000, 30_000], lambda: embed_items(items, "counted:x", tmp_path / "a"), tmp_path / "a") >= 1
    assert through([10, 3_000, 60_000], lambda: embed_texts(texts, "counted:x", tmp_path / "b"), tmp_path / "b") >= 2
    rows = [embed_texts(texts, "counted:x", tmp_path / name) for name in ("b", "c")]
    np.testing.assert_array_equal(*rows)


@pytest.fixture
def public():
    """A folder that everybody may reach, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_may_not_be_written(tiny, public):
    spec = tiny(method="popularity")
    right = run(spec, folder=public / "right")
    (public / "mine").mkdir(mode=0o555)
    user = 65534 if os.getuid() == 0 else None
    said = in_child(lambda: run(spec, folder=public / "mine"), user=user)
    assert said.startswith(f"InputError: {public / 'mine'}") and "cannot be written (Permission denied)" in said
    said = in_child(lambda: run(spec, folder=public / "mine" / "below"), user=user)
    assert said.startswith(f"InputError: {public / 'mine'}") and "cannot be written (Permission denied)" in said
    assert list((public / "mine").iterdir()) == []

    def read_again():  # what has finished is read from such a folder
        assert run(spec, folder=public / "right") == json.loads(json.dumps(right))

    for path in (public / "right").iterdir():
        path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    (public / "right").chmod(0o555)
    assert in_child(read_again, user=user) == ""


def test_profiles_in_a_folder_that_may_not_be_written(public):
    build(public / "p", data="shop-tiny", rounds=1, limit_users=4, cuts=(1,), say=len)
    lines = lambda: CliRunner().invoke(app, ["profiles", "export", str(public / "p")]).stdout
    right = lines()
    for path in (public / "p").iterdir():
        path.chmod(0o444)
    (public / "p").chmod(0o555)

    def read_again():
        assert lines() == right and right

    assert in_child(read_again, user=65534 if os.getuid() == 0 else None) == ""
