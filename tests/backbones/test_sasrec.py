"""SASRec against its definition: fast paths, masks, causality, and the loss term by term."""

import math

import pytest
import torch
from torch.nn import functional as F

from nullrec_lib.backbones import sasrec
from nullrec_lib.backbones.sasrec import Block, SASRec
from nullrec_lib.data.examples import Batch, View
from nullrec_lib.errors import InputError

B, L, D, N = 7, 5, 8, 30
TABLE = torch.randn(N + 1, D, generator=torch.Generator().manual_seed(1))


def options(**chosen) -> dict:
    return {"widths": (D,), "length": L, "blocks": 1, "heads": 1, "dropout": 0.0, "temperature": 0.07,
            "negatives": 6, "exclude_history": False} | chosen


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


def vectors(ids: torch.Tensor) -> torch.Tensor:
    return TABLE[ids]


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
    wanted = [x, *layer.parameters()]
    fast = torch.autograd.grad((layer.last(x, mask) * weight).sum(), wanted)
    slow = torch.autograd.grad((layer(x, mask)[:, -1] * weight).sum(), wanted)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_last_is_the_last_row_of_forward_when_attention_is_dropped():
    """Dropped weights no longer add up to one, which the fast path must not assume."""

    class Drop(torch.nn.Module):
        def forward(self, x):
            return x * torch.tensor([2.0, 0.0, 2.0, 2.0, 0.0]) if x.shape[-1] == L else x

    layer = block(heads=2)
    layer.dropout = Drop()
    x, mask = inputs(dtype=torch.float64)
    torch.testing.assert_close(layer.last(x, mask), layer(x, mask)[:, -1], rtol=0, atol=1e-12)


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
    assert torch.equal(model([View(x, mask)]), model([View(rubbish, mask)]))
    x.requires_grad_()
    model([View(x, mask)]).square().sum().backward()
    assert (x.grad[~mask] == 0).all() and (x.grad[mask].norm(dim=-1) > 0).all()


@pytest.mark.parametrize("blocks", [1, 2])
def test_more_padding_changes_nothing(blocks):
    """A short view takes the newest positions, so a history means the same with any padding before it."""
    model = made(blocks=blocks).eval()
    x, _ = inputs()
    short = View(x[:, -2:], torch.ones(B, 2, dtype=torch.bool))
    mask = torch.arange(L).expand(B, L) >= L - 2
    torch.testing.assert_close(model([short]), model([View(x, mask)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2])
def test_an_empty_history_has_a_finite_state(blocks):
    model = made(blocks=blocks)
    x, mask = inputs()
    state = model([View(x, mask)])
    assert torch.isfinite(state).all()
    state.square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [1, 0, 1, 1, 1], [0, 1, 1, 1, 0]])
def test_padding_on_the_right_is_refused(mask):
    x, good = inputs()
    good[3] = torch.tensor(mask, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="left-padded"):
        made()([View(x, good)])


def test_order_matters():
    model = made().eval()
    x, mask = inputs()
    swapped = x[:, [0, 1, 3, 2, 4]]
    assert not torch.allclose(model([View(x, mask)])[3:], model([View(swapped, mask)])[3:])


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
    torch.testing.assert_close(two([View(x, mask)]), by_hand, rtol=1e-5, atol=1e-5)

    one.load_state_dict({name: two.state_dict()[name] for name in one.state_dict()})
    assert not torch.allclose(one([View(x, mask)]), two([View(x, mask)]))
    two([View(x, mask)]).square().sum().backward()
    for layer in two.blocks:
        assert all(float(p.grad.norm()) > 0 for name, p in layer.named_parameters() if name != "key.bias")


def test_views_are_read_by_the_same_weights_and_laid_side_by_side():
    model = made().eval()
    x, mask = inputs()
    y, _ = inputs(seed=1)
    both = model([View(x, mask), View(y, mask)])
    assert both.shape == (B, 2 * D)
    assert torch.equal(both, torch.cat([model([View(x, mask)]), model([View(y, mask)])], dim=1))


def test_heads_reach_the_state():
    x, mask = inputs()
    states = [made(heads=heads).eval()([View(x, mask)]) for heads in (1, 2, 4)]
    for one, other in ((0, 1), (1, 2)):
        assert not torch.allclose(states[one][2:], states[other][2:])


def test_dropout_acts_in_training_only_and_everywhere():
    x, mask = inputs()
    view = [View(x, mask)]
    model, plain = made(dropout=0.5), made(dropout=0.0)
    assert torch.equal(model.eval()(view), plain.eval()(view))
    model.train()
    assert not torch.equal(model(view), model(view))
    assert torch.equal(plain.train()(view), plain(view))
    # inputs, attention weights, inside and after the feed-forward: each of them drops by itself
    calls = []
    hooks = [part.register_forward_hook(lambda *_: calls.append(1)) for part in model.modules()
             if isinstance(part, torch.nn.Dropout)]
    model(view)
    assert len(hooks) == 2 and len(calls) == 4


def test_temperature_reaches_the_loss():
    states = torch.randn(B, D, generator=torch.Generator().manual_seed(4))
    losses = []
    for temperature in (0.07, 0.5):
        torch.manual_seed(5)
        losses.append(float(made(temperature=temperature).loss(states, batch(), N, vectors)))
    assert losses[0] != pytest.approx(losses[1])
    hot = made(temperature=1e6).loss(states, batch(), N, vectors)
    assert float(hot) == pytest.approx(math.log(7), abs=1e-4)  # all seven candidates alike


@pytest.mark.parametrize("count", [1, 6, 64])
def test_so_many_negatives_are_drawn(count):
    """With no temperature to speak of, the loss is the log of the number of candidates."""
    loss = made(negatives=count, temperature=1e6).loss(torch.randn(B, D), batch(), N, vectors)
    assert float(loss) == pytest.approx(math.log(count + 1), abs=1e-4)


@pytest.mark.parametrize("exclude", [False, True])
def test_exclude_history_keeps_the_history_out_of_the_negatives(exclude):
    asked = []

    def spy(ids):
        asked.append(ids)
        return TABLE[ids]

    drawn_from = batch()
    made(negatives=500, exclude_history=exclude).loss(torch.randn(B, D), drawn_from, N, spy)
    (candidates,) = asked
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
    loss = made(temperature=0.2).loss(states, batch(), N, vectors)
    total = 0.0
    for row in range(B):
        state, similarity = states[row].tolist(), []
        for item in [int(batch().target[row]), *negatives[row].tolist()]:
            other = TABLE[item].tolist()
            dot = sum(a * b for a, b in zip(state, other, strict=True))
            similarity.append(dot / math.hypot(*state) / math.hypot(*other) / 0.2)
        total += -similarity[0] + math.log(sum(math.exp(s) for s in similarity))
    assert float(loss) == pytest.approx(total / B, rel=1e-5)


def test_the_loss_pulls_the_state_to_its_target():
    states = torch.randn(B, D, requires_grad=True)
    model, data = made(negatives=200), batch()
    similarity = lambda: F.cosine_similarity(states, vectors(data.target)).mean().item()
    before = similarity()
    optimiser = torch.optim.Adam([states], lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(states, data, N, vectors).backward()
        optimiser.step()
    assert similarity() > before + 0.3


def test_queries_are_the_states():
    states = torch.randn(B, D)
    assert made().queries(states, batch()) is states


@pytest.mark.parametrize("wrong", [
    {"heads": 3}, {"heads": 0}, {"blocks": 0}, {"negatives": 0}, {"length": 0}, {"temperature": 0.0},
    {"temperature": -1.0}, {"temperature": math.nan}, {"dropout": 1.0}, {"dropout": -0.1},
    {"dropout": math.nan},
], ids=str)
def test_numbers_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        made(**wrong)
