"""Grids: one file → runs → tables; wrong files are named, stored runs are not run again, rates come from validation."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from nullrec_lib import experiments, grid
from nullrec_lib.cli import app
from nullrec_lib.errors import InputError
from nullrec_lib.files import write_json, write_tensors
from nullrec_lib.grid import PACKAGED, choose, load, plan, run_grid
from nullrec_lib.methods import METHODS, RULES
from nullrec_lib.preparing import prepare
from nullrec_lib.spec import Spec

SMALL = "data: shop-tiny\nepochs: 2\nwidth: 16\nnegatives: 8\nencoder: {encoder}\n"


@pytest.fixture
def made(tmp_path, encoder):
    """`made(text)` → the grid of a file with `text` after what makes it small."""

    def make(text: str, small: str = SMALL) -> grid.Grid:
        path = tmp_path / "mine.yaml"
        path.write_text(small.format(encoder=encoder) + text, encoding="utf-8")
        return load(path)

    return make


# Reading


@pytest.mark.parametrize("text, said", [
    ("", "maps fields"), ("- base", "maps fields"), ("data: shop", "maps fields"),
    ("method: [base", "mine.yaml: line 1: "),
    ("method: base\nepoch: 3", "epoch: there is no such field; the closest is epochs"),
    ("method: base\nlr: 0.1\nlr: 0.2", "lr is given twice"),
    ("method: base\nbackbone: [[sasrec]]", "backbone: ['sasrec'] is not a value"),
    ("method: [{method: itemknn, tail_user: 3}]", "tail_user"), ("method: [{method: base, core: 8}]", "core"),
    ("method: base\nepochs: [3, 4]", "epochs: only data, split, backbone, method, seed, lr may be lists"),
    ("method: alphafuse\nnull_dim: [3, 4]", "method: [{method: alphafuse, null_dim: …}]"),
    ("method: base\nlr: []", "lr: a list needs at least one value"),
    ("method: base\nseed: [1, 1]", "none twice"),
    ("method: base\nlr: fast", "lr: 'fast' is not of type float"), ("method: base\nlr: [0.1, -1]", "lr: -1.0 is not"),
    ("method: base\nseed: [1.5]", "seed: 1.5 is not of type int"),
    ("method: bass", "method: 'bass' is not one of base"), ("method: [[base]]", "is not one of"),
    ("method: base\nbackbone: rnn", "backbone: 'rnn' is not one of"),
    ("method: base\nsplit: random", "split: 'random' is not one of"),
    ("method: base\nnull_dim: 3", "null_dim: no row of this grid reads it"),
    ("method: popularity\nlr: 0.1", "lr: no row of this grid reads it"),
    ("method: [{method: base, null_dim: 3}]", "null_dim: method base does not read it"),
    ("method: [{method: alphafuse, nul_dim: 3}]", "nul_dim: there is no such field; the closest is null_dim"),
    ("method: [{method: alphafuse, lr: 0.1}]", "lr: rows of a table have it in common"),
    ("method: [{label: a}]", "method: None is not one of"),
    ("method: [base, base]", "two rows are called 'base'"), ("method: [base, {method: base}]", "two rows are called 'base'"),
    ("method: [base, {method: alphafuse, label: base}]", "two rows are called 'base'"),
    ("method: [{method: base, label: a|b}]", "label: 'a|b' must be text on one line, without"),
    ("method: base\nreference: bass", "reference: no row is called 'bass'; there are base"),
    ("method: base\nname: ../up", "name: '../up' must be a plain folder name"),
    ("method: base\nname: ..", "name: '..'"), (f"method: base\nname: {'x' * 300}", "name: "),
    ("method: base\nseed: 1:30", "seed: '1:30' is not of type int"), ("method: base\nseed: 1_000", "seed: '1_000'"),
    ("method: base\nexclude_history: yes", "exclude_history: 'yes' is not of type bool"),
    ("method: base\nlr: true", "lr: True is not of type float"), ("method: base\nlr: [.nan]", "lr: nan"),
    (f"method: base\nlr: {'9' * 5000}", "mine.yaml: line 2: a number of 5,000"),
    ("method: base\nseed: 1\n\nseed: 2", "mine.yaml: line 4: seed is given twice"),
    ("method: base\n<<: {lr: 1}", "<<: there is no such field"), ("method: base\nseed: &a [*a]", "line 2: anchors"),
    ("method: base\n? [a]\n: b", "line 2: a key"), ("method: base\n1: b", "1: there is no such field"),
    ('method: base\ndata: "a\\0b"', "data: "), ('method: base\ndata: "\\ud800"', "data: "),
    ('method: [{method: base, label: "a\\nb"}]', "label: "), ("method: base\ndata: [{a: b}]", "data: "),
    ("method: base\ntemplate: '{title:>99999999999}'", "template: "), ("method: {base: }", "base: there is no such field"),
    (f"method: base\nseed: {list(range(400))}\nlr: {list(range(1, 301))}", "120,000 runs"),
])
def test_a_wrong_file_is_named_with_its_field(text, said, made):
    with pytest.raises(InputError) as error:
        made(text, small="")
    assert "mine.yaml" in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_a_grid_that_came_from_no_file_can_be_read_from_its_text(tmp_path):
    row = {"method": "pte", "label": "PtE"}
    asked = grid.make({"data": "shop-tiny", "method": ["base", row], "seed": [1, 2], "reference": "PtE"}, "mine")
    (tmp_path / "mine.yaml").write_text(asked.text)
    assert load(tmp_path / "mine.yaml") == asked and asked.reference == "PtE"


def test_what_is_no_file_names_the_packaged_grids():
    with pytest.raises(InputError, match="'tony' is neither a file nor one of .*tiny"):
        load("tony")


def test_cells_are_rows_of_tables_and_get_the_fields_that_they_read(made):
    asked = made("split: [cold-start, leave-one-out]\nnull_dim: 4\nneighbours: 7\nlr: [1e-2, 1]\nseed: [5, 6, 7]\n"
                 "method: [popularity, itemknn, base, alphafuse, {method: alphafuse, null_dim: 3, inject: replace}]")
    assert asked.name == "mine" and asked.rates == (0.01, 1.0) and asked.seeds == (5, 6, 7)
    assert [cell.label for cell in asked.cells] == 2 * [
        "popularity", "itemknn", "base", "alphafuse", "alphafuse null_dim=3 inject=replace"]
    assert [cell.table[1] for cell in asked.cells] == 5 * ["cold-start"] + 5 * ["leave-one-out"]
    specs = {cell.label: cell.spec for cell in asked.cells[:5]}
    assert specs["popularity"] == Spec(data="shop-tiny", method="popularity")
    assert specs["itemknn"].neighbours == 7 and specs["base"].null_dim is None and specs["base"].width == 16
    assert [specs[label].null_dim for label in list(specs)[3:]] == [4, 3]
    assert len(asked.search()) == 2 * (2 + 3 * 2)  # rules once, the others with both rates
    assert {spec.seed for spec in asked.search() if spec.method in METHODS} == {5}
    cell = asked.cells[3]
    assert [(spec.lr, spec.seed) for spec in asked.rest({cell: 1.0})] == [(1.0, 6), (1.0, 7)]


def test_rules_are_run_once_and_are_in_every_table_and_a_pair_that_cannot_be_is_left_out(made, monkeypatch):
    monkeypatch.setitem(grid.BACKBONES, "other", grid.BACKBONES["sasrec"])
    monkeypatch.setattr(grid, "runs_on", lambda method, backbone: (method, backbone) != ("llminit", "other"))
    asked = made("backbone: [sasrec, other]\nmethod: [popularity, base, llminit]")
    labels = [(cell.table[2], cell.label) for cell in asked.cells]
    assert labels == [("sasrec", "popularity"), ("sasrec", "base"), ("sasrec", "llminit"),
                      ("other", "popularity"), ("other", "base")]
    assert len(asked.search()) == 4
    assert asked.skipped == ("llminit does not run on other and is left out there.",)
    with pytest.raises(InputError, match="nothing is left to run: llminit does not run on other"):
        made("backbone: other\nmethod: llminit")


@pytest.mark.parametrize("path", sorted(PACKAGED.glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_grids_can_be_read(path):
    """And mean the same whichever version of YAML they are read by, but for 1e-3, which 1.1 takes for text."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["lr"] = [float(rate) for rate in np.atleast_1d(content.get("lr", Spec.lr))]
    before = grid.make(content, path.stem, path.read_text(encoding="utf-8"))
    assert load(path.stem) == before and before.cells


def test_yaml_means_what_it_looks_like(made):
    asked = made("method: base\nseed: [022, 0x10]\nlr: [1e-3, 1]\nexclude_history: TRUE\nkeep: first:3\nname: 2024-01-01")
    assert (asked.seeds, asked.rates, asked.name) == ((22, 16), (0.001, 1.0), "2024-01-01")
    assert asked.cells[0].spec.exclude_history is True and asked.cells[0].spec.keep == "first:3"


@pytest.mark.parametrize("value", ["1e-3", "yes", "022", "1:30", "null", "- a"])
def test_the_text_of_a_grid_from_no_file_keeps_texts_texts(value, tmp_path):
    asked = grid.make({"data": value, "method": "base"}, "mine")
    (tmp_path / "mine.yaml").write_text(asked.text)
    assert load(tmp_path / "mine.yaml").cells[0].spec.data == value


@pytest.mark.parametrize("key, value", [
    ("seed", 10**5000), ("lr", 10**400), ("lr", True), ("lr", [[1]]), ("seed", {1: 2}), ("data", b"x"), ("data", [None]),
    ("method", [10**5000]), ("method", [{"method": "base", "width": 10**5000}]), ("method", [{("a",): 1}]),
    ("name", 10**5000), ("reference", [1]), (10**5000, 1), (None, 1), ("method", []), ("epochs", (1, 2)),
], ids=lambda value: type(value).__name__)
def test_values_that_no_file_could_hold_are_input_errors_too(key, value):
    with pytest.raises(InputError) as error:
        grid.make({"method": "base"} | {key: value}, "mine")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


# Running


@pytest.fixture(scope="module")
def ran(tmp_path_factory, encoder):
    """A small grid with a rate that diverges, run once: grid, folder of all, what `run_grid` told."""
    folder = tmp_path_factory.mktemp("grid")
    path = folder / "small.yaml"
    path.write_text(SMALL.format(encoder=encoder) + "method: [popularity, base, frozen]\nseed: [1, 2]\n"
                    "lr: [1e30, 0.01, 0.001]\n")
    asked = load(path)
    return asked, folder, run_grid(asked, folder / "runs", folder / "reports", jobs=1, command="nullrec grid small")


def test_a_diverged_candidate_is_recorded_and_the_grid_goes_on(ran):
    asked, folder, told = ran
    assert told["missing"] == []
    failed = [(row["label"], row["lr"], row["seed"], row["error"][:28]) for row in told["failures"]]
    assert ("base", 1e30, 1, "FloatingPointError: epoch 1:") in failed and {row[1] for row in failed} == {1e30}
    out = folder / "reports/small"
    assert json.loads((out / "failures.json").read_text()) == told["failures"]
    assert {path.name for path in out.iterdir()} == {
        "grid.yaml", "results.csv", "search.csv", "results.md", "failures.json", "environment.json",
        "shop-tiny-cold-start.png", "shop-tiny-cold-start.svg"}
    assert (out / "grid.yaml").read_text() == asked.text
    about = json.loads((out / "environment.json").read_text())
    assert about["command"] == "nullrec grid small" and {"commit", "processor"} <= set(about)
    text = (out / "results.md").read_text()
    assert "base, lr 1e+30, seed 1, failed: FloatingPointError" in text and "| popularity | 1 |" in text
    assert "Learning rate chosen once per row, on seed 1, by validation N@20 (authors) among 1e+30, 0.01, 0.001" in text
    results = pd.read_csv(out / "results.csv")
    assert results["label"].tolist() == ["popularity", "base", "base", "frozen", "frozen"]
    assert told["tables"][0]["rows"][1]["test"]["N@10"] == pytest.approx(results["test N@10"][1:3].mean())


def test_the_search_is_stored_and_the_choice_is_its_best(ran):
    _, folder, told = ran
    search = pd.read_csv(folder / "reports/small/search.csv")
    assert search["lr"].tolist() == 2 * [1e30, 0.01, 0.001]
    diverged = search[search["label"].eq("base") & search["lr"].eq(1e30)].iloc[0]
    assert pd.isna(diverged["valid N@20"]) and diverged["error"].startswith("Floating") and not diverged["chosen"]
    for label, rows in search.groupby("label"):
        chosen = rows[rows["chosen"]]
        assert len(chosen) == 1 and chosen["valid N@20"].iloc[0] == rows["valid N@20"].max()
        row = next(row for row in told["tables"][0]["rows"] if row["label"] == label)
        assert row["lr"] == chosen["lr"].iloc[0] and row["edge"] == chosen["edge"].iloc[0] == (row["lr"] == 0.001)


def test_again_trains_only_what_failed(ran, monkeypatch):
    asked, folder, told = ran
    assert plan(asked, folder / "runs")["runs"] == 1 + 6 + 2
    seen = []
    monkeypatch.setattr(grid, "run_many", lambda specs, **_: seen.extend(specs) or {})
    again = run_grid(asked, folder / "runs", folder / "again")
    assert {(spec.method, spec.lr) for spec in seen} == {(row["method"], row["lr"]) for row in told["failures"]}
    assert again["tables"] == told["tables"]
    assert not (folder / "again/small/failures.json").exists()  # no news of old failures


def test_a_finished_grid_trains_nothing(made, tmp_path, monkeypatch):
    asked = made("method: [itemknn, base]\nseed: [1, 2]")
    assert plan(asked, tmp_path) == {"tables": 1, "cells": 2, "runs": 3, "to_do": 3}
    told = run_grid(asked, tmp_path, tmp_path / "reports", jobs=1)
    monkeypatch.setattr(experiments, "_run", None)
    assert plan(asked, tmp_path)["to_do"] == 0
    assert run_grid(asked, tmp_path, tmp_path / "reports", jobs=2) == told
    assert "edge" not in (tmp_path / "reports/mine/results.md").read_text()  # nothing was searched
    more = dataclasses.replace(asked, seeds=(1, 2, 3))
    assert plan(more, tmp_path)["to_do"] == 1


def pretend(spec: Spec, root, valid: float, test: float, consistent: float, **also) -> None:
    """A stored run with these figures, whatever the model would have been."""
    key = spec.key(prepare(spec).dataset.fingerprint())
    def figures(value):
        return {f"{kind}@{k}": value for kind in "RNM" for k in (10, 20)}

    counts = dict.fromkeys(("n_users", "n_items", "n_interactions", "train_examples", "valid_examples", "test_examples",
                            "cold_items", "params_total", "best_epoch", "epochs"), 1)
    write_json(root / key / "spec.json", {"key": key, "spec": dataclasses.asdict(spec)})
    write_json(root / key / "result.json", counts | also | {"groups": {}, "thresholds": {},
        "key": key, "method": spec.method, "backbone": "sasrec", "data": "shop-tiny", "split": spec.split, "keep": None,
        "encoder": "e", "seed": spec.seed, "split_fingerprint": "f", "params_trainable": 1, "notes": [],
        "test": figures(test), "test_consistent": figures(test), "valid": figures(valid),
        "valid_consistent": figures(consistent)})
    ranks = {name: torch.tensor([1, 2, 3]) for name in ("test_user", "test_authors", "test_consistent")}
    write_tensors(root / key / "ranks.safetensors", ranks)


@pytest.mark.parametrize("select, expected", [("authors", 0.01), ("consistent", 0.001)])
def test_the_rate_is_chosen_by_validation_and_never_by_test(select, expected, made, tmp_path):
    asked = made(f"method: base\nlr: [0.1, 0.01, 0.001, 0.0001]\nselect: {select}\nseed: [1]")
    (cell,) = asked.cells
    #        rate: valid, test, valid_consistent
    stories = {0.1: (0.3, 0.9, 0.1), 0.01: (0.5, 0.1, 0.2), 0.001: (0.5, 0.2, 0.4), 0.0001: (0.4, 0.8, 0.3)}
    for rate, (valid, test, consistent) in stories.items():
        pretend(cell.at(rate, 1), tmp_path, valid, test, consistent)
    assert choose(asked, tmp_path) == {cell: expected}  # of two equal ones, the larger
    told = run_grid(asked, tmp_path, tmp_path / "reports")
    assert told["tables"][0]["rows"][0]["lr"] == expected
    assert told["tables"][0]["rows"][0]["test"]["N@20"] == stories[expected][1]
    assert "an edge" not in (tmp_path / "reports/mine/results.md").read_text()


@pytest.mark.parametrize("epochs, best, said", [(3, 2, True), (3, 1, False), (2, 2, False)])
def test_a_table_says_which_rows_the_budget_ended(epochs, best, said, made, tmp_path):
    asked = made("method: base\nlr: [0.1, 0.01]\nseed: [1]\npatience: 2", SMALL.replace("epochs: 2", "epochs: 3"))
    for rate in (0.1, 0.01):
        pretend(asked.cells[0].at(rate, 1), tmp_path, rate, 0.1, 0.1, epochs=epochs, best_epoch=best)
    run_grid(asked, tmp_path, tmp_path / "reports", jobs=1)
    text = (tmp_path / "reports/mine/results.md").read_text()
    assert ("Ended by the most epochs and not by patience: base (1 of 1 seeds)." in text) == said
    assert "base 0.1. Of two rates each is an edge of the search" in text


# The command


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_row_without_any_result_is_status_1_and_the_others_have_their_table(made, tmp_path):
    made("method: [popularity, base]\nlr: 1e30\nreference: base")
    places = ["--root", tmp_path / "runs", "--reports", tmp_path / "reports", "--jobs", 1]
    result = call("grid", tmp_path / "mine.yaml", *places, "--json")
    assert result.exit_code == 1 and "no result: base on shop-tiny" in result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert [row["label"] for row in told["tables"][0]["rows"]] == ["popularity"] and len(told["failures"]) == 1
    assert "base has no result." in (tmp_path / "reports/mine/results.md").read_text()
    planned = call("grid", tmp_path / "mine.yaml", *places, "--dry-run", "--json")
    assert json.loads(planned.stdout) == {"tables": 1, "cells": 2, "runs": 2, "to_do": 1}


def test_failed_candidates_alone_are_a_warning(made, tmp_path):
    made("method: base\nlr: [1e30, 0.01]")
    result = call("grid", tmp_path / "mine.yaml", "--root", tmp_path, "--reports", tmp_path / "reports", "--jobs", 1)
    assert result.exit_code == 0 and "warning: label base, lr 1e+30, seed 22 failed" in result.stderr
    assert "tables in" in result.stdout


@pytest.mark.parametrize("options, said", [(("--jobs", 0), "jobs: 0 is below 1"), (("--threads", 0), "threads: 0"),
                                           (("--device", "tpu"), "device: 'tpu'")])
def test_wrong_options_are_status_2(options, said, tmp_path):
    result = call("grid", "tiny", "--root", tmp_path, "--reports", tmp_path, *options)
    assert result.exit_code == 2 and said in result.stderr and list(tmp_path.iterdir()) == []


def test_every_method_can_be_a_row(made):
    rows = ", ".join([*METHODS, *RULES])
    asked = made(f"method: [{rows}]")
    assert len(asked.cells) + len(asked.skipped) == len(METHODS) + len(RULES)
