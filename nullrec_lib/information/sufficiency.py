"""The information sufficiency index (PtE, Eq. 2), with all that it takes to read it.

    I_S(U → V) = 1 − h(V | U) / h(V) = I(U; V) / h(V)

The entropies are differential: they change with the scale of V and may be negative. So V is standardised, both entropies
and the mutual information in nats are told beside the ratio, and where h(V) is not positive there is no ratio.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Sequence
from zlib import crc32

import numpy as np
import pandas as pd

from nullrec_lib.errors import InputError, shown
from nullrec_lib.files import write_json, write_text
from nullrec_lib.information.knife import Kernels, fit, log_density
from nullrec_lib.machine import environment, one_thread
from nullrec_lib.matrices import at_least_zero, finite, real, whole
from nullrec_lib.progress import bar
from nullrec_lib.results import markdown

HELD_OUT = 0.2
RESAMPLES = 2000
NOISE, SEEDS = 1e6, 2**31
"""The most that is taken of either: beyond, float32 and the generators of others end."""
JOINED = " | "
"""Between two flags of one row of a table."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval: percentiles over resampled held-out rows and seeds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sufficiency:
    """What U tells of V, on rows that no density was fitted to."""

    h_v: Interval
    """Nats, of V standardised (and with noise, if asked for)."""
    h_v_given_u: Interval
    mi_nats: Interval
    isi: Interval | None
    """None where the ratio means nothing; `why` says so."""
    why: str | None
    flags: tuple[str, ...]
    """What a reader must know of this estimate."""
    rows: dict[str, int]
    """`all`, and per seed `fitted` and `held_out`; `counted` is how many were held out under some seed."""
    seeds: tuple[int, ...]
    dims: dict[str, int]
    """Columns of `u` and `v` after PCA."""
    noise: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def views(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Embeddings of the same rows, checked: (n, d) each, float64.

    Raises:
        InputError: fewer than two, not two-dimensional, of different numbers of rows, or with numbers that are not
            finite; names the embedding.
    """
    made = {name: real(rows, name) for name, rows in named.items()}
    for name, rows in made.items():
        if rows.ndim != 2 or not rows.shape[1]:
            raise InputError(f"{name}: its shape is {rows.shape}; give one row per item.")
        if len(rows) < 2:
            raise InputError(f"{name}: {len(rows)} rows are too few; give one per item.")
        made[name] = rows = finite(rows, name).astype(np.float64)
        if not (rows.max(axis=0) > rows.min(axis=0)).any():
            raise InputError(f"{name}: all rows are the same.")
        rows /= _extreme(np.abs(rows).max())
    counts = {name: len(rows) for name, rows in made.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"rows: {', '.join(f'{name} has {n:,}' for name, n in counts.items())}; row i must be one item.")
    if len(made) < 2:
        raise InputError("views: give at least two embeddings.")
    return made


def _extreme(size: float) -> float:
    """The power of two to divide numbers by whose squares float64 may not hold, or 1. No estimate depends on a scale."""
    return 1.0 if 1e-100 < size < 1e100 else float(2.0 ** np.floor(np.log2(size)))


def sufficiency(
    u: np.ndarray, v: np.ndarray, seeds: Sequence[int] = (22, 23, 24), pca: int | None = 32, noise: float = 0.0,
    kernels: Kernels = Kernels(), device: str = "cpu",
) -> Sufficiency:
    """I_S(U → V) of two embeddings of the same rows; see `matrix`."""
    return matrix({"u": u, "v": v}, seeds, pca, noise, kernels, device, [("u", "v")])["u", "v"]


def matrix(
    named: dict[str, np.ndarray], seeds: Sequence[int] = (22, 23, 24), pca: int | None = 32, noise: float = 0.0,
    kernels: Kernels = Kernels(), device: str = "cpu", pairs: Sequence[tuple[str, str]] | None = None,
) -> dict[tuple[str, str], Sufficiency]:
    """I_S of each ordered pair. The marginal of a V is fitted once per seed, whatever U it is told by.

    Args:
        named: name → (n, d) embeddings, row i the same item in all.
        seeds: each draws its own fifth of the rows to hold out, its own noise and its own start of the densities.
        pca: principal components that are kept of each embedding, found on the fitted rows; None keeps all columns.
        noise: standard deviation of Gaussian noise that V gets, in units of its standardised columns. A function of U
            has infinite mutual information with U: only with noise is there a number to estimate.
        kernels: the family of densities.
        pairs: (U, V); None is all.

    Returns: (U, V) → estimate.

    Raises:
        InputError: see `views`; fewer than 25 rows, `pca` below 1, noise that is negative or above `NOISE`, no seed or one
            that is no whole number below `SEEDS`, an unknown name, more kernels than rows; rows that are all the same but
            for those held out, or one held out so far from the others that it has no density.
    """
    named = views(named)
    pairs = [(u, v) for u in named for v in named if u != v] if pairs is None else list(pairs)
    if unknown := {name for pair in pairs for name in pair} - set(named):
        raise InputError(f"pairs: there is no embedding {sorted(unknown)[0]!r}.")
    n = len(next(iter(named.values())))
    if n < 25:
        raise InputError(f"rows: {n} are too few; give 25 or more.")
    pca = None if pca is None else whole(pca, "pca", 1)
    if not at_least_zero(noise, "noise") <= NOISE:
        raise InputError(f"noise: {shown(noise)} is above {NOISE:,.0f}, where nothing is left of V.")
    seeds = tuple(whole(seed, "seeds", -SEEDS, SEEDS) for seed in (seeds if np.iterable(seeds) else [seeds]))
    if not seeds or min(seeds) < 0:
        raise InputError("seeds: give at least one, and none below 0.")
    if kernels.components > n:
        raise InputError(f"components: {kernels.components:,} kernels are more than the {n:,} rows; ask for fewer.")
    gone = lambda: np.full((len(seeds), n), np.nan)
    marginal, conditional = {v: gone() for _, v in pairs}, {pair: gone() for pair in pairs}
    dims: dict[str, int] = {}
    # One thread: for so small products a second one waits more than it works, on busy cores for minutes.
    with one_thread(), bar(what="densities", total=len(seeds) * (len(marginal) + len(pairs)), unit="fit") as progress:
        for at, seed in enumerate(seeds):
            held, rows = np.split(np.random.default_rng(seed).permutation(n), [max(5, round(HELD_OUT * n))])
            made = {name: standardised(table, rows, pca) for name, table in named.items()}
            if flat := [name for name, table in made.items() if not table.shape[1]]:
                raise InputError(f"{flat[0]}: with seed {seed} all rows but held-out ones are the same, so there is no density "
                                 "to fit; give rows that differ.")
            # A V's noise is its own, whatever else is asked for.
            drawn = {name: np.random.default_rng([seed, crc32(name.encode())]).standard_normal(made[name].shape)
                     for name in marginal}
            noisy = {name: (made[name] + noise * drawn[name]) / np.hypot(1, noise) for name in marginal}
            dims |= {name: table.shape[1] for name, table in made.items()}
            alone = {v: fit(noisy[v][rows], None, kernels, seed, device) for v in marginal}
            for v, found in alone.items():
                marginal[v][at, held] = _known(log_density(found, noisy[v][held]), held, v)
                progress.update()
            for u, v in pairs:
                found = fit(noisy[v][rows], made[u][rows], kernels, seed, device, alone[v])
                logs = log_density(found, noisy[v][held], made[u][held])
                conditional[u, v][at, held] = _known(logs, held, f"{u} or {v}")
                progress.update()
    counts = {"all": n, "fitted": len(rows), "held_out": len(held)}
    return {(u, v): _told(-marginal[v], -conditional[u, v], counts, tuple(seeds), {"u": dims[u], "v": dims[v]}, noise)
            for u, v in pairs}


def _known(logs: np.ndarray, held: np.ndarray, place: str) -> np.ndarray:
    """Log densities of held-out rows, all of which have one.

    Raises:
        InputError: a row lies so far out that float32 knows no density there.
    """
    if not np.isfinite(logs).all():
        raise InputError(f"{place}: row {held[int(np.argmin(np.isfinite(logs)))]} lies too far from the others to have a density; "
                         "leave it out or bring it nearer.")
    return logs


def standardised(table: np.ndarray, rows: np.ndarray, pca: int | None) -> np.ndarray:
    """(n, k): principal components, each of mean 0 and variance 1 on `rows`. Columns that are constant there are
    dropped, and of components those that hold next to nothing."""
    centred = table - table[rows].mean(axis=0)
    if pca is not None:
        _, strength, directions = np.linalg.svd(centred[rows], full_matrices=False)
        some = strength > 1e-6 * strength[0]
        centred = centred @ directions[some][:pca].T
    deviation = centred[rows].std(axis=0)
    some = deviation > 1e-9 * deviation.max(initial=0)
    return centred[:, some] / deviation[some]


def _told(h_v: np.ndarray, h_v_given_u: np.ndarray, counts: dict[str, int], seeds: tuple[int, ...],
          dims: dict[str, int], noise: float) -> Sufficiency:
    """Estimates from −log densities (seeds, n), NaN where a row was not held out."""
    random, draws = np.random.default_rng(0), []
    counted = np.flatnonzero(np.isfinite(h_v).any(axis=0))
    for _ in range(RESAMPLES):
        some = random.integers(len(seeds), size=len(seeds))
        times = np.bincount(random.integers(len(counted), size=len(counted)), minlength=len(counted))
        draws.append(_means(h_v[some][:, counted], h_v_given_u[some][:, counted], times))
    value = np.array(_means(h_v[:, counted], h_v_given_u[:, counted], np.ones(len(counted))))
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)  # some draws of few rows hold none that counts
    h, h_given, mi, ratio = (Interval(*map(float, three)) for three in zip(value, low, high))
    why = None
    if h.low <= 0:
        why = (f"h(V) is {h.value:.3f} nats ({h.low:.3f} to {h.high:.3f}), which is not above 0: a ratio to it means "
               "nothing. Read the mutual information instead.")
    flags = []
    if mi.low <= 0 <= mi.high:
        flags.append("the mutual information is not told apart from 0")
    if mi.high < 0:
        flags.append("the mutual information comes out below 0, where it cannot be: p(V | U) was fitted to chance")
    if h_given.value < 0:
        flags.append("h(V|U) is negative, so that I_S is above 1: V is nearly a function of U; add noise")
    # What fitting d_u · d_v weights of a line to n rows costs on other rows, at least: half of one nat per weight and row.
    lost = dims["u"] * dims["v"] / (2 * counts["fitted"])
    if lost > 0.05 * abs(mi.value):
        flags.append(f"{counts['fitted']:,} rows are few for {dims['u']} and {dims['v']} columns: about {lost:.2f} nats or "
                     "more are missing from the mutual information; keep fewer principal components")
    return Sufficiency(h, h_given, mi, None if why else ratio, why, tuple(flags), counts | {"counted": len(counted)},
                       seeds, dims, noise)


def _means(h_v: np.ndarray, h_v_given_u: np.ndarray, times: np.ndarray) -> tuple[float, float, float, float]:
    """Both entropies, their difference and its share of the first; row i counts `times[i]` times."""
    weight = np.isfinite(h_v) * times
    total = weight.sum() or np.nan
    mean = lambda rows: float((np.nan_to_num(rows) * weight).sum() / total)
    h, given = mean(h_v), mean(h_v_given_u)
    return h, given, h - given, 1 - given / h


def table(found: dict[tuple[str, str], Sufficiency]) -> pd.DataFrame:
    """One row per pair: the estimates with their intervals, dimensions, noise, rows and flags."""
    rows = []
    for (u, v), one in found.items():
        row = {"u": u, "v": v}
        for name in ("isi", "mi_nats", "h_v", "h_v_given_u"):
            told = getattr(one, name)
            row |= {name if end == "value" else f"{name} {end}": told and getattr(told, end) for end in ("value", "low", "high")}
        rows.append(row | {"dims u": one.dims["u"], "dims v": one.dims["v"], "noise": one.noise, "rows": one.rows["all"],
                           "seeds": len(one.seeds), "why": one.why, "flags": JOINED.join(one.flags)})
    return pd.DataFrame(rows)


def sweep(named: dict[str, np.ndarray], noises: Sequence[float], dims: Sequence[int | None], **options: Any) -> pd.DataFrame:
    """`table`s of `matrix` for every noise and every number of principal components, one below the other."""
    return pd.concat([table(matrix(named, pca=pca, noise=noise, **options)) for pca in dims for noise in noises],
                     ignore_index=True)


def verdict(swept: pd.DataFrame, u: str, v: str, bound: float) -> str:
    """Where I_S(u → v) is estimated, by the whole intervals of every setting of a sweep: `above` a bound or `below` it, `not
    stable` where settings contradict each other, else `undecided`.

    An estimate, and no proof: what p(v | u) misses makes it too low, what p(v) misses too high."""
    rows = swept[(swept["u"] == u) & (swept["v"] == v)]
    told = rows.dropna(subset="isi")
    over, under = told["isi low"] > bound, told["isi high"] < bound
    if len(told) < len(rows) or not len(rows):
        return "undecided"
    if over.all() or under.all():
        return "above" if over.all() else "below"
    return "not stable" if over.any() and under.any() else "undecided"


CLAIMS = {"language tells over 95% of the fusion": ("lm", "fusion", 0.95),
          "the fusion tells under 85% of language": ("fusion", "lm", 0.85)}
"""PtE, section 3.4: claim → U, V, bound."""


def verdicts(swept: pd.DataFrame) -> dict[str, str]:
    """The paper's two figures, each by `verdict`."""
    return {f"{claim}: estimated": verdict(swept, *of) for claim, of in CLAIMS.items()}


def report(frame: pd.DataFrame, swept: pd.DataFrame, about: str, folder: str | Path,
           more: dict[str, tuple[str, pd.DataFrame]] | None = None) -> None:
    """Write a case study's `table` and `sweep` into `folder` as CSV, both with the verdicts as Markdown, and where they were
    made as environment.json; nothing where `folder` is empty.

    Args:
        about: a sentence on what the embeddings are of.
        more: file name → heading and a further table, index and all.
    """
    if not str(folder):
        return
    more = more or {}
    tables = {"sufficiency": frame, "sufficiency_sweep": swept} | {name: some.reset_index() for name, (_, some) in more.items()}
    for name, some in tables.items():
        write_text(Path(folder) / f"{name}.csv", some.to_csv(index=False))
    wide = swept.sort_values(["dims v", "noise"])
    wide = wide.assign(told=[f"{row['isi']:.3f} ({row['isi low']:.3f} … {row['isi high']:.3f})" if pd.notna(row["isi"]) else "-"
                             for _, row in wide.iterrows()])
    wide = wide.assign(setting=[f"{dims} columns, noise {noise:g}" for dims, noise in zip(wide["dims v"], wide["noise"])])
    order = wide["setting"].unique()
    wide = wide.assign(pair=wide["u"] + " → " + wide["v"]).pivot(index="pair", columns="setting", values="told")[order]
    text = ["# Information sufficiency", about, "I_S(U → V) with 95% intervals over held-out items and seeds; h and I in nats, of "
            "V standardised, with the noise that is told.", markdown(frame.drop(columns=["why", "flags"]).round(4))]
    if flagged := flags(frame):
        text += ["\n".join(f"- {', '.join(pairs)}: {flag}." for flag, pairs in flagged.items())]
    text += ["## Noise and dimensions", markdown(wide.reset_index()),
             "\n".join(f"- {claim} **{said}**" for claim, said in verdicts(swept).items()),
             "Estimates, and no proof: what p(V | U) misses makes them too low, what p(V) misses too high."]
    for heading, some in more.values():
        text += [f"## {heading}", markdown(some.reset_index().round(3))]
    write_text(Path(folder) / "sufficiency.md", "\n\n".join(text) + "\n")
    write_json(Path(folder) / "environment.json", environment())


def flags(frame: pd.DataFrame) -> dict[str, list[str]]:
    """What a reader of a `table` must know → the pairs that it is about."""
    found: dict[str, list[str]] = {}
    for row in frame[frame["flags"] != ""].itertuples():
        for flag in row.flags.split(JOINED):
            found.setdefault(flag, []).append(f"{row.u} → {row.v}")
    return found
