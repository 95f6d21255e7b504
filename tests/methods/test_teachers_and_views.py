"""LLM-ESR against its formulas in plain loops, and what its teachers may know."""

import math

import numpy as np
import pytest
import torch
from test_by_hand import (
    LLM_ESR,
    RLMREC,
    ROLES,
    SEQUENCES,
    E,
    N,
    batch,
    components,
    cosine,
    extra_loss,
    info_nce,
    make,
    material,
    put,
    same_up_to_signs,
    softmax,
    some,
    split_of,
    table,
)
from torch import nn

from nullrec_lib.backbones.sasrec import SASRec
from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.lookup import Items
from nullrec_lib.training import Recommender

# Vectors, views and losses


class Newest(nn.Module):
    """A backbone whose state can be told by hand: the newest vectors of all views."""

    def forward(self, views):
        return torch.cat([view.vectors[:, -1] for view in views], dim=-1)


class ByHand:
    """LLM-ESR with width 4 (two views, two heads of width 1), its weights set, and the same in plain loops."""

    def __init__(self, **options):
        self.method = make("llm-esr", width=4, **LLM_ESR | options)
        method = self.method
        self.id = put(method.id.weight[:-1], some(N, 2, seed=7))
        w1, b1, w2, b2 = (put(p, some(*p.shape, seed=i + 2)) for i, p in enumerate(method.adapter.parameters()))
        assert [w1.shape, w2.shape] == [(2, 4), (2, 2)]
        self.adapted = np.array([w2 @ (w1 @ e + b1) + b2 for e in E])
        self.attention = {
            name: {key: put(p, some(*p.shape, seed=first + i))
                   for i, (key, p) in enumerate(getattr(method, name).named_parameters())}
            for name, first in (("to_id", 10), ("to_language", 20))
        }
        self.model = Recommender(method, Newest())

    def attend(self, name: str, asking, told) -> np.ndarray:
        """Rows of a history without padding, (L, 2) each → (L, 2)."""
        w = self.attention[name]
        out = np.zeros((len(asking), 2))
        for i, question in enumerate(asking):
            for head in range(2):
                q = w["query.weight"][head] @ question
                shares = softmax([q * (w["key.weight"][head] @ row) / math.sqrt(1) for row in told])
                out[i, head] = sum(s * (w["value.weight"][head] @ row) for s, row in zip(shares, told, strict=True))
        return out @ w["output.weight"].T + w["output.bias"]

    def views(self, history: list[int]) -> tuple[np.ndarray, np.ndarray]:
        identity, language = self.id[history], self.adapted[history]
        return self.attend("to_id", language, identity), self.attend("to_language", identity, language)

    def state(self, history: list[int]) -> np.ndarray:
        return np.concatenate([view[-1] for view in self.views(history)])


def test_is_id_and_adapted_language_side_by_side():
    byhand = ByHand()
    np.testing.assert_allclose(table(byhand.method), np.hstack([byhand.id, byhand.adapted]), atol=1e-6)
    same_up_to_signs(table(make("llm-esr", width=4, **LLM_ESR))[:, :2], components()[0][:, :2])


def test_views_ask_each_other():
    byhand = ByHand()
    histories = [[1, 0, 3], [N, 2, 2], [N, N, 1]]
    views = byhand.method.views(batch(histories, [0, 0, 0]), Items(byhand.method.rows()))
    assert len(views) == 2
    for row, history in enumerate(histories):
        items = [item for item in history if item < N]
        for view, expected in zip(views, byhand.views(items), strict=True):
            assert view.mask[row].tolist() == [item < N for item in history]
            np.testing.assert_allclose(view.vectors[row, -len(items) :].detach(), expected, atol=1e-5)


def test_scales_its_attention_by_the_width_of_a_head():
    """With heads of width 2 the scale is 1/√2; with those of width 1 above it cannot be seen."""
    method = make("llm-esr", width=8, **LLM_ESR)
    attention = method.to_id
    w = {name: put(p, some(*p.shape, seed=i)) for i, (name, p) in enumerate(attention.named_parameters())}
    asking, told = some(3, 4, seed=5), some(3, 4, seed=6)
    expected = np.zeros((3, 4))
    for head in range(2):
        part = slice(2 * head, 2 * head + 2)
        for i in range(3):
            q = (w["query.weight"] @ asking[i])[part]
            shares = softmax([q @ (w["key.weight"] @ row)[part] / math.sqrt(2) for row in told])
            expected[i, part] = sum(s * (w["value.weight"] @ row)[part] for s, row in zip(shares, told, strict=True))
    expected = expected @ w["output.weight"].T + w["output.bias"]
    tensors = [torch.from_numpy(x).float()[None] for x in (asking, told)]
    got = attention(*tensors, torch.ones(1, 3, dtype=torch.bool))[0].detach()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_item_loss_is_info_nce_both_ways_over_the_items_of_the_batch():
    byhand = ByHand()
    both = [0, 2, 3]  # histories and targets, each item once, without padding
    of = batch([[N, 0], [2, 0]], [3, 3])
    ids, adapted = byhand.id[both], byhand.adapted[both]
    ways = info_nce(ids, adapted, 0.2), info_nce(adapted, ids, 0.2)
    assert ways[0] != pytest.approx(ways[1], abs=1e-3)
    assert extra_loss(byhand.method, of) == pytest.approx(0.5 * (ways[0] + ways[1]) / 2, rel=1e-5)


def similar_by_hand(user: int, history: list[int], length: int = 2, count: int = 2) -> list[int]:
    """The training users whose items' mean embedding is most like that of the visible history, never the user."""
    profile = {u: np.mean(E[items], axis=0) for u, items in enumerate(SEQUENCES) if ROLES[u] == "r"}
    seen = np.mean(E[history[-length:]], axis=0)
    others = [u for u in profile if u != user]
    return sorted(others, key=lambda u: -cosine(seen, profile[u]))[:count]


def train_examples(split: Split | None = None, length: int = 2) -> Examples:
    return Examples(split or split_of(SEQUENCES, ROLES), "train", length)


def prefixes() -> list[tuple[int, list[int]]]:
    return [(u, items[:k]) for u, items in enumerate(SEQUENCES) if ROLES[u] == "r" for k in range(1, len(items))]


def test_teachers_are_the_most_alike_training_users():
    method = ByHand().method
    similar = method.context(train_examples())["similar"]
    assert method.users.tolist() == [0, 1, 2, 3]
    assert method.users[similar].tolist() == [similar_by_hand(u, history) for u, history in prefixes()]
    assert method.histories.tolist() == [[1, 2], [0, 1], [2, 1], [3, 0]]  # the newest two, oldest first
    longer = make("llm-esr", width=4, **LLM_ESR | {"history_length": 5}).histories
    assert longer.tolist() == [[N, N, 0, 1, 2], [N, 1, 3, 0, 1], [N, N, 2, 2, 1], [N, N, N, 3, 0]]


@pytest.mark.parametrize("part", ["valid", "test"])
def test_held_out_examples_have_no_teachers(part):
    assert ByHand().method.context(Examples(split_of(SEQUENCES, ROLES), part, 2)) == {}


def distillation(byhand: ByHand, examples: Examples) -> tuple[Batch, torch.Tensor, np.ndarray]:
    """All training examples with their teachers, the loss, and the teachers' mean states by hand."""
    examples.context = byhand.method.context(examples)
    of = examples.batch(torch.arange(len(examples)))
    items = Items(byhand.method.rows())
    encode = lambda other: byhand.model.states(other, items)
    loss = byhand.method.extra_loss(of, encode(of), encode, items)
    taught = [np.mean([byhand.state(SEQUENCES[u][-2:]) for u in similar_by_hand(user, history)], axis=0)
              for user, history in prefixes()]
    return of, loss, np.array(taught)


def test_state_learns_from_the_mean_state_of_similar_users():
    byhand = ByHand(beta=0.0)
    _, loss, taught = distillation(byhand, train_examples())
    states = np.array([byhand.state(history[-2:]) for _, history in prefixes()])
    expected = 0.25 * np.mean((states - taught) ** 2)  # over examples and dimensions
    assert expected > 0.01 and loss.item() == pytest.approx(expected, rel=1e-5)
    byhand = ByHand()  # and both losses add up
    of, loss, _ = distillation(byhand, train_examples())
    items = extra_loss(byhand.method, of._replace(context={}))
    assert loss.item() == pytest.approx(expected + items, rel=1e-5) and items > 0.01


def test_teachers_get_no_gradient():
    byhand = ByHand(beta=0.0)
    of, loss, taught = distillation(byhand, train_examples())
    parameters = list(byhand.method.parameters())
    ours = torch.autograd.grad(loss, parameters)
    constant = torch.from_numpy(taught).float()
    states = byhand.model.states(of, Items(byhand.method.rows()))
    expected = torch.autograd.grad(0.25 * ((states - constant) ** 2).mean(), parameters)
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    assert sum(gradient.abs().sum() for gradient in ours) > 0.01


@pytest.mark.parametrize(("name", "options"), [("llm-esr", LLM_ESR), ("rlmrec-con", RLMREC)])
@pytest.mark.parametrize("negatives", [0, 3])
def test_the_losses_of_a_step_add_up(name, options, negatives):
    method = make(name, width=4, **options)
    backbone = SASRec(method.widths, 2, 1, 1, 0.0, temperature=0.5, negatives=negatives, exclude_history=False,
                      prefixes=None)
    model, examples = Recommender(method, backbone).eval(), train_examples()
    examples.context = method.context(examples)
    of = examples.batch(torch.arange(4))
    torch.manual_seed(3)
    whole = model.loss(of)
    torch.manual_seed(3)
    items = Items(method.rows())
    states = model.states(of, items)
    extra = method.extra_loss(of, states, lambda other: model.states(other, items), items)
    apart = backbone.loss(states, of.target, backbone.candidates(of, N), items) + extra
    assert extra.item() > 0
    torch.testing.assert_close(whole, apart)
    parameters = [p for name, p in model.named_parameters() if not name.endswith("key.bias") or "method" in name]
    torch.testing.assert_close(torch.autograd.grad(whole, parameters), torch.autograd.grad(apart, parameters))


def test_what_teachers_read_is_among_what_a_step_reads():
    """A step may compute the rows of few items only: of histories, targets, and the histories of all teachers."""
    split = split_of(shoppers(MANY), MANY_ROLES, MANY)
    method = make("llm-esr", material(MANY_E, split), width=4, **LLM_ESR | {"history_length": 3})
    examples = train_examples(split, 3)
    examples.context = method.context(examples)
    for example in range(len(examples)):
        of = examples.batch(torch.tensor([example]))
        read = {int(item) for ids in method.reads(of) for item in ids.flatten()}
        teachers = method.histories[of.context["similar"]]
        assert teachers.shape == (1, 2, 3)
        own, more = {*of.history.flatten().tolist(), *of.target.tolist()}, set(teachers.flatten().tolist())
        assert read == own | more and not more <= own


# What teachers may know


def shoppers(n_items: int, seed: int = 2) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(n_items)[: 3 + u % 6].tolist() for u in range(14)]


MANY, MANY_ROLES = 24, "r" * 10 + "vvtt"
MANY_E = np.random.default_rng(4).standard_normal((MANY, 6))


def taught(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, Examples]:
    """What a fresh model knows of its training examples: rows of similar users, and these users' histories."""
    split = split_of(sequences, MANY_ROLES, MANY)
    method = make("llm-esr", material(MANY_E, split), width=4, **LLM_ESR | {"similar_users": 4, "history_length": 4})
    examples = train_examples(split, 4)
    similar = method.context(examples)["similar"]
    return similar, method.histories[similar], examples


@pytest.mark.parametrize("user", [0, 3, 5, 9])
def test_teachers_of_earlier_examples_do_not_know_a_user_s_future(user):
    sequences = shoppers(MANY)
    similar, histories, examples = taught(sequences)
    own = (examples.user == user).nonzero().flatten().tolist()
    moved = 0
    for k, example in enumerate(own):
        changed = [list(items) for items in sequences]
        # this example's target and all that comes after it
        changed[user][k + 1 :] = [(item + 11) % MANY for item in changed[user][k + 1 :]]
        other_similar, other_histories, other = taught(changed)
        assert int(other.items[other.place[example]]) != int(examples.items[examples.place[example]])
        for earlier in own[: k + 1]:
            assert torch.equal(similar[earlier], other_similar[earlier])
            assert torch.equal(histories[earlier], other_histories[earlier])
        moved += int(not torch.equal(similar, other_similar))  # later examples and other users may well change
    assert moved


def test_held_out_users_teach_nobody():
    sequences = shoppers(MANY)
    changed = [items if role == "r" else [(item + 7) % MANY for item in items]
               for items, role in zip(sequences, MANY_ROLES, strict=True)]
    assert changed != sequences
    for ours, theirs in zip(taught(sequences)[:2], taught(changed)[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_a_user_s_held_out_items_teach_nobody_under_leave_one_out():
    known = []
    for shift in (0, 7):
        sequences = [[*items[:-2], *((item + shift) % MANY for item in items[-2:])] for items in shoppers(MANY)]
        everyone = split_of(sequences, "r" * len(sequences), MANY)
        place, ends = np.arange(len(everyone.items)), everyone.offsets[1:]
        owned = ~np.isin(place, [*(ends - 1), *(ends - 2)])
        split = Split("leave-one-out", MANY, everyone.items, everyone.offsets, everyone.train[owned[everyone.train]],
                      ends - 2, ends - 1, owned)
        method = make("llm-esr", material(MANY_E, split), width=4, **LLM_ESR | {"history_length": 4})
        known.append([method.context(train_examples(split, 4))["similar"], method.histories, method.profiles])
    for ours, theirs in zip(*known, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("similar_users", [1, 4, 9])
def test_nobody_is_their_own_teacher(similar_users):
    split = split_of(shoppers(MANY), MANY_ROLES, MANY)
    options = LLM_ESR | {"similar_users": similar_users, "history_length": 4}
    method = make("llm-esr", material(MANY_E, split), width=4, **options)
    examples = train_examples(split, 4)
    similar = method.context(examples)["similar"]
    assert similar.shape == (len(examples), similar_users)
    assert (method.users[similar] != examples.user[:, None]).all()
    assert all(len(set(row)) == similar_users for row in similar.tolist())
    # Without that rule many would be: a user's own profile is made of the very history.
    seen = torch.nn.functional.normalize(method.language[examples.batch(torch.arange(len(examples))).history].sum(1))
    alike = method.users[(seen @ method.profiles.T).argmax(1)]
    assert (alike == examples.user).float().mean() > 0.3


@pytest.mark.parametrize("similar_users", [0, 4, -1])
def test_too_few_users_to_learn_from_is_an_error(similar_users):
    with pytest.raises(InputError, match="similar_users"):
        make("llm-esr", width=4, **LLM_ESR | {"similar_users": similar_users})
