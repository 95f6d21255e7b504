"""The stages of a small language model: a tokenizer, pretraining, supervised fine-tuning, and how well it does."""

from __future__ import annotations

import math
import random
import time
import warnings
from pathlib import Path
from typing import Any, Sequence

import torch

from nullrec_lib.language.writers.local import encode_prompt
from nullrec_lib.progress import bar

SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Chat template. Roles are single tokens, so that no text around them is tokenised otherwise than on its own."""

HEADS = 2
"""Of attention in a layer: wide ones, since what tells words apart must fit into one."""
ROPE_THETA = 1e6
"""Of rotary positions: slow enough that a word still looks like itself a few hundred tokens on."""
PREVIOUS, SAME, COPIED = 6.0, 20.0, 6.0
"""How sharply the copying heads begin: scores that the place before and the same word win by, and what is written."""
BLOCK = 128
"""Tokens of a block of pretraining."""
PRETRAINING_LR = 2e-3
WARMUP = 0.1
"""Part of the steps in which a learning rate rises, before it falls as a cosine to zero."""


def train_tokenizer(texts: Sequence[str], vocabulary: int):
    """A byte-level BPE tokenizer of at most `vocabulary` tokens: no text is unknown to it. Uncased and with a space
    before every text, so that a word is the same tokens wherever it stands and a small model can copy it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL.values(), *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", extra_special_tokens=ROLES, chat_template=TEMPLATE, **SPECIAL
    )


def encode(tokenizer, pairs: Sequence[tuple[str, str]], room: int | None = None) -> list[dict[str, Any]]:
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


def pretrain(
    train: Sequence[tuple[str, str]], corpus: Sequence[str], out: Path, settings: dict[str, Any]
) -> dict[str, float]:
    """Tokenizer and model from scratch, saved in `out`: next-token training on blocks cut at random places from all
    documents in a row. Pairs are documents too, since copying from a prompt is learned from whole prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup, set_seed

    begun = time.perf_counter()
    tokenizer = train_tokenizer([*corpus, *(text for pair in train for text in pair)], settings["vocabulary"])
    special = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in SPECIAL}
    texts = tokenizer(list(corpus))["input_ids"] if corpus else []
    documents = [[special["bos_token_id"], *text, special["eos_token_id"]] for text in texts]
    documents += [row["input_ids"] for row in encode(tokenizer, train)]
    random.Random(settings["seed"]).shuffle(documents)
    stream = torch.tensor([token for document in documents for token in document])
    block = min(BLOCK, settings["context"], len(stream))

    set_seed(settings["seed"])
    hidden, steps = settings["hidden"], settings["steps"]
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, tie_word_embeddings=True,
        num_hidden_layers=settings["layers"], num_attention_heads=HEADS,
        max_position_embeddings=settings["context"], rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        **special,
    )).to("cuda" if torch.cuda.is_available() else "cpu")
    if settings["layers"] > 1:
        start_copying(model)
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
    save(model, tokenizer, out)
    return _figures(loss.item(), steps * settings["batch"] * block, begun)


@torch.no_grad()
def start_copying(model) -> None:
    """First weights with which the model copies: profiles are made of words of the prompt, and the two heads that
    copying takes (Olsson et al., In-context Learning and Induction Heads, 2022) form late in a training of minutes.

    Halves of the residual stream: A holds the token, B the token before it, and B's last place a constant.
    Layer 1, head 1 attends to the place before, by rotary angles of the constant, and writes its A into B.
    Layer 2, head 1 attends to places whose B is the present A, and writes their A: what came next the last time.
    All other weights are as the library draws them, and training may change any.
    """
    config, (first, second, *_) = model.config, (layer.self_attn for layer in model.model.layers)
    half = config.hidden_size // HEADS
    own, before, constant = torch.arange(half - 1), torch.arange(half, 2 * half - 1), 2 * half - 1
    embedding = model.model.embed_tokens.weight.normal_(std=0.1)
    embedding[:, before] *= 0.2
    embedding[:, constant] = 1.0
    size = embedding.square().mean().sqrt()  # which the norms divide by
    for head in (first, second):
        for weight in (head.q_proj.weight, head.k_proj.weight, head.v_proj.weight):
            weight[:half] = 0
        head.o_proj.weight[:, :half] = 0
        head.v_proj.weight[own, own] = 1

    speed = model.model.rotary_emb.inv_freq.float().to(embedding.device)  # radians per place, of the pairs (i, i + half/2)
    fast = (speed > 0.05).nonzero()[:, 0]
    # The score one place further off is lower by PREVIOUS, before the softmax.
    gain = (PREVIOUS * half**0.5 / (1 - speed[fast].cos()).sum()).sqrt() * size
    first.q_proj.weight[fast, constant] = gain
    first.k_proj.weight[fast, constant] = gain * speed[fast].cos()
    first.k_proj.weight[fast + half // 2, constant] = gain * speed[fast].sin()
    first.o_proj.weight[before, own] = size

    slow = (speed < 2e-3).nonzero()[:, 0]
    slow = torch.cat([slow, slow + half // 2])
    slow = slow[slow < half - 1]
    gain = (SAME * half**0.5 / len(slow)) ** 0.5 * size / 0.1
    second.q_proj.weight[slow, own[slow]] = gain
    second.k_proj.weight[slow, before[slow]] = gain
    second.o_proj.weight[own, own] = COPIED * size


def fine_tune(
    model, tokenizer, rows: list[dict[str, Any]], out: Path, settings: dict[str, Any]
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
    save(model.merge_and_unload() if settings["lora"] else model, tokenizer, out)
    return _figures(loss, trainer.state.num_input_tokens_seen, begun)


def _figures(loss: float, tokens: int, begun: float) -> dict[str, float]:
    seconds = time.perf_counter() - begun
    return {"loss": loss, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def save(model, tokenizer, out: Path) -> None:
    """Write an ordinary model folder, readable like any other file."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    # A server samples at the temperature that it is asked for only where the model's own default is to sample.
    model.generation_config.do_sample = True
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for weights in out.glob("*.safetensors"):  # which would be readable by their owner alone
        weights.chmod((out / "config.json").stat().st_mode)


@torch.inference_mode()
def perplexity(model, rows: list[dict[str, Any]]) -> float:
    """Of the labels given all that stands before them."""
    model.eval()
    total, count = 0.0, 0
    for row in bar(rows, what="held-out perplexity", unit="profile"):
        ids = torch.tensor([row["input_ids"]], device=model.device)
        labels = sum(label != -100 for label in row["labels"])
        # Of the labels' places alone, since a large vocabulary makes a long prompt's scores gigabytes.
        scores = model(input_ids=ids, logits_to_keep=labels + 1).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(scores, ids[0, -labels:], reduction="sum").item()
        count += labels
    return math.exp(total / count)
