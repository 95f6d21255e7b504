"""Every trained method against its paper's formula, on four items with weights set and numbers computed by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nullrec_lib.backbones import BACKBONES
from nullrec_lib.data.examples import Batch
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.lookup import Items
from nullrec_lib.methods import METHODS, llmesr, unisrec
from nullrec_lib.methods.method import Material
from nullrec_lib.training import Recommender

N = 4
E = np.array([[2.0, 0.0, 1.0, -1.0], [0.0, 1.0, -1.0, 0.5], [-1.0, 1.0, 0.0, 2.0], [1.0, -2.0, 0.5, 1.0]])
"""Four items in four dimensions: one direction of their covariance is exactly null."""

SEQUENCES = [[0, 1, 2], [1, 3, 0, 1], [2, 2, 1], [3, 0], [3, 1], [0, 2]]
ROLES = "rrrrvt"


def split_of(sequences: list[list[int]], roles: str, n_items: int = N) -> Split:
    """One letter per user: r (train), v, t. Every prefix but the empty one is an example."""
    offsets = np.cumsum([0, *map(len, sequences)])
    role, place = np.repeat(list(roles), np.diff(offsets)), np.arange(offsets[-1])
    parts = [place[(role == part) & ~np.isin(place, offsets)] for part in "rvt"]
    return Split("cold-start", n_items, np.concatenate(sequences).astype(np.int64), offsets, *parts, role == "r")


def material(embeddings: np.ndarray = E, split: Split | None = None) -> Material:
    split = split or split_of(SEQUENCES, ROLES, len(embeddings))
    return Material.of(split, torch.from_numpy(embeddings.astype(np.float32)))


ALPHAFUSE = dict(threshold=None, relative_threshold=None, null_dim=1, standardise="all", basis="principal",
                 weighting="uniform", inject="add", init="normal", cold="init", freeze=None, seed=1)
RLMREC = dict(beta=0.5, alignment="contrastive", align_temperature=0.2)
LLM_ESR = dict(alpha=0.25, beta=0.5, align_temperature=0.2, similar_users=2, history_length=2)


def make(name: str, known: Material | None = None, **options):
    torch.manual_seed(0)
    return METHODS[name](known or material(), **options)


def put(parameter: torch.Tensor, values) -> np.ndarray:
    """Set a weight; the values in float64 as they will be read."""
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(np.asarray(values)))
    return np.asarray(values, float)


def some(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights that float32 holds exactly."""
    return np.random.default_rng(seed).integers(-8, 9, shape) / 8


def table(method) -> np.ndarray:
    assert (method.vectors(torch.tensor([len(E)])) == 0).all()  # the padding id
    return method.table().detach().double().numpy()


def batch(histories, targets, context=None) -> Batch:
    zero = torch.zeros(len(targets), dtype=torch.int64)
    return Batch(torch.tensor(histories), torch.tensor(targets), zero, zero, context or {})


def components(rows: np.ndarray = E, weights=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components by a singular value decomposition of the centred rows: (scores, variances, directions)."""
    w = np.full(len(rows), 1 / len(rows)) if weights is None else np.asarray(weights) / np.sum(weights)
    centred = rows - w @ rows
    _, singular, directions = np.linalg.svd(np.sqrt(w)[:, None] * centred)
    return centred @ directions.T, singular**2, directions


def same_up_to_signs(got: np.ndarray, expected: np.ndarray) -> None:
    """The sign of a principal direction is arbitrary."""
    signs = np.sign((got * expected).sum(0))
    np.testing.assert_allclose(got, expected * np.where(signs == 0, 1, signs), atol=1e-5)


def cosine(x, y) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(float(a) ** 2 for a in x) * sum(float(b) ** 2 for b in y))


def info_nce(xs, ys, temperature: float) -> float:
    """−log of the i-th of y's share for the i-th of x, mean over i."""
    losses = []
    for i, x in enumerate(xs):
        powers = [math.exp(cosine(x, y) / temperature) for y in ys]
        losses.append(-math.log(powers[i] / sum(powers)))
    return sum(losses) / len(losses)


def leaky(value: np.ndarray) -> np.ndarray:
    return np.where(value > 0, value, 0.01 * value)


def extra_loss(method, of: Batch) -> float:
    return method.extra_loss(of, None, None, Items(method.rows())).item()


# Item vectors


def test_base_is_its_id_table():
    method = make("base", width=2)
    ids = put(method.id.weight[:-1], some(N, 2))
    assert np.array_equal(table(method), ids)
    assert method.extra_loss(batch([[0, 1]], [2]), None, None, Items(method.rows())) is None


def test_llminit_starts_from_the_principal_components_and_is_then_an_id_table():
    method = make("llminit", width=2)
    same_up_to_signs(table(method), components()[0][:, :2])
    assert method.id.weight.requires_grad
    ids = put(method.id.weight[:-1], some(N, 2))
    assert np.array_equal(table(method), ids)


def test_frozen_is_the_principal_components():
    method = make("frozen", width=3)
    same_up_to_signs(table(method), components()[0][:, :3])
    assert list(method.parameters()) == []


def test_idreamrec_whitens_each_principal_component():
    method = make("idreamrec", width=3)
    scores, variances, _ = components()
    same_up_to_signs(table(method), scores[:, :3] / np.sqrt(variances[:3]))
    assert list(method.parameters()) == []
    # at full width the exactly-null direction carries 0
    assert (table(make("idreamrec", width=4))[:, 3] == 0).all()


def test_morec_is_a_dense_layer_with_gelu():
    method = make("morec", width=2)
    weight, bias = put(method.adaptor[0].weight, some(2, 4)), put(method.adaptor[0].bias, some(2, seed=1))
    for item, row in enumerate(table(method)):
        for unit in range(2):
            z = sum(weight[unit, d] * E[item, d] for d in range(4)) + bias[unit]
            assert row[unit] == pytest.approx(z * 0.5 * (1 + math.erf(z / math.sqrt(2))), abs=1e-6)


def softmax(logits) -> list[float]:
    powers = [math.exp(value) for value in logits]
    return [power / sum(powers) for power in powers]


def set_unisrec(method, experts: int):
    """Weights, biases, gate and gate noise, as float64."""
    shapes = {"weights": (experts, 4, 2), "biases": (experts, 4), "gate": (4, experts), "gate_noise": (4, experts)}
    return [put(getattr(method.adaptor, name), some(*shape, seed=i)) for i, (name, shape) in enumerate(shapes.items())]


def test_unisrec_is_a_gated_sum_of_whitening_experts():
    method = make("unisrec", width=2, experts=3, adaptor_dropout=0.2).eval()
    weights, biases, gate, _ = set_unisrec(method, 3)
    for e, row in zip(E, table(method), strict=True):
        gates = softmax([e @ gate[:, k] for k in range(3)])
        expected = sum(gates[k] * ((e - biases[k]) @ weights[k]) for k in range(3))
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_unisrec_in_training_has_noisy_gates_and_drops_before_it_whitens(monkeypatch):
    method = make("unisrec", width=2, experts=3, adaptor_dropout=0.2).train()
    weights, biases, gate, gate_noise = set_unisrec(method, 3)
    drawn, kept = some(N, 3, seed=8), np.array([1.25, 0.0, 1.25, 1.25])  # what dropout leaves of each component

    def dropped(x, p, seed):
        assert p == 0.2
        return x * torch.tensor(kept, dtype=x.dtype)

    monkeypatch.setattr(unisrec, "dropout", dropped)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.as_tensor(drawn, dtype=x.dtype)[: len(x)])
    got = method.vectors(torch.arange(N)).detach().numpy()
    for item, e in enumerate(E):
        # the gates read all of e; the factor of the noise is softplus + 0.01
        spread = [math.log1p(math.exp(e @ gate_noise[:, k])) + 0.01 for k in range(3)]
        gates = softmax([e @ gate[:, k] + drawn[item, k] * spread[k] for k in range(3)])
        expected = sum(gates[k] * ((e * kept - biases[k]) @ weights[k]) for k in range(3))
        np.testing.assert_allclose(got[item], expected, atol=1e-5)


def test_unisrec_starts_with_equal_shares():
    method = make("unisrec", width=2, experts=3, adaptor_dropout=0.2).eval()
    assert method.adaptor.gates(torch.from_numpy(E).float()).tolist() == [pytest.approx([1 / 3] * 3)] * N
    big = make("unisrec", width=64, experts=8, adaptor_dropout=0.2)
    assert float(big.adaptor.weights.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not big.adaptor.biases.any()


def test_whitenrec_whitens_fully_and_maps_through_one_hidden_layer():
    method = make("whitenrec", width=2)
    # ZCA of rows L s R is √N L R, over the directions that are not exactly null
    left, singular, right = np.linalg.svd(E - E.mean(0))
    assert singular[3] < 1e-12 < singular[2]
    white = math.sqrt(N) * left[:, :3] @ right[:3]
    np.testing.assert_allclose(method.language[:-1], white, atol=1e-5)
    np.testing.assert_allclose(white.T @ white / N, right[:3].T @ right[:3], atol=1e-9)  # I, but for what is null
    w1, b1, w2, b2 = (put(p, some(*p.shape, seed=i)) for i, p in enumerate(method.adaptor.parameters()))
    assert [w1.shape, w2.shape] == [(2, 4), (2, 2)]
    expected = [w2 @ np.maximum(w1 @ z + b1, 0) + b2 for z in white]
    np.testing.assert_allclose(table(method), expected, atol=1e-5)


@pytest.mark.parametrize("standardise", ["all", "row", "none"])
def test_alphafuse_adds_the_id_to_the_last_standardised_components(standardise):
    method = make("alphafuse", width=3, **ALPHAFUSE | {"standardise": standardise})
    ids = put(method.id.weight[:-1], some(N, 1))
    scores, variances, _ = components()
    divided = {"all": 3, "row": 2, "none": 0}[standardise]
    language = scores[:, :3] / np.where(np.arange(3) < divided, np.sqrt(variances[:3]), 1)
    assert (method.frozen_dim, method.nullity) == (2, 1)
    got = table(method)
    got[:, 2:] -= ids
    same_up_to_signs(got, language)


@pytest.mark.parametrize("nullity", [1, 2])
def test_alphafuse_in_place_of_the_language_and_with_popularity_weights(nullity):
    method = make("alphafuse", width=3, **ALPHAFUSE | {"null_dim": nullity, "inject": "replace",
                                                      "weighting": "popularity"})
    ids = put(method.id.weight[:-1], some(N, nullity))
    scores, variances, _ = components(weights=[3, 4, 3, 2])  # training interactions of the four items
    got = table(method)
    assert np.array_equal(got[:, 3 - nullity :], ids)
    row = slice(0, 3 - nullity)
    same_up_to_signs(got[:, row], scores[:, row] / np.sqrt(variances[row]))


# Losses of alignment


BATCH = batch([[1, 0], [N, 3]], [2, 0])
"""Targets 2 and 0; item 1 and 3 are in histories only."""


def set_network(method) -> list[np.ndarray]:
    parameters = list(method.network.parameters())
    return [put(p, some(*p.shape, seed=i + 3)) for i, p in enumerate(parameters)]


def through(weights: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    w1, b1, w2, b2 = weights
    return np.array([w2 @ leaky(w1 @ row + b1) + b2 for row in x])


@pytest.mark.parametrize("alignment", ["contrastive", "cosine"])
@pytest.mark.parametrize("name", ["rlmrec-con", "rlmrec-gen"])
def test_rlmrec_aligns_ids_and_language_in_one_space(name, alignment):
    method = make(name, width=2, **RLMREC | {"alignment": alignment})
    ids, weights = put(method.id.weight[:-1], some(N, 2, seed=7)), set_network(method)
    assert weights[0].shape[0] == 3  # hidden width: half of 4 + 2
    assert np.array_equal(table(method), ids)
    # Con: the ID asks, among what the network makes of the language. Gen: what the network makes of the ID asks.
    asks, told = (ids, through(weights, E)) if name == "rlmrec-con" else (through(weights, ids), E)
    assert asks.shape == told.shape == (N, 2 if name == "rlmrec-con" else 4)
    if alignment == "contrastive":
        expected = info_nce(asks[[0, 2]], told[[0, 2]], 0.2)
        assert expected != pytest.approx(info_nce(told[[0, 2]], asks[[0, 2]], 0.2), abs=1e-3)  # it has a direction
    else:
        expected = 1 - sum(cosine(x, y) for x, y in zip(asks, told, strict=True)) / N  # over all items
    assert extra_loss(method, BATCH) == pytest.approx(0.5 * expected, abs=1e-6)


@pytest.mark.parametrize("name", ["rlmrec-con", "rlmrec-gen"])
def test_rlmrec_counts_an_item_once_however_often_it_is_a_target(name):
    method = make(name, width=2, **RLMREC)
    often = batch([[1, 0]] * 5, [2, 0, 2, 2, 0])
    assert extra_loss(method, often) == pytest.approx(extra_loss(method, BATCH), abs=1e-6)
    assert extra_loss(method, batch([[1, 0]], [2])) == pytest.approx(0, abs=1e-6)  # one item has no negative
    with pytest.raises(InputError, match="alignment"):
        make(name, width=2, **RLMREC | {"alignment": "both"})


@pytest.mark.parametrize("name", ["rlmrec-con", "rlmrec-gen", "llm-esr"])
@pytest.mark.parametrize(("option", "value"), [("align_temperature", 0.0), ("align_temperature", math.inf),
                                               ("align_temperature", math.nan), ("beta", -0.1), ("beta", math.inf)])
def test_loss_weights_out_of_range_are_named(name, option, value):
    options = LLM_ESR | {"width": 4} if name == "llm-esr" else RLMREC | {"width": 2}
    with pytest.raises(InputError, match=option):
        make(name, **options | {option: value})


# Sizes


@pytest.mark.parametrize(("name", "millions", "per_item", "d_l", "options"), [
    ("alphafuse", "2.90", 64, 128, ALPHAFUSE | {"null_dim": 64}),
    ("llm-esr", "4.10", 64, 1536, LLM_ESR | {"history_length": 10}),
    ("rlmrec-con", "7.10", 128, 1536, RLMREC),
    ("rlmrec-gen", "7.11", 128, 1536, RLMREC),
    ("base", "5.72", 128, 1536, {}),
])
def test_known_numbers_of_trainable_parameters(name, millions, per_item, d_l, options, monkeypatch):
    """At 44,014 items, width 128 and d_l = 1536; an item more is `per_item` numbers more."""
    if name == "llm-esr":  # 1,536 eigenvectors tell nothing about a count
        nothing = SimpleNamespace(project=lambda rows: np.zeros((len(rows), 64), np.float32))
        monkeypatch.setattr(llmesr, "decompose", lambda *_, **__: nothing)
    counts = []
    for n in (140, 141):
        rows = np.random.default_rng(0).standard_normal((n, d_l))
        method = make(name, material(rows, split_of(SEQUENCES, ROLES, n)), width=128, **options)
        backbone = BACKBONES["sasrec"](method.widths, 10, 1, 1, 0.1, 0.07, 64, False, None)
        counts.append(Recommender(method, backbone).parameter_counts()["params_trainable"])
    assert counts[1] - counts[0] == per_item
    assert f"{(counts[0] + (44_014 - 140) * per_item) / 1e6:.2f}" == millions
