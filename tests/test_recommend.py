"""Recommendations of a stored run agree with what evaluation made of the same scores."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from nullrec_lib import experiments
from nullrec_lib.cli import app
from nullrec_lib.data.examples import Examples
from nullrec_lib.errors import InputError
from nullrec_lib.experiments import run
from nullrec_lib.preparing import build, prepare
from nullrec_lib.recommend import recommend
from nullrec_lib.spec import Spec
from nullrec_lib.training import Scorer
from tests.data.layouts import Sample, recbole


@pytest.fixture(scope="module")
def stored(tiny, tmp_path_factory):
    """method → (spec, folder of its finished run)."""
    root, made = tmp_path_factory.mktemp("stored"), {}

    def get(method, **chosen):
        name = "-".join([method, *(f"{key}{value}" for key, value in chosen.items())])
        if name not in made:
            spec = tiny(method=method, **chosen)
            run(spec, folder=root / name)
            made[name] = spec, root / name
        return made[name]

    return get


def scored(spec, folder, index):
    """(batch, scores, ids of all earlier items) of one test example, by a model loaded here."""
    prepared = prepare(spec)
    model = build(spec, prepared)
    if isinstance(model, torch.nn.Module):
        model.load_state_dict(load_file(folder / "model.safetensors"))
        model = Scorer(model)
    examples = Examples(prepared.split, "test", spec.history_length)
    batch = examples.batch(torch.tensor([index]))
    with torch.no_grad():
        scores = model.scores(batch)[0]
    ids = prepared.dataset.items["item_id"].tolist()
    seen = [ids[item] for item in examples.seen(torch.tensor([index]))[0] if item < len(ids)]
    return batch, scores, seen, ids


@pytest.mark.parametrize("method", ["alphafuse", "base", "popularity", "itemknn", "textknn"])
@pytest.mark.parametrize("index", [0, 7, 40])
def test_the_list_is_the_order_of_the_scores_and_agrees_with_the_stored_rank(method, index, stored):
    spec, folder = stored(method)
    batch, scores, seen, ids = scored(spec, folder, index)
    found = recommend(folder, seen, top=1000, keep_history=True)
    assert found["rank"].tolist() == list(range(1, len(ids) + 1)) and set(found["item_id"]) == set(ids)
    torch.testing.assert_close(torch.tensor(found["score"].tolist()), scores.sort(descending=True).values)
    assert [ids[item] for item in scores.argsort(descending=True, stable=True)] == found["item_id"].tolist()
    # Evaluation counts ties against the target: its rank is the last of those with the same score.
    target = found.set_index("item_id")["score"][ids[batch.target[0]]]
    rank = load_file(folder / "ranks.safetensors")["test_authors"][index]
    assert int((found["score"] >= target).sum()) == int(rank)


def test_earlier_items_are_left_out_even_those_the_model_no_longer_sees(stored):
    spec, folder = stored("alphafuse", history_length=2)
    _, scores, _, ids = scored(spec, folder, 0)
    history = ids[:5]
    found = recommend(folder, history, top=1000)
    assert set(found["item_id"]) == set(ids[5:]) and found["rank"].max() == len(ids) - 5
    kept = recommend(folder, history, top=1000, keep_history=True)
    assert kept[~kept["item_id"].isin(history)]["item_id"].tolist() == found["item_id"].tolist()
    assert recommend(folder, history[-2:], keep_history=True).equals(kept.head(10))


def test_order_of_the_history_counts(stored):
    _, folder = stored("alphafuse")
    ids = prepare(stored("alphafuse")[0]).dataset.items["item_id"].tolist()
    there, back = (recommend(folder, history)["score"].tolist() for history in (ids[:4], ids[3::-1]))
    assert there != back


def test_titles(stored):
    spec, folder = stored("popularity")
    items = prepare(spec).dataset.items
    single = items.index[[items["title"].str.startswith(title).sum() == 1 for title in items["title"]]][3]
    title = items["title"][single]
    assert recommend(folder, [title.upper()]).equals(recommend(folder, [items["item_id"][single]]))
    first = items["title"].str[0].value_counts().index[0]
    with pytest.raises(InputError, match=f"titles begin with '{first}': .*; give the item id"):
        recommend(folder, [first])
    near = title[:-1] + "#"
    with pytest.raises(InputError, match="neither an item id nor the beginning of a title; the closest are") as error:
        recommend(folder, [near])
    assert title in str(error.value)


def test_an_empty_history(stored):
    with pytest.raises(InputError, match="history: it is empty.*shorter than 1"):
        recommend(stored("base")[1], [])
    found = recommend(stored("base", min_history=0)[1], [], top=3)
    assert len(found) == 3 and found["score"].map(abs).lt(float("inf")).all()


def test_what_is_no_run(stored, tmp_path, monkeypatch):
    for name in ("nothing", tmp_path):
        with pytest.raises(InputError, match="neither a folder of a finished run nor the key of one under runs/"):
            recommend(name, ["x"])
    with pytest.raises(InputError, match="top: 0"):
        recommend(stored("base")[1], ["x"], top=0)


def test_a_run_whose_results_were_made_in_another_way_is_told(stored, tmp_path):
    folder = shutil.copytree(stored("popularity")[1], tmp_path / "old")
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps(spec | {"version": spec["version"] - 1, "key": "other"}))
    with pytest.raises(InputError, match="results are made in another way since this run"):
        recommend(folder, ["item-0001"])


def test_changed_data_are_noticed(stored, tmp_path):
    _, folder = stored("popularity")
    spec = json.loads((folder / "spec.json").read_text())
    for name in ("result.json", "spec.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "spec.json").write_text(json.dumps(spec | {"key": "0" * 12}))
    with pytest.raises(InputError, match="is not what it was for this run"):
        recommend(tmp_path, ["x"])
    (tmp_path / "spec.json").write_text(json.dumps(spec | {"spec": spec["spec"] | {"forgotten": 1}}))
    with pytest.raises(InputError, match="made by another version of nullrec .*forgotten"):
        recommend(tmp_path, ["x"])


def test_methods_that_read_more_say_so(stored, monkeypatch):
    spec, folder = stored("base")
    method = experiments.METHODS["base"]
    monkeypatch.setattr(method, "views", lambda self, batch, items: batch.context["profile"])
    ids = prepare(spec).dataset.items["item_id"]
    with pytest.raises(InputError, match="reads 'profile' of a user, not a history alone"):
        recommend(folder, [ids[0]])


def test_the_command_by_key(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = tiny(method="itemknn")
    key = run(spec)["key"]
    ids = prepare(spec).dataset.items["item_id"].tolist()
    words = ["recommend", key, "--history", f"{ids[4]}, {ids[9]}", "--top", "3"]
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == 0, told.output
    rows = json.loads(told.stdout.splitlines()[-1])
    assert rows == recommend(key, [ids[4], ids[9]], top=3).to_dict("records") and len(rows) == 3
    shown = CliRunner().invoke(app, words).stdout.splitlines()
    assert len(shown) == 3 and all(row["item_id"] in line and row["title"] in line
                                   for row, line in zip(rows, shown, strict=True))
    wrong = CliRunner().invoke(app, ["recommend", key, "--history", "no such thing"])
    assert wrong.exit_code == 2 and "neither an item id" in wrong.stderr


ODD = ["a,b", "-x", "i 3", "../../etc", "plain", "sixth"]
EVENTS = tuple((f"u{n % 12}", ODD[(n * n + n // 12) % 6], 1_500_000_000 + n) for n in range(60))


@pytest.fixture
def moving(tmp_path, monkeypatch):
    """A folder `work` with data whose ids are odd, and a finished run of theirs; the current folder is there."""
    work = tmp_path / "work"
    recbole(work / "data" / "odd", Sample(tuple((item, f"Salt, pepper {n}") for n, item in enumerate(ODD)), EVENTS))
    monkeypatch.chdir(work)
    run(Spec(data="data/odd", method="popularity"), folder=work / "runs" / "mine")
    return work


def command(*words):
    result = CliRunner().invoke(app, ["recommend", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("item", [*ODD, "Salt, pepper 0"])
def test_any_id_or_title_can_be_named(moving, item):
    status, shown, error = command("runs/mine", f"--item={item}", "--top", 9)
    assert status == 0 and len(shown.splitlines()) == 5, error
    assert command("runs/mine", "--history", "plain", f"--item={item}", "--top", 9)[0] == 0


def test_a_history_that_is_the_whole_catalogue_gets_a_sentence(moving):
    every = [f"--item={item}" for item in ODD]
    status, shown, _ = command("runs/mine", *every)
    assert status == 0 and "every item of the catalogue" in shown
    assert recommend("runs/mine", ODD).empty and len(recommend("runs/mine", ODD, keep_history=True)) == 6


def test_data_that_moved_are_found_by_their_content_or_named(moving, tmp_path, monkeypatch):
    want = recommend("runs/mine", ["plain"])
    monkeypatch.chdir(tmp_path)  # another folder: the data are seen from one around the run
    assert recommend(moving / "runs" / "mine", ["plain"]).equals(want)
    other = tmp_path / "data" / "odd"  # other data where the name leads from here
    recbole(other, Sample(tuple((item, "New") for item in ODD), EVENTS))
    assert recommend(moving / "runs" / "mine", ["plain"]).equals(want)
    (moving / "data" / "odd").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "elsewhere.inter").write_bytes((tmp_path / "elsewhere" / "odd.inter").read_bytes())
    (tmp_path / "elsewhere" / "elsewhere.item").write_bytes((tmp_path / "elsewhere" / "odd.item").read_bytes())
    status, _, error = command(moving / "runs" / "mine", "--item", "plain")
    assert status == 2 and "--data" in error and len(error.splitlines()) == 1
    assert recommend(moving / "runs" / "mine", ["plain"], data="elsewhere").equals(want)
    monkeypatch.setenv("NULLREC_DATA", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "kept" / "odd")
    assert recommend(moving / "runs" / "mine", ["plain"]).equals(want)
