"""What a candidate profile is worth (PtE, Eqs. 9 to 11): near what its subject is about, far from its neighbours.

    R(p) = λ_c · mean cos(f(p), f(i)) over what is around the subject  −  λ_d · mean cos(f(p), e_v) over its neighbours

Around a user are the texts of the items of the training history, around an item its training users' profiles. All rows
have unit norm, so that a mean of cosines is the product with a mean row.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

import numpy as np

from nullrec_lib.errors import InputError
from nullrec_lib.profiles.prompts import degenerate

USELESS = -1.0
"""Of each term for a text that is no profile (empty, or in circles): no cosine is lower, and none wins by saying
nothing."""


class Terms(NamedTuple):
    """(n,) float64 each, for n candidates."""

    collab: np.ndarray
    """Eq. 10, in [-1, 1]."""
    dist: np.ndarray
    """Eq. 11, in [-1, 1]: minus the mean cosine to the neighbours; 0 for a subject without any."""
    total: np.ndarray
    """Eq. 9."""
    rows: np.ndarray | None = None
    """(n, d) the candidates' embeddings."""


def collaborative(rows: np.ndarray, about: np.ndarray) -> np.ndarray:
    """(n,) mean cosine of candidates (n, d) with what is around their subjects, of which `about` (n, d) is the mean."""
    return np.einsum("nd,nd->n", rows, about, dtype=np.float64)


def distinctive(rows: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """(n,) minus the mean cosine of candidates (n, d) with their subjects' neighbours' embeddings, of which
    `neighbours` (n, d) is the mean."""
    return -np.einsum("nd,nd->n", rows, neighbours, dtype=np.float64)


def mean_rows(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(S, d) means of rows (N, d) over ids (S, k); an id of -1 is nobody, and the mean of nobody is 0."""
    there = ids >= 0
    total = np.where(there[..., None], rows[np.maximum(ids, 0)], 0).sum(axis=1, dtype=np.float64)
    return total / np.maximum(there.sum(axis=1), 1)[:, None]


class Reward:
    """Rewards of candidates for S subjects of one side.

    Args:
        about: (S, d) mean of the embeddings around each subject.
        neighbours: (S, k) int64, rows of `current`; -1 is nobody.
        current: (S, d) embeddings that the subjects have now; see `refresh`.
        encode: n texts → (n, d) of unit norm; what it has seen it should remember.
        lambda_collab: λ_c; 0 is the ablation without collaborative alignment.
        lambda_dist: λ_d; 0 is the ablation without distinctiveness.

    Raises:
        InputError: a weight that is negative or not finite, or both are 0.
    """

    def __init__(
        self, about: np.ndarray, neighbours: np.ndarray, current: np.ndarray,
        encode: Callable[[list[str]], np.ndarray], lambda_collab: float = 1.0, lambda_dist: float = 0.5,
    ):
        check_weights(lambda_collab, lambda_dist)
        self.about, self.neighbours, self.encode = about, neighbours, encode
        self.lambda_collab, self.lambda_dist = lambda_collab, lambda_dist
        self.refresh(current)

    def refresh(self, current: np.ndarray) -> None:
        """Take (S, d) as the embeddings that neighbours have from now on."""
        self.current = current.copy()
        self._near = mean_rows(current, self.neighbours)

    def __call__(self, texts: Sequence[str], subjects: Sequence[int]) -> Terms:
        """The rewards of n texts, each for the subject (row of `about`) beside it."""
        subjects = np.asarray(subjects, np.int64)
        rows = self.encode(list(texts))
        useless = np.array([degenerate(text) for text in texts], bool)
        collab = np.where(useless, USELESS, collaborative(rows, self.about[subjects]))
        dist = np.where(useless, USELESS, distinctive(rows, self._near[subjects]))
        return Terms(collab, dist, self.lambda_collab * collab + self.lambda_dist * dist, rows)


def check_weights(lambda_collab: float, lambda_dist: float) -> None:
    """
    Raises:
        InputError: one is negative or not finite, or both are 0.
    """
    for name, value in (("lambda_collab", lambda_collab), ("lambda_dist", lambda_dist)):
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}: {value} is not a finite number of at least 0.")
    if not lambda_collab + lambda_dist:
        raise InputError("lambda_collab, lambda_dist: both are 0, and nothing would be rewarded.")


def advantages(rewards: np.ndarray, kind: str = "standard", epsilon: float = 1e-4) -> np.ndarray:
    """(G, K) advantages of groups of K candidates' rewards.

    `standard` is GRPO's (R − R̄) / (std + ε) (Shao et al. 2024). `log_sigmoid` is what Eq. 12 sums, log σ(R − R̄), made
    an advantage by centring it in its group: as printed, the sum Σ_k log σ(R_k − R̄) is at most K log ½, by concavity,
    and reaches that exactly where all K rewards are equal. So its maximum is no spread at any reward, not high reward;
    and used raw it is negative for every candidate and pushes all of them down.

    Raises:
        InputError: another kind.
    """
    centred = rewards - rewards.mean(axis=-1, keepdims=True)
    if kind == "standard":
        return centred / (rewards.std(axis=-1, keepdims=True, ddof=1) + epsilon)
    if kind == "log_sigmoid":
        said = -np.logaddexp(0, -centred)
        return said - said.mean(axis=-1, keepdims=True)
    raise InputError(f"advantage: {kind!r} is not standard or log_sigmoid.")
