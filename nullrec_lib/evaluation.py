"""Judge: scores → ranks of the targets among all items → metrics."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.progress import bar

PROTOCOLS = ("authors", "consistent")
"""`authors`: rank by raw dot product, nothing masked. `consistent`: rank by the similarity trained with, the
user's earlier items masked. Every table shows both: which one is used moves figures more than the method."""

CUTOFFS = (10, 20)


class Ranker(Protocol):
    """Anything that scores every item for a batch of histories."""

    def scores(self, batch: Batch) -> Tensor:
        """(B, N) raw scores, higher is better; a fresh tensor, as it is scaled in place."""


def target_ranks(scores: Tensor, target: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Rank of each target among all items, (B,) int64 from 1; ties count against the model.

    rank = 1 + #greater + #equal others, so a constant scorer ranks every target last.

    Args:
        scores: (B, N).
        target: (B,) int64.
        hidden: (B, W) item ids that do not compete, padding id N allowed; never hides the target itself.

    Raises:
        FloatingPointError: a NaN score. NaN has no rank.
    """
    # A NaN compares false with everything: unnoticed, a NaN target would have nothing ahead of it.
    if bool(scores.isnan().any()):
        row = int(scores.isnan().any(dim=1).nonzero()[0])
        raise FloatingPointError(f"row {row} of the scores holds NaN: the model has diverged or its input is broken.")
    ahead = scores >= scores.gather(1, target[:, None])
    if hidden is not None:
        # Hidden ids are written one column too wide, so that the padding id lands outside of the items.
        wide = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
        wide.scatter_(1, hidden, True).scatter_(1, target[:, None], False)
        ahead &= ~wide[:, :-1]
    return ahead.sum(dim=1)


def rank_all(
    ranker: Ranker,
    examples: Examples,
    similarity: tuple[Tensor, Tensor] | None = None,
    memory_mb: int = 256,
    what: str = "ranking",
    sampled: Tensor | None = None,
) -> dict[str, Tensor]:
    """Ranks of all examples' targets under both `PROTOCOLS`, in one pass over the scores.

    Args:
        similarity: factor and summand per item, (N,) each, that turn raw scores into the similarity trained with, up
            to what all items of a query share; None where raw scores are that already.
        memory_mb: most that scores and their masks may take at once; examples are ranked in chunks.
        sampled: (n_examples, n) int64 items; each target is also ranked among itself and these alone.

    Returns: protocol → (n_examples,) int64 ranks on the CPU; with `sampled` also `<protocol>_sampled`.
    """
    # Per score a float32, its comparison, the mask and its negation, the NaN test; per earlier item three integers.
    # More rows than the cap would gain nothing, and states take memory too.
    per_row = 8 * examples.n_items + 24 * examples.longest_history()
    rows = max(1, min(memory_mb * 2**20 // per_row, 2048))
    ranks: dict[str, list[Tensor]] = {}
    with torch.no_grad(), bar(what=what, total=len(examples), unit="example") as progress:
        for index in torch.arange(len(examples)).split(rows):
            batch = examples.batch(index)
            scores = ranker.scores(batch)
            for name in PROTOCOLS:
                hidden = None
                if name == "consistent":
                    hidden = examples.seen(index)
                    if similarity is not None:
                        scores.mul_(similarity[0]).add_(similarity[1])
                ranks.setdefault(name, []).append(target_ranks(scores, batch.target, hidden))
                if sampled is not None:
                    few = torch.cat([batch.target[:, None], sampled[index].to(scores.device)], dim=1)
                    few = target_ranks(scores.gather(1, few), torch.zeros_like(batch.target))
                    ranks.setdefault(f"{name}_sampled", []).append(few)
            progress.update(len(index))
    return {name: torch.cat(parts).cpu() for name, parts in ranks.items()}


def metrics(ranks: Tensor) -> dict[str, float | None]:
    """R@K, N@K and M@K for K in `CUTOFFS`, means over examples with one relevant item each; None without examples.

    R@K = [rank ≤ K], N@K = [rank ≤ K] / log2(rank + 1), M@K = [rank ≤ K] / rank.
    """
    rank = ranks.double()
    result = {}
    if not len(rank):
        return {f"{name}@{k}": None for k in CUTOFFS for name in "RNM"}
    for k in CUTOFFS:
        hit = (rank <= k).double()
        result[f"R@{k}"] = float(hit.mean())
        result[f"N@{k}"] = float((hit / torch.log2(rank + 1)).mean())
        result[f"M@{k}"] = float((hit / rank).mean())
    return result
