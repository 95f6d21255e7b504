"""Row-wise Adam on a CPU: every row and its moments are read and written once."""

from __future__ import annotations

import numpy as np

from nullrec_lib.kernels.cpu import AHEAD, compiled, prefetch
from nullrec_lib.kernels.row_adam import BETAS, EPSILON


def update(table, mean, square, ids, gradient, lr: float, step: int) -> None:
    """See `row_adam.row_adam`."""
    first, second = BETAS
    size, root = lr / (1 - first**step), 1 / np.sqrt(1 - second**step)
    numbers = (np.float32(x) for x in (1 - first, 1 - second, size, root, EPSILON))
    _update(table, mean, square, ids, gradient, *numbers)


@compiled(error_model="numpy")
def _update(table, mean, square, ids, gradient, first, second, size, root, epsilon):
    for u in range(len(ids)):
        ahead = ids[min(u + AHEAD, len(ids) - 1)]
        prefetch(table, ahead)
        prefetch(mean, ahead)
        prefetch(square, ahead)
        row, m, v, g = table[ids[u]], mean[ids[u]], square[ids[u]], gradient[u]
        for k in range(len(g)):
            m[k] += first * (g[k] - m[k])
            v[k] += second * (g[k] * g[k] - v[k])
            row[k] -= size * m[k] / (np.sqrt(v[k]) * root + epsilon)
