"""Rows of Tables 5 and 6: what each is made of, what it costs, and what stands beside the paper's figures."""

import json

import numpy as np
import pandas as pd
import pytest

from nullrec_lib import grid
from nullrec_lib.errors import InputError
from nullrec_lib.language import model
from nullrec_lib.profiles import ablation, vectors
from nullrec_lib.profiles.ablation import AS_PRINTED, FULL, VARIANTS
from nullrec_lib.profiles.best import rewritten
from nullrec_lib.profiles.build import examples, resume
from nullrec_lib.profiles.grpo import Settings
from nullrec_lib.profiles.loop import finished
from nullrec_lib.profiles.sides import others, sides
from nullrec_lib.spec import Spec

FEW = Settings(steps=1, num_generations=2, prompts_per_step=2, max_tokens=12, refresh=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("ablation")
    pairs, corpus = examples("shop-tiny", limit_users=20, rounds=1)
    model.build(pairs, corpus, root / "model", steps=2, sft_steps=2, hidden=64, layers=2, vocabulary=600, context=900,
                batch=2)
    asked = dict(root=root, model=str(root / "model"), data="shop-tiny", settings=FEW, candidates=2, limit_users=6,
                 say=lambda _: None)
    return asked, ablation.make(**asked)


def test_every_row_is_a_run_of_its_own(made):
    _, done = made
    asked = grid.make(dict(data="shop-tiny", method=done.rows, seed=[1], lr=[0.01], width=16, epochs=1), "table5")
    assert [cell.label for cell in asked.cells] == [
        *VARIANTS, "no profile", "extractive profiles", "shuffled profiles", "only users' shuffled", "random vectors",
        "base", "alphafuse", "alphafuse on profiles"]
    keys = {cell.at(0.01, 1).key("data") for cell in asked.cells}
    assert len(keys) == len(asked.cells)


def test_rows_differ_in_what_their_names_say(made):
    _, done = made
    policies = {name: folders["policy"] for name, folders in done.folders.items()}
    builds = {name: folders["profiles"] for name, folders in done.folders.items()}
    for half in ("user-only", "item-only", "single-pass"):  # other profiles, the same writer
        assert policies[half] == policies[FULL] and builds[half] != builds[FULL]
    for reward in ("no GRPO", "w/o distinctiveness", "w/o collaborative alignment"):  # the same profiles, another writer
        assert policies[reward] != policies[FULL] and builds[reward] == builds[FULL]
    assert len({policies[name] for name in VARIANTS}) == 4
    found = {name: vectors.load(folders["best"]) for name, folders in done.folders.items()}
    assert len(found["user-only"].items) == 0 < len(found["user-only"].users)
    assert len(found["item-only"].users) == 0 < len(found["item-only"].items)
    one = found[FULL]
    assert len(one.items) and len(one.users)
    assert not np.array_equal(one.items, found["no GRPO"].items)


def test_costs_and_rewards_have_a_row_each(made):
    _, done = made
    costs = done.costs.set_index("row")
    assert list(costs.index) == list(VARIANTS) and (costs[["prompts", "tokens", "seconds"]] > 0).all(axis=None)
    assert costs.loc["no GRPO", "prompts"] < costs.loc[FULL, "prompts"]
    # Half a loop's policy learned on the whole loop's profiles, which it needs as well as its own.
    built = {name: finished(folders["profiles"]).usage["prompts"] for name, folders in done.folders.items()}
    chosen = {name: sum(one["prompts"] for one in json.loads((folders["best"] / "best.json").read_text())["usage"])
              for name, folders in done.folders.items()}
    of_policy = costs["prompts"] - pd.Series(built) - pd.Series(chosen)
    assert of_policy["user-only"] == of_policy["item-only"] == built[FULL] + of_policy[FULL] and of_policy["no GRPO"] == 0
    rewards = done.rewards.set_index(["row", "side"])
    assert ("item-only", "cut") not in rewards.index and ("user-only", "item") not in rewards.index
    assert (rewards["best"] >= rewards["mean"]).all()


def test_the_same_call_finds_everything(made, monkeypatch):
    asked, done = made
    for name in ("train", "best", "build"):  # each reads its record, and asks no model
        monkeypatch.setattr("nullrec_lib.language.writers.local.Local.write", None)
    for name in ("grpo", "best"):  # and embeds no text
        monkeypatch.setattr(f"nullrec_lib.profiles.{name}.sides", None)
    again = ablation.make(**asked)
    assert again.rows == done.rows
    pd.testing.assert_frame_equal(again.costs, done.costs)


def test_controls_keep_the_form_and_lose_the_meaning(made):
    _, done = made
    folder = {row["label"]: row.get("profiles") for row in done.rows}
    full, random, dealt = (vectors.load(folder[name]) for name in (FULL, "random vectors", "shuffled profiles"))
    assert random.item_ids == dealt.item_ids == full.item_ids and random.user_ids == full.user_ids
    assert random.items.shape == full.items.shape and random.users.shape == full.users.shape
    np.testing.assert_allclose(np.linalg.norm(random.items, axis=1), 1, rtol=1e-5)
    assert np.abs(random.items @ full.items.T).mean() < 0.1
    assert sorted(map(tuple, dealt.items.tolist())) == sorted(map(tuple, full.items.tolist()))
    assert not np.array_equal(dealt.items, full.items)
    Spec(data="shop-tiny", method="pte", profiles=folder["only users' shuffled"], shuffle_profiles=1)


def test_a_profile_of_the_same_history_is_the_same(made):
    """Rewriting asks what `best` asked, so for the histories that it knew it finds what it chose."""
    asked, done = made
    folders = done.folders[FULL]
    _, seen = resume(folders["profiles"])
    histories = [seen.cut_history(place) for place in range(len(seen.cuts))]
    _, known = sides(folders["profiles"])
    _, side = others(folders["profiles"], histories, seen.cuts[:, 0], 1.0, 0.5)
    assert side.prompts == known["cut"].prompts
    np.testing.assert_allclose(side.reward.about, known["cut"].reward.about)
    rows = ablation.rewriter(folders)(histories, seen.cuts[:, 0])
    np.testing.assert_allclose(rows, vectors.load(folders["best"]).users, atol=1e-6)
    strange = np.setdiff1d(np.arange(len(seen.texts)), seen.subjects)[:2]  # items that the build has no profile of
    loop, side = others(folders["profiles"], [strange], seen.cuts[:1, 0], 1.0, 0.5)
    np.testing.assert_allclose(side.reward.about[0], loop.encode([seen.texts[item] for item in strange]).mean(axis=0),
                               atol=1e-6)
    one = next(place for place, cut in enumerate(seen.cuts[:, 1]) if cut >= 3)
    shorter = ablation.rewriter(folders)([histories[one][1:]], seen.cuts[one, :1])
    assert shorter.shape == (1, rows.shape[1]) and not np.allclose(shorter[0], rows[one])
    with pytest.raises(InputError, match="shorter than every cut"):
        rewritten(folders["profiles"], folders["best"], str(folders["policy"]), [histories[0][:0]], seen.cuts[:1, 0])
    with pytest.raises(InputError, match="nothing was chosen here"):
        rewritten(folders["profiles"], asked["root"], "model", histories, seen.cuts[:, 0])


def test_an_unknown_variant_is_named(tmp_path):
    with pytest.raises(InputError, match="no-grpo.*user-only"):
        ablation.make(tmp_path, "model", variants=("no-grpo",))


def test_beside_the_paper():
    printed = pd.read_csv("reports/papers/pte-table5.csv")
    frame = pd.DataFrame({"label": [FULL, FULL, "no GRPO", "base"], "test N@10": [0.1, 0.3, 0.1, 9.0]})
    told = ablation.beside_the_paper(frame, printed, "test N@10", "N@10")
    assert list(told.index) == [FULL, "no GRPO"] and told["here"].tolist() == [1, 0.5]
    assert told.loc["no GRPO", "Movies"] == pytest.approx(0.0490 / 0.0523)
    for table in (5, 6):
        assert set(AS_PRINTED.values()) == set(pd.read_csv(f"reports/papers/pte-table{table}.csv")["method"])


def test_what_stands_beside_the_tables_is_kept(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which is where an empty folder would lead
    _, done = made
    costs, rewards = done.costs.set_index("row"), done.rewards.set_index(["row", "side"])
    moved = pd.DataFrame({"measure": ["kept"], "label": ["PtE"], "mean": [0.5]}).set_index(["measure", "label"])
    both = [pd.concat({"cold-start": frame}) for frame in (costs, rewards, moved)]
    ablation.report("Six users.", *both, "")
    assert not list(tmp_path.iterdir())
    ablation.report("Six users.", *both, tmp_path)
    text = (tmp_path / "pte.md").read_text()
    assert "Six users." in text and "| split | measure | label | mean |" in text and "| cold-start | kept | PtE | 0.5 |" in text
    kept = {path.stem: pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    assert set(kept) == {"costs", "rewards", "robustness"}
    assert kept["costs"]["row"].tolist() == done.costs["row"].tolist() and len(kept["rewards"]) == len(rewards)
