"""Densities by mixtures of Gaussian kernels whose parameters are learned (KNIFE, Pichler et al. 2022).

    p(v | u) = Σ_k w_k(u) N(v; m(u) + c_k(u), S_k(u)^½ C S_k(u)^½)

with m linear in u, and w, c and the diagonal S given by a small network of u; the marginal is the same with constants in
place of functions of u, so that both belong to one family. C is common to all kernels: full, or a diagonal and a few
directions. Learning begins at the least-squares line with Gaussian residuals, which is the truth where (u, v) is Gaussian,
or at clusters of the residuals, and keeps the weights that are best on rows set aside from the training rows. A density
given u that is worse there than the marginal, which its family holds, is learned from the marginal instead.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal
from torch.nn import functional as F

from nullrec_lib.errors import InputError, shown
from nullrec_lib.matrices import at_least_zero, whole

SET_ASIDE = 0.15
"""Of the training rows: early stopping and the choice of a start look at them."""
RIDGES = (1e-6, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e4)
"""Penalties of the first line, in units of the rows' number; under the last a line is flat."""
STARTS = 3
"""Clusterings that a marginal tries to begin at."""
STEPS, LEAST = 16, 32
"""Of an epoch, and rows of a step, at least. On 1,000 rows, batches of 256 are three steps an epoch, and learning stops
before it begins: I(U; V) of a sine came out as 0, where nearest neighbours tell 2.3 nats."""
FLOOR = 1e-4
"""Least standard deviation of a kernel, in units of the standardised v: a point mass has no density."""


@dataclass(frozen=True)
class Kernels:
    """The family, and how it is fitted."""

    components: int = 8
    covariance: str = "full"
    """full | low-rank: `rank` directions and a diagonal, where d² numbers are too many for the rows."""
    rank: int = 8
    hidden: int = 128
    lr: float = 3e-3
    batch: int = 256
    """At most: few rows come in smaller batches, so that an epoch takes `STEPS` steps or more."""
    epochs: int = 100
    """At most."""
    patience: int = 10
    """Epochs without a better likelihood of the rows set aside."""

    def __post_init__(self):
        for name in ("components", "rank", "hidden", "batch", "epochs", "patience"):
            object.__setattr__(self, name, whole(getattr(self, name), name, 1))
        if self.covariance not in ("full", "low-rank"):
            raise InputError(f"covariance: {shown(self.covariance)} is not full or low-rank.")
        if not 0 < at_least_zero(self.lr, "lr") < math.inf:
            raise InputError(f"lr: {shown(self.lr)} is not a positive, finite number.")


class Full(nn.Module):
    """N(0, C) with C = (AᵀA)⁻¹, A lower triangular."""

    def __init__(self, covariance: np.ndarray):
        super().__init__()
        inverse = np.linalg.inv(np.linalg.cholesky(covariance))
        self.log_diagonal = nn.Parameter(torch.tensor(np.log(np.diag(inverse)), dtype=torch.float32))
        self.below = nn.Parameter(torch.tensor(np.tril(inverse, -1), dtype=torch.float32))

    def log_prob(self, x: Tensor) -> Tensor:
        log_diagonal = self.log_diagonal.clamp(max=-math.log(FLOOR))
        z = x @ (self.below.tril(-1) + log_diagonal.exp().diag()).T
        return -0.5 * z.square().sum(dim=-1) + log_diagonal.sum() - 0.5 * x.shape[-1] * math.log(2 * math.pi)


class LowRank(nn.Module):
    """N(0, C) with C = FFᵀ + a diagonal."""

    def __init__(self, covariance: np.ndarray, rank: int):
        super().__init__()
        values, vectors = np.linalg.eigh(covariance)
        rank = min(rank, len(values) - 1)
        rest = max(values[:-rank].mean(), FLOOR**2)
        factor = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:] - rest, 0))
        diagonal = np.maximum(np.diag(covariance) - (factor**2).sum(axis=1), FLOOR**2)
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float32))
        self.log_diagonal = nn.Parameter(torch.tensor(np.log(diagonal), dtype=torch.float32))

    def log_prob(self, x: Tensor) -> Tensor:
        diagonal = self.log_diagonal.exp() + FLOOR**2
        return LowRankMultivariateNormal(torch.zeros_like(diagonal), self.factor, diagonal, validate_args=False).log_prob(x)


class Density(nn.Module):
    """p(v | u), or p(v) where u has no columns."""

    def __init__(self, v: np.ndarray, u: np.ndarray, kernels: Kernels, clusters: bool, ridge: float, seed: int):
        """Start from rows v (n, d) and u (n, d_u).

        Args:
            clusters: kernels begin at clusters of the residuals, where there are as many, instead of all at their middle.
            ridge: penalty of the line m, times n.
            seed: of the clusters.
        """
        super().__init__()
        d, K = v.shape[1], kernels.components
        mean, weights = line(v, u, ridge)
        self.middle, self.weights = (nn.Parameter(torch.tensor(part, dtype=torch.float32)) for part in (mean, weights))
        residual = v - mean - u @ weights
        offsets, shares = 0.1 * residual.std(axis=0) * np.random.default_rng(seed).standard_normal((K, d)), np.full(K, 1 / K)
        if clusters and len(np.unique(residual, axis=0)) >= K:
            whiten = np.linalg.inv(np.linalg.cholesky(_covariance(residual)))
            found = KMeans(K, n_init=1, random_state=seed).fit(residual @ whiten.T)
            shares = np.bincount(found.labels_, minlength=K) / len(v)
            offsets = np.stack([residual[found.labels_ == k].mean(axis=0) for k in range(K)])
            residual = residual - offsets[found.labels_]
        covariance = _covariance(residual)
        full = kernels.covariance == "full" or d == 1  # one column has no few directions
        self.noise = Full(covariance) if full else LowRank(covariance, kernels.rank)
        start = np.concatenate([np.log(shares), offsets.ravel(), np.zeros(K * d)])
        self.start = nn.Parameter(torch.tensor(start, dtype=torch.float32))
        self.K, self.d, self.network = K, d, None
        if u.shape[1]:
            h = kernels.hidden
            self.network = nn.Sequential(nn.Linear(u.shape[1], h), nn.GELU(), nn.Linear(h, h), nn.GELU(),
                                         nn.Linear(h, K * (2 * d + 1)))
            nn.init.zeros_(self.network[-1].weight)
            nn.init.zeros_(self.network[-1].bias)

    def log_prob(self, v: Tensor, u: Tensor) -> Tensor:
        """(n,) log densities of rows v (n, d) given rows u (n, d_u)."""
        told = self.start.expand(len(v), -1)
        if self.network is not None:
            told = told + self.network(u)
        weight, offset, scale = told.split([self.K, self.K * self.d, self.K * self.d], dim=1)
        scale = scale.view(-1, self.K, self.d).clamp(-4, 4)  # log of the inverse, relative to C
        x = (v - self.middle - u @ self.weights)[:, None] - offset.view(-1, self.K, self.d)
        kernel = self.noise.log_prob(x * scale.exp()) + scale.sum(dim=-1)
        return torch.logsumexp(F.log_softmax(weight, dim=1) + kernel, dim=1)


def line(v: np.ndarray, u: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Intercept (d,) and weights (d_u, d) of ridge regression of v on u; the penalty is `ridge` times the rows."""
    if not u.shape[1]:
        return v.mean(axis=0), np.zeros((0, v.shape[1]))
    centre = u.mean(axis=0)
    x = u - centre
    weights = np.linalg.solve(x.T @ x + ridge * len(u) * np.eye(u.shape[1]), x.T @ (v - v.mean(axis=0)))
    return v.mean(axis=0) - centre @ weights, weights


def _covariance(rows: np.ndarray) -> np.ndarray:
    """Shrunk towards a multiple of the identity, so that a few rows in many dimensions have an inverse."""
    return LedoitWolf().fit(rows).covariance_ + FLOOR**2 * np.eye(rows.shape[1])


def fit(v: np.ndarray, u: np.ndarray | None, kernels: Kernels, seed: int, device: str = "cpu",
        marginal: Density | None = None) -> Density:
    """The density of rows v (n, d), given rows u (n, d_u) if there are any, that is best on rows set aside.

    Args:
        marginal: the one of the same v and seed without u; given u it is never worse on the rows set aside.

    Raises:
        InputError: fewer than 20 rows.
    """
    if len(v) < 20:
        raise InputError(f"rows: {len(v)} are too few to fit a density to; give 20 or more.")
    u = np.zeros((len(v), 0)) if u is None else u
    order = np.random.default_rng(seed).permutation(len(v))
    aside, rows = np.split(order, [max(1, round(SET_ASIDE * len(v)))])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors = [torch.as_tensor(array, dtype=torch.float32, device=device) for array in (v, u)]
        loss = lambda one: _loss(one.to(device), tensors, aside)
        found = _learn(_start(v[rows], u[rows], kernels, seed, loss), tensors, rows, aside, kernels)
        if marginal is not None and loss(found) > _loss(marginal, [tensors[0], tensors[1][:, :0]], aside):
            flat = _from(marginal, v[rows], u[rows], kernels, seed).to(device)
            found = min(found, _learn(flat, tensors, rows, aside, kernels), key=loss)
        return found


def _from(marginal: Density, v: np.ndarray, u: np.ndarray, kernels: Kernels, seed: int) -> Density:
    """The marginal as a density given u that does not look at u yet."""
    made = Density(v, u, kernels, False, RIDGES[-1], seed)
    made.load_state_dict(made.state_dict() | marginal.state_dict() | {"weights": torch.zeros_like(made.weights)})
    return made


def _start(v: np.ndarray, u: np.ndarray, kernels: Kernels, seed: int, loss: Callable[[Density], float]) -> Density:
    """The penalty of the line that is best with all kernels in one place; then clusters, if they are better still. A
    marginal has no line to choose and several clusterings: what it misses would look like information."""
    made = {ridge: Density(v, u, kernels, False, ridge, seed) for ridge in (RIDGES if u.shape[1] else RIDGES[:1])}
    ridge = min(made, key=lambda one: loss(made[one]))
    if not 1 < kernels.components <= len(v) // 10:
        return made[ridge]
    clustered = [Density(v, u, kernels, True, ridge, seed + n) for n in range(1 if u.shape[1] else STARTS)]
    return min([made[ridge], *clustered], key=loss)


def _learn(density: Density, tensors: list[Tensor], rows: np.ndarray, aside: np.ndarray, kernels: Kernels) -> Density:
    least, best, waited = _loss(density, tensors, aside), copy.deepcopy(density.state_dict()), 0
    optimiser = torch.optim.Adam(density.parameters(), lr=kernels.lr)
    slow = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, kernels.epochs, kernels.lr / 100)
    size = min(kernels.batch, max(LEAST, len(rows) // STEPS))
    for _ in range(kernels.epochs):
        for some in torch.from_numpy(rows)[torch.randperm(len(rows))].split(size):
            optimiser.zero_grad()
            (-density.log_prob(*(tensor[some] for tensor in tensors)).mean()).backward()
            nn.utils.clip_grad_norm_(density.parameters(), 10.0)
            optimiser.step()
        now = _loss(density, tensors, aside)
        waited += 1
        if now < least:
            least, best, waited = now, copy.deepcopy(density.state_dict()), 0
        if waited >= kernels.patience:
            break
        slow.step()
    density.load_state_dict(best)
    return density


def _loss(density: Density, tensors: list[Tensor], rows: np.ndarray) -> float:
    """Mean −log density of rows; infinite where it is not a number, so that such weights are never kept."""
    loss = -log_density(density, *(tensor[rows] for tensor in tensors)).mean()
    return float(loss) if np.isfinite(loss) else math.inf


@torch.no_grad()
def log_density(density: Density, v: Tensor | np.ndarray, u: Tensor | np.ndarray | None = None) -> np.ndarray:
    """(n,) float64 log densities, in nats."""
    device = density.middle.device
    u = np.zeros((len(v), 0)) if u is None else u
    v, u = (torch.as_tensor(array, dtype=torch.float32, device=device) for array in (v, u))
    return np.concatenate([density.log_prob(a, b).double().cpu().numpy() for a, b in zip(v.split(4096), u.split(4096))])
