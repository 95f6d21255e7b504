"""How sure: known answers, outside references, and what must not happen."""

import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nullrec_lib.evaluation import metrics
from nullrec_lib.results import report
from nullrec_lib.statistics import against, bootstrap, gains, holm, two_sided


def test_holm_by_hand():
    # 0.01·4, 0.02·3, 0.03·2 → raised to 0.06, 0.04·1 → raised to 0.06
    np.testing.assert_allclose(holm([0.04, 0.01, np.nan, 0.03, 0.02]), [0.06, 0.04, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9, 0.4]), [1, 1, 1])
    assert len(holm([])) == 0 and np.isnan(holm([np.nan])).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_procedure_rejects(p, level):
    """Holm 1979 as it is told: go up the sorted p-values and stop at the first p(i) > level / (m - i)."""
    rejected = np.zeros(len(p), bool)
    for step, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (len(p) - step) > level:
            break
        rejected[index] = True
    assert ((holm(p) <= level) == rejected).all()


@pytest.mark.parametrize("metric", ["R@10", "N@10", "M@10", "R@20", "N@20", "M@20"])
def test_gains_average_to_the_metric(metric):
    ranks = np.random.default_rng(0).integers(1, 60, 500)
    assert gains(ranks, metric).mean() == pytest.approx(metrics(torch.from_numpy(ranks))[metric], rel=1e-12)


def test_bootstrap_of_a_normal_sample_is_normal():
    x = np.random.default_rng(0).normal(0.15, 1, 400)
    means = bootstrap(x[:, None], np.arange(400), 20_000)[:, 0]
    error = x.std() / 20
    assert means.mean() == pytest.approx(x.mean(), abs=0.001) and means.std() == pytest.approx(error, rel=0.02)
    interval = x.mean() + error * np.array([-1.96, 1.96])
    np.testing.assert_allclose(np.percentile(means, [2.5, 97.5]), interval, atol=0.004)
    assert two_sided(means[:, None])[0] == pytest.approx(2 * stats.norm.sf(abs(x.mean()) / error), rel=0.15)


def test_bootstrap_agrees_with_scipys():
    x = np.random.default_rng(1).exponential(size=25)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(2))
    ours = np.percentile(bootstrap(x[:, None], np.arange(25), 40_000), [2.5, 97.5])
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.01)


def test_p_is_near_that_of_a_sign_flip_permutation():
    x = stats.zscore(np.random.default_rng(5).normal(size=40)) + 0.3
    flips = np.random.default_rng(0).choice([-1, 1], (20_000, 40))
    permuted = np.mean(np.abs((flips * x).mean(axis=1)) >= abs(x.mean()))
    ours = two_sided(bootstrap(x[:, None], np.arange(40), 20_000))[0]
    assert 0.01 < permuted < 0.2 and ours == pytest.approx(permuted, rel=0.4)


def test_examples_of_one_user_are_one_witness():
    x = np.random.default_rng(3).normal(size=200)
    single = bootstrap(x[:, None], np.arange(200), 4000).std()
    copied = bootstrap(np.repeat(x, 9)[:, None], np.repeat(np.arange(200), 9), 4000).std()
    alone = bootstrap(np.repeat(x, 9)[:, None], np.arange(1800), 4000).std()
    assert copied == pytest.approx(single, rel=1e-9)
    assert alone == pytest.approx(single / 3, rel=0.05)


def test_users_of_different_size_weigh_by_their_examples():
    """The statistic is the mean over examples, as in the table, not over users."""
    means = bootstrap(np.array([[1.0], [0.0], [0.0], [0.0]]), np.array([7, 9, 9, 9]), 2000)
    assert set(np.round(means[:, 0], 9)) == {0.0, 0.25, 1.0}


def test_memory_does_not_change_what_is_drawn_and_p_is_never_zero():
    x = np.random.default_rng(0).normal(5, 1, (300, 2))
    small, large = (bootstrap(x, np.arange(300), 3000, memory_mb=mb) for mb in (0, 64))
    np.testing.assert_allclose(small, large, rtol=1e-12)  # sums in another order
    np.testing.assert_allclose(two_sided(small), 2 / 3001)
    assert two_sided(np.zeros((50, 1)))[0] == 1


def test_what_cancels_counts_for_both_sides():
    gains_ = np.tile([0.1 + 0.2, -0.3], 50)[:, None]  # 0.1 + 0.2 - 0.3 is 5.6e-17
    assert two_sided(bootstrap(gains_, np.repeat(np.arange(50), 2), 500))[0] == 1


def test_many_users_take_seconds():
    x = np.random.default_rng(0).normal(size=(40_000, 56))
    started = time.perf_counter()
    bootstrap(x, np.random.default_rng(1).integers(0, 12_000, 40_000), 2000)
    assert time.perf_counter() - started < 6  # a fifth of what a table takes


# A table


def made(quality: dict[str, list[float]], n: int = 300, rules=()) -> tuple[pd.DataFrame, dict]:
    """Runs whose ranks are geometric around a quality per seed; frame and ranks as the library stores them."""
    rows, ranks = [], {}
    for index, (method, seeds) in enumerate(quality.items()):
        for seed, q in enumerate(seeds):
            key = f"{method}{seed}"
            rng = np.random.default_rng([index, seed])
            rank = {name: np.minimum(rng.geometric(q, n), 100) for name in ("test_authors", "test_consistent")}
            ranks[key] = rank | {"test_user": np.repeat(np.arange(n // 3), 3)}
            row = {"key": key, "method": method, "seed": seed, "backbone": None if method in rules else "sasrec"}
            for part, name in (("test", "test_authors"), ("test_consistent", "test_consistent")):
                row |= {f"{part} {k}": v for k, v in metrics(torch.from_numpy(rank[name])).items()}
            rows.append(row)
    return pd.DataFrame(rows), ranks


def test_every_row_meets_its_best_rival():
    frame, ranks = made({"good": [0.2, 0.21, 0.19], "best": [0.4, 0.41, 0.43], "bad": [0.02, 0.03, 0.02]})
    table = against(frame, ranks, ["N@10"], resamples=2000)
    assert len(table) == 6
    rows = table[table["part"] == "test"].set_index("method")
    assert rows["rival"].to_dict() == {"good": "best", "best": "good", "bad": "best"}
    wide = frame.pivot(index="seed", columns="method", values="test N@10")
    reference = stats.ttest_rel(wide["good"], wide["best"])
    low, high = reference.confidence_interval(0.95)
    np.testing.assert_allclose(rows.loc["good", ["difference", "t_low", "t_high", "t_p"]].astype(float),
                               [(wide["good"] - wide["best"]).mean(), low, high, reference.pvalue])
    assert rows.loc["good", "low"] < rows.loc["good", "difference"] < rows.loc["good", "high"] < 0
    assert rows.loc["best", "difference"] == -rows.loc["good", "difference"]
    np.testing.assert_allclose(table["p_holm"], holm(table["p"]))
    np.testing.assert_allclose(table["t_p_holm"], holm(table["t_p"]))


def test_one_row_meets_all_others():
    frame, ranks = made({"good": [0.2, 0.21, 0.19], "best": [0.4, 0.41, 0.43], "bad": [0.02, 0.03, 0.02]})
    table = against(frame, ranks, ["N@10"], resamples=2000, reference="good")
    rows = table[table["part"] == "test"].set_index("method")
    assert rows.index.tolist() == ["best", "bad"] and rows["rival"].eq("good").all()
    assert rows.loc["bad", "high"] < 0 < rows.loc["best", "low"]
    best = against(frame, ranks, ["N@10"], resamples=2000).set_index(["part", "method"]).loc["test", "best"]
    assert rows.loc["best", "difference"] == best["difference"] and rows.loc["best", "t_p"] == best["t_p"]
    np.testing.assert_allclose(table["p_holm"], holm(table["p"]))  # over the four that are made


def test_seeds_that_only_one_has_are_left_out_and_rules_have_no_t_test():
    frame, ranks = made({"rule": [0.7], "one": [0.2, 0.2, 0.2], "two": [0.25, 0.25]}, rules=["rule"])
    rows = against(frame, ranks, ["N@20"], resamples=500, parts=["test"]).set_index("method")
    mean = frame.groupby("method")["test N@20"].mean()
    assert rows.loc["one", "rival"] == rows.loc["two", "rival"] == "rule" and rows["t_p"].isna().all()
    assert rows.loc["one", "difference"] == pytest.approx(mean["one"] - mean["rule"])
    assert rows["p"].notna().all() and rows["p_holm"].notna().all()
    frame = frame[frame["method"] != "rule"]
    rows = against(frame, ranks, ["N@20"], resamples=500, parts=["test"]).set_index("method")
    both = frame[frame["seed"] < 2].groupby("method")["test N@20"].mean()
    assert rows.loc["one", "difference"] == pytest.approx(both["one"] - both["two"]) and rows["seeds"].eq(2).all()
    single = against(frame[frame["seed"] == 0], ranks, ["N@20"], resamples=500)
    assert single["t_p"].isna().all() and single["p"].notna().all()


def test_a_single_row_has_no_rival_and_other_examples_are_refused():
    frame, ranks = made({"a": [0.2, 0.3], "b": [0.2, 0.3]})
    assert against(frame[frame["method"] == "a"], ranks).empty
    ranks["b1"]["test_user"] = ranks["b1"]["test_user"][::-1]
    with pytest.raises(ValueError, match="different examples"):
        against(frame, ranks)


@pytest.mark.parametrize("metric", ["R@10", "N@20", "M@10"])
def test_the_gain_of_an_example_that_is_left_out_is_none(metric):
    gain = gains(np.array([1, 0, 3, 50]), metric)
    assert np.isnan(gain).tolist() == [False, True, False, False] and gain[0] == 1 and gain[3] == 0


def test_an_example_that_is_left_out_moves_no_figure_of_a_comparison():
    """Whatever stands there and wherever, all figures of the part are those without it; other parts keep theirs."""
    frame, ranks = made({"base": [0.2, 0.3], "better": [0.4, 0.45], "rule": [0.1]}, rules=("rule",))
    for column in [name for name in frame if name.startswith("test ")]:
        frame[column.replace("test ", "test_sampled ")] = frame[column]
    spread = np.r_[0:7, 20:len(next(iter(ranks.values()))["test_user"]) + 13]  # where the examples that count stand
    more = {}
    for key, of in ranks.items():
        wide = np.full(spread[-1] + 4, 3)
        wide[spread] = of["test_authors"]
        sampled = np.zeros_like(wide)
        sampled[spread] = of["test_authors"]
        users = np.arange(len(wide)) + 10_000
        users[spread] = of["test_user"]
        more[key] = {"test_user": users, "test_authors": wide, "test_authors_sampled": sampled}
        of["test_authors_sampled"] = of["test_authors"]
    parts = ["test_sampled"]
    with_them, without = (against(frame, of, parts=parts, resamples=500) for of in (more, ranks))
    pd.testing.assert_frame_equal(with_them, without)
    # Beside a part that counts everybody, each part's figures are its own.
    both, one = (against(frame, more, parts=parts, resamples=500) for parts in (["test", "test_sampled"], ["test"]))
    same = ["difference", "low", "high", "p"]
    pd.testing.assert_frame_equal(both[both["part"] == "test"][same], one[same])


def test_under_no_difference_p_is_seldom_small():
    """Two rankers of one quality: the bootstrap's p falls below 0.1 in about a tenth of all worlds."""
    small = 0
    for world in range(200):
        rng = np.random.default_rng(world)
        x = gains(rng.geometric(0.1, 300), "N@10") - gains(rng.geometric(0.1, 300), "N@10")
        small += two_sided(bootstrap(x[:, None], np.arange(300), 400))[0] < 0.1
    assert 8 <= small <= 34  # binomial(200, 0.1) leaves this range once in 2000


def test_a_report_with_ranks_tells_the_rival_and_how_it_was_chosen(tiny, tmp_path):
    from nullrec_lib.experiments import run_all, stored_ranks

    specs = [tiny(method=method, seed=seed) for method in ("base", "frozen") for seed in (1, 2)]
    frame = run_all(specs, tmp_path, jobs=1)
    frame["label"] = ["ids", "ids", "texts", "texts"]
    text = report(frame, "", ranks=stored_ranks(specs, tmp_path), notes=["said"])
    for said in ("| ids | N@10 | texts |", "chosen on these same test figures", "the 8 comparisons", "- said",
                 "# shop-tiny, cold-start, sasrec"):
        assert said in text
    assert "against base, paired" not in text
    text = report(frame, "", "ids", stored_ranks(specs, tmp_path))
    assert "Comparisons with ids." in text and "Against ids:" in text and "the 4 comparisons" in text
    assert "| texts | N@10 | -" in text or "| texts | N@10 | +" in text
    assert "rival" not in text
