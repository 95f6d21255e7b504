"""`overlap` on a CPU: inverted lists, one counter per user, and a heap of the best k."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from nullrec_lib.kernels.cpu import compiled
from nullrec_lib.kernels.overlap import Queries


def neighbours(users: Tensor, items: Tensor, k: int, queries: Queries | None) -> tuple[np.ndarray, np.ndarray]:
    """Checked ids → ids (Q, k) int64 and score (Q, k) float64, see `overlap.overlap`."""
    users, items = users.numpy(), items.numpy()
    n_users, n_items = users.max(initial=-1) + 1, items.max(initial=-1) + 1
    offsets, by_user = _grouped(users, items, n_users)
    starts, lists = _inverted(offsets, by_user, n_items)
    if queries is None:
        asked, wanted, own = offsets, by_user, np.arange(n_users)
    else:
        asked, wanted, own = (part.numpy() for part in queries)
    ids = np.full((len(asked) - 1, k), -1, np.int64)
    score = np.zeros((len(asked) - 1, k))
    n_items = max(n_items, wanted.max(initial=-1) + 1)
    _search(starts, lists, n_users, n_items, asked, wanted, own, ids, score)
    return ids, score


@compiled()
def _grouped(keys, values, count):
    """Values in the order of their keys 0…count-1, and where each key's values start: (count+1,), (n,)."""
    offsets = np.zeros(count + 1, np.int64)
    for key in keys:
        offsets[key + 1] += 1
    offsets = np.cumsum(offsets)
    place, grouped = offsets[:-1].copy(), np.empty(len(values), np.int64)
    for i in range(len(keys)):
        grouped[place[keys[i]]] = values[i]
        place[keys[i]] += 1
    return offsets, grouped


@compiled()
def _inverted(offsets, items, n_items):
    """Each item's distinct users, ascending, from each user's items: starts (I+1,), users (pairs,)."""
    seen = np.full(n_items, -1, np.int64)  # the last user who had the item: users come in order
    starts = np.zeros(n_items + 1, np.int64)
    for user in range(len(offsets) - 1):
        for item in items[offsets[user] : offsets[user + 1]]:
            if seen[item] != user:
                seen[item] = user
                starts[item + 1] += 1
    starts = np.cumsum(starts)
    place, users = starts[:-1].copy(), np.empty(starts[-1], np.int64)
    seen[:] = -1
    for user in range(len(offsets) - 1):
        for item in items[offsets[user] : offsets[user + 1]]:
            if seen[item] != user:
                seen[item] = user
                users[place[item]] = user
                place[item] += 1
    return starts, users


@compiled()
def _search(starts, lists, n_users, n_items, asked, wanted, own, ids, score):
    """Fill ids and score (Q, k), which come filled with -1 and 0."""
    k = ids.shape[1]
    shared = np.zeros(n_users, np.int64)  # items in common with the query; zeroed again after each
    met = np.empty(n_users, np.int64)  # users with any
    seen = np.full(n_items, -1, np.int64)  # the last query that had the item
    heap = np.empty(min(k, n_users), np.int64)
    for q in range(len(asked) - 1):
        size, n_met = 0, 0
        for item in wanted[asked[q] : asked[q + 1]]:
            if seen[item] == q:
                continue
            seen[item] = q
            size += 1
            if item + 1 < len(starts):  # else no user has it
                for user in lists[starts[item] : starts[item + 1]]:
                    if shared[user] == 0:
                        met[n_met] = user
                        n_met += 1
                    shared[user] += 1
        held = 0
        for user in met[:n_met]:
            # One number orders as asked: more in common first, then the smaller id.
            key = shared[user] * n_users + (n_users - 1 - user)
            shared[user] = 0
            if user == own[q]:
                continue
            if held < len(heap):
                _rise(heap, held, key)
                held += 1
            elif key > heap[0]:
                _sink(heap, key)
        best = np.sort(heap[:held])[::-1]
        for rank in range(held):
            ids[q, rank] = n_users - 1 - best[rank] % n_users
            score[q, rank] = best[rank] // n_users / size


@compiled()
def _rise(heap, place, key):
    """Put a key into the free last place of a heap with its smallest key first."""
    while place > 0 and heap[(place - 1) // 2] > key:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = key


@compiled()
def _sink(heap, key):
    """Put a key into the heap in place of its smallest."""
    place = 0
    while 2 * place + 1 < len(heap):
        child = 2 * place + 1
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = key
