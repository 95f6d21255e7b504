"""From a spec to what its run reads and to its untrained model: load, cut, split, embed, build."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nullrec_lib import data
from nullrec_lib.backbones import BACKBONES, WIDTHS
from nullrec_lib.data.interactions import Dataset, core, cut
from nullrec_lib.data.splits import Split, split
from nullrec_lib.errors import InputError
from nullrec_lib.evaluation import Ranker
from nullrec_lib.language.encoder import DEFAULT, GIVEN, embed_items, identity
from nullrec_lib.methods import METHODS, RULES
from nullrec_lib.methods.method import Material
from nullrec_lib.profiles import vectors
from nullrec_lib.profiles.build import refuse_old
from nullrec_lib.profiles.vectors import UserProfiles
from nullrec_lib.spec import Spec
from nullrec_lib.training import Recommender


@dataclass(frozen=True, eq=False)
class Prepared:
    """The inputs of a run, shared by every spec with the same data, cut, split, encoder and scale."""

    dataset: Dataset
    split: Split
    embeddings: np.ndarray
    """(N, d_l) float32, unit norm times the scale; (N, 0) where the method reads no language."""
    profiles: UserProfiles | None = None
    """Of users, where the spec names a folder of profiles that has any."""


def prepare(spec: Spec) -> Prepared:
    """Load, cut, split and embed; kept for the next call with the same inputs."""
    source = _source(spec)
    dataset, parts = _interactions(*source, spec.keep, spec.split, spec.min_history, spec.split_seed)
    if not spec.reads_language:
        return Prepared(dataset, parts, np.zeros((dataset.n_items, 0), np.float32))
    language = spec.encoder, identity(spec.encoder), spec.template, spec.scale
    if spec.profiles is None:
        return Prepared(dataset, parts, _embeddings(*source, *language))
    return _with_profiles(spec, dataset, parts)


def _with_profiles(spec: Spec, dataset: Dataset, parts: Split) -> Prepared:
    """Items by their profiles, and by their texts where they have none.

    Raises:
        InputError: the profiles are of other data or another split, or by another encoder.
    """
    found = vectors.load(Path(spec.profiles))
    refuse_old(spec.profiles, found.about)
    if found.about["items_fingerprint"] != dataset.items_fingerprint():
        raise InputError(f"profiles: those in {spec.profiles} are of other items, or of other texts of theirs, than "
                         f"{spec.data} has; build profiles of these data.")
    if found.about["split_fingerprint"] != parts.fingerprint():
        raise InputError(f"profiles: those in {spec.profiles} were built for another split or other data "
                         f"({found.about['data']}, {found.about['split']}); they may know what is held out here.")
    if found.about["encoder"] != spec.encoder:
        raise InputError(f"profiles: those in {spec.profiles} are embedded by {found.about['encoder']}, and the "
                         f"encoder is {spec.encoder}; give one for both.")
    if found.about["ids_fingerprint"] != dataset.ids_fingerprint():
        raise InputError(f"profiles: those in {spec.profiles} are of users with other ids than {spec.data} has now.")
    texts = embed_items(dataset.items, spec.encoder, given=dataset.embeddings, template=spec.template)
    rows = vectors.item_rows(found, list(dataset.items["item_id"]), texts)
    scale = np.sqrt(rows.shape[1]) if spec.scale is None else spec.scale
    trained = np.bincount(parts.training_interactions()[0], minlength=dataset.n_users)
    validates = np.zeros(dataset.n_users, bool)
    if parts.protocol != "leave-one-out":  # where everybody holds out a test item
        validates[parts.user_of(parts.valid)] = True
    users = vectors.beside_histories(found, list(dataset.user_ids), trained, validates, spec.shuffle_profiles)
    return Prepared(dataset, parts, (rows * scale).astype(np.float32), users)


def resolved(spec: Spec) -> Spec:
    """The spec with `encoder=given` where no encoder is named, the data hold no text and bring one kind of embeddings:
    what its run is stored as."""
    if spec.encoder != DEFAULT or not spec.reads_language:
        return spec
    dataset = _dataset(*_source(spec))
    return replace(spec, encoder=GIVEN) if len(dataset.embeddings) == 1 and not dataset.has_text().any() else spec


def _source(spec: Spec) -> tuple:
    reading = data.Reading(spec.clock, spec.clean is not False, spec.missing_text or "mean")
    return spec.data, reading, _changed(spec.data), spec.core


def _changed(name: str) -> tuple:
    """Files of a data set, when they were last written and how large (none if generated): what is kept in memory is of
    these."""
    if name in data.SHOPS:
        return ()
    folder = data.locate(name)
    files = [file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.is_file()]
    told = {str(file.relative_to(folder)): file.stat() for file in files}
    return tuple((name, one.st_mtime_ns, one.st_size) for name, one in sorted(told.items()))


@lru_cache(maxsize=2)
def _dataset(name, reading, changed, at_least) -> Dataset:
    return core(data.load(name, **asdict(reading)), at_least)


@lru_cache(maxsize=2)
def _interactions(name, reading, changed, at_least, keep, protocol, min_history, split_seed) -> tuple[Dataset, Split]:
    dataset = cut(_dataset(name, reading, changed, at_least), keep)
    return dataset, split(dataset, protocol, min_history, split_seed)


@lru_cache(maxsize=32)
def _fingerprint(*cut_and_split) -> str:
    """That of `_interactions`: a grid looks for hundreds of runs on the same few, and hashing reads every text."""
    return _interactions(*cut_and_split)[0].fingerprint()


@lru_cache(maxsize=2)
def _embeddings(name, reading, changed, at_least, encoder, encoder_identity, template, scale) -> np.ndarray:
    dataset = _dataset(name, reading, changed, at_least)
    unit = embed_items(dataset.items, encoder, given=dataset.embeddings, template=template)
    return (unit * (np.sqrt(unit.shape[1]) if scale is None else scale)).astype(np.float32)


def fingerprint(spec: Spec) -> str:
    """Of the data set of a spec, cut and split: what `Spec.key` asks for. Embeds no text."""
    return _fingerprint(*_source(spec), spec.keep, spec.split, spec.min_history, spec.split_seed)


def build(spec: Spec, prepared: Prepared) -> Recommender | Ranker:
    """The untrained model of a spec (a method on a backbone; its initial weights follow from the seed), or its rule."""
    material = Material.of(prepared.split, torch.from_numpy(prepared.embeddings), prepared.profiles)
    if spec.method in RULES:
        return RULES[spec.method](material, **arguments(RULES[spec.method], spec))
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        width = spec.width or WIDTHS[spec.backbone] or prepared.embeddings.shape[1]
        method = METHODS[spec.method](material, **arguments(METHODS[spec.method], spec) | {"width": width})
        if len(set(method.widths)) != 1:
            raise InputError(f"method: {spec.method} has views of widths {method.widths}; a backbone reads one width.")
        if spec.prefixes and not method.causal:
            raise InputError(f"prefixes: {spec.method} reads more of a history than its items one by one, so what it makes "
                             "of a long one holds nothing of the shorter ones; leave prefixes out.")
        length = spec.history_length + method.extra_tokens
        options = arguments(BACKBONES[spec.backbone], spec) | {"widths": method.widths, "length": length}
        return Recommender(method, BACKBONES[spec.backbone](**options))


def arguments(callable_, spec: Spec) -> dict[str, Any]:
    """The fields of a spec that a callable asks for by name."""
    wanted = inspect.signature(callable_).parameters
    return {name: value for name, value in asdict(spec).items() if name in wanted}
