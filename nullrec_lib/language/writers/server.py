"""A language model behind an OpenAI-compatible server: vLLM, `transformers serve`, a hosted one."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue

from nullrec_lib.errors import InputError
from nullrec_lib.language.servers import KEYS, address, api_key, own_words
from nullrec_lib.language.writers import Prompt, Usage, WriterError

BYTES_PER_TOKEN = 3
"""Of UTF-8, for estimates. Prose has more in any script (English 4 to 5); only codes and rare symbols have fewer."""
PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before an answer that made no sense is asked for again; doubled each time. Other failures are waited for by
the client, in the same way or as long as the server says (`Retry-After`, up to two minutes)."""
SHOWN = 200
"""Most characters of a server's own words in an error."""


class Server:
    """Writes through `/v1/chat/completions` of an OpenAI-compatible server; a `Writer`.

    Each prompt is one request with one user message. The key comes from the environment only (`servers.KEYS`).

    Args:
        url: `http://127.0.0.1:8000` or `https://host/any/v1`; `/v1` is added where there is no path.
        model: its name there; None takes the only one that the server lists.
        temperature: of sampling; 0 asks for the likeliest text.
        top_p: sample among the likeliest tokens that have this much probability together; None leaves it to the server.
        max_tokens: an answer is cut after so many new tokens.
        timeout_s: seconds without an answer after which a request counts as failed.
        concurrency: requests at a time, at most; a batch is four times as many.
        retries: of a request after its first try, where another try can help: no connection, no answer in time, an
            answer that makes no sense, 408, 409, 429 and 5xx.
        context: tokens of a prompt that fit, the server's length less `max_tokens`.
        price_in, price_out: currency units per million prompt tokens and written tokens, for `estimate`.

    Raises:
        InputError: a setting is out of range, the URL is none or has a secret in it, or there is no only model.
        WriterError: the server had to be asked for its models, and is gone or refuses the key.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        max_tokens: int = 128,
        timeout_s: float = 120.0,
        concurrency: int = 8,
        retries: int = 6,
        context: int = 4096,
        price_in: float | None = None,
        price_out: float | None = None,
    ):
        for name, value, least in (("temperature", temperature, 0), ("max_tokens", max_tokens, 1),
                                   ("concurrency", concurrency, 1), ("retries", retries, 0), ("context", context, 1),
                                   ("price_in", price_in or 0, 0), ("price_out", price_out or 0, 0)):
            if not value >= least:
                raise InputError(f"{name}: {value} is too small; give {least} or more.")
        if not timeout_s > 0:
            raise InputError(f"timeout_s: {timeout_s} is no time to wait; give seconds above 0.")
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p: {top_p} is not in (0, 1].")
        if (price_in is None) != (price_out is None):
            raise InputError("price_in, price_out: one without the other gives no cost; give both or neither.")
        self.url, self.max_tokens = address(url), max_tokens
        self.temperature, self.top_p = float(temperature), None if top_p is None else float(top_p)  # 0 is 0.0
        self.timeout_s, self.concurrency, self.retries = timeout_s, concurrency, retries
        self.context, self.price_in, self.price_out = context, price_in, price_out
        self.name, self.batch, self.usage = f"server:{self.url}", 4 * concurrency, Usage()
        self._counting = threading.Lock()
        self._takes_seed, self._limit = True, "max_tokens"  # until the server says otherwise
        self.model = model or self._only_model()

    @property
    def revision(self) -> str:
        """SHA-256 of URL, model and settings: all that can be known of what answers."""
        made_by = [self.url, self.model, self.temperature, self.top_p, self.max_tokens]
        return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()

    def count(self, text: str) -> int:
        """Tokens of a text, estimated without a tokenizer and rather too many: its UTF-8 bytes / 3, rounded up."""
        return math.ceil(len(text.encode(errors="replace")) / BYTES_PER_TOKEN)

    def estimate(self, prompts: Sequence[Prompt]) -> dict[str, int | float | None]:
        """What writing would take at most, before anything is sent: `prompts`, `prompt_tokens`, `written_tokens`, and
        `cost` in currency units (None without prices)."""
        tokens, written = sum(self.count(prompt.text) for prompt in prompts), len(prompts) * self.max_tokens
        cost = None if self.price_in is None else (tokens * self.price_in + written * self.price_out) / 1e6
        return {"prompts": len(prompts), "prompt_tokens": tokens, "written_tokens": written, "cost": cost}

    def write(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        """One text per prompt, in their order; '' where the model said nothing. See `stream` for what it raises."""
        texts = dict(self.stream(prompts, seed))
        return [texts[index] for index in range(len(prompts))]

    def stream(self, prompts: Sequence[Prompt], seed: int) -> Iterator[tuple[int, str]]:
        """(index of a prompt, its text), each as soon as it is there, in any order: what was paid for can be stored.

        After a failure no further prompt is sent, but what is on its way is waited for and yielded first. A server
        that refuses `seed` is asked without it from then on.

        Raises:
            InputError: the key in the environment cannot be one.
            WriterError: the server is gone, refuses, or answered no sense as often as was tried.
        """
        begin, stop = time.perf_counter(), threading.Event()
        waiting, answered = SimpleQueue(), SimpleQueue()
        for asked in enumerate(prompts):
            waiting.put(asked)
        client = self._client()

        def work() -> None:
            end = None
            try:
                while not stop.is_set():
                    index, prompt = waiting.get_nowait()
                    answered.put((index, self._answer(client, prompt, seed)))
            except Empty:
                pass
            except Exception as error:  # of any kind: a thread that only died would be waited for without end
                stop.set()
                end = error
            answered.put(end)

        working, failure = min(self.concurrency, len(prompts)), None
        try:
            for _ in range(working):
                # Not a pool, which Python waits for at its exit: an interrupt would last as long as the slowest answer.
                threading.Thread(target=work, daemon=True).start()
            while working:
                answer = answered.get()
                if isinstance(answer, tuple):
                    yield answer
                else:
                    working, failure = working - 1, failure or answer
        finally:
            stop.set()
            client.close()
            with self._counting:
                self.usage.seconds += time.perf_counter() - begin
        if failure:
            raise failure

    def _client(self):
        from openai import OpenAI, Timeout

        # A host that is not there is known sooner than an answer is late.
        timeout = Timeout(self.timeout_s, connect=min(self.timeout_s, 10))
        return OpenAI(base_url=self.url, api_key=api_key(), timeout=timeout, max_retries=self.retries)

    def _answer(self, client, prompt: Prompt, seed: int) -> str:
        for tried in range(self.retries + 1):
            if tried:
                time.sleep(min(PAUSE * 2 ** (tried - 1), LONGEST_PAUSE) * random.uniform(0.75, 1))
            reply = self._ask(client, prompt, seed)
            if (text := _text(reply)) is not None:
                break
        else:
            raise self._failure("answers what is no chat completion", self.retries + 1)
        with self._counting:
            self.usage.prompts += 1
            self.usage.prompt_tokens += _spent(reply, "prompt_tokens", self.count(prompt.text))
            self.usage.written_tokens += _spent(reply, "completion_tokens", self.count(text))
        return text

    def _ask(self, client, prompt: Prompt, seed: int):
        """The server's answer as the client reads it; None where that was no JSON."""
        from openai import APIError

        settings = {"temperature": self.temperature, self._limit: self.max_tokens}
        if self._takes_seed:
            settings["seed"] = seed
        if self.top_p is not None:
            settings["top_p"] = self.top_p
        message = {"role": "user", "content": prompt.text}
        try:
            return client.chat.completions.create(model=self.model, messages=[message], **settings)
        except json.JSONDecodeError:
            return None
        except APIError as error:
            words = own_words(error, client.api_key)
            refused = getattr(error, "status_code", None) in (400, 422)
            if refused and "seed" in settings and re.search(r"\bseed\b", words):
                self._takes_seed = False
            elif refused and "max_tokens" in settings and "max_completion_tokens" in words:
                self._limit = "max_completion_tokens"  # the same under its newer name, which few servers know
            else:
                raise self._said(error, words) from None  # the cause may have the key in it
        return self._ask(client, prompt, seed)

    def _only_model(self) -> str:
        from openai import APIConnectionError, APIError, AuthenticationError, PermissionDeniedError

        with self._client() as client:
            try:
                # Not asked again as often as for a text: some servers cannot list theirs, ever.
                names = [model.id for model in client.with_options(max_retries=min(self.retries, 1)).models.list()]
            except (APIConnectionError, AuthenticationError, PermissionDeniedError) as error:
                raise self._said(error, "") from None
            except (APIError, ValueError, TypeError, AttributeError):  # 404 or 500, or no list at all
                names = []
        if len(names) == 1:
            return names[0]
        there = f"has {', '.join(map(str, names))}; name one of them" if names else "lists none; name it"
        raise InputError(f"model: {self.url} {there}.")

    def _said(self, error, words: str) -> WriterError:
        """The client's error in one sentence, without the chain of causes."""
        from openai import APIConnectionError, APITimeoutError

        code = getattr(error, "status_code", None)
        if isinstance(error, APITimeoutError):
            what = f"does not answer in time (timeout_s: {self.timeout_s:g})"
        elif isinstance(error, APIConnectionError):
            what = "cannot be reached"
        elif code in (401, 403):  # not in the server's words: many quote a part of the key
            what = f"refuses the key ({code}; set {KEYS[0]} in the environment)"
        else:
            words = words[:SHOWN].rstrip(". ")
            whats = {400: "refuses the request", 422: "refuses the request",
                     404: f"does not know the model {self.model} or this address"}
            what = f"{whats.get(code, 'fails')} ({code}{': ' if words else ''}{words})"
        # The client counts its tries there; they are fewer than allowed where another could not help.
        return self._failure(what, int(error.request.headers.get("x-stainless-retry-count", 0)) + 1)

    def _failure(self, what: str, tries: int) -> WriterError:
        times = "once" if tries == 1 else f"{tries} times"
        return WriterError(
            f"{self.name} {what}, tried {times}; what was written is kept, and the same command goes on from there."
        )


def _text(reply) -> str | None:
    """The text of an answer, '' where the model said nothing; None where it is no answer."""
    try:
        content = reply.choices[0].message.content
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
    if not isinstance(content, str):
        return "" if content is None else None
    return content.encode(errors="replace").decode().strip()  # half a surrogate pair cannot be stored


def _spent(reply, name: str, estimate: int) -> int:
    tokens = getattr(getattr(reply, "usage", None), name, None)
    return tokens if isinstance(tokens, int) else estimate
