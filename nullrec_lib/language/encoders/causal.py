"""Language models of `transformers`: the mean of the last hidden states over a text's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Generator, Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence

from nullrec_lib.errors import InputError
from nullrec_lib.language.encoders import Encoded, digest, unit
from nullrec_lib.language.encoders.folders import from_hub, model_sha256
from nullrec_lib.progress import bar

MAX_TOKENS = 512
"""Of a text, with the special tokens that the tokenizer adds by default; fewer where the model reads fewer."""
BLOCK = 256
"""Texts between two parts. Texts are sorted by length inside a block."""
BATCH = 16
"""Texts that the model reads at once."""


class Causal:
    """An `Encoder`. In float32 on every device, so that it does not matter which one filled a cache.

    Args:
        name: a folder, or a name on the hub.

    Raises:
        InputError: there is no such model.
    """

    dear = True

    def __init__(self, name: str):
        if not name:
            raise InputError("encoder: lm: is followed by the path of a transformers folder, or by a name on the hub.")
        self.name = name
        self.folder = Path(name) if Path(name).is_dir() else from_hub(name, f"lm:{name}", "no folder", "transformers")

    @property
    def made_by(self) -> dict[str, Any]:
        return {"kind": "lm", "model_sha256": model_sha256(self.folder), "max_tokens": MAX_TOKENS}

    @property
    def revision(self) -> str:
        return digest(self.made_by)

    def encode(self, texts: Sequence[str]) -> Generator[Encoded, None, None]:
        tokenizer, model = self._load()
        positions = getattr(model.config, "max_position_embeddings", MAX_TOKENS)
        limit = min(MAX_TOKENS, tokenizer.model_max_length, positions)
        # What a model reads where a tokenizer makes nothing of an empty text.
        start_or_end = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
        with bar(what=f"encoding with {Path(self.name).name}", total=len(texts), unit="text") as progress:
            for start in range(0, len(texts), BLOCK):
                block = list(texts[start : start + BLOCK])
                read = tokenizer(block, truncation=True, max_length=limit)["input_ids"]
                tokens = [torch.tensor(ids or [start_or_end]) for ids in read]
                order = sorted(range(len(block)), key=lambda i: len(tokens[i]))
                rows = []
                for first in range(0, len(block), BATCH):
                    rows.append(mean_states(model, [tokens[i] for i in order[first : first + BATCH]]))
                    progress.update(len(rows[-1]))
                yield Encoded([start + i for i in order], unit(np.concatenate(rows), f"encoder: lm:{self.name}"))

    def _load(self) -> tuple[Any, torch.nn.Module]:
        from transformers import AutoModel, AutoTokenizer  # seconds to import: only where it is needed
        from transformers.utils import logging

        logging.disable_progress_bar()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it would warn of the head, which is left out on purpose
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
            # Without the head: its scores of every word at every place would take more memory than all the rest.
            model, told = AutoModel.from_pretrained(self.folder, dtype=torch.float32, output_loading_info=True)
            if model.config.is_encoder_decoder:
                raise ValueError("it has an encoder and a decoder")
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(f"encoder: transformers cannot load {self.folder} ({why}); lm: takes the folder of a "
                             "causal language model with its tokenizer.") from None
        finally:
            logging.set_verbosity(verbosity)
        if told["missing_keys"]:  # it would go on with random numbers for them
            raise InputError(f"encoder: {self.folder} lacks {len(told['missing_keys'])} of the model's tensors, such "
                             f"as {min(told['missing_keys'])}; fetch or save it again.")
        model.config.use_cache = False
        return tokenizer, model.eval().to(device)


@torch.inference_mode()
def mean_states(model: torch.nn.Module, tokens: list[torch.Tensor]) -> np.ndarray:
    """(b, hidden) float32: of b texts' token ids, each (length,), the mean of the last hidden states.

    Padded here, on the right and under a mask: what a causal model says of a token then depends on no padding,
    also where positions are counted from the left, and no tokenizer has to know a padding token.
    """
    ids = pad_sequence(tokens, batch_first=True).to(model.device)
    lengths = torch.tensor([len(one) for one in tokens], device=model.device)
    mask = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
    states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return (torch.where(mask[:, :, None], states, 0).sum(dim=1) / lengths[:, None]).cpu().numpy()
