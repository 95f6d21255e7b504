"""How fast on this machine: kernels beside naive and plain PyTorch, training beside a plain reference; one report."""

from __future__ import annotations

import datetime
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nullrec_lib.bench import cases, catalogue, engine, memory, prefixes, report
from nullrec_lib.bench.case import measure
from nullrec_lib.bench.ceilings import measure as measure_ceilings
from nullrec_lib.bench.timing import cpu_threads
from nullrec_lib.machine import choose_device, processor
from nullrec_lib.progress import bar

NAMES = (*cases.NAMES, "memory", "catalogue", "prefixes", "engine", *engine.METHODS)
"""What `only` may name: kernels, all users ranked at once (`memory`), a step by the number of items (`catalogue`) and by
how histories are read (`prefixes`), one method's training, or all of it (`engine`)."""
SECONDS = {True: (0.3, 0.9), False: (3.0, 12.0)}
"""Quick or not → seconds to spend on the timing of one kernel at one shape, and of one method's steps."""


@dataclass(frozen=True)
class Bench:
    """What a run found; the same is in the files of `folder`."""

    folder: Path
    results: list[dict[str, Any]]
    engine: list[dict[str, Any]]
    failures: list[str]
    """Cases that were not timed, because a variant disagrees with the naive one or raised."""


def run(
    quick: bool = False,
    only: tuple[str, ...] = (),
    threads: int = 1,
    device: str = "auto",
    data: str = "shop",
    keep: str | None = None,
    report_dir: Path = Path("reports/bench"),
    **fields: Any,
) -> Bench:
    """Measure, and write `report_dir/<device>[-quick]/`; cases that are already there are replaced, others stay.

    Args:
        quick: small shapes and short timing: about a minute.
        only: some of `NAMES`; all without.
        threads: of the CPU.
        device: auto, cpu or cuda.
        data, keep: of the training; see `spec.Spec`.
        fields: further fields of the training's specs.

    Raises:
        InputError: an unknown name, device or data set, or `threads` below 1.
    """
    cases.check_names(list(only), NAMES)
    device, wanted = choose_device(device), set(only or NAMES)
    chosen = cases.cases(device, quick, tuple(wanted))
    methods = [name for name in engine.METHODS if wanted & {name, "engine"}]
    kernel_seconds, engine_seconds = SECONDS[quick]
    catalogues = catalogue.SIZES[quick] if "catalogue" in wanted else ()
    depths = prefixes.BLOCKS if "prefixes" in wanted else ()
    results, trained, profiled, failures = [], [], [], []
    machine = processor(device)
    about = {"machine": machine, "torch": torch.__version__, "threads": threads,
             "date": datetime.date.today().isoformat()}
    folder = Path(report_dir) / (report.slug(machine) + ("-quick" if quick else ""))

    def save(figure: bool = False) -> None:
        report.write(folder, *([about | row for row in rows] for rows in (results, trained, profiled)), figure)

    count = len(chosen) + ("memory" in wanted) + len(catalogues) + len(depths) + len(methods)
    with torch.random.fork_rng(), cpu_threads(threads), bar(what="bench", total=count, unit="case") as progress:
        if methods or depths:  # wrong data shall fail now, not after minutes
            engine.prepare_case((*methods, "alphafuse")[0], device, data, keep, **fields)
        ceilings = measure_ceilings(device, quick)
        results += ceilings.rows
        for case in chosen:
            progress.set_postfix_str(f"{case.operation.name} {case.label}", refresh=False)
            measured = measure(case, device, kernel_seconds, ceilings)
            results += measured.rows
            failures += measured.failures
            _free(device)
            progress.update()
        if "memory" in wanted:
            progress.set_postfix_str("memory", refresh=False)
            results.append(row := memory.measure(device, quick, ceilings))
            failures += [f"{row['case']} ({row['shape']}): {row['check']}"] if row["check"] != "ok" else []
            _free(device)
            progress.update()
        save(figure=True)  # what comes next takes minutes, and may fail; the figure is of the kernels alone
        for n_items in catalogues:
            progress.set_postfix_str(f"catalogue of {n_items:,}", refresh=False)
            trained += catalogue.measure(n_items, device, engine_seconds)
            _free(device)
            progress.update()
        for blocks in depths:
            progress.set_postfix_str(f"{blocks} blocks", refresh=False)
            trained += prefixes.measure(blocks, device, engine_seconds, data, keep, **fields)
            _free(device)
            progress.update()
        for name in methods:
            progress.set_postfix_str(f"training {name}", refresh=False)
            prepared = engine.prepare_case(name, device, data, keep, **fields)
            trained += engine.measure(name, prepared, device, engine_seconds, ceilings, thorough=not quick)
            profiled += [{"data": data, "keep": keep} | row for row in engine.step_profile(name, prepared, device)]
            save()
            del prepared
            _free(device)
            progress.update()
    save()
    results, trained = ([about | row for row in rows] for rows in (results, trained))
    return Bench(folder, results, trained, failures)


def _free(device: str) -> None:
    """Give the last case's memory back, so that the next one's peak is its own."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
