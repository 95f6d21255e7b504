"""ItemKNN: items that the same training users have (Sarwar et al. 2001), no learning."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from nullrec_lib.data.examples import Batch
from nullrec_lib.methods.method import Material


PAIRS = 2**22
"""Similarities in hand at once: a user's items have as many as the square of their number."""


class ItemKNN:
    """Cosine between the items' columns of the binary user × item training matrix, `neighbours` kept per item;
    an item's score is the sum over the history. Ties among neighbours go to the smaller id."""

    reads_language = False

    def __init__(self, material: Material, neighbours: int):
        n = material.n_items
        # interactions → binary matrix (an item that a user has twice counts once) with unit-norm columns
        users, items = material.users.numpy(), material.items.numpy()
        matrix = sparse.csr_matrix((np.ones(len(users)), (users, items)), shape=(users.max() + 1, n))
        matrix.data[:] = 1.0
        norm = np.sqrt(np.bincount(matrix.indices, minlength=n))
        most = matrix.T @ np.diff(matrix.indptr)  # entries of an item's row: what its users have, at most
        matrix = (matrix @ sparse.diags(1 / np.maximum(norm, 1))).tocsr()
        columns, block, kept = matrix.T.tocsr(), (most.cumsum() // PAIRS).astype(np.int64), []
        for rows in np.split(np.arange(n), np.flatnonzero(np.diff(block)) + 1):
            similarity = columns[rows] @ matrix
            similarity.setdiag(0, k=rows[0])
            similarity.eliminate_zeros()
            kept.append(_largest_per_row(similarity, neighbours))
        self.similarity = sparse.vstack(kept, format="csr").astype(np.float32)

    def scores(self, batch: Batch) -> Tensor:
        """(B, N) float32; row b is the sum of the similarities from the items of history b."""
        history = batch.history.cpu().numpy()
        n = self.similarity.shape[0]
        row, column = np.nonzero(history < n)
        visits = sparse.csr_matrix((np.ones(len(row), np.float32), (row, history[row, column])), shape=(len(history), n))
        return torch.from_numpy((visits @ self.similarity).toarray()).to(batch.history.device)


def _largest_per_row(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Keep the `count` largest entries of every row."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    # Rounded, as cosines that are equal on paper can differ in the last bit.
    order = np.lexsort((matrix.indices, -matrix.data.round(12), row))
    rank = np.arange(len(row)) - matrix.indptr[row[order]]
    keep = order[rank < count]
    return sparse.csr_matrix((matrix.data[keep], (row[keep], matrix.indices[keep])), shape=matrix.shape)
