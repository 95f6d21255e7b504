"""The paper's theory as experiments: where each statement holds, and one construction for each that is false as printed.

All quantities here are exact or have a closed form; the notebook puts the estimates beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from nullrec_lib.errors import InputError


@dataclass(frozen=True)
class Experiment:
    """A statistical experiment with finite outcomes: `joint[y, z]` = P(Y = y, Z = z)."""

    joint: np.ndarray

    def __post_init__(self):
        if self.joint.ndim != 2 or (self.joint < 0).any() or not np.isclose(self.joint.sum(), 1):
            raise InputError("joint: give probabilities (Y, Z) that sum to 1.")

    @property
    def posteriors(self) -> np.ndarray:
        """(Z, Y): P(Y | Z = z), of outcomes that happen."""
        happens = self.joint.sum(axis=0)
        return (self.joint / np.where(happens, happens, 1)).T[happens > 0]

    @property
    def information(self) -> float:
        """I(Z; Y) in nats."""
        y, z = self.joint.sum(axis=1, keepdims=True), self.joint.sum(axis=0, keepdims=True)
        some = self.joint > 0
        return float((self.joint[some] * np.log(self.joint[some] / (y @ z)[some])).sum())

    @property
    def sufficiency(self) -> float:
        """I_S(Z → Y) = I(Z; Y) / H(Y): Eq. 2 for a finite Y, with families that hold the truth."""
        y = self.joint.sum(axis=1)
        return self.information / float(-(y[y > 0] * np.log(y[y > 0])).sum())

    @property
    def bayes_risk(self) -> float:
        """Probability that the best guess of Y from Z is wrong."""
        return float(1 - self.joint.max(axis=0).sum())


def xor(flipped: float = 0.0) -> dict[str, Experiment]:
    """Two fair, independent bits and Y their exclusive or, wrong with probability `flipped`: as seen from either bit,
    from both, and from the product of their signs (a fusion)."""
    right = 1 - flipped
    joint = np.array([[[right, flipped], [flipped, right]], [[flipped, right], [right, flipped]]]) / 4  # (lm, id, y)
    both = joint.reshape(4, 2).T
    same = np.stack([joint[0, 0] + joint[1, 1], joint[0, 1] + joint[1, 0]], axis=1)
    return {"lm": Experiment(joint.sum(axis=1).T), "id": Experiment(joint.sum(axis=0).T), "both": Experiment(both),
            "fusion": Experiment(same)}


def linear_risk(corners: np.ndarray, y: np.ndarray) -> float:
    """Least error of a linear rule sign(a·x + b) on equally likely points: all rules, by trying every labelling.

    Args:
        corners: (n, d) points, n ≤ 12.
        y: (n,) of 0 and 1.
    """
    best, n = 1.0, len(corners)
    for labels in range(2**n):
        said = (labels >> np.arange(n)) & 1
        wrong = float((said != y).mean())
        if wrong < best and _separable(corners, said):
            best = wrong
    return best


def _separable(x: np.ndarray, labels: np.ndarray) -> bool:
    signs = 2 * labels - 1
    rows = -signs[:, None] * np.column_stack([x, np.ones(len(x))])
    return linprog(np.zeros(x.shape[1] + 1), rows, -np.ones(len(x)), bounds=(None, None)).status == 0


def printed_sufficiency(u: Experiment, v: Experiment) -> bool:
    """Eq. 1 as printed: every P(Y | V = v) is a mixture of P(Y | U = u)."""
    hull = u.posteriors.T
    return all(linprog(np.zeros(hull.shape[1]), A_eq=np.vstack([hull, np.ones(hull.shape[1])]),
                       b_eq=np.append(row, 1)).status == 0 for row in v.posteriors)


def dominates(u: Experiment, v: Experiment) -> bool:
    """Blackwell: some channel makes V of U whatever Y is, P(v | y) = Σ_u κ(v | u) P(u | y)."""
    (ny, nu), nv = u.joint.shape, v.joint.shape[1]
    prior = u.joint.sum(axis=1)
    if not np.allclose(prior, v.joint.sum(axis=1)):
        raise InputError("experiments: they are of different Y.")
    likely_u, likely_v = u.joint / prior[:, None], v.joint / prior[:, None]
    made = np.kron(likely_u, np.eye(nv))  # (ny·nv, nu·nv): Σ_u P(u | y) κ(v | u)
    whole = np.kron(np.eye(nu), np.ones(nv))
    return linprog(np.zeros(nu * nv), A_eq=np.vstack([made, whole]),
                   b_eq=np.concatenate([likely_v.ravel(), np.ones(nu)])).status == 0


def erasure(known: float) -> Experiment:
    """A fair bit that is shown with probability `known`, and else nothing."""
    return Experiment(np.array([[known, 0, 1 - known], [0, known, 1 - known]]) / 2)


def noisy(wrong: float) -> Experiment:
    """A fair bit through a channel that flips it with probability `wrong`."""
    return Experiment(np.array([[1 - wrong, wrong], [wrong, 1 - wrong]]) / 2)


def linear_information(u: np.ndarray, y: np.ndarray) -> float:
    """−½ log(1 − R²): what a Gaussian with a linear mean, the smallest family of Eq. 2, finds of y (n,) in u (n, d)."""
    x = np.column_stack([u, np.ones(len(u))])
    left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(-0.5 * np.log(left.var() / y.var()))


def chain(n: int, noise_id: float = 1.0, leak: float = 0.0, seed: int = 22) -> dict[str, np.ndarray]:
    """Gaussian columns (n, 1): Y = Z_lm + leak · (what Z_id knows beside) + noise, Z_id = Z_lm + noise, and a fusion.

    With `leak` 0, Y and Z_id are independent given Z_lm, which is the premise of Theorem 1; else they are not.
    """
    random = np.random.default_rng(seed)
    lm, own, rest = random.standard_normal((3, n, 1))
    z_id = lm + noise_id * own
    y = lm + leak * own + rest
    return {"lm": lm, "id": z_id, "fusion": np.tanh(z_id) + lm, "y": y}


def chain_information(noise_id: float = 1.0, leak: float = 0.0) -> dict[str, float]:
    """I(·; Y) of `chain` in nats: from Z_lm, from Z_id, and from both.

    Raises:
        InputError: no noise in Z_id: then both are one column, and what leaks is not known from them.
    """
    if not noise_id > 0:
        raise InputError(f"noise_id: {noise_id} is not above 0.")
    total = 2 + leak**2
    gained = lambda left: 0.5 * np.log(total / left)
    with_id = total - (1 + leak * noise_id) ** 2 / (1 + noise_id**2)
    return {"lm": gained(1 + leak**2), "id": gained(with_id), "both": gained(1.0)}


def refine(rho_u: float, rho_v: float, users: int = 60, items: int = 40, d: int = 16, rounds: int = 12,
           seed: int = 22) -> pd.DataFrame:
    """A loop of Lipschitz operators (Theorem 3): profiles are vectors, an item's is ρ_v times the mean of its users' and a
    part of its own, a user's ρ_u times the mean of its items' and a part of its own.

    Returns: by round: `user` and `item`, the largest distance of a profile to the round before, and `user rate`, over
        the round before. The theorem bounds the rate by ρ_u ρ_v.
    """
    random = np.random.default_rng(seed)
    bought = random.random((users, items)) < 0.15
    bought[np.arange(users), random.integers(items, size=users)] = True
    bought[random.integers(users, size=items), np.arange(items)] = True
    of_items = bought.T / bought.sum(axis=0)[:, None]
    of_users = bought / bought.sum(axis=1)[:, None]
    text, taste = random.standard_normal((items, d)), random.standard_normal((users, d))
    p_u, p_v, rows = taste.copy(), np.zeros((items, d)), []
    for t in range(rounds):
        new_v = rho_v * of_items @ p_u + text
        new_u = rho_u * of_users @ new_v + taste
        moved = {"user": np.linalg.norm(new_u - p_u, axis=1).max(), "item": np.linalg.norm(new_v - p_v, axis=1).max()}
        before = rows[-1]["user"] if rows else np.nan
        rows.append({"round": t + 1, **moved, "user rate": moved["user"] / before})
        p_u, p_v = new_u, new_v
    return pd.DataFrame(rows)
