"""One contract for every way of making item embeddings on every backbone, and what single methods promise."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nullrec_lib.backbones import BACKBONES
from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.evaluation import metrics, rank_all
from nullrec_lib.files import write_tensors
from nullrec_lib.kernels.lookup import Items, Tokens
from nullrec_lib.methods import METHODS, RULES, runs_on
from nullrec_lib.methods import itemknn
from nullrec_lib.methods.itemknn import ItemKNN
from nullrec_lib.methods.method import Material, Method, id_table, pad_row
from nullrec_lib.methods.popularity import Popularity
from nullrec_lib.methods.textknn import TextKNN
from nullrec_lib.nullspace import decompose
from nullrec_lib.preparing import Prepared, build
from nullrec_lib.spec import Spec
from nullrec_lib.training import Scorer, load_weights, fit

N, LENGTH, WIDTH = 40, 6, 16
FIT = dict(lr=1e-2, batch_size=16, epochs=3, patience=9, select="authors", seed=5)


def embeddings(n: int = N, dimensions: int = 24) -> np.ndarray:
    rows = np.random.default_rng(1).standard_normal((n, dimensions)) * np.linspace(2, 0.1, dimensions) + 0.5
    return (5 * rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def by_hand(sequences: list[list[int]], roles: str, n_items: int = N) -> Split:
    """A split of sequences by users; `roles` has one letter per user: r (train), v, t."""
    offsets = np.cumsum([0, *map(len, sequences)])
    role = np.repeat(list(roles), np.diff(offsets))
    place, owned = np.arange(offsets[-1]), role == "r"
    # each user's first item has no history
    parts = [place[(role == part) & ~np.isin(place, offsets)] for part in "rvt"]
    return Split("cold-start", n_items, np.concatenate(sequences).astype(np.int64), offsets, *parts, owned)


def sequences(count: int = 16, seed: int = 0, top: int = N - 2) -> list[list[int]]:
    """Lengths from 2 to 11 (longer than a history). The two last items are in nobody's sequence."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(top)[: 2 + u % 10].tolist() for u in range(count)]


SPLIT = by_hand(sequences(), "rrrrrrrrrrrrvvtt")
PREPARED = Prepared(None, SPLIT, embeddings())


def spec(method: str, backbone: str = "sasrec", **chosen) -> Spec:
    own = {"negatives": 8} if backbone == "sasrec" else {}
    own |= {"similar_users": 3} if method == "llm-esr" else {}
    return Spec(**({"method": method, "backbone": backbone, "width": WIDTH, "history_length": LENGTH, "seed": 3}
                   | own | chosen))


def examples(part: str = "train", split: Split = SPLIT) -> Examples:
    return Examples(split, part, LENGTH)


def whole(part: str = "train", split: Split = SPLIT) -> Batch:
    part = examples(part, split)
    return part.batch(torch.arange(len(part)))


def states(model, batch: Batch) -> torch.Tensor:
    return model.states(batch, Items(model.method.rows()))


def padded(*histories: list[int]) -> Batch:
    rows = [[N] * (LENGTH - len(history)) + history for history in histories]
    zero = torch.zeros(len(rows), dtype=torch.int64)
    return Batch(torch.tensor(rows), zero, zero, zero)


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


PAIRS = [(method, backbone) for method in METHODS for backbone in BACKBONES if runs_on(method, backbone)]


@pytest.fixture(params=PAIRS, ids="-".join)
def chosen(request) -> Spec:
    return spec(*request.param)


@pytest.fixture
def model(chosen):
    return build(chosen, PREPARED).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(method, backbone) → the model before and after a short training, made once for all tests."""
    made = {}

    def get(chosen: Spec):
        if chosen not in made:
            model = build(chosen, PREPARED)
            before = snapshot(model)
            fit(model, examples(), examples("valid"), tmp_path_factory.mktemp("fit"), **FIT)
            made[chosen] = before, model
        return made[chosen]

    return get


# Every method on every backbone


def test_shapes(model):
    method, batch, width = model.method, whole(), sum(model.method.widths)
    assert method.n_items == N
    assert method.table().shape == (N, width) and method.table().dtype == torch.float32
    assert method.vectors(batch.history).shape == (*batch.history.shape, width)
    views = method.views(batch, Items(method.rows()))
    assert [view.vectors.shape[-1] for view in views] == list(method.widths)
    for view in views:
        assert view.mask.shape == view.vectors.shape[:2] == (len(batch.target), LENGTH + method.extra_tokens)
        assert view.mask.dtype == torch.bool
        assert torch.equal(view.mask[:, method.extra_tokens :].sum(1) >= (batch.history != N).sum(1),
                           torch.ones(len(batch.target), dtype=torch.bool))
    state = states(model, batch)
    assert state.shape == (len(batch.target), width)
    assert Scorer(model).scores(batch).shape == (len(batch.target), N)
    assert model.loss(batch).shape == () and torch.isfinite(model.loss(batch))


def test_table_rows_are_the_vectors_of_their_items(model):
    table = model.method.table()
    for item in (0, 7, N - 1):
        torch.testing.assert_close(table[item], model.method.vectors(torch.tensor(item)))  # an adaptor multiplies
    torch.testing.assert_close(table[[3, 3, 1]], model.method.vectors(torch.tensor([3, 3, 1])))
    assert len(table.unique(dim=0)) == N  # no two items look the same


def test_padding_is_zero_and_inert_through_training(chosen, trained):
    before, model = trained(chosen)
    assert (model.method.vectors(torch.tensor([N, 0, N]))[[0, 2]] == 0).all()
    for name, tensor in model.state_dict().items():
        if name.startswith("method.") and tensor.ndim == 2 and len(tensor) == N + 1:
            assert (before[name][N] == 0).all() and (tensor[N] == 0).all(), name


def test_the_padding_row_of_a_table_gets_no_gradient():
    table = id_table(torch.ones(3, 2))
    table(torch.tensor([3, 0, 3])).sum().backward()
    assert table.weight.grad.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]
    assert table.weight[3].tolist() == [0, 0]


def test_gradients_reach_what_is_trainable_and_nothing_else(chosen, trained):
    before, model = trained(chosen)
    model.train().zero_grad()
    model.loss(whole()).backward()
    assert any(p.requires_grad for p in model.parameters())
    last = f"backbone.blocks.{len(model.backbone.blocks) - 1}.key.bias"  # shifts all scores alike, so it is not read
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (parameter.requires_grad and name != last), name
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    assert all(not buffer.requires_grad and buffer.grad is None for buffer in model.buffers())
    model.zero_grad(set_to_none=True)


def test_frozen_stays_bit_identical_and_the_rest_learns(chosen, trained):
    before, model = trained(chosen)
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in model.state_dict().items():
        if name not in learned:
            assert torch.equal(tensor, before[name]), name
    # a key's bias shifts all scores of a query alike, so it alone may stay where it was
    still = {name for name in learned if torch.equal(model.state_dict()[name], before[name])}
    assert {name for name in still if not name.endswith("key.bias")} == set()


def test_saving_and_loading_gives_the_same_model(chosen, trained, tmp_path):
    _, model = trained(chosen)
    write_tensors(tmp_path / "model.safetensors", model.state_dict())
    again = build(Spec(**vars(chosen) | {"seed": 99}), PREPARED)
    batch = whole("test")
    load_weights(again, tmp_path / "model.safetensors")
    ours, theirs = Scorer(model), Scorer(again)
    assert torch.equal(ours.table, theirs.table)
    assert torch.equal(ours.scores(batch), theirs.scores(batch))


def test_overfits_ten_users(chosen, tmp_path):
    # Every prefix is unlike every other one, so a model that learns at all can learn them by heart.
    split = by_hand([list(range(u, u + 31, 6)) for u in range(10)], "r" * 10)
    # Detached, as items that may move would make the squared error small by meeting in one point.
    own = {"negatives": 30} if chosen.backbone == "sasrec" else {"detach_target": True, "guidance": 0.0}
    own |= {"adaptor_dropout": 0.0} if chosen.method == "unisrec" else {}
    overfitting = Spec(**vars(chosen) | {"dropout": 0.0} | own)
    model = build(overfitting, Prepared(None, split, embeddings()))
    train = examples("train", split)
    scorer = Scorer(build(overfitting, Prepared(None, split, embeddings())))
    untrained = metrics(rank_all(scorer, train, scorer.similarity)["consistent"])["N@10"]
    told = fit(model, train, train, tmp_path, **FIT | {"epochs": 60, "patience": 60}).history
    # Judged by the similarity that was trained: raw products also ask for norms, which an adaptor cannot set freely.
    assert untrained < 0.5 and told[-1]["valid_consistent"]["N@10"] > 0.85
    if chosen.backbone == "sasrec":  # a diffusion's error depends on the scale that its targets grow to
        assert told[-1]["loss"] < 0.3 * told[0]["loss"]


def test_state_does_not_know_the_future(chosen, trained):
    """Change every target of a held-out user from some place on: no state before it may move."""
    _, model = trained(chosen)
    model.eval()
    for part in ("valid", "test"):
        for example, place in enumerate(getattr(SPLIT, part)):
            user = SPLIT.user_of(place)
            items = SPLIT.items.copy()
            later = slice(place, SPLIT.offsets[user + 1])
            items[later] = (items[later] + 11) % N
            other = Split(SPLIT.protocol, N, items, *(getattr(SPLIT, name) for name in
                          ("offsets", "train", "valid", "test", "owned")))
            index = torch.tensor([example])
            seen, changed = examples(part).batch(index), examples(part, other).batch(index)
            assert int(seen.target) != int(changed.target)
            assert torch.equal(states(model, seen), states(model, changed))


def test_held_out_sequences_do_not_reach_the_item_table(chosen):
    items = SPLIT.items.copy()
    items[~SPLIT.owned] = (items[~SPLIT.owned] + 11) % N
    other = Split(SPLIT.protocol, N, items, SPLIT.offsets, SPLIT.train, SPLIT.valid, SPLIT.test, SPLIT.owned)
    ours, theirs = (build(chosen, Prepared(None, split, embeddings())).eval() for split in (SPLIT, other))
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert torch.equal(ours.method.table(), theirs.method.table())


def test_results_do_not_depend_on_the_batch_size(chosen, trained):
    _, model = trained(chosen)
    scorer, part = Scorer(model), examples("test")
    every = torch.arange(len(part))
    together = scorer.scores(part.batch(every))
    apart = torch.cat([scorer.scores(part.batch(index)) for index in every.split(1)])
    thirds = torch.cat([scorer.scores(part.batch(index)) for index in every.split(3)])
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(thirds, together, rtol=1e-4, atol=1e-4)


def test_a_history_of_padding_gives_finite_states(chosen, trained):
    _, model = trained(chosen)
    model.eval()
    batch = padded([], [1, 2])
    state = states(model, batch)
    assert torch.isfinite(state).all() and not torch.equal(state[0], state[1])
    model.zero_grad()
    model.train().loss(batch).backward()
    trained_on = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    assert all(torch.isfinite(grad).all() for name, grad in trained_on if not name.endswith("key.bias"))


def test_initial_weights_follow_from_the_seed(chosen):
    ours, again = (snapshot(build(chosen, PREPARED)) for _ in range(2))
    other = snapshot(build(Spec(**vars(chosen) | {"seed": 4}), PREPARED))
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert any(not torch.equal(ours[name], other[name]) for name in ours)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_asks_for_is_a_field_of_the_spec(method):
    import inspect

    names = set(inspect.signature(METHODS[method]).parameters) - {"material"}
    assert names <= set(vars(Spec()))


# Starts


def test_base_starts_from_a_standard_normal():
    table = build(spec("base", width=64), Prepared(None, SPLIT, embeddings())).method.table()
    assert abs(float(table.detach().mean())) < 0.08 and abs(float(table.detach().std()) - 1) < 0.05


@pytest.mark.parametrize("method", ["llminit", "frozen"])
def test_llminit_and_frozen_start_from_the_principal_components(method):
    E = embeddings().astype(np.float64)
    table = build(spec(method), PREPARED).method.table().detach().numpy().astype(np.float64)
    left, values, _ = np.linalg.svd(E - E.mean(0), full_matrices=False)
    expected = (left * values)[:, :WIDTH]
    expected *= np.sign((expected * table).sum(0))  # the sign of a component is arbitrary
    np.testing.assert_allclose(table, expected, atol=1e-4)
    trains = any(p.requires_grad for p in build(spec(method), PREPARED).method.parameters())
    assert trains == (method == "llminit")


# AlphaFuse


def alphafuse(**options) -> Method:
    return build(spec("alphafuse", **options), PREPARED).method


@pytest.mark.parametrize("options", [{}, {"null_dim": 3}, {"threshold": 0.3}, {"relative_threshold": 0.5},
                                     {"inject": "replace"}, {"basis": "random"}, {"cold": "zero"}], ids=str)
def test_row_space_columns_are_bit_identical_after_training(options, trained):
    before, model = trained(spec("alphafuse", **options))
    start, row = build(spec("alphafuse", **options), PREPARED).method.table(), model.method.frozen_dim
    after = model.method.table()
    assert 0 < row < WIDTH
    assert torch.equal(after[:, :row], start[:, :row])
    popular = model.method.vectors(torch.from_numpy(np.unique(SPLIT.items[SPLIT.owned])))
    assert not torch.equal(after[:, row:], start[:, row:]) and torch.isfinite(popular).all()


def test_half_of_the_width_is_null_space_by_default():
    assert (alphafuse().nullity, alphafuse().frozen_dim) == (WIDTH // 2, WIDTH // 2)
    assert alphafuse(null_dim=3).nullity == 3


def test_row_space_is_the_standardised_language():
    E = embeddings().astype(np.float64)
    table = alphafuse(null_dim=6).table().detach().numpy()
    rows = table[:, :10].astype(np.float64)
    np.testing.assert_allclose(rows.T @ rows / N, np.eye(10), atol=1e-5)  # white
    values = np.linalg.eigvalsh(np.cov(E.T, bias=True))[::-1]
    _, s, _ = np.linalg.svd(E - E.mean(0), full_matrices=False)
    np.testing.assert_allclose(s[:10] ** 2 / N, values[:10], rtol=1e-9)
    # the columns span the first ten principal components
    left = np.linalg.svd(E - E.mean(0), full_matrices=False)[0][:, :10]
    np.testing.assert_allclose(left @ (left.T @ rows), rows, atol=1e-4)


def test_add_puts_the_id_on_top_of_the_language_and_replace_in_its_place():
    space = decompose(embeddings(), null_dim=6, width=WIDTH)
    language = torch.from_numpy(space.project(embeddings()))
    add, replace = alphafuse(null_dim=6, inject="add"), alphafuse(null_dim=6, inject="replace")
    ids = add.id.weight[:-1]
    assert torch.equal(ids, replace.id.weight[:-1])
    assert torch.equal(add.table(), torch.cat([language[:, :10], language[:, 10:] + ids], dim=1))
    assert torch.equal(replace.table(), torch.cat([language[:, :10], ids], dim=1))


def test_init_zeros_starts_from_the_language_alone():
    method = alphafuse(init="zeros")
    assert (method.id.weight == 0).all()
    language = torch.from_numpy(decompose(embeddings(), null_dim=8, width=WIDTH).project(embeddings()))
    assert torch.equal(method.table(), language)
    normal = alphafuse(init="normal").id.weight[:-1].detach()
    assert abs(float(normal.std()) - 1) < 0.1 and abs(float(normal.mean())) < 0.15


def test_nullity_zero_is_frozen_text():
    method = alphafuse(null_dim=0)
    assert method.nullity == 0 and list(method.parameters()) == []
    assert torch.equal(method.table(), torch.from_numpy(
        decompose(embeddings(), null_dim=0, width=WIDTH).project(embeddings())))
    method = alphafuse(null_dim=0, standardise="none")
    assert torch.equal(method.table(), build(spec("frozen"), PREPARED).method.table())


def test_nullity_of_the_whole_width_is_pure_id():
    method = alphafuse(null_dim=WIDTH, inject="replace")
    assert (method.frozen_dim, method.nullity) == (0, WIDTH)
    assert torch.equal(method.table(), method.id.weight[:-1])
    assert alphafuse(threshold=1e9).nullity == WIDTH


def test_cold_zero_keeps_items_that_are_never_trained_at_their_language(trained):
    cold = np.setdiff1d(np.arange(N), SPLIT.items[SPLIT.owned])
    assert {N - 2, N - 1} <= set(cold)
    warm = np.setdiff1d(np.arange(N), cold)
    for options in ({"cold": "zero"}, {"cold": "zero", "inject": "replace"}):
        _, model = trained(spec("alphafuse", **options))
        method = model.method
        learned = (method.table() - method.language[:-1])[:, method.frozen_dim :].detach()
        assert (learned[cold] == 0).all() and (learned[warm].norm(dim=1) > 0).all()
    _, model = trained(spec("alphafuse", cold="init"))
    learned = (model.method.table() - model.method.language[:-1])[:, model.method.frozen_dim :].detach()
    assert (learned[cold].norm(dim=1) > 0).all()


@pytest.mark.parametrize("options", [{}, {"inject": "replace", "cold": "zero"}, {"null_dim": 0}], ids=str)
def test_a_row_space_that_is_not_frozen_starts_the_same_and_learns(options, trained):
    thawed, frozen = (build(spec("alphafuse", freeze=freeze, **options), PREPARED) for freeze in (False, True))
    row = frozen.method.frozen_dim
    assert torch.equal(thawed.method.table()[:, :row], frozen.method.table()[:, :row])
    assert thawed.method.frozen_dim == 0 and thawed.method.facts() == frozen.method.facts()
    more = thawed.parameter_counts()["params_trainable"] - frozen.parameter_counts()["params_trainable"]
    assert more == N * row
    assert thawed.parameter_counts()["params_total"] == frozen.parameter_counts()["params_total"]
    _, model = trained(spec("alphafuse", freeze=False, **options))
    moved = (model.method.table() - thawed.method.table()).detach()[: N - 2, :row].abs().sum(dim=0)
    assert (moved > 0).all()


def test_popularity_weights_change_the_space():
    uniform, popular = alphafuse(weighting="uniform"), alphafuse(weighting="popularity")
    assert not np.allclose(uniform.space.mean, popular.space.mean)
    weights = np.bincount(SPLIT.items[SPLIT.owned], minlength=N)
    expected = np.average(embeddings().astype(float), axis=0, weights=weights)
    np.testing.assert_allclose(popular.space.mean, expected)
    assert not torch.allclose(uniform.table()[:, :8], popular.table()[:, :8])


def test_the_random_basis_follows_from_the_seed():
    ours, again, other = (alphafuse(basis="random", seed=s).table()[:, :8] for s in (1, 1, 2))
    assert torch.equal(ours, again) and not torch.allclose(ours, other)
    assert torch.equal(alphafuse(seed=1).table()[:, :8], alphafuse(seed=2).table()[:, :8])


@pytest.mark.parametrize("options", [
    {"weighting": "none"}, {"inject": "both"}, {"init": "ones"}, {"cold": "warm"}, {"standardise": "some"},
    {"basis": "other"}, {"null_dim": WIDTH + 1}, {"null_dim": -1}, {"threshold": -1.0},
    {"relative_threshold": -1.0}, {"threshold": 0.1, "null_dim": 3}, {"width": 25},
    {"null_dim": WIDTH, "inject": "replace", "init": "zeros"},
], ids=str)
def test_bad_options_are_named(options):
    with pytest.raises(InputError) as error:
        alphafuse(**options)
    assert any(name in str(error.value) for name in [*options, "null space"])


def test_known_answer_of_2_90_million_parameters():
    n = 44_014
    split = by_hand([[0, 1, 2], [3, 4, 5], [6, 7, 8]], "rvt", n)
    prepared = Prepared(None, split, np.random.default_rng(0).standard_normal((n, 256)).astype(np.float32))
    model = build(Spec(method="alphafuse", width=128, null_dim=64, history_length=10, blocks=1), prepared)
    counts = model.parameter_counts()
    assert f"{counts['params_trainable'] / 1e6:.2f}" == "2.90"
    # 64 ID numbers per item; 10 positions; five square layers and two norms in the block; the last norm
    assert counts["params_trainable"] == n * 64 + 10 * 128 + 5 * (128 * 128 + 128) + 2 * 256 + 256
    assert counts["params_total"] == counts["params_trainable"] + n * 128


# Rules


def material(split: Split = SPLIT) -> Material:
    return Material.of(split, torch.from_numpy(embeddings()))


def rules() -> dict:
    known = material()
    return {"popularity": Popularity(known), "itemknn": ItemKNN(known, 5), "textknn": TextKNN(known)}


def test_the_contract_covers_every_rule():
    assert set(rules()) == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_rules_score_every_item_and_ignore_the_batch(name):
    rule, part = rules()[name], examples("test")
    every = torch.arange(len(part))
    scores = rule.scores(part.batch(every))
    assert scores.shape == (len(part), N) and scores.dtype == torch.float32
    apart = torch.cat([rule.scores(part.batch(index)) for index in every.split(1)])
    torch.testing.assert_close(apart, scores, rtol=1e-5, atol=1e-6)
    scores.fill_(-1.0)  # a mask is written into the scores: that must not reach the rule
    torch.testing.assert_close(rule.scores(part.batch(every)), apart, rtol=1e-5, atol=1e-6)
    empty = rule.scores(padded([]))
    assert torch.isfinite(empty).all()
    if name != "popularity":
        assert (empty == 0).all()


@pytest.mark.parametrize("name", RULES)
def test_rules_read_no_held_out_interaction(name):
    items = SPLIT.items.copy()
    items[~SPLIT.owned] = (items[~SPLIT.owned] + 11) % N
    other = Split(SPLIT.protocol, N, items, SPLIT.offsets, SPLIT.train, SPLIT.valid, SPLIT.test, SPLIT.owned)
    arguments = {"neighbours": 5} if name == "itemknn" else {}
    ours, theirs = (RULES[name](material(split), **arguments) for split in (SPLIT, other))
    assert torch.equal(ours.scores(padded([1, 2, 3])), theirs.scores(padded([1, 2, 3])))


def test_popularity_counts_training_interactions():
    counts = Popularity(material()).scores(padded([0], [1, 2]))
    trained_on = [item for user in sequences()[:12] for item in user]
    expected = [trained_on.count(item) for item in range(N)]
    assert counts.tolist() == [expected, expected]


def naive_itemknn(history: list[int], split: Split, neighbours: int) -> np.ndarray:
    matrix = np.zeros((len(split.offsets) - 1, N))
    for place in np.flatnonzero(split.owned):
        matrix[split.user_of(place), split.items[place]] = 1
    norm = np.sqrt((matrix**2).sum(0))
    similarity = matrix.T @ matrix / np.maximum(np.outer(norm, norm), 1e-12)
    np.fill_diagonal(similarity, 0)
    scores = np.zeros(N)
    for item in history:
        ranked = sorted(range(N), key=lambda other: (-round(similarity[item, other], 10), other))
        for other in ranked[:neighbours]:
            scores[other] += similarity[item, other]
    return scores


@pytest.mark.parametrize("pairs", [1, 200, 2**22])
@pytest.mark.parametrize("neighbours", [1, 4, 100])
def test_itemknn_is_what_a_dense_loop_says(neighbours, pairs, monkeypatch):
    monkeypatch.setattr(itemknn, "PAIRS", pairs)  # how many are in hand at once changes nothing
    # Few items and many users: similarities are rich, and one user has an item twice.
    rng = np.random.default_rng(4)
    users = [rng.integers(0, 25, size=8).tolist() for _ in range(30)]
    split = by_hand(users, "r" * 28 + "vt")
    rule = ItemKNN(material(split), neighbours)
    histories = [[3], [1, 2, 3], [5, 5], [24, 0, 7, 9], []]
    scores = rule.scores(padded(*histories))
    for row, history in zip(scores.numpy(), histories, strict=True):
        np.testing.assert_allclose(row, naive_itemknn(history, split, neighbours), atol=1e-6)


def test_itemknn_gives_ties_to_the_smaller_id():
    # Item 0 meets 1 twice (cosine 2/√(2·8)) and 2 once (1/√(2·2)): the same number on paper.
    users = [[0, 1], [0, 1, 2], *[[1, 3]] * 6, [2, 4]]
    similarity = ItemKNN(material(by_hand(users, "r" * 9)), 1).scores(padded([0]))[0]
    assert similarity.nonzero().flatten().tolist() == [1]
    assert float(similarity[1]) == pytest.approx(0.5)


def test_textknn_is_what_a_loop_says():
    E = embeddings().astype(float)
    rule = TextKNN(material())
    for history in ([3], [1, 2, 3], [5, 5, 0]):
        mean = np.mean([E[i] / np.linalg.norm(E[i]) for i in history], axis=0)
        expected = [mean @ row / np.linalg.norm(mean) / np.linalg.norm(row) for row in E]
        np.testing.assert_allclose(rule.scores(padded(history))[0].numpy(), expected, atol=1e-6)
    assert int(rule.scores(padded([3])).argmax()) == 3


# What comes later fits through the same seam


class TwoViews(Method):
    """Two tables read one after the other by the same backbone."""

    def __init__(self, material: Material, width: int):
        super().__init__()
        self.n_items, self.widths = material.n_items, (width // 2, width // 2)
        self.id = id_table(torch.randn(material.n_items, width // 2))
        self.register_buffer("language", pad_row(material.embeddings))
        self.adapter = torch.nn.Linear(material.embeddings.shape[1], width // 2, bias=False)

    def vectors(self, ids):
        return torch.cat([self.id(ids), self.adapter(F.embedding(ids, self.language))], dim=-1)


class WithProfile(Method):
    """A token made from the user's profile stands right before the first item of the history."""

    extra_tokens = 1

    def __init__(self, material: Material, width: int):
        super().__init__()
        self.n_items, self.widths = material.n_items, (width,)
        self.id, self.read = id_table(torch.randn(material.n_items, width)), torch.nn.Linear(12, width)

    def vectors(self, ids):
        return self.id(ids)

    def views(self, batch, items):
        mask = F.pad(batch.history != self.n_items, (1, 0))
        first = (~mask).sum(dim=1, keepdim=True) - 1
        profile = self.read(batch.context["profile"])[:, None]
        vectors = F.pad(items(batch.history), (0, 0, 1, 0))
        vectors = vectors.scatter(1, first[..., None].expand(-1, -1, vectors.shape[-1]), profile)
        return [Tokens.of(vectors, mask.scatter(1, first, True))]


class Distilled(Method):
    """States are drawn to those of a similar history, encoded by the same backbone."""

    def __init__(self, material: Material, width: int):
        super().__init__()
        self.n_items, self.widths = material.n_items, (width,)
        self.id, self.asked = id_table(torch.randn(material.n_items, width)), []

    def vectors(self, ids):
        return self.id(ids)

    def reads(self, batch):
        return [*super().reads(batch), batch.context["similar"]]

    def extra_loss(self, batch, states, encode, items):
        similar = encode(batch._replace(history=batch.context["similar"]))
        self.asked.append(similar.shape)
        return 1000 + (states - similar.detach()).pow(2).mean()


class InFront(WithProfile):
    """As one would first write it: the profile in front of the padding."""

    def views(self, batch, items):
        profile = self.read(batch.context["profile"])[:, None]
        mask = F.pad(batch.history != self.n_items, (1, 0), value=True)
        return [Tokens.of(torch.cat([profile, items(batch.history)], dim=1), mask)]


def with_context(part: str) -> Examples:
    generator = torch.Generator().manual_seed(8)
    count = len(getattr(SPLIT, part))
    history = torch.randint(N, (count, LENGTH), generator=generator)
    found = Examples(SPLIT, part, LENGTH)
    found.context = {"profile": torch.randn(count, 12, generator=generator), "similar": history}
    return found


@pytest.mark.parametrize("kind", [TwoViews, WithProfile, Distilled])
def test_later_methods_train_through_the_same_seam(kind, monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "later", kind)
    model = build(spec("later"), PREPARED)
    before = snapshot(model)
    told = fit(model, with_context("train"), with_context("valid"), tmp_path, **FIT | {"epochs": 1})
    assert np.isfinite(told.history[0]["loss"])
    state = states(model, with_context("test").batch(torch.arange(3)))
    assert state.shape == (3, WIDTH) == (3, sum(model.method.widths))
    for name, parameter in model.named_parameters():
        if not name.endswith("key.bias"):
            assert not torch.equal(parameter, before[name]), name
    if kind is Distilled:
        assert told.history[0]["loss"] > 1000  # the method's own loss is added to the backbone's …
        assert set(model.method.asked) <= {(b, WIDTH) for b in range(1, 17)}  # … on states of the other batch
    if kind is WithProfile:
        assert len(model.backbone.positions) == LENGTH + 1
        batch = with_context("test").batch(torch.arange(3))
        other = batch._replace(context={**batch.context, "profile": batch.context["profile"] + 1})
        model.eval()
        assert (states(model, batch) != states(model, other)).any(dim=1).all()
    if kind is TwoViews:
        assert model.method.widths == (8, 8) and model.backbone.positions.shape == (LENGTH, 8)


def test_two_views_are_read_apart(monkeypatch):
    """The state's halves come from one view each."""
    monkeypatch.setitem(METHODS, "later", TwoViews)
    model = build(spec("later"), PREPARED).eval()
    batch = whole("test")
    first = states(model, batch)
    with torch.no_grad():
        model.method.adapter.weight.mul_(-3)
    second = states(model, batch)
    assert torch.equal(first[:, :8], second[:, :8]) and not torch.allclose(first[:, 8:], second[:, 8:])


def test_a_token_in_front_of_the_padding_is_refused(monkeypatch):
    monkeypatch.setitem(METHODS, "later", InFront)
    model = build(spec("later"), PREPARED)
    with pytest.raises(RuntimeError, match="left-padded"):
        states(model, with_context("train").batch(torch.arange(3)))
