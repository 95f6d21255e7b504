"""The null space: its linear algebra, its rules and ends, and how preservation is measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, ortho_group, spearmanr
from sklearn.decomposition import PCA

from nullrec_lib.errors import InputError
from nullrec_lib.nullspace import THRESHOLDS, covariance, decompose, nullities
from nullrec_lib.nullspace import cosines, preservation, random_pairs


def rows(n, d, seed=0, scale=1.0) -> np.ndarray:
    """Correlated directions of unlike variance around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, d)) * np.linspace(2, 0.3, d) @ ortho_group.rvs(d, random_state=seed)
    return scale * (mixed + rng.standard_normal(d))


SHAPES = dict(
    n=st.integers(2, 40), d=st.integers(2, 12), seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-6, 1.0, 40.0, 1e5]),
)
quick = settings(max_examples=50, deadline=None, derandomize=True)

# The decomposition


@quick
@given(**SHAPES, basis=st.sampled_from(["principal", "random"]))
def test_basis_and_spectrum(n, d, seed, scale, basis):
    E = rows(n, d, seed, scale)
    space = decompose(E, null_dim=1, standardise="none", basis=basis)
    reference = np.linalg.eigvalsh(np.cov(E.T, bias=True))[::-1]
    close = dict(rtol=1e-9, atol=1e-12 * reference[0])
    np.testing.assert_allclose(space.spectrum, reference.clip(min=0), **close)
    np.testing.assert_allclose(space.basis.T @ space.basis, np.eye(d), atol=1e-12)
    assert (np.diff(space.spectrum) <= 0).all() and (np.diff(space.singular_values) <= 0).all()
    np.testing.assert_allclose(space.mean, E.mean(axis=0), rtol=1e-12, atol=1e-12 * scale)
    # Variance along each column, measured on the data and not through the covariance.
    measured = ((E - E.mean(axis=0)) @ space.basis).var(axis=0)
    np.testing.assert_allclose(measured, space.singular_values, **close)
    np.testing.assert_allclose(space.singular_values.sum(), reference.sum(), rtol=1e-9)
    if basis == "principal":
        np.testing.assert_allclose(space.singular_values, space.spectrum)
    assert (space.width, space.row_dim, space.nullity) == (d, d - 1, 1)


@quick
@given(**SHAPES)
def test_nothing_clipped_nothing_standardised_is_a_rotation(n, d, seed, scale):
    E = rows(n, d, seed, scale)
    space = decompose(E, null_dim=d // 2, standardise="none")
    projected = space.project(E)
    assert projected.dtype == np.float32 and projected.shape == (n, d)
    size = np.abs(E - E.mean(axis=0)).max()
    back = projected @ space.basis.T + space.mean
    np.testing.assert_allclose(back, E, rtol=1e-6, atol=1e-5 * size)


@quick
@given(**SHAPES, basis=st.sampled_from(["principal", "random"]), share=st.floats(0, 1), wide=st.floats(0, 1))
def test_standardised_directions_have_unit_variance(n, d, seed, scale, basis, share, wide):
    E = rows(n, d, seed, scale)
    width = 1 + int(wide * (d - 1))
    nullity = int(share * width)
    variance = {}
    for standardise in ("all", "row", "none"):
        space = decompose(E, null_dim=nullity, width=width, standardise=standardise, basis=basis)
        variance[standardise] = space.project(E).astype(np.float64).var(axis=0)
    S = space.singular_values
    alive = S > 1e-9 * space.spectrum[0]
    row = np.arange(width) < width - nullity
    assert space.row_dim == row.sum()
    if basis == "principal" and n <= d:
        assert alive.sum() == min(n - 1, width)
    np.testing.assert_allclose(variance["all"], alive, rtol=1e-4)
    np.testing.assert_allclose(variance["row"], np.where(alive, np.where(row, 1, S), 0), rtol=1e-4)
    np.testing.assert_allclose(variance["none"], np.where(alive, S, 0), rtol=1e-4)


def test_exactly_null_directions_carry_exactly_zero():
    E = rows(5, 9)
    space = decompose(E, null_dim=3)
    assert (space.singular_values[4:] < 1e-12).all()
    assert (space.gain[:4] > 0).all() and space.gain[4:].tolist() == [0.0] * 5
    for some in (E, rows(30, 9, seed=4)):  # texts of other items would find something there
        assert (space.project(some)[:, 4:] == 0).all()
        assert np.isfinite(space.project(some)).all()


def test_a_small_decomposition_takes_one_thread(monkeypatch):
    from threadpoolctl import threadpool_info

    seen, there = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda *given: seen.append(
        {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}) or there(*given))
    decompose(rows(50, 8), null_dim=2)
    assert seen == [{1}]


def test_rounding_noise_is_not_blown_up():
    # Three directions hold nothing but noise at 1e-7 of the rest, that is 1e-14 of the variance.
    E = rows(200, 8)
    values, U = np.linalg.eigh(np.cov(E.T))
    E = E @ U[:, 3:] @ U[:, 3:].T + 1e-7 * np.random.default_rng(1).standard_normal(E.shape)
    assert decompose(E, null_dim=4).gain.astype(bool).tolist() == [True] * 5 + [False] * 3
    assert (decompose(E, null_dim=4).project(E)[:, 5:] == 0).all()
    assert decompose(E, threshold=0).nullity == decompose(E, relative_threshold=0).nullity == 3
    assert decompose(E, null_dim=4, epsilon=0).project(E)[:, 5:].std() == pytest.approx(1, abs=0.1)


def test_epsilon_is_relative_to_the_largest_variance():
    E = np.diag([10.0, 1.0, 0.1]).repeat(2, axis=0) * np.array([1, -1] * 3)[:, None]  # S = 100/3, 1/3, 0.01/3
    for epsilon, alive in ((1e-5, 3), (1e-3, 2), (1e-1, 1)):
        for scale in (1, 1e-6, 1e6):
            assert (decompose(scale * E, null_dim=0, epsilon=epsilon).gain > 0).sum() == alive


def test_the_leading_subspace_is_that_of_scikit_learn():
    E = rows(80, 12, seed=5)
    for width in (1, 4, 12):
        reference = PCA(width, svd_solver="full").fit(E)
        space = decompose(E, null_dim=0, width=width, standardise="none")
        projector = reference.components_.T @ reference.components_
        np.testing.assert_allclose(space.basis @ space.basis.T, projector, atol=1e-10)
        np.testing.assert_allclose(space.singular_values, reference.explained_variance_ * 79 / 80)
        np.testing.assert_allclose(np.abs(space.project(E)), np.abs(reference.transform(E)), atol=1e-5)
        whitened = PCA(width, svd_solver="full", whiten=True).fit_transform(E)
        ours = decompose(E, null_dim=0, width=width).project(E)
        np.testing.assert_allclose(np.abs(ours), np.abs(whitened) * np.sqrt(80 / 79), atol=1e-5)


def test_new_rows_are_projected_with_the_mean_and_basis_of_the_old():
    E = rows(50, 6)
    space = decompose(E, null_dim=2, standardise="none")
    other = rows(7, 6, seed=9)
    np.testing.assert_allclose(space.project(other), (other - E.mean(axis=0)) @ space.basis, atol=1e-5)
    np.testing.assert_allclose(space.project(other[:1]), space.project(other)[:1], atol=1e-6)


def test_float32_rows_are_decomposed_in_float64():
    E = rows(300, 10).astype(np.float32)
    space = decompose(E, null_dim=2)
    assert space.spectrum.dtype == space.basis.dtype == space.mean.dtype == np.float64
    np.testing.assert_array_equal(space.spectrum, decompose(E.astype(np.float64), null_dim=2).spectrum)


def test_signs_are_fixed():
    E = rows(60, 7)
    basis = decompose(E, null_dim=2).basis
    largest = np.abs(basis).argmax(axis=0)
    assert (basis[largest, np.arange(7)] > 0).all()
    for same in (-E, E[::-1], np.repeat(E, 2, axis=0), 3 * E + 1):
        np.testing.assert_allclose(decompose(same, null_dim=2).basis, basis, atol=1e-9)


def test_the_random_basis_is_seeded():
    E = rows(60, 7)
    one, again, other = (decompose(E, null_dim=2, basis="random", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.basis, again.basis)
    assert np.abs(one.basis - other.basis).max() > 0.1
    np.testing.assert_array_equal(one.spectrum, other.spectrum)  # whatever the basis
    assert one.singular_values[0] < one.spectrum[0] and one.singular_values[-1] > one.spectrum[-1]
    principal = [decompose(E, null_dim=2, seed=seed).basis for seed in (1, 2)]
    np.testing.assert_array_equal(*principal)


# Where the null space starts

# Variances 4, 1, 0.25, 0.0625 along rotated axes; mean variance 1.328125.
AXES = np.array([2.0, 1.0, 0.5, 0.25])
CROSS = np.sqrt(4) * np.vstack([np.diag(AXES), -np.diag(AXES)]) @ ortho_group.rvs(4, random_state=3) + 7


@pytest.mark.parametrize(
    ("rule", "nullity", "full"),
    [
        (dict(threshold=0.01), 0, 0),
        (dict(threshold=0.1), 1, 1),
        (dict(threshold=0.9), 2, 2),
        (dict(threshold=1.1), 3, 3),
        (dict(threshold=5), 4, 4),
        (dict(threshold=float("inf")), 4, 4),
        (dict(threshold=0), 0, 0),
        (dict(relative_threshold=0.04), 0, 0),  # 0.053
        (dict(relative_threshold=0.05), 1, 1),  # 0.066
        (dict(relative_threshold=0.74), 2, 2),  # 0.98
        (dict(relative_threshold=0.77), 3, 3),  # 1.02
        (dict(relative_threshold=4), 4, 4),
        (dict(null_dim=0), 0, 0),
        (dict(null_dim=3), 3, 3),
        (dict(null_dim=4), 4, 4),
        (dict(threshold=0.1, width=3), 0, 1),
        (dict(threshold=0.9, width=3), 1, 2),
        (dict(threshold=0.9, width=2), 0, 2),
        (dict(threshold=5, width=2), 2, 4),
        (dict(relative_threshold=0.5, width=2), 0, 2),  # relative to the mean of all four, kept or not
        (dict(null_dim=0, width=3), 0, 1),
        (dict(null_dim=2, width=3), 2, 3),
        (dict(null_dim=3, width=3), 3, 4),
    ],
    ids=str,
)
def test_rules_by_hand(rule, nullity, full):
    space = decompose(CROSS, **rule)
    np.testing.assert_allclose(space.spectrum, [4, 1, 0.25, 0.0625])
    assert (space.nullity, space.full_nullity) == (nullity, full)
    assert space.width == rule.get("width", 4) and space.row_dim == space.width - nullity
    assert space.basis.shape == (4, space.width) and space.project(CROSS).shape == (8, space.width)


@pytest.mark.parametrize("k", range(6))
@pytest.mark.parametrize("basis", ["principal", "random"])
def test_a_variance_equal_to_the_threshold_is_null(k, basis):
    E = rows(40, 6)
    S = decompose(E, null_dim=0, basis=basis).singular_values
    assert decompose(E, threshold=S[k], basis=basis).nullity == 6 - k
    assert decompose(E, threshold=np.nextafter(S[k], 0), basis=basis).nullity == 5 - k


def test_thresholds_scale_with_the_square_and_relative_ones_do_not():
    E = rows(40, 6)
    for scale in (0.1, 40):
        for threshold in (0.2, 1.0, 2.5):
            nullity = decompose(E, threshold=threshold).nullity
            assert decompose(scale * E, threshold=scale**2 * threshold).nullity == nullity
            relative = decompose(E, relative_threshold=threshold).nullity
            assert decompose(scale * E, relative_threshold=threshold).nullity == relative


@pytest.mark.parametrize("basis", ["principal", "random"])
def test_both_ends(basis):
    E = rows(40, 6)
    text, ids = (decompose(E, null_dim=n, width=5, standardise="row", basis=basis) for n in (0, 5))
    assert (text.row_dim, ids.row_dim) == (5, 0)
    np.testing.assert_allclose(text.project(E).var(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(ids.project(E).var(axis=0), ids.singular_values, rtol=1e-4)


def test_the_nullity_changes_nothing_but_the_standardisation():
    E = rows(40, 6)
    one, other = decompose(E, null_dim=1), decompose(E, threshold=2.0)
    assert one.nullity != other.nullity
    np.testing.assert_array_equal(one.basis, other.basis)
    np.testing.assert_array_equal(one.project(E), other.project(E))


def test_table_of_nullities():
    E = 2 * CROSS  # variances 16, 4, 1, 0.25; mean 5.3125
    got = nullities(E, width=3, thresholds=(0.2, 0.5, 2, 5))
    wanted = [("threshold", 0.2, 0, 0), ("threshold", 0.5, 1, 0)]
    wanted += [("threshold", 2, 2, 1), ("threshold", 5, 3, 2)]
    wanted += [("relative_threshold", 0.2, 2, 1), ("relative_threshold", 0.5, 2, 1)]
    wanted += [("relative_threshold", 2, 3, 2), ("relative_threshold", 5, 4, 3)]
    assert [(row["rule"], row["value"], row["full_nullity"], row["nullity"]) for row in got] == wanted
    table = nullities(rows(40, 6), width=4)
    assert [row["value"] for row in table] == [*THRESHOLDS, *THRESHOLDS]
    assert THRESHOLDS == (0.001, 0.01, 0.1, 0.25, 0.5)


# Weights


@quick
@given(n=st.integers(2, 20), d=st.integers(1, 6), seed=st.integers(0, 999), data=st.data())
def test_weights_equal_repeated_rows(n, d, seed, data):
    E = rows(n, d, seed) if d > 1 else np.random.default_rng(seed).standard_normal((n, 1))
    popularity = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    popularity[[0, -1]] += 1  # two items at least
    mean, sigma = covariance(E, popularity)
    repeated = np.repeat(E, popularity, axis=0)
    for got, reference in ((mean, repeated.mean(axis=0)), (sigma, np.cov(repeated.T, bias=True))):
        np.testing.assert_allclose(got, reference.reshape(got.shape), rtol=1e-9, atol=1e-12)
    for got, wanted in zip(covariance(repeated), (mean, sigma), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(covariance(E, 0.37 * popularity)[1], sigma, rtol=1e-9, atol=1e-12)


def test_decompose_uses_the_weights():
    E, popularity = rows(30, 5), np.arange(30) % 4
    one = decompose(E, null_dim=2, weights=popularity)
    other = decompose(np.repeat(E, popularity, axis=0), null_dim=2)
    np.testing.assert_allclose(one.spectrum, other.spectrum)
    np.testing.assert_allclose(one.project(E), other.project(E), atol=1e-5)
    assert np.abs(one.mean - decompose(E, null_dim=2).mean).max() > 0.01
    equal = decompose(E, null_dim=2, weights=np.full(30, 9))
    np.testing.assert_allclose(equal.project(E), decompose(E, null_dim=2).project(E), atol=1e-5)


# Wrong input

GOOD = rows(20, 6)
INFINITE, MISSING = GOOD.copy(), GOOD.copy()
INFINITE[7, 2], MISSING[4, 0] = np.inf, np.nan


@pytest.mark.parametrize(
    ("embeddings", "arguments", "words"),
    [
        (GOOD, {}, r"give exactly one of threshold, relative_threshold, null_dim \(got none\)"),
        (GOOD, dict(threshold=1, null_dim=2), r"exactly one of .* \(got threshold, null_dim\)"),
        (GOOD, dict(threshold=0, relative_threshold=0), r"\(got threshold, relative_threshold\)"),
        (GOOD, dict(null_dim=1, standardise="some"), "standardise: 'some' is not one of all, row, none"),
        (GOOD, dict(null_dim=1, basis="wavelet"), "basis: 'wavelet' is not one of principal, random"),
        (GOOD, dict(null_dim=1, width=0), "width: 0 is not between 1 and .* 6 dim"),
        (GOOD, dict(null_dim=1, width=7), "width: 7 is not between 1 and .* 6 dim"),
        (GOOD, dict(null_dim=7), "null_dim: 7 is not between 0 and the 6 kept"),
        (GOOD, dict(null_dim=4, width=3), "null_dim: 4 is not between 0 and the 3 kept"),
        (GOOD, dict(null_dim=-1), "null_dim: -1 is not between"),
        (GOOD, dict(threshold=-0.1), "^threshold: -0.1 is not a number of at least 0"),
        (GOOD, dict(threshold=np.nan), "^threshold: nan"),
        (GOOD, dict(relative_threshold=-1), "^relative_threshold: -1"),
        (GOOD[:1], dict(null_dim=1), r"embeddings: shape \(1, 6\) is not \(N, d\) with N of at least 2"),
        (GOOD[:0], dict(null_dim=1), r"embeddings: shape \(0, 6\)"),
        (GOOD[0], dict(null_dim=1), r"embeddings: shape \(6,\)"),
        (INFINITE, dict(null_dim=1), "embeddings: row 7 is not finite"),
        (MISSING, dict(null_dim=1), "embeddings: row 4 is not finite"),
        (np.zeros((5, 3)), dict(null_dim=1), "embeddings: all rows are the same"),
        (np.full((1000, 3), 0.1), dict(null_dim=1), "embeddings: all rows are the same"),
        (np.full((7, 384), 0.1, np.float32), dict(null_dim=1), "embeddings: all rows are the same"),
        (GOOD, dict(null_dim=1, weights=np.eye(20)[3]), "embeddings: all rows are the same"),
        (GOOD, dict(null_dim=1, weights=np.ones(19)), "weights: need 20 finite, non-negative"),
        (GOOD, dict(null_dim=1, weights=np.ones((20, 1))), "weights: need 20"),
        (GOOD, dict(null_dim=1, weights=np.zeros(20)), "weights: need 20 .* positive sum"),
        (GOOD, dict(null_dim=1, weights=np.r_[-1, np.ones(19)]), "weights: need 20"),
        (GOOD, dict(null_dim=1, weights=np.r_[np.nan, np.ones(19)]), "weights: need 20"),
        (GOOD, dict(null_dim=1, weights=np.r_[np.inf, np.ones(19)]), "weights: need 20"),
    ],
)
def test_wrong_input_is_one_sentence(embeddings, arguments, words):
    with pytest.raises(InputError, match=words) as caught:
        decompose(embeddings, **arguments)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


NO_MATRIX = {
    "0-d": np.float64(3), "1-d": GOOD[0], "3-d": GOOD[:, None], "no row": GOOD[:0], "no column": GOOD[:, :0],
    "complex": GOOD + 1j, "text": GOOD.astype(str), "objects": GOOD.astype(object), "fields": np.zeros((4, 2), [("x", "f4")]),
    "ragged": [[1.0, 2.0], [3.0]], "dates": np.zeros((4, 2), "M8[s]"), "NaN": MISSING, "infinite": INFINITE, "nothing": None,
}


@pytest.mark.parametrize("embeddings", NO_MATRIX.values(), ids=NO_MATRIX)
@pytest.mark.parametrize("use", [lambda rows: decompose(rows, null_dim=1), lambda rows: nullities(rows, 2),
                                 lambda rows: preservation(rows, GOOD), lambda rows: preservation(GOOD, rows)],
                         ids=["decompose", "nullities", "before", "after"])
@pytest.mark.filterwarnings("error")
def test_what_is_no_matrix_of_real_numbers_is_refused(embeddings, use):
    with pytest.raises(InputError, match="^(embeddings|vectors)"):
        use(embeddings)


@pytest.mark.parametrize("name", ["width", "null_dim"])
@pytest.mark.parametrize("value", [1.5, np.nan, np.inf, -np.inf, "2", True, 10**400, -1, [2], 2 + 0j])
def test_a_width_is_a_whole_number_within_the_dimensions(name, value):
    with pytest.raises(InputError, match=f"^{name}"):
        decompose(GOOD, **{"null_dim": 1, name: value})
    assert decompose(GOOD, **{"null_dim": 1, name: np.float32(2)}).width == (2 if name == "width" else 6)


@pytest.mark.parametrize("name", ["threshold", "relative_threshold", "epsilon"])
@pytest.mark.parametrize("value", ["0.1", True, np.nan, -np.inf, [0.1], 1j])
def test_a_threshold_is_a_number_of_at_least_0(name, value):
    with pytest.raises(InputError, match=f"^{name}"):
        decompose(GOOD, **{name: value} | ({"null_dim": 1} if name == "epsilon" else {}))


@pytest.mark.parametrize("weights", [np.ones(20, complex), ["a"] * 20, [None] * 20, np.ones(21), 3.0])
def test_weights_are_a_real_number_for_each_row(weights):
    with pytest.raises(InputError, match="^weights"):
        decompose(GOOD, null_dim=1, weights=weights)


@pytest.mark.parametrize("scale", [2.0**-400, 2.0**-1060, 2.0**1000])
def test_weights_of_any_size_weigh_alike(scale):
    weights = np.arange(20) % 4
    space = decompose(GOOD, null_dim=1, weights=weights)
    np.testing.assert_allclose(decompose(GOOD, null_dim=1, weights=weights * scale).spectrum, space.spectrum, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "longdouble", "int16", "uint8", "bool"])
def test_every_kind_of_real_number_is_decomposed_alike(dtype):
    E = (np.abs(GOOD) // 0.5).astype(dtype)
    space, exact = decompose(E, null_dim=1), decompose(E.astype(np.float64), null_dim=1)
    np.testing.assert_allclose(space.spectrum, exact.spectrum, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e160, 1e300])
@pytest.mark.filterwarnings("error")
def test_embeddings_whose_squares_are_beyond_float64_are_refused(scale):
    with pytest.raises(InputError, match="embeddings: .*unit norm"):
        decompose(GOOD * scale, null_dim=1)
    with pytest.raises(InputError, match="embeddings"):
        decompose(GOOD * 1e60, null_dim=1, standardise="none").project(GOOD * 1e60)


# Preservation


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e200, 1e307])
def test_preservation_does_not_depend_on_scale(scale):
    shrink = 10.0 if scale > 1 else 1.0
    same = preservation(GOOD, GOOD * scale / shrink)
    assert same["neighbour_overlap"] > 0.9 and same["cosine_rank_correlation"] > 0.99


def test_one_item_or_other_items_have_no_neighbours():
    for left, right in ((GOOD[:1], GOOD[:1]), (GOOD, GOOD[:5]), (GOOD[:1], GOOD)):
        with pytest.raises(InputError, match="embeddings and vectors"):
            preservation(left, right)
    for arguments in ({"neighbours": 0}, {"sample": 0}, {"neighbours": 2.5}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            preservation(GOOD, GOOD, **arguments)


def test_cosines_by_hand():
    vectors = np.array([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0], [0.0, 0.0], [5.0, 0.0]])
    pairs = np.array([0, 0, 0, 0, 3, 3]), np.array([0, 1, 2, 4, 0, 3])
    np.testing.assert_allclose(cosines(vectors, pairs), [1, -1, 0, 0.6, 0, 0], atol=1e-15)
    assert cosines(vectors.astype(np.float32), pairs).dtype == np.float64


def test_random_pairs_are_distinct_and_uniform():
    left, right = random_pairs(5, 40_000)
    assert (left != right).all() and left.min() >= 0 and right.max() < 5
    counts = np.bincount(5 * left + right, minlength=25)
    assert chisquare(counts[counts > 0]).pvalue > 1e-3 and (counts > 0).sum() == 20
    np.testing.assert_array_equal(random_pairs(5, 10, seed=3), random_pairs(5, 10, seed=3))
    assert set(zip(*(side.tolist() for side in random_pairs(2, 50)), strict=True)) == {(0, 1), (1, 0)}


def test_identical_and_rotated_vectors_preserve_everything():
    E = rows(150, 12)
    turn = ortho_group.rvs(12, random_state=1)
    wide = np.hstack([E @ turn, np.zeros((150, 5))]) * np.linspace(0.1, 9, 150)[:, None]  # lengths are free
    for vectors in (E, wide):
        got = preservation(E, vectors)
        assert got["neighbour_overlap"] == 1.0
        assert got["cosine_rank_correlation"] == pytest.approx(1.0, abs=1e-9)


def test_unrelated_vectors_preserve_what_chance_does():
    rng = np.random.default_rng(0)
    n, k = 400, 10
    got = preservation(rng.standard_normal((n, 32)), rng.standard_normal((n, 32)), neighbours=k)
    assert got["neighbour_overlap"] == pytest.approx(k / (n - 1), abs=0.01)
    assert abs(got["cosine_rank_correlation"]) < 0.03


def test_opposite_order_is_told_apart_from_no_order():
    angles = np.linspace(0, np.pi / 2, 40) ** 1.3
    E = np.c_[np.cos(angles), np.sin(angles)]
    # Cosines of the negated Gram matrix are the old ones in reverse.
    gram = np.eye(40) - 0.02 * (E @ E.T - np.eye(40))
    vectors = np.linalg.cholesky(gram)
    assert preservation(E, vectors)["cosine_rank_correlation"] == pytest.approx(-1, abs=1e-6)
    assert preservation(E, vectors)["neighbour_overlap"] < 0.15


@pytest.mark.parametrize(("neighbours", "sample"), [(1, 100), (5, 100), (5, 8), (29, 30), (50, 30)])
def test_preservation_equals_a_plain_loop(neighbours, sample):
    rng = np.random.default_rng(8)
    E, vectors = rng.standard_normal((30, 6)), rng.standard_normal((30, 4))
    vectors[:, :3] += 2 * E[:, :3]

    def nearest(matrix, row):
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        order = [int(other) for other in np.argsort(-(unit @ unit[row])) if other != row]
        return set(order[:neighbours])

    shares = [len(nearest(E, row) & nearest(vectors, row)) / min(neighbours, 29) for row in range(30)]
    got = preservation(E, vectors, neighbours=neighbours, sample=sample, seed=4)
    if sample >= 30:
        assert got["neighbour_overlap"] == pytest.approx(np.mean(shares))
    else:  # eight of the thirty items, whichever they are: a multiple of 1/(8·5) near the whole
        assert got["neighbour_overlap"] * 40 == pytest.approx(round(got["neighbour_overlap"] * 40))
        assert got["neighbour_overlap"] == pytest.approx(np.mean(shares), abs=0.25)
    pairs = random_pairs(30, 870, seed=4)
    reference = spearmanr(cosines(E, pairs), cosines(vectors, pairs)).statistic
    assert got["cosine_rank_correlation"] == pytest.approx(reference, abs=1e-6)


def test_blocks_of_a_large_catalogue_give_the_same():
    # 3,000 × 3,000 similarities are made in two blocks. Neighbours on a circle are known without sorting.
    angles = 2 * np.pi * np.random.default_rng(2).permutation(3000) / 3000
    circle = np.c_[np.cos(angles), np.sin(angles)]
    turned = circle @ np.array([[0.6, -0.8], [0.8, 0.6]])
    assert preservation(circle, turned, neighbours=2, sample=3000)["neighbour_overlap"] == 1.0


def test_a_projection_keeps_more_the_more_it_keeps():
    E = rows(200, 16)
    E -= E.mean(axis=0)
    overlaps = []
    for width in (2, 6, 16):
        space = decompose(E, null_dim=0, width=width, standardise="none")
        overlaps.append(preservation(E, space.project(E))["neighbour_overlap"])
    assert overlaps[0] < overlaps[1] < overlaps[2] and overlaps[2] > 0.999
