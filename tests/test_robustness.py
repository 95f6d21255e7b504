"""One interaction less: the drawn examples, ranks against other ways to them, and what is rewritten."""

import numpy as np
import pandas as pd
import pytest

from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.experiments import run, stored_ranks
from nullrec_lib.preparing import prepare
from nullrec_lib.profiles import build as builds
from nullrec_lib.profiles.visible import served
from nullrec_lib.recommend import recommend
from nullrec_lib.robustness import compared, drift, removals
from nullrec_lib.spec import Spec

SHORT = dict(data="shop-tiny", epochs=1, batch_size=64, width=16, history_length=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("robust")
    builds.build(root / "profiles", data="shop-tiny", rounds=1, say=lambda _: None)
    specs = {"base": Spec(**SHORT, method="base"), "dream": Spec(**SHORT, method="base", backbone="dreamrec"),
             "pte": Spec(**SHORT, method="pte", profiles=str(root / "profiles"))}
    for spec in specs.values():
        run(spec, root=root / "runs")
    return root / "runs", specs


def test_one_example_a_user_and_an_interaction_that_the_model_sees(runs):
    _, specs = runs
    split = prepare(specs["base"]).split
    places, users, out = removals(split, 12, 1, newest=3)
    assert len(places) == 12 == len(set(users)) and set(places) <= set(split.test)
    assert (out < places).all() and (out >= places - 3).all() and (out >= split.offsets[users]).all()
    assert (places - split.offsets[users] >= 2).all()
    everyone, drawn = removals(split, 10**6, 1, 3)[1], set(users)
    assert drawn < set(everyone) and len(everyone) == len(set(everyone))
    assert not np.array_equal(removals(split, 12, 2, 3)[1], users)


def test_users_are_drawn_alike_however_many_examples_they_have():
    lengths = np.array([4] * 100 + [40] * 100)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.arange(offsets[-1])
    owner = np.repeat(np.arange(200), lengths)
    test = place[place - offsets[owner] > 0]
    split = Split("cold-start", 9, np.zeros(len(place), np.int64), offsets, place[:0], place[:0], test, owner < 0)
    few = [int((removals(split, 50, seed, 3)[1] < 100).sum()) for seed in range(20)]
    assert 22 < np.mean(few) < 28


@pytest.mark.parametrize("name", ["base", "dream"])
def test_ranks_are_those_of_evaluation_and_of_recommending(runs, name):
    root, specs = runs
    spec = specs[name]
    frame, split = drift({name: spec}, root, most=8), prepare(spec).split
    places, _, out = removals(split, 8, 22, spec.history_length)
    row = np.searchsorted(split.test, places)
    assert (np.sort(split.test) == split.test).all()
    assert frame["rank"].tolist() == next(iter(stored_ranks([spec], root).values()))["test_authors"][row].tolist()
    items = prepare(spec).dataset.items["item_id"]
    if name == "base":  # DreamRec's noise belongs to the number of an example, and a history alone has none
        for (_, told), place, gone in zip(frame.iterrows(), places, out):
            history = np.delete(split.items[split.offsets[told["user"]] : place],
                                gone - split.offsets[told["user"]])
            listed = recommend(root / spec.key(prepare(spec).dataset.fingerprint()), list(items[history]),
                               top=len(items), keep_history=True)
            assert listed["item_id"].tolist().index(items[split.items[place]]) + 1 == told["rank_after"]
    assert frame["kept"].between(0, 1).all() and (frame["moved"] >= -1e-6).all() and frame["moved"].max() > 1e-4


def test_a_profile_is_kept_or_written_anew(runs):
    root, specs = runs
    spec = specs["pte"]
    cuts = prepare(spec).profiles
    split = prepare(spec).split
    places, users, _ = removals(split, 8, 22, spec.history_length)
    before = places - split.offsets[users]
    mine = served(np.stack([users, before], axis=1), cuts.cuts.numpy())
    assert (mine >= 0).all()
    asked = []

    def the_same(histories, whose):
        asked.append((histories, whose))
        return cuts.rows[mine].numpy()

    opposite = lambda histories, whose: -cuts.rows[mine].numpy()
    kept = drift({"pte": spec}, root, most=8)
    again = drift({"pte": spec}, root, most=8, rewrite={"pte": the_same})
    pd.testing.assert_frame_equal(kept, again)
    (histories, whose), = asked
    assert [len(history) for history in histories] == (before - 1).tolist() and whose.tolist() == users.tolist()
    other = drift({"pte": spec}, root, most=8, rewrite={"pte": opposite})
    assert (other["moved"] - kept["moved"]).abs().max() > 1e-4
    assert other["rank"].tolist() == kept["rank"].tolist()


def test_nothing_is_written_for_users_without_a_profile(runs, tmp_path):
    builds.build(tmp_path / "few", data="shop-tiny", rounds=1, limit_users=100, say=lambda _: None)
    spec = Spec(**SHORT, method="pte", profiles=str(tmp_path / "few"))
    run(spec, root=tmp_path)
    asked = []

    def opposite(histories, whose):
        asked.extend(whose)
        return -np.ones((len(whose), 384), np.float32)

    kept, anew = drift({"pte": spec}, tmp_path), drift({"pte": spec}, tmp_path, rewrite={"pte": opposite})
    known = set(prepare(spec).profiles.cuts[:, 0].tolist())
    without = ~kept["user"].isin(known)
    assert set(asked) == set(kept["user"][~without]) and 0 < without.sum() < len(kept)
    pd.testing.assert_frame_equal(kept[without], anew[without])
    assert (kept[~without]["moved"] != anew[~without]["moved"]).all()


def test_the_comparison_is_paired_by_user():
    frame = pd.DataFrame({"label": ["a"] * 3 + ["b"] * 3, "user": [1, 2, 3] * 2, "moved": [0.1, 0.2, 0.3, 0.2, 0.3, 0.4],
                          "relative": 0.5, "kept": 1.0, "rank": 1, "rank_after": [1, 1, 1, 2, 2, 2]})
    told = compared(frame, "a")
    assert told.loc[("moved", "b"), "difference mean"] == pytest.approx(0.1)
    assert told.loc[("moved", "b"), "difference high"] == pytest.approx(0.1)
    assert told.loc[("moved", "a"), "low"] < 0.2 < told.loc[("moved", "a"), "high"]
    assert told.loc[("rank change", "b"), "mean"] == pytest.approx(np.log(2))
    assert np.isnan(told.loc[("moved", "a"), "difference mean"])


def test_runs_of_different_data_are_refused(runs):
    root, specs = runs
    other = Spec(**SHORT | {"split": "leave-one-out", "method": "base"})
    run(other, root=root)
    with pytest.raises(InputError, match="different data or splits"):
        drift({"one": specs["base"], "two": other}, root, most=8)
    with pytest.raises(InputError, match="no finished run"):
        drift({"none": Spec(**SHORT, method="llminit")}, root)
