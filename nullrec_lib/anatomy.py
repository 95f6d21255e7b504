"""What a model is made of, before it has learned anything."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
from torch import nn

from nullrec_lib.backbones import WIDTHS
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.methods.method import Method
from nullrec_lib.preparing import Prepared, build, prepare
from nullrec_lib.spec import Spec
from nullrec_lib.training import Scorer, spread

STEP = 64
"""Sizes that counts are extrapolated from are multiples of it, so that halves and quarters of a width are whole."""


def anatomy(specs: list[Spec]) -> pd.DataFrame:
    """What each spec's model learns: a row per spec of a trained method, from a real build on its data.

    Columns: method, backbone, views, width (of an item vector), frozen (its columns that never move), frozen variance
    (their share of the item vectors' variance before training), ID (numbers trained per item), extra loss,
    params_trainable, params_total.
    """
    rows = []
    for spec in specs:
        prepared = prepare(spec)
        model = build(spec, prepared)
        method, table = model.method, Scorer(model).table
        rows.append({
            "method": spec.method, "backbone": spec.backbone, "views": len(method.widths), "width": sum(method.widths),
            "frozen": method.frozen_dim, "frozen variance": spread(table[:, : method.frozen_dim]) / spread(table),
            "ID": sum(table.embedding_dim for table in method.modules() if isinstance(table, nn.Embedding)),
            "extra loss": "yes" if type(method).extra_loss is not Method.extra_loss else "",
            **model.parameter_counts(),
        })
    return pd.DataFrame(rows)


def parameter_counts(spec: Spec, n_items: int, d_l: int) -> dict[str, int]:
    """`params_trainable` and `params_total` of a spec for a catalogue of `n_items` and embeddings of `d_l` dimensions.

    Nothing of that size is built. A count is a polynomial, linear in the items (tables) and quadratic in d_l (layers
    from language to language), so a few small models determine it exactly.

    Raises:
        InputError: d_l is not a multiple of `STEP`, or smaller than the spec's width; or the null space is found by a
            threshold: then the texts decide.
    """
    for name in ("threshold", "relative_threshold"):
        if getattr(spec, name) is not None:
            raise InputError(f"{name}: the nullity is the texts' then; give null_dim.")
    least = max(spec.width or WIDTHS[spec.backbone] or STEP, spec.null_dim or 1)
    if d_l % STEP or d_l < least:
        raise InputError(f"d_l: {d_l} is not a multiple of {STEP} of at least {least}.")
    start = -(-least // STEP) * STEP
    sizes, few = [start, start + STEP, start + 2 * STEP], [4, 5]
    weights = [w * v for w in _lagrange(sizes, d_l) for v in _lagrange(few, n_items)]
    built = [_small(spec, n, d) for d in sizes for n in few]
    return {name: int(sum(w * counts[name] for w, counts in zip(weights, built))) for name in built[0]}


def _lagrange(known: list[int], x: int) -> list[Fraction]:
    """Weights of the values at `known` in the polynomial through them at x."""
    return [math.prod(Fraction(x - b, a - b) for b in known if b != a) for a in known]


def _small(spec: Spec, n_items: int, d_l: int) -> dict[str, int]:
    """Counts of a real model over made-up items; every user has two of them."""
    users = spec.similar_users + 2
    items = np.arange(2 * users) % n_items
    places = np.arange(1, 2 * users, 2)
    split = Split("cold-start", n_items, items, np.arange(0, 2 * users + 1, 2), places, places[:0], places[:0],
                  np.ones(2 * users, bool))
    embeddings = np.random.default_rng(0).standard_normal((n_items, d_l)).astype(np.float32)
    return build(replace(spec, seed=0), Prepared(None, split, embeddings)).parameter_counts()
