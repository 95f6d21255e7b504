"""Fit: one loop for every method and backbone, that survives being killed at any moment."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.evaluation import metrics, rank_all
from nullrec_lib.files import DamagedFile, read_json, read_tensors, write_json, write_tensors
from nullrec_lib.kernels.lookup import Items, Table
from nullrec_lib.kernels.row_adam import BETAS, EPSILON, row_adam
from nullrec_lib.methods.method import Method
from nullrec_lib.progress import bar

CHECKPOINT, BEST, HISTORY = "checkpoint.safetensors", "model.safetensors", "history.json"
WITH_RESULT = "remove it and result.json beside it, and the same run makes both again"
"""What to do with a damaged file that a result rests on."""


class Recommender(nn.Module):
    """A method on a backbone: the only place where the two meet."""

    def __init__(self, method: Method, backbone: nn.Module):
        super().__init__()
        self.method, self.backbone = method, backbone
        self.row_updates = False
        """A step looks its ID rows up, so that their gradients are of these rows alone. See `fit`."""
        self.bf16 = False
        """Products of training steps in bfloat16. See `fit`."""

    def states(self, batch: Batch, items: Items) -> Tensor:
        """(B, d): what the backbone makes of the method's views of the histories."""
        if batch.windows is None:
            return self.backbone(self.method.views(batch, items))
        # Rows are windows here, not examples: what stands beside an example's history has no place in them.
        views = self.method.views(batch._replace(history=batch.windows.ids, context={}), items)
        return self.backbone(views, batch.windows.ends)

    def loss(self, batch: Batch) -> Tensor:
        """Scalar: the backbone's training loss plus the method's own, if any."""
        device = self.backbone.positions.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            return self._loss(batch)

    def _loss(self, batch: Batch) -> Tensor:
        candidates = self.backbone.candidates(batch, self.method.n_items)
        items = self._items(batch, candidates)
        states = self.states(batch, items)
        loss = self.backbone.loss(states, batch.target, candidates, items)
        extra = self.method.extra_loss(batch, states, lambda other: self.states(other, items), items)
        return loss if extra is None else loss + extra

    def _items(self, batch: Batch, candidates: Tensor | None) -> Items:
        """The method's rows for one step, each computed once however often it is looked up: those of all items where
        they are few or free, else those of the distinct ids that the step reads. Of twice as many look-ups as there
        are items seven in eight items are met; then finding out which costs more than computing the rest."""
        method = self.method
        if candidates is None or method.whole and not self.row_updates:
            return Items(method.rows())
        read = torch.cat([ids.flatten() for ids in (*method.reads(batch), candidates)])
        if 2 * method.n_items <= len(read) and not self.row_updates:
            return Items(method.rows())
        distinct = read.unique()
        distinct = distinct[distinct < method.n_items]
        return Items(method.rows(distinct), distinct, method.n_items)

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
            self.items = Items(Table(self.table, None, len(self.table)))
            self.similarity = model.backbone.similarity(self.table)

    def queries(self, batch: Batch) -> Tensor:
        """(B, d): what is multiplied with the items of `table`."""
        return self.model.backbone.queries(self.model.states(batch, self.items), batch)

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


MANY_ITEMS = 100_000
"""Above so many items only the ID rows that a step looked up are updated, unless told otherwise. Steps would be cheaper
so from some 25,000 items on (`nullrec bench --only catalogue`), but then rows no longer go on moving by their momentum, as
they do in the authors' code: below, the same results come before speed."""


class Optimiser:
    """Adam over all that a model trains; its ID tables row by row where `model.row_updates` says so.

    The step is torch's own fused one; `torch.optim.Adam` around it costs two thirds more on a small model.
    """

    def __init__(self, model: Recommender, lr: float):
        tables = [m for m in model.method.modules() if isinstance(m, nn.Embedding)]
        for table in tables:
            table.sparse = model.row_updates  # its gradient then holds the rows that were looked up, and no others
        self.lr, self.steps = lr, 0
        self.rows = [table.weight for table in tables if table.sparse]
        self.moments = [(torch.zeros_like(row), torch.zeros_like(row)) for row in self.rows]
        self.dense = [p for p in model.parameters() if p.requires_grad and all(p is not row for row in self.rows)]
        self.taken = torch.zeros(len(self.dense), device=self.dense[0].device if self.dense else "cpu")
        self.told, self.one_more = [], torch.zeros_like(self.taken)
        self.state = [{"step": taken, "exp_avg": torch.zeros_like(p.detach()), "exp_avg_sq": torch.zeros_like(p.detach())}
                      for p, taken in zip(self.dense, self.taken)]

    def zero_grad(self) -> None:
        for parameter in (*self.dense, *self.rows):
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        told = [index for index, parameter in enumerate(self.dense) if parameter.grad is not None]
        names = "exp_avg", "exp_avg_sq", "step"
        means, squares, steps = ([self.state[index][name] for index in told] for name in names)
        if told:
            parameters = [self.dense[index] for index in told]
            if told != self.told:  # hardly ever, so that a GPU need not be sent it in every step
                self.told = told
                self.one_more.zero_()[told] = 1
            self.taken += self.one_more
            torch._fused_adam_(parameters, [parameter.grad for parameter in parameters], means, squares, [], steps,
                               amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=self.lr, weight_decay=0.0, eps=EPSILON,
                               maximize=False)
        self.steps += 1
        for table, moments in zip(self.rows, self.moments):
            if table.grad is not None:
                gradient = table.grad
                # A step looks its rows up once; a method's extra loss may look up some of them again. Looking for
                # repeats costs a sort of ids, to coalesce in vain would cost a copy of all rows besides.
                if len(gradient._indices()[0].unique()) < gradient._nnz():
                    gradient = gradient.coalesce()
                row_adam(table, *moments, gradient._indices()[0], gradient._values(), self.lr, self.steps)

    def tensors(self) -> dict[str, Tensor]:
        """The state, flat."""
        found = {"steps": torch.tensor(self.steps)}
        found |= {f"rows.{index}.{name}": tensor for index, pair in enumerate(self.moments)
                  for name, tensor in zip(("mean", "square"), pair)}
        # Cloned: the steps are places of one tensor, which a file does not take.
        return found | {f"dense.{index}.{name}": tensor.clone() if name == "step" else tensor
                        for index, state in enumerate(self.state) for name, tensor in state.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self.steps = int(tensors["steps"])
        for place, tensor in tensors.items():
            kind, _, rest = place.partition(".")
            index, _, name = rest.partition(".")
            if kind == "dense":
                self.state[int(index)][name].copy_(tensor)
            elif kind == "rows":
                self.moments[int(index)][name == "square"].copy_(tensor)


def spread(table: Tensor) -> float:
    """Total variance of item vectors (N, d): near zero when they have collapsed to one point."""
    mean = sum(rows.double().sum(dim=0) for rows in table.split(2**14)) / len(table)  # no float64 copy of a million items
    return float(sum((rows.double() - mean).square().sum() for rows in table.split(2**14)) / len(table))


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
    row_updates: bool | None = None,
    precision: str | None = None,
    memory_mb: int = 256,
) -> Fitted:
    """Train with Adam until validation N@20 has not risen for `patience` epochs; leave the best weights in `model`.

    Everything random in an epoch (order, dropout, negatives) follows from (seed, epoch), and after every epoch
    one file with weights, optimiser and history appears in `folder` by an atomic rename. So a run that was
    killed at any moment goes on from its last whole epoch to the very result of an uninterrupted one by this version
    of the library (another may round differently). The folder
    ends up with the best weights (`model.safetensors`), `history.json`, and the checkpoint, which the caller
    removes when it has stored what it wants of the run. Where both of the first two are whole and the training they are
    of has ended, nothing is trained again.

    Args:
        lr: Adam's learning rate.
        batch_size: examples per step, about so many where histories are read together; the last step of an epoch takes
            what is left.
        epochs: at most.
        select: scoring protocol whose validation N@20 decides, one of `evaluation.PROTOCOLS`.
        row_updates: Adam moves only the ID rows that a step looked up (`kernels.row_adam`), so that a step costs the
            same whatever the number of items. Otherwise rows go on moving by their momentum, as in the authors' code.
            None is True above `MANY_ITEMS` items.
        precision: `bf16` runs matrix products in bfloat16; weights, the CPU kernels and all of evaluation stay float32.
            None is float32 throughout.

    Raises:
        FloatingPointError: the loss or the item vectors are not finite, or a score is NaN; names the epoch.
        DamagedFile: what there is to go on from is not whole; told before anything is trained.
        InputError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.bf16 = precision == "bf16"
    model.row_updates = model.method.n_items > MANY_ITEMS if row_updates is None else row_updates
    optimiser = Optimiser(model, lr)
    key = "valid" if select == "authors" else "valid_consistent"
    best = lambda: max(history, key=lambda entry: (entry[key]["N@20"], -entry["epoch"]), default={"epoch": 0})
    ended = lambda: len(history) >= epochs or len(history) - best()["epoch"] >= patience
    if (folder / CHECKPOINT).exists():
        history = _resume(model, optimiser, folder)
        _keep_best(model, folder, best()["epoch"] == len(history))
    else:
        history = read_history(folder) if (folder / HISTORY).exists() and (folder / BEST).exists() else []
        if not ended():  # it is of another training, and must not be taken for this one's if this one is killed
            history = []
            (folder / HISTORY).unlink(missing_ok=True)

    # The generator's state outside is put back, so that training inside a notebook disturbs nothing.
    with torch.random.fork_rng(), bar(what="training", total=epochs, initial=len(history), unit="epoch") as progress:
        while not ended():
            epoch = len(history) + 1
            torch.manual_seed(seed * 1_000_003 + epoch)
            started = time.perf_counter()
            loss = _train_epoch(model, train, optimiser, batch_size, epoch)
            trained = time.perf_counter()
            scorer = Scorer(model)
            if not math.isfinite(spread_now := spread(scorer.table)):
                raise FloatingPointError(f"epoch {epoch}: the item vectors are not finite; lower lr (now {lr:g}).")
            try:
                ranks = rank_all(scorer, valid, scorer.similarity, memory_mb, "validating")
            except FloatingPointError:
                also = f" or guidance (now {guidance:g})" if (guidance := getattr(model.backbone, "guidance", 0)) else ""
                raise FloatingPointError(
                    f"epoch {epoch}: a validation score is NaN; lower lr (now {lr:g}){also}.") from None
            history.append({
                "epoch": epoch,
                "loss": loss,
                "spread": spread_now,
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
        load_weights(model, folder / BEST)
    write_json(folder / HISTORY, history)
    return Fitted(best()["epoch"], history)


def _train_epoch(model: Recommender, train: Examples, optimiser, batch_size: int, epoch: int) -> float:
    """One pass over shuffled examples; the mean loss."""
    model.train()
    total, first = torch.zeros((), device=train.device), None
    with bar(what=f"epoch {epoch}", total=len(train), unit="example", position=1) as progress:
        for batch in train.batches(batch_size, model.backbone.together):
            loss = model.loss(batch)
            first = loss.detach() if first is None else first
            optimiser.zero_grad()
            # A model that is frozen through and through (nothing to learn) still gets its epoch's figures.
            if loss.requires_grad:
                loss.backward()
                optimiser.step()
            total += loss.detach() * len(batch.target)
            progress.update(len(batch.target))
    mean = float(total) / len(train)
    if not math.isfinite(mean):
        advice, temperature = f"lower lr (now {optimiser.lr:g})", getattr(model.backbone, "temperature", None)
        if temperature is not None and temperature < 1e-3:
            advice += f" or raise temperature (now {temperature:g})"
        if epoch == 1 and not math.isfinite(float(first)):
            advice = "lower scale" if temperature is None else f"raise temperature (now {temperature:g}) or lower scale"
            advice = f"it was so before any step, whatever lr is: {advice}"
        raise FloatingPointError(f"epoch {epoch}: the training loss is {mean}; {advice}.")
    return mean


def _checkpoint(model: Recommender, optimiser, history: list, folder: Path) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optimiser.{name}": tensor for name, tensor in optimiser.tensors().items()}
    write_tensors(folder / CHECKPOINT, tensors, {"history": history})


def _resume(model: Recommender, optimiser, folder: Path) -> list[dict[str, Any]]:
    """Load the checkpoint in `folder` into model and optimiser; its history so far."""
    path, again = folder / CHECKPOINT, "remove it, and the same command trains from the beginning"
    tensors, about = read_tensors(path, about=["history"], again=again)
    kept: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}}
    try:
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            kept[kind][rest] = tensor
        model.load_state_dict(kept["model"])
        optimiser.load(kept["optimiser"])
        return _checked(about["history"])
    except (LookupError, RuntimeError, TypeError, ValueError):
        raise DamagedFile(f"{path}: does not fit this model; {again}.") from None


def _keep_best(model: Recommender, folder: Path, is_last: bool) -> None:
    """See to the best weights before training goes on from a checkpoint: those of its own epoch can be written anew."""
    try:
        read_tensors(folder / BEST, again=f"remove {CHECKPOINT} beside it, and the same command trains from the beginning")
    except DamagedFile:
        if not is_last:
            raise
        write_tensors(folder / BEST, model.state_dict())


def read_history(folder: Path) -> list[dict[str, Any]]:
    """What a run's folder keeps of its epochs, see `Fitted.history`.

    Raises:
        DamagedFile: it is missing or not whole.
    """
    path = folder / HISTORY
    history = read_json(path, again=WITH_RESULT)
    try:
        return _checked(history)
    except (LookupError, TypeError):
        raise DamagedFile(f"{path}: is no history of epochs; {WITH_RESULT}.") from None


def _checked(history: Any) -> list[dict[str, Any]]:
    for entry in history:
        for part in ("valid", "valid_consistent"):
            float(entry[part]["N@20"]) + entry["epoch"] + entry["loss"]
    return history


def load_weights(model: Recommender, path: Path) -> None:
    """Give a model the weights that a run stored.

    Raises:
        DamagedFile: they are missing, not whole, or another model's.
    """
    tensors, _ = read_tensors(path, again=WITH_RESULT)
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise DamagedFile(f"{path}: does not fit this model; {WITH_RESULT}.") from None
