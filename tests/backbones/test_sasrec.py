"""SASRec against its definition: fast paths, masks, causality, and the loss term by term."""

import math

import pytest
import torch
from torch.nn import functional as F

from nullrec_lib.backbones import sasrec
from nullrec_lib.backbones.sasrec import Block, SASRec
from nullrec_lib.data.examples import Batch
from nullrec_lib.errors import InputError
from nullrec_lib.kernels import attend
from nullrec_lib.kernels.lookup import Items, Table, Tokens

B, L, D, N = 7, 5, 8, 30
TABLE = torch.randn(N + 1, D, generator=torch.Generator().manual_seed(1))
ITEMS = Items(Table(TABLE, None, N))


def options(**chosen) -> dict:
    return {"widths": (D,), "length": L, "blocks": 1, "heads": 1, "dropout": 0.0, "temperature": 0.07,
            "negatives": 6, "exclude_history": False, "prefixes": None} | chosen


def made(**chosen) -> SASRec:
    torch.manual_seed(2)
    return SASRec(**options(**chosen))


def inputs(seed: int = 0, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (B, L, D), and masks from no token at all to a full history."""
    x = torch.randn(B, L, D, generator=torch.Generator().manual_seed(seed)).to(dtype)
    lengths = torch.tensor([0, 1, 2, 3, 4, 5, 5])
    return x, torch.arange(L) >= L - lengths[:, None]


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    _, mask = inputs()
    history = torch.randint(N, (B, L), generator=generator).masked_fill(~mask, N)
    zero = torch.zeros(B, dtype=torch.int64)
    return Batch(history, torch.randint(N, (B,), generator=generator), zero, zero)


def loss(model: SASRec, states: torch.Tensor, of: Batch | None = None) -> torch.Tensor:
    of = of or batch()
    return model.loss(states, of.target, model.candidates(of, N), ITEMS)


def block(heads: int = 1, dropout: float = 0.0) -> Block:
    torch.manual_seed(3)
    made = Block(D, heads, dropout).double()
    with torch.no_grad():  # norms start as identities, and would hide a missing gain or bias
        for norm in (made.norm_query, made.norm_inner):
            norm.weight.copy_(torch.rand(D) + 0.5)
            norm.bias.copy_(torch.randn(D))
    return made.eval()


# Block


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_last_is_the_last_row_of_forward(heads):
    layer = block(heads)
    x, mask = inputs(dtype=torch.float64)
    torch.testing.assert_close(layer.last(x, mask), layer(x, mask)[:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_last_has_the_gradients_of_forward(heads):
    layer = block(heads)
    x, mask = inputs(dtype=torch.float64)
    x.requires_grad_()
    weight = torch.randn(B, D, dtype=torch.float64)
    wanted = {"x": x, **dict(layer.named_parameters())}
    fast = torch.autograd.grad((layer.last(x, mask) * weight).sum(), [*wanted.values()], allow_unused=True)
    slow = torch.autograd.grad((layer(x, mask)[:, -1] * weight).sum(), [*wanted.values()])
    for name, one, other in zip(wanted, fast, slow, strict=True):
        if name == "key.bias":  # it shifts all scores of a query alike, so the fast path leaves it out
            assert one is None and other.abs().max() < 1e-12
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_last_is_the_last_row_of_forward_when_attention_is_dropped(monkeypatch):
    """Dropped weights no longer add up to one, which the fast path must not assume."""
    dropped = []

    def drop(x, p, seed):
        dropped.append((tuple(x.shape), p))
        return x * torch.tensor([2.0, 0.0, 2.0, 2.0, 0.0]) if x.shape[-1] == L else x

    monkeypatch.setattr(sasrec, "dropout", drop)
    monkeypatch.setattr(attend, "dropout_naive", drop)
    layer = block(heads=2, dropout=0.5).train()
    x, mask = inputs(dtype=torch.float64)
    torch.testing.assert_close(layer.last(x, mask), layer(x, mask)[:, -1], rtol=0, atol=1e-12)
    assert dropped == [((B, 2, L), 0.5), *[((B, D), 0.5)] * 2, ((B, 2, L, L), 0.5), *[((B, L, D), 0.5)] * 2]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_scaled_dot_product_attention(heads):
    """An outside reference: torch's own attention on the same q, k, v."""
    layer = block(heads)
    x, mask = inputs(dtype=torch.float64)
    normed = layer.norm_query(x)
    split = lambda t: t.unflatten(-1, (heads, D // heads)).transpose(1, 2)
    allowed = (torch.ones(L, L).tril().bool() & mask[:, None, :])[:, None]
    attended = F.scaled_dot_product_attention(
        split(layer.query(normed)), split(layer.key(x)), split(layer.value(x)), attn_mask=allowed
    ).transpose(1, 2).flatten(2)
    inner = layer.norm_inner(normed + attended)
    expected = inner + layer.outer(torch.relu(layer.inner(inner)))
    # where a query may look at nothing, torch gives NaN or zeros and we an unread number
    torch.testing.assert_close(layer(x, mask)[mask], expected[mask], rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.last(x, mask)[1:], expected[1:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2])
def test_earlier_outputs_do_not_see_later_positions(heads):
    layer = block(heads)
    x, _ = inputs(dtype=torch.float64)
    mask = torch.ones(B, L, dtype=torch.bool)
    for place in range(1, L):
        changed = x.clone()
        changed[:, place:] += 1
        before, after = layer(x, mask), layer(changed, mask)
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.isclose(before[:, place:], after[:, place:]).all(dim=-1).any()


def test_every_earlier_position_is_read():
    layer = block()
    x, _ = inputs(dtype=torch.float64)
    mask = torch.ones(B, L, dtype=torch.bool)
    x.requires_grad_()
    read = torch.autograd.grad(layer.last(x, mask).square().sum(), x)[0].norm(dim=-1)
    assert (read > 1e-9).all()


# Masks and padding


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_masked_positions_are_not_read(blocks):
    model = made(blocks=blocks, heads=2).eval()
    x, mask = inputs()
    rubbish = torch.where(mask[..., None], x, 1e3 * torch.randn(x.shape))
    assert torch.equal(model([Tokens.of(x, mask)]), model([Tokens.of(rubbish, mask)]))
    x.requires_grad_()
    model([Tokens.of(x, mask)]).square().sum().backward()
    assert (x.grad[~mask] == 0).all() and (x.grad[mask].norm(dim=-1) > 0).all()


@pytest.mark.parametrize("blocks", [1, 2])
def test_more_padding_changes_nothing(blocks):
    """A short view takes the newest positions, so a history means the same with any padding before it."""
    model = made(blocks=blocks).eval()
    x, _ = inputs()
    short = Tokens.of(x[:, -2:], torch.ones(B, 2, dtype=torch.bool))
    mask = torch.arange(L).expand(B, L) >= L - 2
    torch.testing.assert_close(model([short]), model([Tokens.of(x, mask)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2])
def test_an_empty_history_has_a_finite_state(blocks):
    model = made(blocks=blocks)
    x, mask = inputs()
    state = model([Tokens.of(x, mask)])
    assert torch.isfinite(state).all()
    state.square().sum().backward()
    unread = f"blocks.{blocks - 1}.key.bias"
    assert {name for name, p in model.named_parameters() if p.grad is None} == {unread}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [1, 0, 1, 1, 1], [0, 1, 1, 1, 0]])
def test_padding_on_the_right_is_refused(mask):
    x, good = inputs()
    good[3] = torch.tensor(mask, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="left-padded"):
        made()([Tokens.of(x, good)])


def test_order_matters():
    model = made().eval()
    x, mask = inputs()
    swapped = x[:, [0, 1, 3, 2, 4]]
    assert not torch.allclose(model([Tokens.of(x, mask)])[3:], model([Tokens.of(swapped, mask)])[3:])


# Histories read together


@pytest.mark.parametrize("heads", [1, 2])
def test_some_positions_are_those_of_all(heads):
    layer = block(heads)
    x, _ = inputs(dtype=torch.float64)
    mask = torch.arange(L) < torch.tensor([0, 1, 2, 3, 4, 5, 5])[:, None]
    ends = torch.tensor([30, 5, 11, 10, 34, 0])
    torch.testing.assert_close(layer.at(x, mask, ends), layer(x, mask).flatten(0, 1)[ends])


def windows(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of right-padded windows (W, L) and the ends of all histories in them."""
    ids = torch.randint(N, (len(lengths), L), generator=torch.Generator().manual_seed(seed))
    filled = torch.arange(L) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~filled, N), filled.flatten().nonzero()[:, 0]


def left_padded(ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Each history for itself (B, L)."""
    rows = [ids[end // L, : end % L + 1] for end in ends.tolist()]
    return torch.stack([F.pad(row, (L - len(row), 0), value=N) for row in rows])


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 2])
def test_histories_read_together_are_those_read_one_by_one(blocks, heads):
    model = made(blocks=blocks, heads=heads, prefixes="together").eval()
    ids, ends = windows([5, 1, 4, 5, 2])
    together = model([Tokens(ITEMS.table, ids)], ends)
    alone = model([Tokens(ITEMS.table, left_padded(ids, ends))])
    assert together.shape == (17, D)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    # And position by position, as the definition says.
    mask, x = ids < N, (TABLE[ids] + model.positions) * (ids < N)[..., None]
    for layer in model.blocks:
        x = layer(x, mask) * mask[..., None]
    torch.testing.assert_close(together, model.norm(x).flatten(0, 1)[ends], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_history_read_together_does_not_know_its_future(blocks):
    model = made(blocks=blocks, heads=2, prefixes="together").eval()
    ids, ends = windows([5, 5, 3])
    before = model([Tokens(ITEMS.table, ids)], ends)
    for place in range(L):
        swapped = ids.clone()
        swapped[:, place:] = torch.where(ids[:, place:] < N, (ids[:, place:] + 7) % N, N)
        after = model([Tokens(ITEMS.table, swapped)], ends)
        known = ends % L < place
        torch.testing.assert_close(after[known], before[known], rtol=0, atol=1e-6)
        assert not torch.isclose(after[~known], before[~known]).all(dim=-1).any()


@pytest.mark.parametrize("blocks", [1, 2])
def test_together_positions_count_from_the_oldest_item(blocks):
    """And a history means the same with any padding before it."""
    model = made(blocks=blocks, prefixes="together").eval()
    x, _ = inputs()
    short = Tokens.of(x[:, -2:], torch.ones(B, 2, dtype=torch.bool))
    mask = torch.arange(L).expand(B, L) >= L - 2
    torch.testing.assert_close(model([short]), model([Tokens.of(x, mask)]), rtol=1e-5, atol=1e-6)
    before = model([short])
    with torch.no_grad():
        model.positions[2:] += 1
    assert torch.equal(model([short]), before)
    with torch.no_grad():
        model.positions[:2] += torch.randn(D)
    assert not torch.allclose(model([short]), before)


def test_together_an_empty_history_has_a_finite_state():
    x, mask = inputs()
    assert torch.isfinite(made(prefixes="together")([Tokens.of(x, mask)])).all()


def test_together_or_not_at_all():
    with pytest.raises(InputError, match="prefixes: 'apart'"):
        made(prefixes="apart")


# Blocks, views, options


def test_a_second_block_is_read():
    """One block whatever it is told: that must not happen here."""
    one, two = made(blocks=1).eval(), made(blocks=2).eval()
    assert (len(one.blocks), len(two.blocks)) == (1, 2)
    x, mask = inputs()
    first, last = two.blocks
    by_hand = (x + two.positions) * mask[..., None]
    by_hand = first(by_hand, mask) * mask[..., None]
    by_hand = two.norm(last(by_hand, mask)[:, -1])
    torch.testing.assert_close(two([Tokens.of(x, mask)]), by_hand, rtol=1e-5, atol=1e-5)

    one.load_state_dict({name: two.state_dict()[name] for name in one.state_dict()})
    assert not torch.allclose(one([Tokens.of(x, mask)]), two([Tokens.of(x, mask)]))
    two([Tokens.of(x, mask)]).square().sum().backward()
    for layer in two.blocks:
        assert all(float(p.grad.norm()) > 0 for name, p in layer.named_parameters() if name != "key.bias")


def test_views_are_read_by_the_same_weights_and_laid_side_by_side():
    model = made().eval()
    x, mask = inputs()
    y, _ = inputs(seed=1)
    both = model([Tokens.of(x, mask), Tokens.of(y, mask)])
    assert both.shape == (B, 2 * D)
    assert torch.equal(both, torch.cat([model([Tokens.of(x, mask)]), model([Tokens.of(y, mask)])], dim=1))


def test_heads_reach_the_state():
    x, mask = inputs()
    states = [made(heads=heads).eval()([Tokens.of(x, mask)]) for heads in (1, 2, 4)]
    for one, other in ((0, 1), (1, 2)):
        assert not torch.allclose(states[one][2:], states[other][2:])


def test_dropout_acts_in_training_only():
    x, mask = inputs()
    view = [Tokens.of(x, mask)]
    model, plain = made(dropout=0.5), made(dropout=0.0)
    assert torch.equal(model.eval()(view), plain.eval()(view))
    model.train()
    assert not torch.equal(model(view), model(view))
    assert torch.equal(plain.train()(view), plain(view))


@pytest.mark.parametrize("prefixes", [None, "together"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_dropout_acts_everywhere(blocks, prefixes, monkeypatch):
    """Inputs, attention weights, inside and after the feed-forward: each of them drops, by a seed of its own.

    Of the plain form; that the fast one drops the same by the same seeds is seen in tests/kernels/test_state.py.
    """
    monkeypatch.setattr(sasrec, "choose", lambda *_: "naive")
    x, mask = inputs()
    model = made(dropout=0.5, blocks=blocks, heads=2, prefixes=prefixes).train()
    reached, seeds = [], []

    def spy(module, name, place):
        real = getattr(module, name)

        def called(*args):
            reached.append((place, args[-2], args[-1]))
            return real(*args)

        monkeypatch.setattr(module, name, called)

    spy(sasrec, "lookup", "inputs")
    spy(sasrec, "attend", "attention")
    spy(sasrec, "dropout", "dropout")
    monkeypatch.setattr(sasrec, "draw_seed", lambda: next(seeds))

    def state(chosen):
        nonlocal seeds
        reached.clear()
        seeds = iter(chosen)
        found = model([Tokens.of(x, mask)])
        assert next(seeds, None) is None  # all of them were asked for
        return found

    places = ["inputs", *["dropout"] * 3 * (blocks - 1), "attention", "dropout", "dropout"]
    chosen = list(range(len(places)))
    first = state(chosen)
    assert reached == [(place, 0.5, seed) for place, seed in zip(places, chosen, strict=True)]
    assert torch.equal(state(chosen), first)
    for place in chosen:
        assert not torch.equal(state([*chosen[:place], 99, *chosen[place + 1 :]]), first), place


def test_the_feed_forward_drops_inside_and_after(monkeypatch):
    """Where by a hand-made dropout: the first drop is of the hidden layer, the second of what comes out of it."""
    layer = block().train()
    layer.dropout, dropped = 0.5, []
    monkeypatch.setattr(sasrec, "dropout", lambda x, p, seed: dropped.append((x, p)) or 3 * x)
    x, _ = inputs(dtype=torch.float64)
    normed = layer.norm_inner(x)
    hidden = layer.inner(normed).relu()
    torch.testing.assert_close(layer._feed_forward(x), normed + 3 * layer.outer(3 * hidden))
    assert [p for _, p in dropped] == [0.5, 0.5]
    torch.testing.assert_close(dropped[0][0], hidden)
    torch.testing.assert_close(dropped[1][0], layer.outer(3 * hidden))


def test_temperature_reaches_the_loss():
    states = torch.randn(B, D, generator=torch.Generator().manual_seed(4))
    losses = []
    for temperature in (0.07, 0.5):
        model = made(temperature=temperature)
        torch.manual_seed(5)
        losses.append(float(loss(model, states)))
    assert losses[0] != pytest.approx(losses[1])
    hot = loss(made(temperature=1e6), states)
    assert float(hot) == pytest.approx(math.log(7), abs=1e-4)  # all seven candidates alike


@pytest.mark.parametrize("count", [1, 6, 64])
def test_so_many_negatives_are_drawn(count):
    """With no temperature to speak of, the loss is the log of the number of candidates."""
    model = made(negatives=count, temperature=1e6)
    assert model.candidates(batch(), N).shape == (B, count + 1)
    assert float(loss(model, torch.randn(B, D))) == pytest.approx(math.log(count + 1), abs=1e-4)


@pytest.mark.parametrize("exclude", [False, True])
def test_exclude_history_keeps_the_history_out_of_the_negatives(exclude):
    drawn_from = batch()
    candidates = made(negatives=500, exclude_history=exclude).candidates(drawn_from, N)
    target, drawn = candidates[:, 0], candidates[:, 1:]
    assert torch.equal(target, drawn_from.target) and drawn.shape == (B, 500)
    assert not (drawn == target[:, None]).any() and drawn.max() < N
    for row, history, own in zip(drawn.tolist(), drawn_from.history.tolist(), target.tolist(), strict=True):
        # 500 draws out of at most 29 items miss one of them once in 10 million times
        assert set(row) == set(range(N)) - {own} - (set(history) if exclude else set())


def test_info_nce_is_what_a_loop_says(monkeypatch):
    negatives = torch.randint(N, (B, 6), generator=torch.Generator().manual_seed(6))
    monkeypatch.setattr(sasrec, "draw", lambda *_: negatives)
    states = torch.randn(B, D, generator=torch.Generator().manual_seed(7))
    got = loss(made(temperature=0.2), states)
    against = [[int(target), *row.tolist()] for target, row in zip(batch().target, negatives, strict=True)]
    assert float(got) == pytest.approx(info_nce(states, against, 0.2), rel=1e-5)


def info_nce(states: torch.Tensor, candidates: list[list[int]], temperature: float) -> float:
    """Mean over rows of −log of the first candidate's share among all candidates of the row."""
    total = 0.0
    for state, items in zip(states.tolist(), candidates, strict=True):
        similarity = []
        for item in items:
            other = TABLE[item].tolist()
            dot = sum(a * b for a, b in zip(state, other, strict=True))
            similarity.append(dot / math.hypot(*state) / math.hypot(*other) / temperature)
        total += -similarity[0] + math.log(sum(math.exp(s) for s in similarity))
    return total / len(candidates)


def test_no_negatives_is_a_softmax_over_all_items():
    states, model = torch.randn(B, D, generator=torch.Generator().manual_seed(7)), made(negatives=0, temperature=0.2)
    torch.manual_seed(8)
    before = torch.get_rng_state()
    assert model.candidates(batch(), N) is None
    against = [[target, *sorted({*range(N)} - {target})] for target in batch().target.tolist()]
    assert float(loss(model, states)) == pytest.approx(info_nce(states, against, 0.2), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn


def test_the_loss_pulls_the_state_to_its_target():
    states = torch.randn(B, D, requires_grad=True)
    model, data = made(negatives=200), batch()
    similarity = lambda: F.cosine_similarity(states, ITEMS(data.target)).mean().item()
    before = similarity()
    optimiser = torch.optim.Adam([states], lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        loss(model, states, data).backward()
        optimiser.step()
    assert similarity() > before + 0.3


def test_queries_are_the_states():
    states = torch.randn(B, D)
    assert made().queries(states, batch()) is states


@pytest.mark.parametrize("wrong", [
    {"heads": 3}, {"heads": 0}, {"blocks": 0}, {"negatives": -1}, {"length": 0}, {"temperature": 0.0},
    {"temperature": -1.0}, {"temperature": math.nan}, {"dropout": 1.0}, {"dropout": -0.1},
    {"dropout": math.nan},
], ids=str)
def test_numbers_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        made(**wrong)
