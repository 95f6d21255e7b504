"""One frozen spec: everything that decides a result, and the key under which the result is remembered."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import types
import typing
from dataclasses import asdict, dataclass, fields
from typing import Any

from nullrec_lib import data
from nullrec_lib.backbones import BACKBONES
from nullrec_lib.data.splits import PROTOCOLS as SPLITS
from nullrec_lib.errors import InputError, shown
from nullrec_lib.evaluation import PROTOCOLS
from nullrec_lib.language.encoder import DEFAULT, TEMPLATE, identity, template_fields
from nullrec_lib.methods import METHODS, ONLY, RULES, runs_on
from nullrec_lib.profiles.vectors import identity as profiles_identity
from nullrec_lib.training import fit

RESULTS_VERSION = 4
"""Part of every run's key: raised with each change that moves numbers by more than rounding, so that old results are not
taken for new."""

WHOLE_USERS = {"clock", "core", "keep", "min_history", "split_seed"}
"""Fields that say how users are cut and split; a split that came with the data leaves nothing to say."""


@dataclass(frozen=True)
class Spec:
    """Everything that decides a result. Defaults follow the authors' code."""

    # data
    data: str = "shop"  # a name or a folder, see data.load
    clock: str = "auto"  # auto | time | position: what timestamps are
    clean: bool | None = None  # markup and entities are taken out of item texts; None is true
    missing_text: str | None = None  # refuse: no item may lack a text; None gives it the others' mean language vector
    core: int | None = None  # users and items with fewer interactions are filtered out, over and over
    keep: str | None = None  # first:N | last:N interactions per user, after that
    split: str = "cold-start"  # cold-start | leave-one-out | given: by data that bring their own
    min_history: int = 1  # items in the shortest history
    split_seed: int = 22  # of the user shuffle, where there are no times, and of the items of sampled metrics
    history_length: int = 10  # items of a history that the model sees
    tail_user: int | None = None  # users with fewer interactions are tail; None is the 80/20 rule
    tail_item: int | None = None  # items with fewer training interactions are tail; None is the 80/20 rule
    # language
    encoder: str = DEFAULT  # a name, a folder, lm:…, server:…, a .safetensors file of embeddings, or given
    scale: float | None = None  # of unit-norm embeddings; None is √d_l
    template: str | None = None  # of item texts; None is "{title}. {description}"
    profiles: str | None = None  # a folder of profiles: items are embedded by theirs, and PtE reads the users'
    shuffle_profiles: int | None = None  # a seed: PtE's users have each other's, the control
    # method
    method: str = "alphafuse"
    width: int | None = None  # d, dimensions of an item vector; None is 128 on sasrec and d_l on dreamrec
    threshold: float | None = None  # null space: S ≤ threshold (variance of scaled embeddings) …
    relative_threshold: float | None = None  # … or S ≤ this · mean variance …
    null_dim: int | None = None  # … or this many dimensions; without any of the three, half of the width
    standardise: str = "all"  # all | row | none
    basis: str = "principal"  # principal | random
    weighting: str = "uniform"  # uniform | popularity
    inject: str = "add"  # add | replace
    init: str = "normal"  # normal | zeros
    cold: str = "init"  # init | zero: ID part of items that are never trained on
    freeze: bool | None = None  # AlphaFuse's row space; None is true
    experts: int = 8  # of UniSRec
    adaptor_dropout: float = 0.2  # of UniSRec, on the language embedding
    alignment: str = "contrastive"  # contrastive | cosine: RLMRec's extra loss
    beta: float = 0.1  # weight of RLMRec's and LLM-ESR's item loss
    align_temperature: float = 0.2  # of that loss
    alpha: float = 0.1  # weight of LLM-ESR's self-distillation
    similar_users: int = 10  # teachers in it, per example
    neighbours: int = 100  # of ItemKNN, per item
    # backbone
    backbone: str = "sasrec"
    blocks: int = 1
    heads: int = 1
    dropout: float = 0.1
    temperature: float = 0.07
    negatives: int = 64  # per example
    exclude_history: bool = False  # from the negatives
    prefixes: str | None = None  # together: a user's histories in one causal pass, positions from the oldest item
    noise_steps: int = 2000  # T of the diffusion
    sampling_steps: int = 20  # of DDIM
    guidance: float = 5.0  # w, classifier-free
    unconditional: float = 0.1  # share of training examples without their state
    detach_target: bool = False  # no gradient into the target of the squared error
    # training
    lr: float = 1e-3
    batch_size: int = 256  # examples
    epochs: int = 300  # at most
    patience: int = 20  # epochs without a better validation N@20
    row_updates: bool | None = None  # only ID rows that a step reads are updated; None: above 100,000 items
    precision: str | None = None  # bf16: matrix products in bfloat16; None is float32 throughout
    select: str = "authors"  # scoring protocol that early stopping looks at: authors | consistent
    seed: int = 22

    def __post_init__(self):
        for f in fields(self):  # scale=40 and scale=40.0 are one run
            value = getattr(self, f.name)
            if "float" in f.type and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
                object.__setattr__(self, f.name, float(value))
        meant = {"template": TEMPLATE, "freeze": True, "clean": True, "missing_text": "mean"}
        for name, default in meant.items():  # and None is what None means
            if getattr(self, name) == default and type(getattr(self, name)) is type(default):
                object.__setattr__(self, name, None)
        hints = typing.get_type_hints(Spec)
        for name, value in asdict(self).items():
            kinds = typing.get_args(hints[name]) or (hints[name],)
            if not isinstance(value, kinds) or isinstance(value, bool) and bool not in kinds:
                raise InputError(f"{name}: {shown(value)} is not of type {getattr(hints[name], '__name__', hints[name])}.")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name}: {value} is not a finite number.")
            if isinstance(value, int) and abs(value) >= 2**53:
                raise InputError(f"{name}: {shown(value)} is too large.")
            if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
                raise InputError(f"{name}: {shown(value)} holds a sign that is no text.")
        choices = {"method": [*METHODS, *RULES], "backbone": list(BACKBONES), "select": list(PROTOCOLS),
                   "split": list(SPLITS), "clock": list(data.CLOCKS), "precision": [None, "bf16"],
                   "prefixes": [None, "together"], "missing_text": [None, *data.MISSING_TEXT]}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(str(one or "none") for one in allowed)
                raise InputError(f"{name}: {shown(getattr(self, name))} is not one of {known}.")
        # One dimension alone would be normed to a constant.
        lowest = {"history_length": 1, "width": 2, "neighbours": 1, "batch_size": 1, "epochs": 1, "patience": 1,
                  "min_history": 0, "tail_user": 1, "tail_item": 1, "core": 1}
        for name, low in lowest.items():
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise InputError(f"{name}: {getattr(self, name)} is below {low}.")
        for name in ("seed", "split_seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise InputError(f"{name}: {getattr(self, name)} is not between 0 and 2³²-1.")
        for name in ("lr", "scale", "temperature"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"{name}: {getattr(self, name)} is not a positive, finite number.")
        if self.template is not None:
            template_fields(self.template)
        if self.prefixes and self.min_history == 0:
            raise InputError("min_history: 0 makes examples without a history, which cannot be read together; "
                             "leave prefixes out or set 1 or more.")
        if not runs_on(self.method, self.backbone):
            raise InputError(f"method: {self.method} runs on {' and '.join(ONLY[self.method])} only.")
        # a table's rows have them in common
        shared = {"seed", "backbone", "encoder", "scale", "template", "profiles", "epochs", "patience"}
        heard = self.read() | shared
        idle = [f.name for f in fields(self) if getattr(self, f.name) != f.default and f.name not in heard]
        if idle:
            where = f" on {self.backbone}" if self.method in METHODS else ""
            reader = f"split {self.split}" if idle[0] in WHOLE_USERS else f"method {self.method}{where}"
            raise InputError(f"{idle[0]}: {reader} does not read it, so it would change nothing.")

    def read(self) -> set[str]:
        """Names of the fields that can change this spec's result."""
        names = {"data", "clean", "missing_text", "split", "history_length", "tail_user", "tail_item", "method"}
        names |= set() if self.split == "given" else WHOLE_USERS
        if self.reads_language:
            names |= {"encoder", "scale", "template", "profiles"}
        if self.method == "pte" and self.profiles is not None:
            names |= {"shuffle_profiles"}
        readers = [METHODS.get(self.method) or RULES[self.method]]
        if self.method in METHODS:
            names |= {"backbone", "width"}
            readers += [BACKBONES[self.backbone], fit]
        names |= {name for reader in readers for name in inspect.signature(reader).parameters} & set(asdict(self))
        # Options of what is not there.
        names -= {"exclude_history"} if self.negatives == 0 else set()
        return names - ({"align_temperature"} if self.alignment == "cosine" else set())

    @property
    def reads_language(self) -> bool:
        """Whether the run needs embeddings; every trained method does, for its preservation is measured."""
        return self.method in METHODS or getattr(RULES[self.method], "reads_language", True)

    def key(self, fingerprint: str) -> str:
        """12 hex digits that name the run: over the fields read, with the content of data and encoder for their
        paths."""
        # What is None is left out: an option that comes later and is not used renames no stored run.
        content = {name: value for name, value in asdict(self).items() if name in self.read() and value is not None}
        content |= {"data": fingerprint, "version": RESULTS_VERSION}
        if "encoder" in content:
            content["encoder"] = identity(self.encoder)
        if "profiles" in content:
            content["profiles"] = profiles_identity(self.profiles)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair, which could not be written down."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def parse(assignments: list[str]) -> dict[str, Any]:
    """`["lr=1e-3", "keep=last:50", "threshold=none"]` → values typed as in `Spec`.

    Raises:
        InputError: not key=value, no such field, or a value that is not of the field's type.
    """
    hints = typing.get_type_hints(Spec)
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if name in values:
            raise InputError(f"--set {shown(assignment)}: {name} is set twice.")
        if not equals or name not in hints:
            raise InputError(f"--set {shown(assignment)}: write key=value with a key among {', '.join(hints)}.")
        options = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        kind = options[0]
        try:
            if type(None) in options and text.lower() == "none":
                values[name] = None
            elif kind is bool:
                values[name] = {"true": True, "false": False}[text.lower()]
            else:
                if not _is_unicode(text):
                    raise ValueError
                values[name] = kind(text)
        except (ValueError, KeyError):
            raise InputError(f"--set {shown(assignment)}: {shown(text)} is not {kind.__name__}.") from None
    return values
