"""The papers' tables as transcribed, and what in them cannot be true as printed."""

import shutil
from math import log2
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import claims
from nullrec_lib.errors import InputError
from nullrec_lib.evaluation import metrics

ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "reports" / "papers"
KEYS = ["table", "dataset", "backbone", "method", "group", "metric"]


@pytest.fixture(scope="module")
def values():
    return claims.tables(PAPERS)


@pytest.fixture(scope="module")
def found():
    return claims.inconsistent(PAPERS)


def value(values, *key):
    return values.set_index(KEYS)["value"][key]


def test_the_transcript_is_complete_and_has_each_value_once(values):
    counts = values.groupby("table").size().to_dict()
    assert counts == {"Table 1": 12, "Table 2": 12, "Table 3": 3 * 4 * 20, "Table 4": 3 * 10 * 4,
                      "Table 5": 3 * 4 * 8, "Table 6": 10 * 8, "AlphaFuse Table 6": 3}
    assert not values.duplicated(KEYS).any() and np.isfinite(values["value"]).all()
    assert claims.improvements(PAPERS).groupby("table").size().to_dict() == {"Table 3": 24, "Table 4": 30}


@pytest.mark.parametrize("key, printed", [
    (("Table 1", "Movies", "", "", "", "interactions"), 637_157),
    (("Table 2", "Beauty", "", "", "", "mean length"), 7.57),
    (("Table 3", "Movies", "SASRec", "LLMInit", "all", "N@10"), 0.0370),
    (("Table 3", "Sports", "DreamRec", "PtE", "all", "M@20"), 0.0181),
    (("Table 3", "Toys", "DreamRec", "RLMRec", "all", "N@20"), 0.0388),
    (("Table 4", "Yelp", "SASRec", "LLM-ESR", "tail item", "N@10"), 0.0845),
    (("Table 4", "Beauty", "SASRec", "PtE", "head user", "N@10"), 0.4762),
    (("Table 5", "Toys", "SASRec", "No GRPO", "all", "N@20"), 0.0476),
    (("Table 6", "Yelp", "SASRec", "User-only Profiling", "head item", "R@10"), 0.7825),
    (("AlphaFuse Table 6", "", "", "LLM-ESR", "", "parameters (million)"), 4.10),
])
def test_values_read_off_the_paper(key, printed, values):
    assert value(values, *key) == printed


def test_the_papers_quote_each_other(values):
    """AlphaFuse's “up to 24.05%” is its gain over LLMInit in PtE's Table 3."""
    both = [value(values, "Table 3", "Movies", "SASRec", name, "all", "N@10") for name in ("AlphaFuse", "LLMInit")]
    stated = pd.read_csv(PAPERS / "alphafuse-figures.csv").set_index("relation")["value"]["up to"]
    assert round(100 * both[0] / both[1] - 100, 2) == stated == 24.05


def test_known_contradictions_are_found(found):
    def has(check, table, *words):
        rows = found[(found["check"] == check) & (found["table"] == table)]
        return any(all(word in f"{row.place} {row.printed} {row.why}" for word in words) for row in rows.itertuples())

    assert has("cutoff", "Table 3", "Sports, SASRec, PtE", "M@10 0.0145, M@20 0.0137")
    assert has("cutoff", "Table 3", "Movies, DreamRec, PtE", "M@20 is below M@10")
    assert has("cutoff", "Table 3", "Sports, DreamRec, PtE", "N@20 is below N@10")
    assert has("group", "Table 4", "Yelp, PtE, N@10", "below both groups of users")
    assert has("share", "Table 4", "Beauty, PtE, R@10", "head user")
    assert has("count", "Table 1", "Movies", "density 99.93%", "0.0706%", "the sparsity")
    assert has("text", "Table 4", "18.19%") and has("text", "Table 5", "12 of 12 columns")


def test_counts(found):
    assert found.groupby(["check", "table"]).size().to_dict() == {
        ("cutoff", "Table 3"): 4, ("cutoff", "Table 5"): 8, ("metric", "Table 3"): 2, ("metric", "Table 5"): 10,
        ("group", "Table 4"): 2, ("group", "Table 6"): 8, ("share", "Table 4"): 11, ("share", "Table 6"): 24,
        ("count", "Table 1"): 3, ("text", "Table 4"): 1, ("text", "Table 5"): 2, ("text", "Table 6"): 1}


def test_the_report_holds_what_is_computed():
    report = (ROOT / "reports" / "CLAIMS.md").read_text(encoding="utf-8")
    assert report.split("## Inconsistent as printed\n\n")[1] == claims.inconsistent_markdown(PAPERS)


def test_the_variants_of_pte_are_those_of_the_stored_tables():
    report = (ROOT / "reports" / "CLAIMS.md").read_text(encoding="utf-8")
    table = claims.variants_markdown(ROOT / "reports")
    assert table in report
    # Two cells read off the tables by eye: without and with significance.
    assert "| user-only | 0.0294 / 0.0902 |" in table and "| extractive profiles | 0.0592* / 0.1173* |" in table


def test_the_outside_check_is_of_the_stored_tables():
    report = (ROOT / "reports" / "CLAIMS.md").read_text(encoding="utf-8")
    tables = claims.outside_markdown(ROOT / "reports").split("\n\n")
    assert len(tables) == 2 and all(table.strip() in report for table in tables)
    assert "| Base (SASRec) | 5 | 0.0816 | 0.0529 | 0.0590 |" in tables[0]  # read off the report by eye


def test_every_claim_has_a_source_and_a_known_verdict():
    report = (ROOT / "reports" / "CLAIMS.md").read_text(encoding="utf-8").split("## Tables 5 and 6, as run here")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines()
            if line.startswith("| ") and not line.startswith(("| claim", "| ---"))]
    assert len(rows) > 30 and all(len(row) == 5 and row[0] and row[1] for row in rows)
    assert {row[2] for row in rows} <= {"reproduced", "not reproduced", "not testable here", "open"}
    assert all(row[3] and row[4] for row in rows if not row[2].startswith("open"))


# The checks themselves, on tables that are true and on tables with one thing changed.


def true_table(folder, change=lambda frame: frame):
    """Tables 3 to 6 from simulated ranks, rounded as in print, with their groups; `change` spoils them."""
    rng, rows = np.random.default_rng(0), []

    def put(table, dataset, method, group, ranks, names):
        result = metrics(ranks)
        rows.extend([table, dataset, "SASRec", method, group, name, round(result[name], 4), ""] for name in names)

    for table, methods in (("Table 3", ("Base", "Other", "PtE")), ("Table 4", ("Base", "Other", "PtE"))):
        for quality, method in enumerate(methods):
            ranks = torch.from_numpy(rng.geometric(0.01 + 0.02 * quality, 20_000))
            tail = {kind: torch.from_numpy(np.random.default_rng(len(kind) + ord(kind[0])).random(20_000) < share)
                    for kind, share in (("item", 0.3), ("user", 0.8))}
            if table == "Table 3":
                put(table, "Toys", method, "all", ranks, ("N@10", "M@10", "N@20", "M@20"))
                continue
            # Tail examples do worse, so that groups differ.
            ranks = ranks + 3 * tail["item"].long() + 2 * tail["user"].long()
            put(table, "Yelp", method, "overall", ranks, ("R@10", "N@10"))
            for kind, mask in tail.items():
                put(table, "Yelp", method, f"tail {kind}", ranks[mask], ("R@10", "N@10"))
                put(table, "Yelp", method, f"head {kind}", ranks[~mask], ("R@10", "N@10"))
    frame = pd.DataFrame(rows, columns=[*KEYS, "value", "underlined"])
    frame.loc[frame["method"] == "Other", "underlined"] = "yes"
    frame = change(frame)
    for table, part in frame.groupby("table"):
        part.to_csv(folder / f"mine-{table.replace('Table ', 'table')}.csv", index=False)
    printed = []
    for key, part in frame.groupby(["table", "dataset", "backbone", "group", "metric"]):
        cell = part.set_index("method")["value"]
        printed.append([*key, round(100 * cell["PtE"] / cell["Other"] - 100, 2)])
    pd.DataFrame(printed, columns=["table", "dataset", "backbone", "group", "metric", "percent"]).to_csv(
        folder / "mine-improvements.csv", index=False)
    return folder


def checks(folder):
    return set(claims.inconsistent(folder)["check"]) - {"text"}


def test_true_tables_have_no_contradiction(tmp_path):
    assert checks(true_table(tmp_path)) == set()


def spoil(method, group, metric, factor):
    def change(frame):
        where = (frame["method"] == method) & (frame["group"] == group) & (frame["metric"] == metric)
        assert where.any()
        frame.loc[where, "value"] = (frame.loc[where, "value"] * factor).round(4)
        return frame

    return change


@pytest.mark.parametrize("change, check", [
    (spoil("Base", "all", "N@20", 0.5), "cutoff"),
    (spoil("Base", "all", "M@20", 1.5), "metric"),
    (spoil("Base", "overall", "N@10", 0.3), "group"),
    (spoil("Base", "overall", "R@10", 1.01), "share"),
    (spoil("Base", "all", "N@10", 3.0), "mark"),
])
def test_one_wrong_figure_is_found(change, check, tmp_path):
    assert check in checks(true_table(tmp_path, change))


def test_a_wrong_improvement_is_found(tmp_path):
    folder = true_table(tmp_path)
    printed = pd.read_csv(folder / "mine-improvements.csv")
    printed.loc[0, "percent"] += 5
    printed.to_csv(folder / "mine-improvements.csv", index=False)
    assert checks(folder) == {"improvement"}


def test_a_row_copied_wrong_is_found(tmp_path):
    shutil.copytree(PAPERS, tmp_path / "papers")
    path = tmp_path / "papers" / "pte-table5.csv"
    row = "Toys,SASRec,PtE (full),all,N@20,0.051"
    path.write_text(path.read_text().replace(f"{row}1", f"{row}2"))
    found = claims.inconsistent(tmp_path / "papers").query("check == 'copy'")
    assert found[["table", "place", "printed", "why"]].values.tolist() == [
        ["Table 5", "Toys, SASRec, N@20", "0.0512", "Table 3: 0.0511"]]


def test_the_bounds_are_reached_and_never_passed():
    """Every rank alone: N/M and R/N at most as `_cutoffs` says, what ranks 11 to 20 add within its band."""
    for rank in range(1, 21):
        one = metrics(torch.tensor([rank]))
        if rank <= 10:
            assert one["M@10"] <= one["N@10"] <= one["R@10"] <= log2(11) * one["N@10"] + 1e-12
            assert one["N@10"] <= 10 / log2(11) * one["M@10"] + 1e-12
        else:
            assert log2(21) / 20 - 1e-12 <= one["M@20"] / one["N@20"] <= log2(12) / 11 + 1e-12


def test_no_tables(tmp_path):
    with pytest.raises(InputError, match="no transcribed tables"):
        claims.tables(tmp_path)
