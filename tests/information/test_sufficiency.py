"""The sufficiency index against what is known: Gaussians, a nearest-neighbour estimator, and the ways in which it fails."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_selection import mutual_info_regression

from nullrec_lib import figures
from nullrec_lib.errors import InputError
from nullrec_lib.information.calibration import BENDS, RELATIONS, against_neighbours, against_truth, correlated
from nullrec_lib.information.knife import Full, Kernels, LowRank, fit, log_density
from nullrec_lib.information.sufficiency import (
    matrix, report, standardised, sufficiency, sweep, table, verdict, verdicts)

QUICK = Kernels(epochs=15, patience=4)


def gaussians(d, rho, n=4000, seed=0):
    random = np.random.default_rng(seed)
    u = random.standard_normal((n, d))
    return u, rho * u + np.sqrt(1 - rho**2) * random.standard_normal((n, d)), -0.5 * d * np.log(1 - rho**2)


# --- densities

@pytest.mark.parametrize("make", [Full, lambda covariance: LowRank(covariance, 2)])
def test_a_kernel_is_the_gaussian_that_it_is_started_from(make):
    random = np.random.default_rng(1)
    factor = random.standard_normal((5, 2))
    covariance = factor @ factor.T + 0.3 * np.eye(5)  # of which two directions and a diagonal are all
    rows = torch.from_numpy(random.standard_normal((7, 5))).float()
    true = torch.distributions.MultivariateNormal(torch.zeros(5), torch.from_numpy(covariance).float()).log_prob(rows)
    torch.testing.assert_close(make(covariance).log_prob(rows), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("covariance", ["full", "low-rank"])
@pytest.mark.parametrize("given", [False, True])
def test_a_density_integrates_to_one(covariance, given):
    random = np.random.default_rng(2)
    v = np.concatenate([random.normal(-2, 0.5, (300, 2)), random.normal(1, 0.8, (300, 2))])
    u = np.sin(v[:, :1]) + 0.3 * random.standard_normal((600, 1)) if given else None
    found = fit(v, u, Kernels(components=4, covariance=covariance, rank=1, epochs=5), seed=1)
    axis = np.linspace(-8, 8, 161)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    told = np.full((len(grid), 1), 0.4) if given else None
    assert np.exp(log_density(found, grid, told)).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=0.01)


def test_the_same_seed_gives_the_same_density_and_leaves_the_generator_alone():
    u, v, _ = gaussians(2, 0.5, 200)
    before = torch.random.get_rng_state()
    one, two = (log_density(fit(v, u, QUICK, 3), v, u) for _ in range(2))
    assert np.array_equal(one, two) and torch.equal(before, torch.random.get_rng_state())
    assert not np.array_equal(one, log_density(fit(v, u, QUICK, 4), v, u))


# --- against the truth

@pytest.mark.parametrize("d, rho", [(1, 0.5), (1, 0.99), (4, 0.0), (4, 0.9), (16, 0.5), (16, 0.99)])
def test_gaussians_up_to_sixteen_dimensions(d, rho):
    u, v, true = gaussians(d, rho)
    found = sufficiency(u, v, seeds=(1, 2), pca=None, kernels=QUICK)
    assert found.mi_nats.low - 0.05 * true - 0.02 <= true <= found.mi_nats.high + 0.05 * true + 0.02
    assert found.mi_nats.value == pytest.approx(true, rel=0.05, abs=0.05)
    assert found.h_v.value == pytest.approx(d / 2 * np.log(2 * np.pi * np.e), rel=0.03)
    assert found.isi.value == pytest.approx(found.mi_nats.value / found.h_v.value)


def test_many_dimensions_are_underestimated_and_said_to_be():
    u, v, true = gaussians(64, 0.5, 1000)
    found = sufficiency(u, v, seeds=(1,), pca=None, kernels=QUICK)
    assert 0.3 * true < found.mi_nats.value < true
    assert any("few for 64 and 64 columns" in flag for flag in found.flags)


@pytest.mark.parametrize("bend", BENDS)
def test_known_cases_have_the_information_that_they_claim(bend):
    """For one column by nearest neighbours: bending V column by column changes none of it."""
    for rho in (0.0, 0.8):
        u, v, truth = correlated(1, rho, 4000, 1, bend)
        assert truth == pytest.approx(gaussians(1, rho)[2])
        assert mutual_info_regression(u, v[:, 0], random_state=0)[0] == pytest.approx(truth, abs=0.04)
    (_, one, _), (_, two, _) = correlated(2, 0.5, 50, 1, bend), correlated(2, 0.5, 50, 1, bend)
    assert np.array_equal(one, two)


def test_bias_is_told_as_a_share_of_the_truth():
    frame = against_truth([1, 2], [400], [0.0, 0.9], (1, 2), QUICK)
    assert len(frame) == len(BENDS) * 4 and set(frame["V"]) == set(BENDS)
    known = frame[frame["rho"] > 0]
    np.testing.assert_allclose(known["share"], known["mi_nats"] / known["truth"] - 1)
    assert frame[frame["rho"] == 0]["share"].isna().all() and (known[known["V"] == "Gaussian"]["share"].abs() < 0.2).all()
    figure = figures.calibration(frame)
    assert [ax.get_title() for ax in figure.axes] == list(BENDS)


def test_it_agrees_with_nearest_neighbours_where_nothing_is_gaussian():
    """KSG as in scikit-learn, for one column at a time; two independent columns add up."""
    frame = against_neighbours(3000, (1, 2))
    assert list(frame["relation"]) == list(RELATIONS) and (frame["ratio"].sub(1).abs() < 0.15).all(), frame


def test_it_finds_what_is_the_same_on_both_sides_of_zero():
    """V is U or its mirror image, by chance: no correlation, and every line is useless."""
    random = np.random.default_rng(5)
    u = random.standard_normal((3000, 2))
    v = u * random.choice([-1, 1], u.shape) + 0.2 * random.standard_normal(u.shape)
    neighbours = sum(mutual_info_regression(u[:, [j]], v[:, j], n_neighbors=5, random_state=0)[0] for j in range(2))
    assert sufficiency(u, v, seeds=(1, 2), pca=None).mi_nats.value == pytest.approx(neighbours, rel=0.15)


# --- what it must say and refuse

def test_independent_views_have_nothing_of_each_other():
    random = np.random.default_rng(6)
    found = sufficiency(random.standard_normal((600, 3)), random.standard_normal((600, 3)), seeds=(1, 2), kernels=QUICK)
    assert abs(found.mi_nats.value) < 0.1 and "the mutual information is not told apart from 0" in found.flags


def test_many_useless_columns_tell_nothing_and_cost_nothing():
    """The marginal belongs to the family of the conditional, however many columns there are to fit chance with."""
    random = np.random.default_rng(0)
    v = np.where(random.random((400, 6)) < 0.5, -1, 1) + 0.3 * random.standard_normal((400, 6))
    for columns, seed in ((64, 1), (300, 2)):
        found = sufficiency(random.standard_normal((400, columns)), v, seeds=(seed,), pca=None, kernels=QUICK)
        assert abs(found.mi_nats.value) < 0.02 * found.h_v.value, found.mi_nats


def test_a_density_given_something_is_never_worse_than_one_that_is_not_where_it_is_chosen():
    random = np.random.default_rng(4)
    u = random.standard_normal((300, 200))
    v = np.where(random.random((300, 6)) < 0.5, -1, 1) + 0.2 * random.standard_normal((300, 6))
    alone = fit(v, None, QUICK, 3)
    aside = np.random.default_rng(3).permutation(300)[:45]
    loss = lambda one, some: -log_density(one, v[aside], some).mean()
    assert loss(fit(v, u, QUICK, 3, marginal=alone), u[aside]) <= loss(alone, None) + 1e-6 < loss(fit(v, u, QUICK, 3), u[aside])


def test_one_column_has_a_low_rank_too():
    u, v, truth = gaussians(1, 0.9, 400)
    found = sufficiency(u, v, seeds=(1,), pca=None, kernels=Kernels(covariance="low-rank", epochs=20))
    assert found.mi_nats.value == pytest.approx(truth, rel=0.2)


def test_a_function_of_u_needs_noise():
    random = np.random.default_rng(7)
    u = random.standard_normal((800, 2))
    v = u @ random.standard_normal((2, 2))
    found = sufficiency(u, v, seeds=(1,), kernels=QUICK)
    assert found.h_v_given_u.value < 0 and found.isi.value > 1 and any("above 1" in flag for flag in found.flags)
    quiet, loud = (sufficiency(u, v, seeds=(1,), noise=noise, kernels=QUICK) for noise in (0.1, 0.5))
    for one, noise in ((quiet, 0.1), (loud, 0.5)):  # whitened V + σε: ½ d log(1 + 1/σ²)
        assert one.mi_nats.value == pytest.approx(np.log1p(1 / noise**2), rel=0.1) and one.noise == noise
    assert loud.isi.value < 1 < quiet.isi.value  # h(V | U) = ½ d log(2πe σ² / (1 + σ²)), negative for little noise


def test_no_ratio_to_an_entropy_that_is_not_positive():
    random = np.random.default_rng(8)
    v = random.choice([-1.0, 1.0], (400, 1)) + 1e-3 * random.standard_normal((400, 1))  # two points, nearly
    found = sufficiency(random.standard_normal((400, 2)), v, seeds=(1,), kernels=QUICK)
    assert found.h_v.value < 0 and found.isi is None and "not above 0" in found.why
    assert found.to_dict()["isi"] is None


def test_marginals_are_fitted_once_and_do_not_depend_on_who_else_is_asked():
    random = np.random.default_rng(9)
    a = random.standard_normal((300, 3))
    named = {"a": a, "b": a + random.standard_normal((300, 3)), "c": random.standard_normal((300, 2))}
    found = matrix(named, seeds=(1, 2), kernels=QUICK)
    assert set(found) == {(u, v) for u in named for v in named if u != v}
    assert found["a", "b"].h_v == found["c", "b"].h_v
    alone = matrix({"b": named["b"], "a": a}, seeds=(1, 2), kernels=QUICK, pairs=[("a", "b")])["a", "b"]
    assert alone == found["a", "b"]
    loud = [matrix(some, seeds=(1,), noise=0.3, kernels=QUICK, pairs=[("a", "b")])["a", "b"].h_v for some in (
        named, {"b": named["b"], "a": a})]
    assert loud[0] == loud[1]
    frame = table(found)
    assert list(frame[["u", "v"]].itertuples(index=False, name=None)) == list(found)
    assert (frame["isi low"] <= frame["isi"]).all() and (frame["isi"] <= frame["isi high"]).all()


def test_nothing_of_the_held_out_rows_is_looked_at_before():
    """Standardising and principal components come from the fitted rows alone."""
    random = np.random.default_rng(10)
    rows = np.arange(80)
    table_ = random.standard_normal((100, 6)) @ random.standard_normal((6, 6))
    other = table_.copy()
    other[80:] *= 7
    for pca in (None, 3):
        assert np.array_equal(standardised(table_, rows, pca)[:80], standardised(other, rows, pca)[:80])
    made = standardised(table_, rows, 3)
    np.testing.assert_allclose(np.cov(made[:80].T, bias=True), np.eye(3), atol=1e-8)
    constant = np.column_stack([table_, np.ones(100)])
    assert standardised(constant, rows, None).shape[1] == 6 == standardised(constant, rows, 99).shape[1]


def test_densities_take_one_thread_and_give_the_others_back(monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr("nullrec_lib.information.sufficiency.fit",
                        lambda *given: seen.append(torch.get_num_threads()) or fit(*given))
    torch.set_num_threads(2)
    try:
        u, v, _ = gaussians(2, 0.5, 60)
        sufficiency(u, v, seeds=(1,), kernels=Kernels(epochs=1))
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_verdict_needs_every_setting():
    frame = pd.DataFrame({"u": "a", "v": "b", "isi": [0.9, 0.97], "isi low": [0.88, 0.96], "isi high": [0.92, 0.98]})
    assert verdict(frame, "a", "b", 0.8) == verdict(frame, "a", "b", 0.85) == "above"
    assert verdict(frame, "a", "b", 0.99) == "below"
    assert verdict(frame, "a", "b", 0.95) == "not stable"
    assert verdict(frame, "a", "b", 0.9) == "undecided"
    assert verdict(frame.assign(isi=[0.9, np.nan]), "a", "b", 0.8) == "undecided"
    assert verdict(frame, "b", "a", 0.8) == "undecided"


def test_a_seed_below_0_is_named():
    u, v, _ = gaussians(2, 0.5, 60)
    with pytest.raises(InputError, match="seeds: give at least one, and none below 0"):
        sufficiency(u, v, seeds=(-3,))


def test_a_sweep_has_every_setting():
    u, v, _ = gaussians(4, 0.8, 200)
    swept = sweep({"u": u, "v": v}, [0.1, 0.3], [2, None], seeds=(1,), kernels=Kernels(epochs=1), pairs=[("u", "v")])
    assert swept[["noise", "dims v"]].values.tolist() == [[0.1, 2], [0.3, 2], [0.1, 4], [0.3, 4]]


def test_a_report_tells_verdicts_and_flags(tmp_path):
    random = np.random.default_rng(0)
    lm = random.standard_normal((120, 4))
    named = {"lm": lm, "fusion": lm @ random.standard_normal((4, 4)), "id": random.standard_normal((120, 3))}
    swept = sweep(named, [0.1, 0.2], [4], seeds=(1,), kernels=Kernels(epochs=1))
    found = verdicts(swept)
    assert found == {"language tells over 95% of the fusion: estimated": "above",
                     "the fusion tells under 85% of language: estimated": "above"}
    report(table(matrix(named, (1,), 4, 0.1, Kernels(epochs=1))), swept, "Of nothing.", tmp_path)
    text = (tmp_path / "sufficiency.md").read_text()
    assert text.count(": estimated **above**") == 2 and "what p(V) misses too high" in text
    assert any("lm → fusion" in line and ": h(V|U) is negative" in line for line in text.splitlines())
    assert len(pd.read_csv(tmp_path / "sufficiency.csv")) == 6 and len(pd.read_csv(tmp_path / "sufficiency_sweep.csv")) == 12
    assert text.count("keep fewer principal components") == 2  # one line per shape, not one per pair
    report(swept, swept, "", tmp_path, {"more": ("And this", pd.DataFrame({"x": [0.5]}, index=pd.Index(["a"], name="of")))})
    assert "## And this" in (tmp_path / "sufficiency.md").read_text()
    assert (tmp_path / "more.csv").read_text() == "of,x\na,0.5\n"
    report(swept, swept, "", "")
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("change, said", [
    (dict(u=np.zeros((30, 2))), "u: all rows are the same"), (dict(u=np.zeros(30)), r"u: its shape is \(30,\)"),
    (dict(v=np.full((30, 2), np.nan)), "v: row 0 is not finite"), (dict(u=np.ones((29, 2))), "u: all rows"),
    (dict(u=np.eye(29)), "u has 29, v has 30; row i"), (dict(pca=0), "pca: 0"), (dict(noise=-1), "noise: -1"),
    (dict(seeds=()), "seeds: give at least one"), (dict(u=np.eye(9), v=np.eye(9)), "rows: 9 are too few"),
])
def test_wrong_input_is_one_sentence(change, said):
    good = dict(u=np.random.default_rng(0).standard_normal((30, 2)), v=np.random.default_rng(1).standard_normal((30, 2)))
    with pytest.raises(InputError, match=said):
        sufficiency(**good | change)


ROWS = np.random.default_rng(3).standard_normal((40, 3))
HELD = np.random.default_rng(1).permutation(40)[:8]  # that sufficiency holds out with seed 1
SMALL = dict(seeds=(1,), pca=None, kernels=Kernels(components=2, epochs=1, hidden=4))


def only(places, value=1.0, rest=0.0) -> np.ndarray:
    rows = np.full((40, 3), rest)
    rows[places] = value
    return rows


NO_MATRIX = {
    "0-d": np.float64(1), "3-d": ROWS[:, None], "no column": ROWS[:, :0], "no row": ROWS[:0], "a row": ROWS[:1],
    "complex": ROWS + 1j, "objects": ROWS.astype(object), "text": ROWS.astype(str), "fields": np.zeros((40, 2), [("x", "f4")]),
    "ragged": [[1.0], [1.0, 2.0]], "infinite": only(5, np.inf), "longdouble": ROWS.astype("longdouble") * np.longdouble("1e400"),
    "nothing": None, "flat": only(HELD[0]), "all held out": only(HELD, 7.0), "constant": only(3, 0.5, 0.5),
    "far out": np.where(np.arange(40)[:, None] == HELD[2], 1e30, ROWS),
}


@pytest.mark.parametrize("rows", NO_MATRIX.values(), ids=NO_MATRIX)
@pytest.mark.parametrize("pca", [None, 2])
@pytest.mark.filterwarnings("error")
def test_rows_that_no_density_can_be_fitted_to_are_refused_by_name(rows, pca):
    for u, v, place in ((rows, ROWS, "u"), (ROWS, rows, "v")):
        with pytest.raises(InputError, match=f"^(u or )?{place}") as caught:
            sufficiency(u, v, **SMALL | {"pca": pca})
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("change", [
    lambda v: v.astype(np.float16).astype(np.float64), lambda v: v * 2.0**900, lambda v: v * 2.0**-900,
    lambda v: np.concatenate([v, np.full((40, 1), 3.0)], axis=1), lambda v: torch.from_numpy(v), lambda v: v.tolist()],
    ids=["rounded", "huge", "tiny", "a constant column", "tensor", "lists"])
@pytest.mark.filterwarnings("error")
def test_scale_type_and_constant_columns_do_not_move_an_estimate(change):
    rows = ROWS.astype(np.float16).astype(np.float64)
    other = np.random.default_rng(4).standard_normal((40, 2))
    for pair, changed in (((other, rows), (other, change(rows))), ((rows, other), (change(rows), other))):
        plain, same = sufficiency(*pair, **SMALL), sufficiency(*changed, **SMALL)
        for name in ("h_v", "h_v_given_u", "mi_nats"):
            assert getattr(same, name).value == pytest.approx(getattr(plain, name).value, rel=1e-5, abs=1e-6)
    assert same.rows["counted"] == same.rows["held_out"] == 8


@pytest.mark.filterwarnings("error")
def test_few_distinct_rows_are_no_clusters():
    few = np.repeat(np.eye(3)[:2], 40, axis=0)[np.random.default_rng(0).permutation(80)]  # of two kinds, for three kernels
    found = sufficiency(np.random.default_rng(1).standard_normal((80, 2)), few, **SMALL | {"kernels": Kernels(components=3, epochs=1, hidden=4)})
    assert np.isfinite(found.h_v.value) and found.dims["v"] == 2  # the third column is constant


@pytest.mark.parametrize("wrong", [
    dict(pca=1.5), dict(pca="2"), dict(pca=True), dict(noise=np.nan), dict(noise=np.inf), dict(noise=1e9), dict(noise="0"),
    dict(seeds=(1.5,)), dict(seeds=("1",)), dict(seeds=(2**40,)), dict(seeds=(10**400,)), dict(seeds=True)])
def test_a_setting_outside_of_its_range_is_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        sufficiency(ROWS, ROWS + 1, **SMALL | wrong)
    with pytest.raises(InputError, match="components: 41"):
        sufficiency(ROWS, ROWS + 1, **SMALL | {"kernels": Kernels(components=41)})


@pytest.mark.parametrize("wrong", [dict(components=1.5), dict(epochs="3"), dict(rank=np.nan), dict(lr=np.nan), dict(lr="1"),
                                   dict(covariance=None), dict(hidden=np.inf), dict(components=0), dict(covariance="diagonal"), dict(lr=0)])
def test_kernels_are_checked(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Kernels(**wrong)


def test_an_interval_of_few_rows_is_of_the_draws_that_hold_one():
    rows = np.random.default_rng(0).standard_normal((30, 48))
    told = sufficiency(rows, rows, (22, 23, 24), pca=None, kernels=Kernels(components=2, epochs=1))
    assert all(np.isfinite([one.low, one.high]).all() for one in (told.h_v, told.h_v_given_u, told.mi_nats))
