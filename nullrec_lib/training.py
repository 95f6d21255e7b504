"""Fit: one loop for every method and backbone, that survives being killed at any moment."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.evaluation import metrics, rank_all
from nullrec_lib.files import write_json, write_tensors
from nullrec_lib.methods.method import Method, pad_row
from nullrec_lib.progress import bar

CHECKPOINT, BEST, HISTORY = "checkpoint.safetensors", "model.safetensors", "history.json"


class Recommender(nn.Module):
    """A method on a backbone: the only place where the two meet."""

    def __init__(self, method: Method, backbone: nn.Module):
        super().__init__()
        self.method, self.backbone = method, backbone

    def states(self, batch: Batch, vectors: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(B, d): what the backbone makes of the method's views of the histories."""
        return self.backbone(self.method.views(batch, vectors or self.method.vectors))

    def loss(self, batch: Batch) -> Tensor:
        """Scalar: the backbone's training loss plus the method's own, if any."""
        vectors = self._vectors(batch)
        states = self.states(batch, vectors)
        loss = self.backbone.loss(states, batch, self.method.n_items, vectors)
        extra = self.method.extra_loss(batch, states, lambda other: self.states(other, vectors), vectors)
        return loss if extra is None else loss + extra

    def _vectors(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The method's vectors by item id, for one step. Where the step looks up more ids than there are items, the
        table is computed once and its rows are gathered: an adaptor then reads each item once (and what it draws at
        random is drawn once per item, not once per look-up)."""
        method, table = self.method, self.method.vectors
        if method.n_items < batch.history.numel() + len(batch.target) * self.backbone.candidates:
            rows = pad_row(method.table())
            table = lambda ids: F.embedding(ids, rows)
        return table

    def parameter_counts(self) -> dict[str, int]:
        """`params_trainable`, and `params_total` with the frozen item tables that the model carries.

        The padding row of a table is no parameter: it is always zero.
        """
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        for module in self.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                total -= module.embedding_dim
                trainable -= module.embedding_dim if module.weight.requires_grad else 0
        frozen = [getattr(self.method, name) for name in self.method.frozen_tables]
        return {"params_trainable": trainable, "params_total": total + sum(t[:-1].numel() for t in frozen)}


class Scorer:
    """A recommender with its item table computed once: what evaluation asks for scores."""

    def __init__(self, model: Recommender):
        model.eval()
        self.model = model
        with torch.no_grad():
            self.table = model.method.table()
            self.similarity = model.backbone.similarity(self.table)

    def queries(self, batch: Batch) -> Tensor:
        """(B, d): what is multiplied with the items of `table`."""
        return self.model.backbone.queries(self.model.states(batch), batch)

    def scores(self, batch: Batch) -> Tensor:
        """(B, N) raw dot products of queries and items."""
        return self.queries(batch) @ self.table.T


@dataclass(frozen=True)
class Fitted:
    """What training left behind."""

    best_epoch: int
    history: list[dict[str, Any]]
    """One entry per epoch: `epoch` (from 1), `loss` (mean over examples), `spread` (of the item vectors), `seconds`,
    `evaluation_seconds`, `valid` and `valid_consistent` (metrics)."""


def spread(table: Tensor) -> float:
    """Total variance of item vectors (N, d): near zero when they have collapsed to one point."""
    return float((table.double() - table.double().mean(dim=0)).square().mean(dim=0).sum())


def fit(
    model: Recommender,
    train: Examples,
    valid: Examples,
    folder: Path,
    *,
    lr: float,
    batch_size: int,
    epochs: int,
    patience: int,
    select: str,
    seed: int,
    memory_mb: int = 256,
) -> Fitted:
    """Train with Adam until validation N@20 has not risen for `patience` epochs; leave the best weights in `model`.

    Everything random in an epoch (order, dropout, negatives) follows from (seed, epoch), and after every epoch
    one file with weights, optimiser and history appears in `folder` by an atomic rename. So a run that was
    killed at any moment goes on from its last whole epoch to the very result of an uninterrupted one. The folder
    ends up with the best weights (`model.safetensors`), `history.json`, and the checkpoint, which the caller
    removes when it has stored what it wants of the run.

    Args:
        lr: Adam's learning rate.
        batch_size: examples per step; the last step of an epoch takes what is left.
        epochs: at most.
        select: scoring protocol whose validation N@20 decides, one of `evaluation.PROTOCOLS`.

    Raises:
        FloatingPointError: the loss or a score is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    # Adam refuses an empty list, which a model frozen through and through has.
    optimiser = torch.optim.Adam(trainable or [nn.Parameter(torch.zeros(()))], lr=lr, fused=True)
    history = _resume(model, optimiser, folder)
    key = "valid" if select == "authors" else "valid_consistent"
    best = lambda: max(history, key=lambda entry: (entry[key]["N@20"], -entry["epoch"]), default={"epoch": 0})

    # The generator's state outside is put back, so that training inside a notebook disturbs nothing.
    with torch.random.fork_rng(), bar(what="training", total=epochs, initial=len(history), unit="epoch") as progress:
        while len(history) < epochs and len(history) - best()["epoch"] < patience:
            epoch = len(history) + 1
            torch.manual_seed(seed * 1_000_003 + epoch)
            started = time.perf_counter()
            loss = _train_epoch(model, train, optimiser, batch_size, epoch)
            trained = time.perf_counter()
            scorer = Scorer(model)
            ranks = rank_all(scorer, valid, scorer.similarity, memory_mb, "validating")
            history.append({
                "epoch": epoch,
                "loss": loss,
                "spread": spread(scorer.table),
                "seconds": trained - started,
                "evaluation_seconds": time.perf_counter() - trained,
                "valid": metrics(ranks["authors"]),
                "valid_consistent": metrics(ranks["consistent"]),
            })
            if best()["epoch"] == epoch:
                write_tensors(folder / BEST, model.state_dict())
            _checkpoint(model, optimiser, history, folder)
            told = f"loss {loss:.4f}, valid N@20 {history[-1][key]['N@20']:.4f}"
            progress.set_postfix_str(told, refresh=False)  # a refresh would show the bar before its two seconds
            progress.update()
    if history:
        _load(model, folder / BEST)
    write_json(folder / HISTORY, history)
    return Fitted(best()["epoch"], history)


def _train_epoch(model: Recommender, train: Examples, optimiser, batch_size: int, epoch: int) -> float:
    """One pass over shuffled examples; the mean loss."""
    model.train()
    total = torch.zeros((), device=train.device)
    order = torch.randperm(len(train), device=train.device)
    with bar(what=f"epoch {epoch}", total=len(train), unit="example", position=1) as progress:
        for index in order.split(batch_size):
            loss = model.loss(train.batch(index))
            optimiser.zero_grad()
            # A model that is frozen through and through (nothing to learn) still gets its epoch's figures.
            if loss.requires_grad:
                loss.backward()
                optimiser.step()
            total += loss.detach() * len(index)
            progress.update(len(index))
    mean = float(total) / len(train)
    if mean != mean or mean in (float("inf"), float("-inf")):
        raise FloatingPointError(f"epoch {epoch}: the training loss is {mean}; try a smaller learning rate.")
    return mean


def _checkpoint(model: Recommender, optimiser, history: list, folder: Path) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in state.items()}
    write_tensors(folder / CHECKPOINT, tensors, {"history": history})


def _resume(model: Recommender, optimiser, folder: Path) -> list[dict[str, Any]]:
    """Load the checkpoint in `folder`, if any, into model and optimiser; its history so far."""
    if not (folder / CHECKPOINT).exists():
        return []
    state: dict[int, dict[str, Tensor]] = {}
    weights = {}
    with safe_open(folder / CHECKPOINT, "pt") as handle:
        history = json.loads(handle.metadata()["about"])["history"]
        for name in handle.keys():
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest] = handle.get_tensor(name)
            else:
                index, _, field = rest.partition(".")
                state.setdefault(int(index), {})[field] = handle.get_tensor(name)
    model.load_state_dict(weights)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return history


def _load(model: Recommender, path: Path) -> None:
    with safe_open(path, "pt") as handle:
        model.load_state_dict({name: handle.get_tensor(name) for name in handle.keys()})
