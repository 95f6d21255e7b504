"""Keywords instead of a model: what is said of a subject and hardly of anybody else. Deterministic, and the control
that every language model has to beat."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Sequence

import numpy as np
from scipy import sparse

from nullrec_lib.errors import InputError
from nullrec_lib.language.writers import Prompt, Usage

FIRST = 1e-3
"""What coming early adds to a score: enough to order terms that are equal otherwise."""
LIKES, ALSO, FOR = "Likes", "Similar tastes", "Liked along with"
"""How a profile begins. It is read again in the next round, where these words are no keywords."""
_OURS = {"likes", "liked", "similar", "tastes", "along"}


class Extractive:
    """Writes the terms (words and pairs of words) that are most specific to the subject.

    A term that k of the subject's n texts hold, and a share p of the catalogue's, scores its log-likelihood ratio
    k·log(k / np) − (k − np) (Dunning 1993, for Poisson counts): a word that comes back in many items beats a rare
    one that a single item happens to have. A pair of words takes the place of its words.
    """

    name = "extractive"
    batch = 1024
    context = None

    def __init__(self, corpus: Sequence[str], own_words: int = 20, other_words: int = 10):
        """Learn the terms and how common they are from the catalogue's texts, which hold no interactions. What less
        than three texts have (fewer, of a small catalogue) is chance neighbours and can tie no tastes together.

        Args:
            own_words: keywords of what is said of the subject itself, and
            other_words: further ones of those around it.

        Raises:
            InputError: there would be none, or the texts have none.
        """
        # A second to import, and only whoever writes needs it.
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

        if own_words < 1 or other_words < 0:
            raise InputError(f"own_words, other_words: {own_words} and {other_words} are too few; give 1 and 0 or more.")
        self.own_words, self.other_words, self.usage = own_words, other_words, Usage()
        self._terms = CountVectorizer(
            ngram_range=(1, 2), min_df=max(1, min(3, len(corpus) // 50)), binary=True, dtype=np.float32,
            stop_words=sorted(ENGLISH_STOP_WORDS | _OURS),
            token_pattern=r"(?u)\b[^\W\d_][\w'-]+\b",
        )
        try:
            held = self._terms.fit_transform(corpus)
        except ValueError as error:  # scikit-learn's, of an empty vocabulary
            raise InputError(f"texts: there are no keywords in the items' ({error}); profiles need item texts.") from None
        self._share = np.asarray(held.sum(axis=0), np.float64)[0] / len(corpus)
        self._names = self._terms.get_feature_names_out()
        known = json.dumps([list(self._names), own_words, other_words, LIKES, ALSO, FOR])
        self.revision = hashlib.sha256(known.encode() + self._share.tobytes()).hexdigest()

    def count(self, text: str) -> int:
        """Words."""
        return len(text.split())

    def write(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        """One profile per prompt: its title if it has one, then keywords. `seed` changes nothing."""
        started = time.perf_counter()
        # Oldest first and nearest first: what is said last of a subject, and first of others, breaks ties.
        own = self._weights([prompt.own[::-1] for prompt in prompts])
        others = self._weights([prompt.others for prompt in prompts])
        texts = [self._say(prompt, own[row], others[row]) for row, prompt in enumerate(prompts)]
        self.usage.prompts += len(prompts)
        self.usage.prompt_tokens += sum(self.count(prompt.text) for prompt in prompts)
        self.usage.written_tokens += sum(self.count(text) for text in texts)
        self.usage.seconds += time.perf_counter() - started
        return texts

    def _weights(self, texts: list[tuple[str, ...]]) -> sparse.csr_matrix:
        """(B, terms): for each list of texts the scores of the terms in it; those that it holds no more often than the
        catalogue does are 0."""
        distinct = {text: row for row, text in enumerate(dict.fromkeys(text for some in texts for text in some))}
        if not distinct:
            return sparse.csr_matrix((len(texts), len(self._names)))
        present = self._terms.transform(list(distinct))
        place = np.concatenate([np.arange(len(some)) for some in texts])
        rows = np.repeat(np.arange(len(texts)), [len(some) for some in texts])
        where = rows, [distinct[text] for some in texts for text in some]

        def totals(weights: np.ndarray) -> sparse.csr_matrix:
            found = sparse.csr_matrix((weights, where), (len(texts), len(distinct))) @ present
            found.sort_indices()
            return found

        scores, first = totals(np.ones(len(place))), totals(1 / (1 + place))
        k, n = scores.data, np.bincount(rows, minlength=len(texts)).repeat(np.diff(scores.indptr))
        expected = n * self._share[scores.indices]
        specific = k * np.log(k / expected) - (k - expected) + FIRST * first.data
        scores.data = np.where(k > expected, specific, 0.0)
        scores.eliminate_zeros()
        return scores

    def _say(self, prompt: Prompt, own: sparse.csr_matrix, others: sparse.csr_matrix) -> str:
        if prompt.title:
            said = set(self._terms.build_analyzer()(prompt.title))
            around = self._best(others, self.own_words + self.other_words, said)
            return f"{prompt.title}. {FOR} {', '.join(around)}." if around else f"{prompt.title}."
        first = self._best(own, self.own_words, set())
        more = self._best(others, self.other_words, {word for term in first for word in (term, *term.split())})
        text = f"{LIKES} {', '.join(first)}." if first else f"{LIKES} nothing in particular."
        return f"{text} {ALSO}: {', '.join(more)}." if more else text

    def _best(self, weights: sparse.csr_matrix, most: int, said: set[str]) -> list[str]:
        """The heaviest terms, heaviest first, ties by name; none that is said already or is part of a heavier one."""
        order = np.lexsort((self._names[weights.indices], -weights.data))[: 4 * most]
        chosen, parts = [], set(said)
        for name in self._names[weights.indices[order]]:
            words = name.split()
            told = name in parts or len(words) > 1 and all(word in parts for word in words)
            if len(chosen) < most and not told:
                chosen.append(name)
                parts |= {name, *words}
        return chosen
