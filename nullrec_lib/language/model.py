"""A small writer of one's own: texts and example profiles → a language model that `writers.local` serves."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np
import torch

from nullrec_lib.errors import InputError
from nullrec_lib.files import alone, write_json
from nullrec_lib.language.encoder import model_sha256
from nullrec_lib.language.writers import Prompt
from nullrec_lib.language.writers.local import SLACK, Local, encode_prompt, find, load_model, load_tokenizer
from nullrec_lib.progress import bar

RECORD = "build.json"
FINISHED = "finished"
FIGURES = "pretraining.json"

SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Chat template. Roles are single tokens, so that no text around them is tokenised otherwise than on its own."""

HEAD = 32
"""Width of an attention head: many narrow heads, as copying needs places to look at rather than width."""
BLOCK = 256
"""Tokens of a block of pretraining."""
PRETRAINING_LR = 1e-3
WARMUP = 0.1
"""Part of the steps in which a learning rate rises, before it falls as a cosine to zero."""
LEARNING_RATES = {"own": 1e-3, "base": 2e-5, "lora": 2e-4}
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
    steps: int = 400,
    sft_steps: int = 300,
    hidden: int = 256,
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
        steps: of pretraining, `batch` blocks of `BLOCK` tokens each.
        sft_steps: of fine-tuning, `batch` pairs each.
        hidden: width of the model, a multiple of `HEAD`.
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
        InputError: an argument is out of range, there is no such base, too few pairs fit, or `out` holds something
            else.
    """
    out = Path(out).absolute()
    own = base is None
    settings = {
        "lora": lora, "seed": seed, "sft_steps": sft_steps, "context": context, "batch": batch, "held_out": held_out,
        "lr": lr or LEARNING_RATES["own" if own else "lora" if lora else "base"],
    }
    if own:
        settings |= {"steps": steps, "hidden": hidden, "layers": layers, "vocabulary": vocabulary}
    else:
        settings["base_sha256"] = model_sha256(find(base))  # its path is not what made the result
    _check(settings, pairs)
    texts = [[list(pair) for pair in pairs], list(corpus) if own else []]
    made_by = {"settings": settings, "texts_sha256": _sha256(texts)}

    if record := _built(out, made_by):
        return record
    work = out.with_name(f".{out.name}.building")
    with alone(work):
        if record := _built(out, made_by):  # by somebody whom this one has waited for
            return record
        stage = work / f"pretrained-{_sha256(made_by)}"
        for path in work.iterdir():  # what was interrupted, or is of another call
            if path != stage:
                shutil.rmtree(path)
        with _randomness():
            record = made_by | _build(pairs, corpus, stage, None if own else find(base), settings)
        write_json(work / FINISHED / RECORD, record)
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
    if settings.get("hidden", HEAD) % HEAD:
        raise InputError(f"hidden: {settings['hidden']} is no multiple of {HEAD}, the width of a head.")
    for index, pair in enumerate(pairs):
        if not all(text.strip() for text in pair):
            raise InputError(f"pairs: pair {index} has an empty prompt or profile; leave it out.")


def _built(out: Path, made_by: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a model that is there already; None where nothing is.

    Raises:
        InputError: something else is there.
    """
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return None
    if not (out / RECORD).is_file():
        raise InputError(f"out: {out} exists and holds no model made here; give another folder.")
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    there, wanted = ({"texts": of["texts_sha256"], **of["settings"]} for of in (record, made_by))
    if other := sorted(name for name in there | wanted if there.get(name) != wanted.get(name)):
        raise InputError(f"out: {out} was made with other {', '.join(other)}; give another folder, or remove it.")
    return record


def _build(
    pairs: Sequence[tuple[str, str]], corpus: Sequence[str], stage: Path, base: Path | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Make the folder `FINISHED` beside `stage`; what the record says of it."""
    train, test = split(pairs, settings["held_out"], settings["seed"])
    if base is None and not stage.exists():
        part = stage.with_suffix(".part")
        write_json(part / FIGURES, _pretrain(train, corpus, part, settings))
        part.replace(stage)
    source = base or stage
    tokenizer, model = load_tokenizer(source), load_model(source, torch.float32)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or settings["context"]
    room = min(settings["context"], positions) - SLACK
    train, test = (_encode(tokenizer, part, room) for part in (train, test))
    if not (train and test):
        raise InputError(f"context: too few of {len(pairs)} pairs fit into {room + SLACK} tokens; shorten the prompts.")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = _perplexity(model.to(device), test, settings["batch"])
    finished = stage.with_name(FINISHED)
    tuned = _fine_tune(model, tokenizer, train, finished, settings)
    # Judged as it lies there, by whatever reads it from now on.
    after = _perplexity(load_model(finished, torch.float32).to(device), test, settings["batch"])
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "pairs": {"train": len(train), "held_out": len(test), "too_long": len(pairs) - len(train) - len(test)},
        "pretraining": json.loads((stage / FIGURES).read_text(encoding="utf-8")) if base is None else None,
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


def _train_tokenizer(texts: Sequence[str], vocabulary: int):
    """A byte-level BPE tokenizer of at most `vocabulary` tokens: no text is unknown to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL.values(), *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", extra_special_tokens=ROLES, chat_template=TEMPLATE, **SPECIAL
    )


def _encode(tokenizer, pairs: Sequence[tuple[str, str]], room: int | None = None) -> list[dict[str, Any]]:
    """Rows of the pairs that have at most `room` tokens: `input_ids` as a writer would read and write them, and
    `labels`, which are the profile and its end (-100: not learned)."""
    rows = []
    for prompt, profile in pairs:
        before = encode_prompt(tokenizer, prompt)
        after = tokenizer(profile, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        row = {"input_ids": before + after, "labels": [-100] * len(before) + after}
        if room is None or len(row["labels"]) <= room:
            rows.append(row | {"prompt": prompt, "profile": profile})
    return rows


def _pretrain(
    train: Sequence[tuple[str, str]], corpus: Sequence[str], out: Path, settings: dict[str, Any]
) -> dict[str, float]:
    """Tokenizer and model from scratch, saved in `out`: next-token training on blocks cut at random places from all
    documents in a row. Pairs are documents too, since copying from a prompt is learned from whole prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup, set_seed

    begun = time.perf_counter()
    tokenizer = _train_tokenizer([*corpus, *(text for pair in train for text in pair)], settings["vocabulary"])
    special = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in SPECIAL}
    texts = tokenizer(list(corpus))["input_ids"] if corpus else []
    documents = [[special["bos_token_id"], *text, special["eos_token_id"]] for text in texts]
    documents += [row["input_ids"] for row in _encode(tokenizer, train)]
    random.Random(settings["seed"]).shuffle(documents)
    stream = torch.tensor([token for document in documents for token in document])
    block = min(BLOCK, settings["context"], len(stream))

    set_seed(settings["seed"])
    hidden, steps = settings["hidden"], settings["steps"]
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, tie_word_embeddings=True,
        num_hidden_layers=settings["layers"], num_attention_heads=hidden // HEAD,
        max_position_embeddings=settings["context"], **special,
    )).to("cuda" if torch.cuda.is_available() else "cpu")
    optimiser = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_LR, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(optimiser, round(WARMUP * steps), steps)
    model.train()
    with bar(what="pretraining", total=steps, unit="step") as progress:
        for _ in range(steps):
            starts = torch.randint(len(stream) - block + 1, (settings["batch"], 1))
            rows = stream[starts + torch.arange(block)].to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
                loss = model(input_ids=rows, labels=rows).loss
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
            progress.update()
    _save(model, tokenizer, out)
    return _figures(loss.item(), steps * settings["batch"] * block, begun)


def _fine_tune(
    model, tokenizer, rows: list[dict[str, list[int]]], out: Path, settings: dict[str, Any]
) -> dict[str, float]:
    """Supervised fine-tuning on encoded pairs, saved in `out`. TRL takes the labels as they are: with its own
    template of the whole conversation, what is learned could differ from what a writer reads and writes."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Bar(TrainerCallback):
        def on_step_end(self, *_, **__):
            progress.update()

    cuda, steps = torch.cuda.is_available(), settings["sft_steps"]
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    config = SFTConfig(
        output_dir=str(out), seed=settings["seed"], max_steps=steps, per_device_train_batch_size=settings["batch"],
        learning_rate=settings["lr"], lr_scheduler_type="cosine", warmup_steps=round(WARMUP * steps), max_length=None,
        use_cpu=not cuda, bf16=cuda, fp16=False, activation_checkpointing=False, dataloader_pin_memory=cuda,
        include_num_input_tokens_seen="non_padding", disable_tqdm=True, report_to="none", logging_strategy="no",
        save_strategy="no",
    )
    rows = Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
    begun = time.perf_counter()
    with warnings.catch_warnings(), bar(what="fine-tuning", total=steps, unit="step") as progress:
        warnings.simplefilter("ignore", FutureWarning)  # of the libraries at one another
        trainer = SFTTrainer(
            model, config, train_dataset=rows, processing_class=tokenizer, callbacks=[Bar()],
            peft_config=adapters if settings["lora"] else None,
        )
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
    model = trainer.accelerator.unwrap_model(trainer.model)
    _save(model.merge_and_unload() if settings["lora"] else model, tokenizer, out)
    return _figures(loss, trainer.state.num_input_tokens_seen, begun)


def _figures(loss: float, tokens: int, begun: float) -> dict[str, float]:
    seconds = time.perf_counter() - begun
    return {"loss": loss, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def _save(model, tokenizer, out: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    # A server samples at the temperature that it is asked for only where the model's own default is to sample.
    model.generation_config.do_sample = True
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for weights in out.glob("*.safetensors"):  # which would be readable by their owner alone
        weights.chmod((out / "config.json").stat().st_mode)


@torch.inference_mode()
def _perplexity(model, rows: list[dict[str, list[int]]], batch: int) -> float:
    """Of the labels given what stands before them."""
    model.eval()
    total, count = 0.0, 0
    for start in bar(range(0, len(rows), batch), what="held-out perplexity", unit="batch"):
        part = rows[start : start + batch]
        # Padding stands on the right, where causal attention never looks back at it.
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in part], True, value).to(model.device)
            for name, value in (("input_ids", 0), ("labels", -100))
        )
        logits = model(input_ids=ids).logits[:, :-1].float().flatten(0, 1)
        total += torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum").item()
        count += int((labels[:, 1:] != -100).sum())
    return math.exp(total / count)


def _samples(folder: Path, rows: list[dict[str, Any]], room: int) -> list[dict[str, str]]:
    """What the model writes to the prompts of `rows`, up to twice as long as their profiles where there is room."""
    profiles = [sum(label != -100 for label in row["labels"]) for row in rows]
    left = room - max(len(row["labels"]) - profile for row, profile in zip(rows, profiles))
    writer = Local(str(folder), max_new_tokens=min(2 * max(profiles), left))
    written = writer.write([Prompt(row["prompt"]) for row in rows], seed=0)
    return [{"prompt": row["prompt"], "profile": row["profile"], "written": text} for row, text in zip(rows, written)]
