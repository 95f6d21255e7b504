"""Examples: what a batch holds, and that nothing in it comes from its target or later."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullrec_lib.data import examples as examples_module
from nullrec_lib.data.examples import Examples
from nullrec_lib.data.interactions import Dataset
from nullrec_lib.data.splits import OF_USERS, Split, split
from nullrec_lib.errors import InputError

PARTS = ("train", "valid", "test")
N = 9
"""Items, so also the padding id."""


def by_hand(sequences, places, n_items=N) -> Split:
    """A split whose training targets are `places` of the concatenated sequences."""
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
    items = np.array(sum(sequences, []), dtype=np.int64)
    places, none = np.asarray(places, dtype=np.int64), np.zeros(0, np.int64)
    return Split("cold-start", n_items, items, offsets, places, none, none, np.ones(len(items), bool))


SEQUENCES = [[4, 3, 2, 1], [], [8, 8, 0]]


def whole(examples):
    return examples.batch(torch.arange(len(examples)))


@pytest.mark.parametrize(
    ("length", "histories"),
    [
        (1, [[9], [2], [9], [8]]),
        (2, [[9, 9], [3, 2], [9, 9], [8, 8]]),
        (3, [[9, 9, 9], [4, 3, 2], [9, 9, 9], [9, 8, 8]]),
        (6, [[9] * 6, [9, 9, 9, 4, 3, 2], [9] * 6, [9, 9, 9, 9, 8, 8]]),
    ],
)
def test_histories_are_the_newest_items_padded_on_the_left(length, histories):
    batch = whole(Examples(by_hand(SEQUENCES, [0, 3, 4, 6]), "train", length))
    assert batch.history.tolist() == histories
    assert batch.target.tolist() == [4, 1, 8, 0]
    assert batch.user.tolist() == [0, 0, 2, 2]
    assert batch.example.tolist() == [0, 1, 2, 3]
    assert batch.context == {}
    assert {t.dtype for t in batch[:4]} == {torch.int64}


def test_seen_is_every_item_of_the_whole_prefix_once_whatever_the_length():
    examples = Examples(by_hand(SEQUENCES, [0, 3, 4, 6]), "train", length=1)
    assert examples.seen(torch.tensor([1, 3, 0])).tolist() == [[4, 3, 2], [9, 9, 8], [9, 9, 9]]
    assert examples.seen(torch.tensor([3])).tolist() == [[8]]
    assert examples.seen(torch.tensor([0, 2])).tolist() == [[9], [9]]  # nothing seen: one column of padding
    assert examples.most_seen() == 3 and examples.most_seen(torch.tensor([0, 3])) == 1


@pytest.mark.parametrize("n", [50, 20_000])
def test_one_long_history_is_no_wider_than_the_catalogue(n):
    long = [step * step % 7 for step in range(n)]  # 0, 1, 4, 2, over and over
    examples = Examples(by_hand([[8, 8], long, [3, 8, 5]], [1, *range(2, 2 + n), n + 4]), "train")
    assert examples.most_seen() == 4 and examples.longest_history() == n - 1
    seen = examples.seen(torch.arange(len(examples)))
    assert seen.shape == (n + 2, 4)
    assert seen[[0, 1, 2, 3, 4, 5, 6, -1]].tolist() == [
        [9, 9, 9, 8], [9] * 4, [9, 9, 9, 0], [9, 9, 0, 1], [9, 0, 1, 4], [0, 1, 4, 2], [0, 1, 4, 2], [9, 9, 3, 8]]
    assert (seen[5:-1] == seen[5]).all()


def test_context_rows_follow_the_batch():
    profile, near = torch.arange(8.0).reshape(4, 2), torch.arange(24).reshape(4, 2, 3)
    examples = Examples(by_hand(SEQUENCES, [0, 3, 4, 6]), "train")
    examples.context = {"profile": profile, "near": near}
    batch = examples.batch(torch.tensor([3, 1, 3]))
    assert set(batch.context) == {"profile", "near"}
    assert torch.equal(batch.context["profile"], profile[[3, 1, 3]])
    assert torch.equal(batch.context["near"], near[[3, 1, 3]])
    assert batch.example.tolist() == [3, 1, 3]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, N - 1), max_size=6), min_size=1, max_size=6).filter(any),
    st.integers(1, 8),
    st.data(),
)
def test_a_batch_equals_its_plain_construction(sequences, length, data):
    n = sum(map(len, sequences))
    places = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    examples = Examples(by_hand(sequences, places), "train", length)
    assert len(examples) == len(places)
    index = data.draw(st.lists(st.integers(0, len(places) - 1), min_size=1, max_size=9))
    every = [(user, items[:k], items[k]) for user, items in enumerate(sequences) for k in range(len(items))]
    wanted = [every[places[i]] for i in index]
    batch, seen = examples.batch(torch.tensor(index)), examples.seen(torch.tensor(index))
    assert batch.user.tolist() == [user for user, _, _ in wanted]
    assert batch.target.tolist() == [target for _, _, target in wanted]
    assert batch.history.tolist() == [([N] * length + history)[-length:] for _, history, _ in wanted]
    once = [list(dict.fromkeys(history)) for _, history, _ in wanted]  # in the order of their first time
    most = max(1, max(map(len, once)))
    assert seen.tolist() == [[N] * (most - len(items)) + items for items in once]


# Windows


def test_windows_begin_half_a_length_later_where_a_history_no_longer_fits():
    sequences = [[0, 1, 2, 3, 4, 5, 6], [], [8, 7]]
    examples = Examples(by_hand(sequences, [1, 2, 3, 4, 5, 6, 8]), "train", length=4)
    window, begin = examples.window
    assert window.tolist() == [0, 0, 0, 0, 1, 1, 2] and begin.tolist() == [0, 2, 7]
    ids, ends = examples.batch(torch.arange(7), count=3).windows
    assert ids.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [8, N, N, N]]
    assert ends.tolist() == [0, 1, 2, 3, 4 + 2, 4 + 3, 8]
    # Of fewer examples a row goes no further than the newest of their histories.
    ids, ends = examples.batch(torch.tensor([6, 0, 1, 4]), count=3).windows
    assert ids.tolist() == [[8, N, N, N], [0, 1, N, N], [2, 3, 4, N]]
    assert ends.tolist() == [0, 4, 5, 8 + 2]
    assert examples.batch(torch.arange(7)).windows is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 23), min_size=1, max_size=8), st.integers(1, 7), st.integers(1, 20), st.integers(0, 99))
def test_a_window_holds_the_newer_half_of_a_history_at_least(lengths, length, size, seed):
    sequences = [list(range(sum(lengths[:i]), sum(lengths[: i + 1]))) for i in range(len(lengths))]
    places = [place for sequence in sequences for place in sequence[1:]]
    n = sum(lengths)
    examples = Examples(by_hand(sequences, places, n), "train", length)
    torch.manual_seed(seed)
    met = []
    for index, count in examples.shuffled(size, together=True):
        batch = examples.batch(index, count)
        ids, ends = batch.windows
        assert ids.shape == (count, length) and len(ends.unique()) == len(index)
        newest = {}
        for history, end in zip(batch.history.tolist(), ends.tolist()):
            row, kept = end // length, end % length + 1
            visible = [item for item in history if item < n]
            assert ids[row, :kept].tolist() == visible[-kept:]
            whole = next(visible[-1] - sequence[0] + 1 for sequence in sequences if visible[-1] in sequence)
            assert kept == whole if whole <= length else length - length // 2 < kept + (length == 1)
            newest[row] = max(newest.get(row, 0), visible[-1])
        # Items are named by their places: none is newer than what some example of its row may see.
        assert all(ids[row][ids[row] < n].max() == last for row, last in newest.items()) and len(newest) == count
        met += index.tolist()
    assert sorted(met) == list(range(len(places)))


def test_batches_of_windows_are_about_as_large_as_asked():
    places = [30 * user + place for user in range(40) for place in range(1, 30)]
    examples = Examples(by_hand([list(range(30))] * 40, places, 30), "train", 10)
    torch.manual_seed(0)
    sizes = [len(index) for index, _ in examples.shuffled(64, together=True)]
    assert sum(sizes) == 40 * 29 and all(64 - 10 < size < 64 + 10 for size in sizes[:-1])
    one, other = (torch.cat([index for index, _ in examples.shuffled(64, together=True)]) for _ in range(2))
    assert not torch.equal(one, other)  # another order every time
    alone = list(examples.shuffled(64))
    assert [len(index) for index, _ in alone] == [64] * 18 + [8] and {count for _, count in alone} == {None}
    assert torch.cat([index for index, _ in alone]).unique().tolist() == list(range(40 * 29))


@pytest.mark.parametrize("at_once", [1, 16, 4096])
@pytest.mark.parametrize("together", [False, True])
def test_batches_are_those_of_what_was_shuffled(together, at_once, monkeypatch):
    """In its order, whatever is made at a time."""
    monkeypatch.setattr(examples_module, "AT_ONCE", at_once)
    places = [10 * user + place for user in range(12) for place in range(1, 10)][:100]
    examples = Examples(by_hand([list(range(10 * user, 10 * user + 10)) for user in range(12)], places, 120), "train", 4)
    examples.context = {"of user": torch.arange(100.0)[:, None] * 2, "similar": torch.arange(600).view(100, 2, 3)}
    torch.manual_seed(0)
    expected = [examples.batch(index, count) for index, count in examples.shuffled(3, together)]
    torch.manual_seed(0)
    found = list(examples.batches(3, together))
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        for name in ("history", "target", "user", "example"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.context.keys() == other.context.keys() == examples.context.keys()
        assert all(torch.equal(one.context[name], other.context[name]) for name in one.context)
        assert (one.windows is None) == (other.windows is None) == (not together)
        assert not together or all(map(torch.equal, one.windows, other.windows))


def test_an_empty_history_is_in_no_window():
    with pytest.raises(InputError, match="leave prefixes out"):
        Examples(by_hand(SEQUENCES, [0, 1]), "train").window


# No leak


@pytest.fixture(scope="module")
def log() -> Dataset:
    """Thirty users of 3 to 8 interactions in interleaved time, on twelve items with repeats."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(3, 9, size=30)
    users, items = np.repeat(np.arange(30), lengths), rng.integers(0, 12, lengths.sum())
    frame = pd.DataFrame({"user": users, "item": items})
    frame["timestamp"] = np.concatenate([np.sort(rng.random(n)) for n in lengths])
    names = [f"i{i}" for i in range(12)]
    items = pd.DataFrame({"item_id": names, "title": names, "description": ""})
    return Dataset("log", items, frame, np.array([f"u{u}" for u in range(30)], object), "time")


def with_items(log, items) -> Dataset:
    return replace(log, interactions=log.interactions.assign(item=items))


@pytest.mark.parametrize("protocol", OF_USERS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("min_history", [0, 1])
def test_no_example_knows_its_target_or_anything_later(log, protocol, part, min_history):
    frame = log.interactions
    parts = split(log, protocol, min_history)
    before = Examples(parts, part, length=4)
    for i, place in enumerate(getattr(parts, part)):
        # Everybody's future, and the target itself, become other items.
        time = frame["timestamp"].to_numpy()
        others = (frame["item"] + 1 + i % 11) % 12
        swapped = with_items(log, np.where(time >= time[place], others, frame["item"]))
        changed = split(swapped, protocol, min_history)
        after = Examples(changed, part, length=4)
        index = torch.tensor([i])
        old, new = before.batch(index), after.batch(index)
        assert torch.equal(old.history, new.history) and torch.equal(old.user, new.user)
        assert torch.equal(old.example, new.example) and old.context == new.context == {}
        assert torch.equal(before.seen(index), after.seen(index))
        if min_history:
            old_windows, new_windows = (one.batch(index, count=1).windows for one in (before, after))
            assert all(map(torch.equal, old_windows, new_windows))
        assert not torch.equal(old.target, new.target)  # the change was one


@pytest.mark.parametrize("protocol", OF_USERS)
def test_training_reads_no_held_out_interaction(log, protocol):
    # Every interaction gets an item of its own, so that an item id names the place it was read from.
    n = log.n_interactions
    names = [f"i{i}" for i in range(n)]
    catalogue = pd.DataFrame({"item_id": names, "title": names, "description": ""})
    parts = split(replace(with_items(log, np.arange(n)), items=catalogue), protocol)
    examples = Examples(parts, "train", length=20)
    batch, seen = whole(examples), examples.seen(torch.arange(len(examples)))
    read = torch.cat([batch.history.flatten(), batch.target, seen.flatten()]).unique()
    read = read[read < n].numpy()
    assert parts.owned[read].all()
    for part in PARTS:  # and every history, of any part, lies before its target in the same user's sequence
        batch = whole(Examples(parts, part, length=20))
        real = batch.history < n
        assert (batch.history[real] < batch.target[:, None].expand_as(real)[real]).all()
        owner = torch.tensor(log.interactions["user"].to_numpy(copy=True))
        assert torch.equal(owner[batch.history[real]], batch.user[:, None].expand_as(real)[real])


@pytest.mark.parametrize("protocol", OF_USERS)
def test_what_training_counts_ignores_validation_and_test(log, protocol):
    parts = split(log, protocol)
    others = np.where(parts.owned, parts.items, (parts.items + 5) % 12)
    changed = split(with_items(log, others), protocol)
    assert np.array_equal(changed.popularity(), parts.popularity())
    for old, new in zip(parts.training_interactions(), changed.training_interactions(), strict=True):
        assert np.array_equal(old, new)
    old, new = whole(Examples(parts, "train")), whole(Examples(changed, "train"))
    assert torch.equal(old.history, new.history) and torch.equal(old.target, new.target)
    assert not np.array_equal(changed.items[changed.test], parts.items[parts.test])


def test_the_validation_item_is_in_the_test_history_of_leave_one_out(log):
    parts = split(log, "leave-one-out")
    valid, test = whole(Examples(parts, "valid")), whole(Examples(parts, "test"))
    assert torch.equal(valid.user, test.user)
    assert torch.equal(test.history[:, -1], valid.target)
    assert torch.equal(test.history[:, :-1], valid.history[:, 1:])
