"""Tables: built from stored runs, with what a reader needs to know."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from nullrec_lib import experiments
from nullrec_lib.results import markdown, paired, report, summary
from nullrec_lib.spec import Spec


def rows(**methods):
    return pd.DataFrame([{"method": method, "seed": seed, "x": x}
                         for method, values in methods.items() for seed, x in enumerate(values)])


def test_paired_is_the_t_test_on_differences_seed_by_seed():
    frame = rows(base=[1.0, 2.0, 4.0], alphafuse=[1.5, 2.25, 5.0], lonely=[9.0])
    table = paired(frame, "x").set_index("method")
    reference = ttest_1samp([0.5, 0.25, 1.0], 0)
    low, high = reference.confidence_interval(0.95)
    assert table.index.tolist() == ["alphafuse"]  # one shared seed is no test
    np.testing.assert_allclose(table.loc["alphafuse", ["difference", "low", "high", "p", "seeds"]].astype(float),
                               [7 / 12, low, high, reference.pvalue, 3])
    assert paired(rows(alphafuse=[1.0, 2.0]), "x").empty  # nothing to compare with


@pytest.mark.parametrize("table", [lambda frame: summary(frame, ["x"]), lambda frame: paired(frame, "x")])
def test_two_configurations_are_not_two_seeds(table):
    twice = pd.concat([rows(base=[1.0, 2.0]), rows(base=[3.0])])
    with pytest.raises(ValueError, match="method base has several runs with seed 0"):
        table(twice)


def test_a_markdown_table_shows_numbers_as_a_person_would():
    table = pd.DataFrame({"name": ["a"], "count": [12345], "share": [0.123456], "none": [float("nan")]})
    assert markdown(table).splitlines()[-1] == "| a | 12,345 | 0.1235 | - |"


def ordered(folder, again: bool) -> str:
    """A data set without times, of users who have an item twice or never."""
    folder.mkdir()
    lines = [f"u{user}\ti{(user + step % (4 if again else 5)) % 9}\t{step}" for user in range(20) for step in range(5)]
    (folder / "ordered.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]))
    lines = [f"i{item}\tthing {item}" for item in range(9)]
    (folder / "ordered.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *lines]))
    return str(folder)


@pytest.fixture(scope="module")
def positions(tmp_path_factory):
    return ordered(tmp_path_factory.mktemp("data") / "ordered", again=False)


def test_a_report_says_how_its_numbers_were_made(positions, tmp_path):
    specs = [Spec(data=positions, method="popularity"), Spec(data=positions, method="itemknn", neighbours=3)]
    frame = experiments.run_all(specs, tmp_path / "runs", jobs=1)
    text = report(frame, tmp_path / "report")
    assert "split by a shuffle with seed 22" in text  # every table of such a set has to say so
    for said in ("20 users, 9 items, 100 interactions", "cold-start", "authors", "consistent", "| itemknn |"):
        assert said in text
    assert "Learning rate" not in text and "Configuration" not in text  # nothing was trained
    assert (tmp_path / "report/results.md").read_text() == text
    stored = pd.read_csv(tmp_path / "report/results.csv")
    assert stored["test N@10"].tolist() == frame["test N@10"].tolist()


@pytest.mark.parametrize("widths, said", [((None,), "width 128,"), ((None, 16), "width 128 (base) or 16 (frozen),")])
def test_a_report_says_the_width_that_nobody_asked_for(positions, tmp_path, widths, said):
    specs = [Spec(data=positions, method=method, width=width, epochs=1) for method, width in zip(("base", "frozen"), widths)]
    assert said in report(experiments.run_all(specs, tmp_path / "runs", jobs=1), tmp_path / "report")


def test_a_report_parts_targets_that_a_user_has_had_before(positions, tmp_path):
    again = ordered(tmp_path / "ordered", again=True)
    specs = lambda data: [Spec(data=data, method=method, split="leave-one-out") for method in ("popularity", "textknn")]
    frame = experiments.run_all(specs(again), tmp_path / "runs", jobs=1)
    text = report(frame, "")
    assert "20 test targets (100.0%) are items that the user has had before" in text
    assert "repeated item" not in text  # all of them are: the group is the table above
    # As if half of them were new.
    mixed = frame.assign(**{f"{part} {group} n": 10 for part in ("test", "test_consistent", "test_sampled",
                            "test_consistent_sampled") for group in ("new_item", "repeated_item")})
    text = report(mixed, "")
    assert "10 test targets (50.0%)" in text and "repeated item (10)" in text and "new item (10)" in text
    # A table of runs some of which are older than the group does not have it.
    mixed.loc[0, "test repeated_item n"] = None
    assert "had before" not in report(mixed, "")
    assert "had before" not in report(experiments.run_all(specs(positions), tmp_path / "runs", jobs=1), "")


def test_a_report_names_the_encoder_and_whose_an_option_is(tmp_path):
    from safetensors.numpy import save_file

    from nullrec_lib import data

    items = data.load("shop-tiny").items["item_id"]
    save_file({"embeddings": np.random.default_rng(0).standard_normal((len(items), 24)).astype(np.float32)},
              tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text(json.dumps({"item_ids": list(items)}))
    small = dict(data="shop-tiny", epochs=1, width=16, encoder=str(tmp_path / "mine.safetensors"))
    specs = [Spec(data="shop-tiny", method="popularity"), Spec(**small, method="base"),
             Spec(**small, method="alphafuse", null_dim=4)]
    text = report(experiments.run_all(specs, tmp_path / "runs", jobs=1), "")
    assert "Encoder mine.safetensors;" in text and "null_dim 4 (alphafuse)" in text and "width 16," in text


def test_no_folder_no_files(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = report(experiments.run_all([tiny(), tiny(method="base", seed=1)], tmp_path / "runs", jobs=1), "")
    assert "negatives 8" in text and "Learning rate 0.001" in text and "nullity" in text
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_sampled_figures_leave_out_who_has_touched_nearly_everything(tmp_path):
    """With somebody who has had nearly all items, every sampled figure is the one without; the table says who is left out."""
    rng, tables = np.random.default_rng(0), {}
    lines = [f"u{user}\ti{item}\t{step}" for user in range(30) for step, item in enumerate(rng.permutation(130)[:6])]
    most = [f"bot\ti{item}\t{step}" for step, item in enumerate(rng.permutation(130)[:125])]
    for name, users in (("without", lines), ("with", lines + most), ("alone", most)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *users]))
        items = [f"i{item}\tthing {item}" for item in range(130)]
        (tmp_path / name / f"{name}.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *items]))
        specs = [Spec(data=str(tmp_path / name), method="textknn", split="leave-one-out", tail_user=9)]
        frame = experiments.run_all(specs, tmp_path / "runs", jobs=1)
        tables[name] = frame.iloc[0], report(frame, "", ranks=experiments.stored_ranks(specs, tmp_path / "runs"))
    (usual, _), (mixed, text), (alone, other) = (tables[name] for name in ("without", "with", "alone"))
    sampled = [name for name in usual.index if name.startswith("test_sampled") and "_item" not in name]
    assert len(sampled) >= 6 + 2 * 7
    assert mixed[sampled].tolist() == usual[sampled].tolist()  # no group holds the one who is left out
    assert (mixed["sampled_items"], mixed["sampled_left_out"], usual["sampled_left_out"]) == (100, 1, 0)
    assert mixed["test head_user n"] == 1 and mixed["test_sampled head_user n"] == 0 and mixed["test_examples"] == 31
    assert "1 of 31 test users" in mixed["notes"] and "1 of 31 test users" in text.split("## ")[0]
    assert "tail user (30)" in text.split("## Scoring consistent,")[0].split("## Scoring authors")[1]
    assert "tail user (" not in text.split("only among itself and 100")[1]  # there it is everybody
    assert "no sampled figures" in other.split("## ")[0] and "100 sampled" not in other
    assert "test N@10" in alone and "test_sampled N@10" not in alone
