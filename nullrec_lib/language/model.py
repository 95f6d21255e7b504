"""A small writer of one's own: texts and example profiles → a language model that `writers.local` serves."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np
import torch

from nullrec_lib import manifest
from nullrec_lib.errors import InputError
from nullrec_lib.files import agree, alone, read_json, sweep_idle, write_json, writing
from nullrec_lib.language import tuning
from nullrec_lib.language.encoders.folders import model_sha256
from nullrec_lib.language.writers import Prompt
from nullrec_lib.language.writers.local import SLACK, Local, find, load_model, load_tokenizer, require_end

RECORD = "build.json"
FINISHED = "finished"
FIGURES = "pretraining.json"
LEARNING_RATES = {"own": 2e-3, "base": 2e-5, "lora": 2e-4}
"""Of fine-tuning, where none is given."""
SAMPLES = 5
"""Held-out prompts whose answers are kept in the record."""


def build(
    pairs: Sequence[tuple[str, str]],
    corpus: Sequence[str],
    out: Path,
    base: str | None = None,
    lora: bool = False,
    seed: int = 22,
    steps: int = 200,
    sft_steps: int = 300,
    hidden: int = 128,
    layers: int = 4,
    vocabulary: int = 8192,
    context: int = 1024,
    batch: int = 16,
    lr: float | None = None,
    held_out: float = 0.05,
) -> dict[str, Any]:
    """Make the folder `out`: a model that answers prompts as in `pairs`, and its record `build.json`.

    Without a base: a tokenizer, then a small Llama trained from scratch to go on with texts (of `corpus`, and of the
    pairs that are not held out), then supervised fine-tuning on the pairs; with a base, the last alone. Fine-tuning
    learns the profiles, not the prompts. Prompts that are held out are never trained on, not even by the tokenizer.

    The folder appears whole or not at all. What an interrupted build had pretrained lies beside it, and the same call
    goes on from there; what is there already, made by the same call, is not made again. On a CPU with one thread
    the same arguments give the same weights.

    Args:
        pairs: (prompt, profile), the prompt as `Prompt.text`. Those longer than the context are left out and counted.
        corpus: texts like those that prompts are made of; not read with a base.
        out: folder to make.
        base: a causal model's folder or name on the hub, to start from instead.
        lora: train low-rank adapters of the base, which are merged into its weights in the end.
        seed: of weights, order and split.
        steps: of pretraining, `batch` blocks of `tuning.BLOCK` tokens each.
        sft_steps: of fine-tuning, `batch` pairs each.
        hidden: width of the model, a multiple of 4.
        layers: of the model.
        vocabulary: most tokens of the tokenizer.
        context: most tokens of prompt and profile together.
        batch: rows of a step.
        lr: of fine-tuning; None: see `LEARNING_RATES`.
        held_out: part of the distinct prompts.

    Returns:
        The record: `settings`, `texts_sha256`, `pairs` (counts), `perplexity` of the held-out profiles given their
        prompts (`before` and `after` fine-tuning), `samples` (prompt, profile, written), `parameters`, for each stage
        its last or mean `loss`, `tokens`, `seconds` and `tokens_per_second`, and on which `device` and `threads`.

    Raises:
        InputError: an argument is out of range, there is no such base or it has no end token, too few pairs fit, or
            `out` holds something else, is damaged or cannot be written.
    """
    out = Path(out).absolute()
    own = base is None
    settings = {
        "lora": lora, "seed": seed, "sft_steps": sft_steps, "context": context, "batch": batch, "held_out": held_out,
        "lr": LEARNING_RATES["own" if own else "lora" if lora else "base"] if lr is None else lr,
    }
    if own:
        settings |= {"steps": steps, "hidden": hidden, "layers": layers, "vocabulary": vocabulary}
    else:
        settings["base_sha256"] = model_sha256(find(base))  # its path is not what made the result
        require_end(load_tokenizer(find(base)), find(base))
    _check(settings, pairs)
    texts = [[list(pair) for pair in pairs], list(corpus) if own else []]
    made_by = {"settings": settings, "texts_sha256": _sha256(texts)}

    work = out.with_name(f".{out.name}.building")
    if record := _built(out, made_by):
        sweep_idle(work)
        return record
    with alone(work), writing(out):
        if record := _built(out, made_by):  # by somebody whom this one has waited for
            shutil.rmtree(work, ignore_errors=True)
            return record
        stage = work / f"pretrained-{_sha256(made_by)}"
        for path in work.iterdir():  # what was interrupted, or is of another call
            if path != stage or not manifest.signed(stage):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with _randomness():
            record = made_by | _build(pairs, corpus, stage, None if own else find(base), settings)
        write_json(work / FINISHED / RECORD, record)
        manifest.sign(work / FINISHED)
        (work / FINISHED).replace(out)
        shutil.rmtree(work)
    return record


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(settings: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> None:
    for name in ("sft_steps", "context", "batch", "steps", "hidden", "layers", "vocabulary"):
        if settings.get(name, 1) < 1:
            raise InputError(f"{name}: {settings[name]} is less than 1.")
    if not 0 < settings["held_out"] < 1:
        raise InputError(f"held_out: {settings['held_out']} is not in (0, 1).")
    if settings["lr"] <= 0:
        raise InputError(f"lr: {settings['lr']} is not positive.")
    if settings["lora"] and "base_sha256" not in settings:
        raise InputError("lora: adapters belong to a base; give one, or leave lora out.")
    if settings.get("hidden", 4) % 4:
        raise InputError(f"hidden: {settings['hidden']} is no multiple of 4, and heads and rotary positions halve it.")
    for index, pair in enumerate(pairs):
        if not all(text.strip() for text in pair):
            raise InputError(f"pairs: pair {index} has an empty prompt or profile; leave it out.")


def _built(out: Path, made_by: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a model that is there already; None where nothing is.

    Raises:
        InputError: something else is there, or the model is damaged.
    """
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return None
    if not (out / RECORD).is_file():
        raise InputError(f"out: {out} exists and holds no model made here; give another folder.")
    again = f"remove {out}, and the same command makes it again"
    record = read_json(out / RECORD, ["settings", "texts_sha256"], again)
    there, asked = ({"texts": of["texts_sha256"], "settings": of["settings"]} for of in (record, made_by))
    agree(out, "another model", there, asked)
    manifest.check(out, again)
    return record


def _build(
    pairs: Sequence[tuple[str, str]], corpus: Sequence[str], stage: Path, base: Path | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Make the folder `FINISHED` beside `stage`; what the record says of it."""
    train, test = split(pairs, settings["held_out"], settings["seed"])
    if base is None and not stage.exists():
        part = stage.with_suffix(".part")
        write_json(part / FIGURES, tuning.pretrain(train, corpus, part, settings))
        manifest.sign(part)
        part.replace(stage)
    source = base or stage
    tokenizer, model = load_tokenizer(source), load_model(source, torch.float32)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or settings["context"]
    room = min(settings["context"], positions) - SLACK
    train, test = (tuning.encode(tokenizer, part, room) for part in (train, test))
    if not (train and test):
        raise InputError(f"context: too few of {len(pairs)} pairs fit into {room + SLACK} tokens; shorten the prompts.")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = tuning.perplexity(model.to(device), test)
    finished = stage.with_name(FINISHED)
    tuned = tuning.fine_tune(model, tokenizer, train, finished, settings)
    # Judged as it lies there, by whatever reads it from now on.
    after = tuning.perplexity(load_model(finished, torch.float32).to(device), test)
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "pairs": {"train": len(train), "held_out": len(test), "too_long": len(pairs) - len(train) - len(test)},
        "pretraining": read_json(stage / FIGURES) if base is None else None,
        "fine_tuning": tuned,
        "perplexity": {"before": before, "after": after},
        "samples": _samples(finished, test[:SAMPLES], room),
    }


def split(
    pairs: Sequence[tuple[str, str]], held_out: float, seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs to train on and pairs held out: at least one prompt each, and all pairs of a prompt on the same side.

    Raises:
        InputError: there are fewer than two different prompts.
    """
    prompts = sorted({prompt for prompt, _ in pairs})
    if len(prompts) < 2:
        raise InputError(f"pairs: {len(prompts)} different prompts are too few to hold one out; give two or more.")
    random.Random(seed).shuffle(prompts)
    held = set(prompts[: min(len(prompts) - 1, max(1, round(held_out * len(prompts))))])
    train, test = [], []
    for prompt, profile in pairs:
        (test if prompt in held else train).append((prompt, profile))
    return train, test


@contextmanager
def _randomness() -> Iterator[None]:
    """Generators go on afterwards from where they were: trainers seed all of them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _samples(folder: Path, rows: list[dict[str, Any]], room: int) -> list[dict[str, str]]:
    """What the model writes to the prompts of `rows`, up to twice as long as their profiles where there is room."""
    profiles = [sum(label != -100 for label in row["labels"]) for row in rows]
    left = room - max(len(row["labels"]) - profile for row, profile in zip(rows, profiles))
    writer = Local(str(folder), max_tokens=min(2 * max(profiles), left))
    written = writer.write([Prompt(row["prompt"]) for row in rows], seed=0)
    return [{"prompt": row["prompt"], "profile": row["profile"], "written": text} for row, text in zip(rows, written)]
