"""Servers that speak OpenAI's `/v1/embeddings`: OpenAI itself, and what imitates it on one's own machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Generator, Sequence

import numpy as np

from nullrec_lib.errors import InputError
from nullrec_lib.language.encoders import Encoded, digest, unit
from nullrec_lib.language.servers import KEYS, address, api_key, own_words
from nullrec_lib.progress import bar

MAX_CHARACTERS = 8192
"""Of a text; OpenAI refuses more than 8,192 tokens, and a token is seldom less than a character."""
BATCH = 32
"""Texts of a request: as many as the strictest servers take, and less than the 300,000 tokens that OpenAI takes."""
REQUESTS = 4
"""At a time."""
TIMEOUT = 60.0
"""Seconds without a word from the server."""
RETRIES = 5
"""Of a request that a server was too busy for or did not answer, with growing pauses."""


class Server:
    """An `Encoder`.

    Args:
        name: URL#MODEL, e.g. `https://api.openai.com/v1#text-embedding-3-large`.

    Raises:
        InputError: the name is something else.
    """

    dear = True

    def __init__(self, name: str):
        url, _, self.model = name.partition("#")
        if not self.model:  # what is there is not repeated: there may be a password in it
            raise InputError("encoder: a server is written server:http://HOST/v1#MODEL.")
        self.url = address(url, "encoder")

    @property
    def made_by(self) -> dict[str, Any]:
        return {"kind": "server", "url": self.url, "model": self.model, "max_characters": MAX_CHARACTERS}

    @property
    def revision(self) -> str:
        return digest(self.made_by)

    def encode(self, texts: Sequence[str]) -> Generator[Encoded, None, None]:
        import openai  # a second to import: only where it is needed

        width = None
        with (
            openai.OpenAI(base_url=self.url, api_key=api_key(), timeout=TIMEOUT, max_retries=RETRIES) as client,
            ThreadPoolExecutor(REQUESTS) as pool,
            bar(what=f"encoding with {self.model}", total=len(texts), unit="text") as progress,
        ):
            places = [range(start, min(start + BATCH, len(texts))) for start in range(0, len(texts), BATCH)]
            asked = {pool.submit(self._ask, client, [texts[i] for i in some]): some for some in places}
            failed = None
            try:
                for answer in as_completed(list(asked)):
                    some = asked.pop(answer)
                    if answer.cancelled():
                        continue
                    if failed := failed or answer.exception():
                        _cancel(asked)  # those under way are paid: they are waited for and handed on
                    if answer.exception():
                        continue
                    rows, tokens = answer.result()
                    width = width or rows.shape[1]
                    if rows.shape[1] != width:
                        raise InputError(f"encoder: {self.url} answers embeddings of widths {width} and "
                                         f"{rows.shape[1]}; give the server one model for {self.model}.")
                    yield Encoded(some, rows, tokens)
                    progress.update(len(rows))
            finally:
                _cancel(asked)
            if failed:
                raise failed

    def _ask(self, client, texts: list[str]) -> tuple[np.ndarray, int]:
        """(b, d_l) float32 unit-norm rows of one request, and its tokens."""
        import openai

        try:
            # OpenAI refuses an empty text; an item that has none is asked about with a space.
            said = [text[:MAX_CHARACTERS] or " " for text in texts]
            answer = client.embeddings.create(model=self.model, input=said)
            given = {one.index: one.embedding for one in answer.data}
            if len(answer.data) != len(texts) or set(given) != set(range(len(texts))):
                raise InputError(f"encoder: {self.url} answers {len(answer.data)} embeddings for {len(texts)} texts, "
                                 "or not one for each; ask a server that answers every text.")
            rows = np.array([given[i] for i in range(len(texts))], np.float32)
            if rows.ndim != 2:
                raise ValueError("an answer without numbers")
            tokens = getattr(answer.usage, "prompt_tokens", None) or 0
        except openai.OpenAIError as error:
            raise InputError(f"encoder: {self.url} {_why(error, client.api_key)}.") from None
        except InputError:
            raise
        except (ValueError, TypeError, AttributeError, OverflowError):  # the client does not check what it is told
            raise InputError(f"encoder: what {self.url} answers cannot be read as embeddings of one width; see that "
                             f"the address ends in /v1 and that {self.model} is a model for embeddings.") from None
        return unit(rows, f"encoder: in an answer of {self.url}"), tokens


def _cancel(asked) -> None:
    for request in asked:
        request.cancel()


def _why(error: Exception, key: str) -> str:
    """What is wrong and what to do. The server's own words only where they are not about the key, and without it."""
    import openai

    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return f"refuses the key ({error.status_code}); set {KEYS[0]} to one that is valid there"
        case openai.APITimeoutError():
            return f"did not answer within {TIMEOUT:g} seconds, {RETRIES + 1} times; the same command goes on from here"
        case openai.APIStatusError():
            words = own_words(error, key)[:200].rstrip(".")
            return f"says {error.status_code}: {words}; the same command goes on from here once that is put right"
        case openai.APIConnectionError():
            return f"could not be reached, {RETRIES + 1} times; see that it runs, the same command goes on from here"
    return "does not answer as OpenAI's client expects; see that the address ends in /v1"
