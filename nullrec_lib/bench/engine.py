"""Whole training steps: seconds per epoch of our engine, beside the reference's in the same run."""

from __future__ import annotations

import copy
import logging
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Callable, Iterator
from unittest import mock

import torch
from torch import nn
from torch.autograd.profiler import profile as cpu_profile
from torch.profiler import profile as torch_profile

from nullrec_lib.bench import reference
from nullrec_lib.bench.ceilings import Ceilings
from nullrec_lib.bench.timing import extra_memory_mb, take_turns
from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.evaluation import rank_all
from nullrec_lib.kernels import attend_cpu, dropout_cpu, infonce_cpu, lookup_cpu, state_cpu
from nullrec_lib.preparing import build, prepare
from nullrec_lib.spec import Spec
from nullrec_lib.training import Optimiser, Recommender, Scorer

METHODS = {
    **{name: {"method": name} for name in ("alphafuse", "base", "morec", "unisrec", "rlmrec-con", "llm-esr")},
    "dreamrec": {"method": "alphafuse", "backbone": "dreamrec"},
}
"""Name of an engine case → what its spec sets beside the data."""

PUBLISHED = {
    ("ml-100k", "last:50"): {
        "alphafuse": (4.7, 4.9, 0.24), "base": (4.7, 5.7, 0.24), "morec": (10.2, None, 0.24),
        "rlmrec-con": (6.4, 7.0, 0.24), "llm-esr": (57.0, None, None), "unisrec": (134.0, None, None),
        "dreamrec": (19.4, None, 3.9),
    },
    ("toys", "first:11"): {"alphafuse": (16.9, 18.3, 1.77)},
}
"""Data and cut → method → seconds on a CPU of the authors' public code: of an epoch (smallest and median of several;
rlmrec-con: range of two variants; one figure where only one was taken), and of an evaluation. ml-100k has 30,859
training examples, and 3,723 in the evaluation; toys 95,335 and 11,813. dreamrec is as wide as the language, 384, and
its evaluation is the sampled one. Not taken in the run that they stand beside: orders of magnitude."""


TARGETS = {"alphafuse": 10, "morec": 20, "unisrec": 20, "llm-esr": 5}
"""Method → how many times as fast as the authors' public code an epoch is meant to be."""

SEEDS, SEEDED = 5, ("alphafuse", "base")
"""Methods that also step through so many batches at once: it bounds what a step of so many seeds together could save,
which has as much to compute and the seeds' tables and matrices besides."""

TURN = 0.25
"""Seconds of steps that an engine makes before the next one's turn: in training a step finds caches and memory as the one
before left them, not as another engine did."""


def turn(seconds: float) -> float:
    """`TURN`, or so much less that a few engines get three turns each in these seconds."""
    return min(TURN, seconds / 12)


class Ours:
    """The steps of our engine, epoch after epoch, as `training.fit` makes them."""

    def __init__(self, model: Recommender, train: Examples, batch_size: int, lr: float):
        self.model, self.train, self.batch_size = model, train, batch_size
        self.optimiser = Optimiser(model, lr)
        self.batches: Iterator[Batch] = iter(())

    def step(self) -> None:
        """One batch."""
        if not self.model.training:  # as an evaluation leaves it
            self.model.train()
        batch = next(self.batches, None)
        if batch is None:
            self.batches = self.train.batches(self.batch_size, self.model.backbone.together)
            batch = next(self.batches)
        loss = self.model.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


@dataclass(frozen=True)
class Prepared:
    """A model with its examples on the device, and its reference where there is one."""

    spec: Spec
    model: Recommender
    train: Examples
    valid: Examples
    reference: reference.Reference | None


def prepare_case(name: str, device: str, data: str = "shop", keep: str | None = None, **fields: Any) -> Prepared:
    """Load the data, build the model of `METHODS[name]` and put all on the device.

    Args:
        fields: further fields of the spec.

    Raises:
        InputError: the data or a field is wrong, see `data.load` and `spec.Spec`.
    """
    spec = Spec(data=data, keep=keep, **METHODS[name], **fields)
    inputs = prepare(spec)
    model = build(spec, inputs).to(device)
    train, valid = (Examples(inputs.split, part, spec.history_length, device) for part in ("train", "valid"))
    for examples in (train, valid):
        examples.context = model.method.context(examples)
    return Prepared(spec, model, train, valid, reference.like(model, name) if name in reference.KINDS else None)


def least_work(case: Prepared) -> tuple[float, float]:
    """Bytes and floating-point operations that no way of making one training step of `TARGETS` can avoid, counted low.

    Dense Adam reads a parameter, its gradient and two moments, and writes three of them and the gradient; each distinct
    row that a batch looks up is read once. A backbone's matrices meet every view of an example once (the state is the
    last position, and keys and values can be had from the query's side), forward and twice backward, and of a teacher
    forward; those of queries and keys count as one. An adaptor's meet every distinct item, forward and for their own
    gradient; layers without anything between them count as one. What is between LLM-ESR's views is left out.
    """
    model, batch = case.model, case.train.batch(torch.arange(min(case.spec.batch_size, len(case.train))))
    method, width = model.method, len(model.backbone.positions[0])
    with torch.random.fork_rng():
        candidates = model.backbone.candidates(batch, method.n_items)
        read = torch.cat([ids.flatten() for ids in (*method.reads(batch), candidates)]).unique()
    matrices = lambda module: sum(one.numel() for one in module.parameters() if one.ndim > 1)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    moved = 4 * (8 * trained + width * len(read))
    adaptor = getattr(method, "adaptor", getattr(method, "adapter", nn.Identity()))
    linear = isinstance(adaptor, nn.Sequential) and all(isinstance(layer, nn.Linear) for layer in adaptor)
    of_items = adaptor[0].in_features * adaptor[-1].out_features if linear else matrices(adaptor)
    of_views = len(method.widths) * (matrices(model.backbone.blocks) - width**2 * len(model.backbone.blocks))
    taught = len(batch.context.get("similar", batch.target[:0]).unique())
    flops = (6 * len(batch.target) + 2 * taught) * of_views + 4 * len(read) * of_items
    return moved, flops + 6 * candidates.numel() * sum(method.widths)


def measure(name: str, case: Prepared, device: str, seconds: float, ceilings: Ceilings,
            thorough: bool = False) -> list[dict[str, Any]]:
    """One row per engine (`nullrec`, also in low precision, and `reference` where there is one): seconds of a step, an
    epoch and an evaluation of the validation part, taken in turns; peak memory of a step.

    Ours ranks under two protocols in one pass, the reference under one.

    Args:
        seconds: for timing the steps of both; an evaluation takes about a third of it more, at least three rounds.
        ceilings: what the machine can do, for the least time of a step.
        thorough: also the references of `reference.SLOW`, and some methods by `SEEDS` batches at once; and where there is
            a reference, it and ours also through `torch.compile`, whose compilation is not counted.
    """
    spec, state = case.spec, torch.random.get_rng_state()
    ours = Ours(case.model, case.train, spec.batch_size, spec.lr)
    low = copy.deepcopy(case.model)
    low.bf16 = True
    steps = {"nullrec": ours.step, "nullrec, bf16": Ours(low, case.train, spec.batch_size, spec.lr).step}
    large, size = f"nullrec, batches of {SEEDS * spec.batch_size:,}", SEEDS * spec.batch_size
    if thorough and name in SEEDED:
        steps[large] = Ours(copy.deepcopy(case.model), case.train, size, spec.lr).step
    evaluations = {"nullrec": lambda: _rank(case)}
    compared = case.reference is not None and (thorough or name not in reference.SLOW)
    if compared:
        train, valid = reference.as_lists(case.train), reference.as_lists(case.valid)
        theirs = reference.Trainer(case.reference, train, spec.batch_size, spec.negatives, spec.lr)
        steps = {"reference": theirs.step} | steps
        if thorough:
            faster = copy.deepcopy(case.reference)
            faster.loss = torch.compile(faster.loss)
            steps["reference, compiled"] = reference.Trainer(faster, train, spec.batch_size, spec.negatives,
                                                             spec.lr).step
            around = copy.deepcopy(case.model)
            around.loss = torch.compile(around.loss)
            steps["nullrec, compiled"] = Ours(around, case.train, spec.batch_size, spec.lr).step
        evaluations = {"reference": lambda: reference.evaluate(case.reference, valid)} | evaluations
    with opaque_kernels() if thorough and compared else nullcontext():
        memory = {engine: extra_memory_mb(_after(step, step), device) for engine, step in steps.items()}
        timings = take_turns(steps, seconds, device, turn(seconds))
    evaluated = take_turns(evaluations, seconds / 3, device)
    torch.random.set_rng_state(state)
    count = {engine: -(-len(case.train) // (size if engine == large else spec.batch_size)) for engine in steps}
    floor = ceilings.share(1.0, *least_work(case)) if name in TARGETS else None
    best, median, evaluation = PUBLISHED.get((spec.data, spec.keep), {}).get(name, (None, None, None))
    return [
        {"data": spec.data, "keep": spec.keep, "method": name, "engine": engine, "training_examples": len(case.train),
         "evaluated_examples": len(case.valid), "steps": count[engine], "step_s": timing.median_s,
         "epoch_s": timing.median_s * count[engine], "epoch_p20_s": timing.p20_s * count[engine],
         "epoch_p80_s": timing.p80_s * count[engine], "repeats": timing.repeats,
         "evaluation_s": evaluated[engine].median_s if engine in evaluated else None, "peak_mb": memory[engine],
         "floor_s": None if engine.endswith("bf16") else floor,  # a product's rate is that of float32
         "speed_up": (timings["reference"].median_s * count["reference"] / (timing.median_s * count[engine])
                      if "reference" in timings else None),
         "authors_epoch_s": best, "authors_epoch_median_s": median, "authors_evaluation_s": evaluation}
        for engine, timing in timings.items()
    ]


@contextmanager
def opaque_kernels() -> Iterator[None]:
    """Within, `torch.compile` goes around the CPU kernels: it cannot read what Numba made, and fails when it tries."""
    kernels = [one for module in (attend_cpu, dropout_cpu, infonce_cpu, lookup_cpu, state_cpu)
               for one in vars(module).values()
               if isinstance(one, type) and issubclass(one, torch.autograd.Function)]
    told = logging.getLogger("torch._dynamo")
    with ExitStack() as stack:
        stack.callback(told.setLevel, told.level)
        told.setLevel(logging.ERROR)  # every break of the graph would be told
        for kernel in kernels:
            stack.enter_context(mock.patch.object(kernel, "apply", torch.compiler.disable(kernel.apply)))
        yield


def _after(first: Callable[[], Any], then: Callable[[], Any]) -> Callable[[], Any]:
    """`then`, once `first` was called now: what a first step alone makes (the reference's Adam moments) is no step's
    memory."""
    first()
    return then


def _rank(case: Prepared) -> None:
    scorer = Scorer(case.model)
    rank_all(scorer, case.valid, scorer.similarity)


def step_profile(name: str, case: Prepared, device: str, steps: int = 5, top: int = 10) -> list[dict[str, Any]]:
    """The operations in which our training steps spend most time, longest first: seconds per step and their share.

    Without what is made once for many steps, such as the batches.
    """
    ours = Ours(case.model, case.train, case.spec.batch_size, case.spec.lr)
    ours.step()
    # Kineto is for GPUs; on a CPU the older profiler says the same and nothing on stderr.
    profiler = torch_profile() if device == "cuda" else cpu_profile(use_kineto=False)
    with torch.random.fork_rng(), profiler as taken:
        for _ in range(steps):
            ours.step()
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    spent = {event.key: getattr(event, field) / 1e6 for event in taken.key_averages()}  # microseconds
    total = sum(spent.values()) or 1.0
    longest = sorted(spent, key=spent.__getitem__, reverse=True)[:top]
    return [{"method": name, "operation": operation, "seconds_per_step": spent[operation] / steps,
             "share": spent[operation] / total} for operation in longest]
