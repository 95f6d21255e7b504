"""A language model on this machine: any causal model that `transformers` loads."""

from __future__ import annotations

import hashlib
import json
import time
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Sequence

import torch

from nullrec_lib import manifest
from nullrec_lib.errors import InputError
from nullrec_lib.language.encoders.folders import from_hub, model_sha256
from nullrec_lib.language.writers import Prompt, Usage

SLACK = 8
"""Tokens of the context that stay free: a text may take a token or two more beside a template than on its own."""


def find(model: str) -> Path:
    """The folder of a causal language model: an explicit path, or the hub.

    Raises:
        InputError: nothing found, or the folder holds no model, or one that is damaged.
    """
    folder = Path(model) if Path(model).is_dir() else from_hub(model, model, "no folder", "transformers", "model")
    if not (folder / "config.json").is_file():
        raise InputError(f"model: {folder} holds no model (it has no config.json); give the folder of a causal one.")
    manifest.check(folder)
    return folder


def load_tokenizer(folder: Path):
    """The tokenizer of a model folder, padding on the left, as what is generated must follow its prompt at once. One
    without an end token has the model's.

    Raises:
        InputError: the folder has none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    except Exception as error:  # of transformers and tokenizers, some of no kind of its own
        raise InputError(f"model: the tokenizer in {folder} cannot be read ({_first_line(error)}).") from error
    if tokenizer.eos_token is None and (end := _own_end(folder)) is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)  # None where it has no such token
    if tokenizer.pad_token is None:  # any token will do: the attention mask hides it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(folder: Path, dtype: torch.dtype):
    """The causal language model of a folder, on the CPU and in evaluation mode.

    Raises:
        InputError: the folder has none that can be read.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bar for loading weights lasts a blink and clutters every notebook
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    except Exception as error:  # of transformers, safetensors, torch
        raise InputError(f"model: {folder} cannot be loaded as a causal model ({_first_line(error)}).") from error


def load_config(folder: Path):
    """The configuration of a model folder's language model.

    Raises:
        InputError: it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder).get_text_config()
    except Exception as error:
        raise InputError(f"model: the config.json in {folder} cannot be read ({_first_line(error)}).") from error


def _own_end(folder: Path) -> int | None:
    """The token that ends the model's own texts; the first where there are several."""
    from transformers import GenerationConfig

    try:
        end = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # it has none of its own
        end = None
    end = getattr(load_config(folder), "eos_token_id", None) if end is None else end
    end = end[0] if isinstance(end, list) and end else end
    return end if isinstance(end, int) else None


def require_end(tokenizer, folder: Path) -> None:
    """
    Raises:
        InputError: neither the tokenizer nor the model has an end token, which is what a text to learn from ends with.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"model: {folder} has no end token, so that it cannot learn where a text ends; name one as eos_token "
                         "in its tokenizer_config.json, or as eos_token_id in its generation_config.json.")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"


def encode_prompt(tokenizer, text: str) -> list[int]:
    """The tokens after which a model writes its answer to `text`: one user message in its chat template and the
    opening of the answer, or where it has no template the text itself."""
    if tokenizer.chat_template is None:
        return tokenizer(text)["input_ids"]
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]


class Local:
    """Writes with a causal language model from a folder or the hub; a `Writer`.

    On a CUDA device, where there is one, in bfloat16, elsewhere in float32. Weights are loaded when first needed.
    Settings of generation that are none of the arguments (a repetition penalty, top-k) are the model's own.

    Args:
        model: folder, or name on the hub.
        temperature: of sampling; 0 always takes the likeliest token.
        top_p: samples among the likeliest tokens that have this much probability together.
        max_tokens: an answer is cut there.
        batch: prompts that are answered side by side.
        no_repeat: an answer has no so many tokens twice, since small models go in circles; 0 lets it. Unlike the
            library's own setting it does not count the prompt, whose words a profile is made of.

    Raises:
        InputError: there is no such model, a setting is out of range, or no room is left for prompts.
    """

    def __init__(
        self, model: str, temperature: float = 0.0, top_p: float = 1.0, max_tokens: int = 128, batch: int = 32,
        no_repeat: int = 4,
    ):
        if temperature < 0:
            raise InputError(f"temperature: {temperature} is negative; give 0 for the likeliest text, or more.")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p: {top_p} is not in (0, 1].")
        for name, value, least in (("max_tokens", max_tokens, 1), ("batch", batch, 1), ("no_repeat", no_repeat, 0)):
            if value < least:
                raise InputError(f"{name}: {value} is less than {least}.")
        self.folder = find(model)
        self.name = f"local:{model}"
        self.temperature, self.top_p, self.max_tokens, self.batch = temperature, top_p, max_tokens, batch
        self.no_repeat = no_repeat
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.tokenizer = load_tokenizer(self.folder)
        self.usage = Usage()
        self.count = lru_cache(maxsize=1 << 16)(self.count)  # callers that fit a prompt ask for the same texts again

        positions = getattr(load_config(self.folder), "max_position_embeddings", None)
        self.room = None if positions is None else positions - max_tokens
        self.context = None if positions is None else self.room - len(encode_prompt(self.tokenizer, "")) - SLACK
        if self.context is not None and self.context < 1:
            raise InputError(f"max_tokens: {max_tokens} leave no room for prompts among {positions} positions.")

    @cached_property
    def revision(self) -> str:
        """SHA-256 of the model's files and the settings."""
        made_by = {
            "model_sha256": model_sha256(self.folder),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "no_repeat": self.no_repeat,
            "dtype": str(self.dtype),
        } | ({"batch": self.batch} if self.temperature else {})  # sampled texts depend on who shares their batch
        return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()

    @cached_property
    def model(self):
        return load_model(self.folder, self.dtype).to(self.device)

    def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def write(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        """One text per prompt. Sampled ones depend on the prompts of the call, their order and the seed alone.

        Raises:
            InputError: a prompt leaves less than `max_tokens` of the model's positions.
        """
        encoded = [encode_prompt(self.tokenizer, prompt.text) for prompt in prompts]
        for index, ids in enumerate(encoded):
            if self.room is not None and len(ids) > self.room:
                raise InputError(
                    f"prompt {index}: it has {len(ids):,} tokens, and {self.name} has room for {self.room:,} beside "
                    f"max_tokens={self.max_tokens}; shorten it."
                )
        begun = time.perf_counter()
        texts = []
        # The generator's state outside is put back, so that writing inside a notebook disturbs nothing.
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(encoded), self.batch):
                texts += self._write(encoded[start : start + self.batch])
        self.usage.prompts += len(encoded)
        self.usage.prompt_tokens += sum(map(len, encoded))
        self.usage.seconds += time.perf_counter() - begun
        return texts

    def _write(self, encoded: list[list[int]]) -> list[str]:
        """The answers to one batch of prompts, as tokens."""
        inputs = self.tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self.device)
        ends = self._ends()
        sampling = {"temperature": self.temperature, "top_p": self.top_p} if self.temperature else {}
        circles = [self._no_circles(inputs["input_ids"].shape[1])] if self.no_repeat else []
        rows = self.model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=self.temperature > 0, **sampling,
            max_new_tokens=self.max_tokens, use_cache=True, pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=ends or None, logits_processor=circles,
        )
        answers = []
        for row in rows[:, inputs["input_ids"].shape[1] :].tolist():
            stop = next((place for place, token in enumerate(row) if token in ends), len(row))
            self.usage.written_tokens += min(stop + 1, len(row))
            answers.append(self.tokenizer.decode(row[:stop], skip_special_tokens=True).strip())
        return answers

    def _no_circles(self, begin: int):
        """What forbids tokens that would repeat `no_repeat` tokens of what is written from place `begin` on."""
        from transformers import LogitsProcessor, NoRepeatNGramLogitsProcessor

        class NoCircles(LogitsProcessor):
            forbid = NoRepeatNGramLogitsProcessor(self.no_repeat)

            def __call__(self, input_ids, scores):
                return self.forbid(input_ids[:, begin:], scores)

        return NoCircles()

    def _ends(self) -> list[int]:
        """Tokens that end an answer: the model's own, or else the tokenizer's; a chat model may have several."""
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        return [] if ends is None else ends if isinstance(ends, list) else [ends]
