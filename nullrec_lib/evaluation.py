"""Judge: scores → ranks of the targets among all items → metrics."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.kernels.rank import Ranks, rank, rank_scores, score_some
from nullrec_lib.progress import bar

PROTOCOLS = Ranks._fields
"""`authors`: rank by raw dot product, nothing masked. `consistent`: rank by the similarity trained with, the
user's earlier items masked. Every table shows both: which one is used moves figures more than the method."""

CUTOFFS = (10, 20)


class Ranker(Protocol):
    """Anything that scores every item for a batch of histories.

    One whose scores are dot products may also offer `queries(batch)`, (B, d), and `table`, (N, d): its scores are then
    counted as they come, and no (B, N) matrix of them is made.
    """

    def scores(self, batch: Batch) -> Tensor:
        """(B, N) raw scores, higher is better; a fresh tensor, as it is scaled in place."""


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
        memory_mb: most that scores and their masks (or queries, where no scores are kept) may take at once, but for a
            few MB; examples are ranked in chunks.
        sampled: (n_examples, n) int64 items; each target is also ranked among itself and these alone. An example with
            a padding id N among them is left out of that ranking.

    Returns: protocol → (n_examples,) int64 ranks on the CPU, from 1; with `sampled` also `<protocol>_sampled`, 0 where
        an example is left out.
    """
    # Per score a float32, its comparison, the mask and its negation, the NaN test; or the same for an element of a
    # query and what it is made of; per distinct earlier item six integers. More rows than the cap would gain nothing,
    # and states take memory too.
    per_row = 8 * (ranker.table.shape[1] if _matches(ranker) else examples.n_items) + 48 * examples.most_seen()
    rows = max(1, min(memory_mb * 2**20 // per_row, 2048))
    ranks: dict[str, list[Tensor]] = {}
    with torch.no_grad(), bar(what=what, total=len(examples), unit="example") as progress:
        for index in torch.arange(len(examples)).split(rows):
            batch = examples.batch(index)
            few = left_out = None
            if sampled is not None:
                target, others = batch.target[:, None], sampled[index].to(batch.target.device)
                left_out = (others == examples.n_items).any(dim=1)
                few = torch.cat([target, others.where(~left_out[:, None], target)], dim=1)
            for name, part in _rank_batch(ranker, batch, similarity, examples.seen(index), few, left_out).items():
                ranks.setdefault(name, []).append(part)
            progress.update(len(index))
    return {name: torch.cat(parts).cpu() for name, parts in ranks.items()}


def _matches(ranker: Ranker) -> bool:
    """Whether the ranker's scores are dot products that it lets others make."""
    return hasattr(ranker, "queries")


def _rank_batch(
    ranker: Ranker, batch: Batch, similarity, hidden: Tensor, few: Tensor | None, left_out: Tensor | None
) -> dict[str, Tensor]:
    """What `rank_all` returns, for one batch; `few` (B, 1 + n) are the target and the sampled items, any where an example
    is `left_out` (B,) of their ranking."""
    if _matches(ranker):
        queries = ranker.queries(batch)
        some = None if few is None else score_some(queries, ranker.table, few)
        every = rank(queries, ranker.table, batch.target, similarity, hidden)
    else:
        scores = ranker.scores(batch)
        some = None if few is None else scores.gather(1, few)  # now, as the scores are about to be scaled
        every = rank_scores(scores, batch.target, similarity, hidden)
    if few is None:
        return every._asdict()
    of_few = None if similarity is None else (similarity[0][few], similarity[1][few])
    among = rank_scores(some, torch.zeros_like(batch.target), of_few)
    return every._asdict() | {f"{name}_sampled": part.masked_fill(left_out, 0) for name, part in among._asdict().items()}


def metrics(ranks: Tensor) -> dict[str, float | None]:
    """R@K, N@K and M@K for K in `CUTOFFS`, means over examples with one relevant item each; None without examples.
    Rank 0 is that of an example that is left out.

    R@K = [rank ≤ K], N@K = [rank ≤ K] / log2(rank + 1), M@K = [rank ≤ K] / rank.
    """
    rank = ranks[ranks > 0].double()
    result = {}
    if not len(rank):
        return {f"{name}@{k}": None for k in CUTOFFS for name in "RNM"}
    for k in CUTOFFS:
        hit = (rank <= k).double()
        result[f"R@{k}"] = float(hit.mean())
        result[f"N@{k}"] = float((hit / torch.log2(rank + 1)).mean())
        result[f"M@{k}"] = float((hit / rank).mean())
    return result
