"""Spoils inputs of every kind by the thousand and asks for one of two answers: a result that keeps its counts, or the
project's own error in one sentence.

    python tests/fuzz.py --inputs 100000 --seed 1        all entry points in turn, and a table of what was met
    python tests/fuzz.py --only recbole --seconds 60     one of them

What is neither is a finding: its input and its traceback are kept in a folder that is named at the end, and the status
is 1. `make test` takes a slice of a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import yaml

from nullrec_lib import data, grid
from nullrec_lib.data import pickles
from nullrec_lib.data.lines import lines
from nullrec_lib.errors import InputError, shown
from nullrec_lib.experiments import run
from nullrec_lib.files import write_json, write_tensors
from nullrec_lib.information.sufficiency import sufficiency
from nullrec_lib.language.encoder import embed_items
from nullrec_lib.language.vectors import Vectors
from nullrec_lib.nullspace import STANDARDISE, decompose, nullities, preservation
from nullrec_lib.profiles import vectors
from nullrec_lib.profiles.build import build
from nullrec_lib.profiles.store import Store
from nullrec_lib.recommend import recommend
from nullrec_lib.spec import Spec, parse
from tests.data.layouts import LAYOUTS, Sample
from tests.mutations import TOKENS, VALUES, odd_array, spoil_bytes, spoil_folder, spoil_value, spoil_values

SECONDS, MEMORY = 20, 6 * 2**30
"""That one input may take, and bytes beyond what the process has at the start."""
SAMPLE = Sample(
    items=tuple((f"i{n}", f"Blue <b>title</b> {n} of café") for n in range(12)),
    events=tuple((f"u{n % 12}", f"i{(n * n + n // 12) % 12}", 1_500_000_000 + 60 * n) for n in range(96)),
)
EVENTS = {"recbole": ("*.inter", 1), "amazon_2014": ("reviews_*.json*", 0), "amazon_2018": ("Toys_5.json*", 0),
          "amazon_2023": ("Toys.jsonl*", 0), "yelp": ("*review.json*", 0), "movielens_100k": ("u.data", 0),
          "movielens_1m": ("ratings.dat", 0), "movielens_csv": ("ratings.csv", 1), "llmesr": ("inter.txt", 0)}
"""Where a layout keeps interactions, one a line, and how many lines are a header."""


class Wrong(Exception):
    """A result that is not what it should be."""


def expect(holds: Any, what: str) -> None:
    if not holds:
        raise Wrong(what)


@dataclass
class Entry:
    """One entry point: what is made once in a folder, and what is done with each spoilt copy of it."""

    name: str
    make: Callable[[Path], Any]
    call: Callable[[Path, Any, random.Random], None]
    spoil: Callable[[Path, random.Random], None] | None = spoil_folder
    share: int = 4
    """Of the inputs."""


def check_layout(folder: Path, base: Any, rng: random.Random) -> None:
    got = data.load(folder, clock=rng.choice(data.CLOCKS), clean=rng.random() < 0.8)
    rows = got.interactions
    expect(got.n_items == got.items["item_id"].nunique() > 0, "items are unique")
    expect(rows["item"].between(0, got.n_items - 1).all() and rows["user"].between(0, got.n_users - 1).all(), "ids are in range")
    expect(np.isfinite(rows["timestamp"]).all() and rows["user"].is_monotonic_increasing, "sequences are in order")
    expect(all(len(vector) == got.n_items and np.isfinite(vector).all() for vector in got.embeddings.values()), "a row per item")
    expect(got.describe()["n_interactions"] == len(rows) == got.lengths().sum(), "counts agree")
    if folder.name in EVENTS and not any("quoted as in CSV" in note for note in got.notes):
        pattern, header = EVENTS[folder.name]
        path = next(path for path in sorted(folder.glob(pattern)) if not path.name.startswith("meta"))
        expect(sum(1 for _ in lines(path)) - header == len(rows), "every line is an interaction")


def check_pickle(folder: Path, base: Any, rng: random.Random) -> None:
    for path in folder.iterdir():
        rng.choice((pickles.read, pickles.matrix))(path)


def make_pickles(folder: Path) -> None:
    LAYOUTS["alphafuse"](folder, SAMPLE)
    for path in list(folder.iterdir())[1:]:
        path.unlink()


def check_spec(folder: Path, base: Any, rng: random.Random) -> None:
    names = [field.name for field in fields(Spec)]
    if rng.randrange(2):
        texts = [rng.choice(TOKENS).decode("latin-1"), shown(rng.choice(VALUES), 9999), "1e-3", "5", "none", "true", "sasrec", "base"]
        parse([f"{rng.choice([*names, 'nothing'])}={rng.choice(texts)}" for _ in range(rng.randrange(1, 4))])
        return
    spec = Spec(**{rng.choice(names): rng.choice(VALUES) for _ in range(rng.randrange(1, 4))})
    expect(Spec(**asdict(spec)) == spec, "a spec is its fields")


GRID = {"data": "shop-tiny", "split": ["cold-start"], "backbone": "sasrec", "seed": [22, 23], "lr": [0.01, 0.001], "epochs": 3,
        "method": ["base", {"method": "alphafuse", "null_dim": 32, "label": "a"}, "popularity"], "reference": "base", "name": "g"}


def check_grid(folder: Path, base: Any, rng: random.Random) -> None:
    if rng.randrange(2):
        grid.make(spoil_value(dict(GRID, **{rng.choice(list(GRID)): rng.choice(VALUES)}), rng), "g")
        return
    raw = yaml.safe_dump(GRID, sort_keys=False).encode()
    for _ in range(rng.randrange(1, 4)):
        raw = spoil_bytes(raw, rng)
    (folder / "g.yaml").write_bytes(raw)
    read = grid.load(folder / "g.yaml")
    expect(read.cells and read.seeds, "a grid has rows")


def make_embeddings(folder: Path) -> Any:
    LAYOUTS["recbole"](folder / "set", SAMPLE)
    items = data.load(folder / "set").items
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((len(items), 6)))
    write_tensors(folder / "e.safetensors", {"embeddings": rows.float()})
    write_json(folder / "e.json", {"item_ids": items["item_id"].tolist()})
    return items, embed_items(items, str(folder / "e.safetensors"))


def spoil_embeddings(folder: Path, rng: random.Random) -> None:
    if rng.randrange(2):
        spoil_folder(folder, rng)
        return
    shape = rng.choice([(12, 6), (12,), (), (12, 1, 6), (12, 0), (0, 6), (13, 6), (12, 1)])
    kind = rng.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64])
    rows = (torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(10**6))) * 10.0 ** rng.randrange(-40, 39)).to(kind)
    if rows.numel() and rng.randrange(2) and kind.is_floating_point:
        rows.view(-1)[0] = rng.choice([0, float("nan"), float("inf"), 1e300 if kind == torch.float64 else 6e4])
    write_tensors(folder / "e.safetensors", {rng.choice(["embeddings"] * 9 + ["other"]): rows})


def check_embeddings(folder: Path, base: Any, rng: random.Random) -> None:
    items, _ = base
    rows = embed_items(items, str(folder / "e.safetensors"))
    expect(rows.shape[0] == len(items) and rows.dtype == np.float32, "a row per item")
    expect(np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max() < 1e-5, "unit norm")


def make_run(method: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        made_up = make_embeddings(folder)
        small = {"encoder": str(folder / "e.safetensors"), "width": 4, "epochs": 2, "negatives": 4} if method == "base" else {}
        spec = Spec(data=str(folder / "set"), method=method, **small)
        result = run(spec, folder=folder / "run")
        return spec, result["test"], recommend(folder / "run", ["i3"]), made_up

    return make


def spoil_run(folder: Path, rng: random.Random) -> None:
    spoil_folder(folder / "run", rng)


def check_run(folder: Path, base: Any, rng: random.Random) -> None:
    spec, metrics, listed, _ = base
    if rng.randrange(3):
        expect(recommend(folder / "run", ["i3"]).equals(listed), "the list of the whole run")
    else:
        expect(run(spec, folder=folder / "run")["test"] == metrics, "the figures of the whole run")


def make_profiles(folder: Path) -> Any:
    LAYOUTS["recbole"](folder / "set", SAMPLE)
    build(folder / "p", str(folder / "set"), rounds=2, cuts=(1, 3), say=lambda sentence: None)
    return vectors.load(folder / "p"), list(Store(folder / "p").profiles())


def spoil_profiles(folder: Path, rng: random.Random) -> None:
    spoil_folder(folder / "p", rng)


def check_profiles(folder: Path, base: Any, rng: random.Random) -> None:
    whole, every = base
    if rng.randrange(2):
        got = vectors.load(folder / "p")
        expect(np.array_equal(got.items, whole.items) and np.array_equal(got.users, whole.users), "the vectors of the whole build")
    else:
        read = list(Store(folder / "p").profiles())
        expect(all(profile in every for profile in read), "no profile that was not written")


def make_texts(folder: Path) -> Any:
    rows = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    store = Vectors(folder / "texts.sqlite", {"encoder": "x"})
    store.add([f"text {n}" for n in range(30)], rows)
    store.close()
    return rows


def check_texts(folder: Path, base: Any, rng: random.Random) -> None:
    store = Vectors(folder / "texts.sqlite", {"encoder": "x"})
    try:
        texts = [f"text {n}" for n in range(30)]
        missing = set(store.missing(texts))
        there = [n for n, text in enumerate(texts) if text not in missing]
        if there:
            expect(np.array_equal(store.rows([texts[n] for n in there]), base[there]), "rows as they were added")
    finally:
        store.close()


def check_null_space(folder: Path, base: Any, rng: random.Random) -> None:
    rows = odd_array(rng, 20, 6)
    options = {name: rng.choice(VALUES + [1, 2, 3, 6, 0.1, 0.5]) for name in rng.sample(
        ["threshold", "relative_threshold", "null_dim", "width", "epsilon"], rng.randrange(1, 3))}
    match rng.randrange(4):
        case 0:
            preservation(rows, odd_array(rng, 20, 3))
        case 1:
            nullities(rows, rng.choice(VALUES + [1, 3, 6]))
        case _:
            space = decompose(rows, standardise=rng.choice(STANDARDISE), **options)
            expect(np.isfinite(space.project(rows)).all(), "what is projected is finite")


def check_information(folder: Path, base: Any, rng: random.Random) -> None:
    sufficient = sufficiency(odd_array(rng, 40, 3), odd_array(rng, 40, 2), (22,), rng.choice([None, 2, 1, 50, 0]), rng.choice([0.0, 0.1]),
                       base)
    expect(sufficient.isi is None or np.isfinite(sufficient.isi.value), "an index is a number")


def few_kernels(folder: Path) -> Any:
    from nullrec_lib.information.knife import Kernels

    return Kernels(components=2, epochs=1)


def entries() -> list[Entry]:
    layouts = [Entry(name, lambda folder, write=write: write(folder / write.__name__, SAMPLE),
                     lambda folder, base, rng, name=name: check_layout(folder / name, base, rng),
                     lambda folder, rng, name=name: spoil_values(folder / name, rng)) for name, write in LAYOUTS.items()]
    nothing = lambda folder: None
    return [*layouts, Entry("pickles", make_pickles, check_pickle, spoil_values), Entry("spec", nothing, check_spec, None),
            Entry("grid", nothing, check_grid, None), Entry("embeddings", make_embeddings, check_embeddings, spoil_embeddings),
            Entry("run of a rule", make_run("popularity"), check_run, spoil_run, 2),
            Entry("run", make_run("base"), check_run, spoil_run, 2),
            Entry("profiles", make_profiles, check_profiles, spoil_profiles, 2), Entry("texts", make_texts, check_texts, share=2),
            Entry("null space", nothing, check_null_space, None),
            Entry("information", few_kernels, check_information, None, 1)]


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(inputs: int, seconds: float, seed: int, only: list[str], keep: Path) -> tuple[list[dict[str, Any]], float]:
    """One row per entry point: inputs, how many gave a result, how many the project's error, and findings."""
    chosen = [entry for entry in entries() if not only or entry.name in only]
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    os.environ["NULLREC_CACHE"] = str(folder / "cache")
    rows = {entry.name: {"entry": entry.name, "inputs": 0, "results": 0, "refused": 0, "findings": 0, "seconds": 0.0}
            for entry in chosen}
    try:
        bases = {}
        for number, entry in enumerate(chosen):
            (folder / f"base{number}").mkdir()
            bases[entry.name] = folder / f"base{number}", entry.make(folder / f"base{number}")
        begun = time.monotonic()
        turns = [entry for entry in chosen for _ in range(entry.share)]
        for number in range(inputs):
            if time.monotonic() - begun > seconds:
                break
            entry = turns[number % len(turns)]
            started = time.monotonic()
            rng, case = random.Random(f"{seed}-{number}"), folder / "case"
            shutil.rmtree(case, ignore_errors=True)
            shutil.copytree(bases[entry.name][0], case)
            if entry.spoil:
                entry.spoil(case, rng)
            row = rows[entry.name]
            row["inputs"] += 1
            row[attempt(entry, case, bases[entry.name][1], rng, keep / f"{entry.name.replace(' ', '-')}-{number}")] += 1
            row["seconds"] += time.monotonic() - started
        return list(rows.values()), time.monotonic() - begun
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def attempt(entry: Entry, case: Path, base: Any, rng: random.Random, keep: Path) -> str:
    whole = keep.with_name(keep.name + ".spoilt")
    try:
        with bounded(SECONDS):
            entry.call(case, base, rng)
        return "results"
    except InputError as error:
        if "\n" not in str(error) and len(str(error)) < 2000:
            return "refused"
        problem = f"{len(str(error))} characters or several lines: {str(error)[:500]}"
    except FloatingPointError:
        return "refused"  # a run that failed, in the words of the project
    except BaseException as error:  # MemoryError and the like are findings too
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = traceback.format_exc()
    keep.parent.mkdir(parents=True, exist_ok=True)
    keep.with_suffix(".txt").write_text(problem)
    shutil.copytree(case, whole, dirs_exist_ok=True)
    return "findings"


def table(rows: list[dict[str, Any]]) -> str:
    total = {"entry": "all"} | {name: sum(row[name] for row in rows) for name in list(rows[0])[1:]}
    head = f"{'entry point':>16} {'inputs':>8} {'results':>8} {'refused':>8} {'findings':>8} {'seconds':>8}"
    return "\n".join([head, *(f"{row['entry']:>16} {row['inputs']:>8,} {row['results']:>8,} {row['refused']:>8,} "
                              f"{row['findings']:>8,} {row['seconds']:>8.1f}" for row in [*rows, total])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help=", ".join(entry.name for entry in entries()))
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="Where findings are kept.")
    options = parser.parse_args()
    seconds = options.seconds if options.seconds is not None else float("inf") if options.inputs < 10**9 else 60
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 2**40
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    rows, took = fuzz(options.inputs, seconds, options.seed, options.only, options.keep)
    print(table(rows))
    count = sum(row["inputs"] for row in rows)
    print(json.dumps({"inputs": count, "seconds": round(took), "per_minute": round(60 * count / took)}))
    if any(row["findings"] for row in rows):
        print(f"findings in {options.keep}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
