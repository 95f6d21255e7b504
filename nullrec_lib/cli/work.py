"""Runs, grids of runs, notebooks, benchmarks: the commands that work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from nullrec_lib.cli.common import AsJson, Data, speaks
from nullrec_lib.errors import InputError

app = typer.Typer()
GRIDS = Path(__file__).parents[1] / "grids"


@app.command()
@speaks
def run(
    method: Annotated[str, typer.Option(
        help="base, llminit, frozen, morec, unisrec, whitenrec, rlmrec-con, rlmrec-gen, llm-esr, idreamrec, alphafuse or "
        "pte on a backbone; popularity, itemknn or textknn without one. `nullrec methods` says what they are.")],
    data: Data = "shop",
    split: Annotated[str, typer.Option(help="cold-start (users), leave-one-out, or given by the data.")] = "cold-start",
    backbone: Annotated[str, typer.Option(help="sasrec or dreamrec.")] = "sasrec",
    seed: Annotated[int, typer.Option(help="Of initial weights, order, dropout and negatives.")] = 22,
    epochs: Annotated[Optional[int], typer.Option(help="At most; early stopping usually ends earlier.")] = None,
    profiles: Annotated[Optional[str], typer.Option(
        help="A folder of profiles: items are embedded by theirs, and pte reads the users'.")] = None,
    set_: Annotated[Optional[list[str]], typer.Option(
        "--set", metavar="KEY=VALUE", help="Any other field of a spec, e.g. keep=last:50, lr=1e-4, null_dim=32, "
        "threshold=0.25, encoder=/path/to/model. A wrong key lists them all.")] = None,
    out: Annotated[Optional[Path], typer.Option(help="This run's own folder; default runs/<key of the spec>.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Train and test one method; or go on with an interrupted run; or show a finished one.

    The same command twice does the work once. Example:

    nullrec run --data shop --method alphafuse --set null_dim=32 --json
    """
    from nullrec_lib.experiments import run as run_spec
    from nullrec_lib.spec import Spec, parse

    chosen: dict[str, Any] = {"method": method, "data": data, "split": split, "backbone": backbone, "seed": seed}
    chosen |= {name: value for name, value in (("epochs", epochs), ("profiles", profiles)) if value is not None}
    twice = set(chosen) & set(extra := parse(set_ or []))
    if twice:
        raise InputError(f"--set {twice.pop()}=…: this has an option of its own, use that.")
    result = run_spec(Spec(**chosen, **extra), folder=out, threads=threads, device=device)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    for note in result["notes"]:
        print(note)
    print(f"{result['data']}: {result['n_users']:,} users, {result['n_items']:,} items, "
          f"{result['n_interactions']:,} interactions; {result['test_examples']:,} test examples")
    labels = {"test": "authors", "test_consistent": "consistent"}
    if "sampled_items" in result:
        few = f"among {result['sampled_items']} sampled items"
        labels |= {"test_sampled": f"authors, {few}", "test_consistent_sampled": f"consistent, {few}"}
    for protocol, label in labels.items():
        print(f"{label:>10}  " + "  ".join(f"{name} {value:.4f}" for name, value in result[protocol].items()))
    for group, found in result["groups"]["test"].items():
        shown = f"N@10 {found['N@10']:.4f}  R@10 {found['R@10']:.4f}" if found["n"] else ""
        print(f"{group:>20}  {found['n']:>7,} examples  {shown}")
    if "nullity" in result:
        print(f"nullity {result['nullity']} of the kept and {result['full_nullity']} of all directions")
    print(f"best epoch {result['best_epoch']} of {result['epochs']}; {result['seconds_per_epoch']:.2f} s per epoch, "
          f"{result['params_trainable']:,} trainable parameters; key {result['key']}")


@app.command()
@speaks
def methods(as_json: AsJson = False) -> None:
    """Every way of making item embeddings, with the backbones that it runs on; and the rules without training."""
    import inspect

    from nullrec_lib.backbones import BACKBONES
    from nullrec_lib.methods import METHODS, RULES, runs_on

    rows = []
    for name, made_by in (METHODS | RULES).items():
        about = inspect.getmodule(made_by).__doc__.strip().split("\n\n")[0].replace("\n", " ")
        on = [backbone for backbone in BACKBONES if name in METHODS and runs_on(name, backbone)]
        rows.append({"method": name, "trained": name in METHODS, "backbones": on, "about": about})
    if as_json:
        print(json.dumps({"methods": rows}, ensure_ascii=False))
        return
    for row in rows:
        print(f"{row['method']:>12}  {', '.join(row['backbones']) or 'no backbone':<16}  {row['about']}")


@app.command()
@speaks
def spectrum(
    data: Data = "shop",
    encoder: Annotated[Optional[str], typer.Option(
        help="A sentence-transformers model (default: all-MiniLM-L6-v2), lm:PATH, server:URL#MODEL, a .safetensors "
        "file or given.")] = None,
    width: Annotated[int, typer.Option(help="Kept directions, for the nullity of the clipped space.")] = 128,
    scale: Annotated[Optional[float], typer.Option(help="Of unit-norm embeddings; default √d_l.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Singular values of the covariance of a catalogue's language embeddings, and the nullity they give."""
    import torch

    from nullrec_lib import data as data_sets
    from nullrec_lib.language.encoder import DEFAULT, embed_items
    from nullrec_lib.nullspace import decompose, nullities

    if threads < 1:
        raise InputError(f"threads: {threads} is below 1.")
    torch.set_num_threads(threads)
    if scale is not None and not 0 < scale < float("inf"):
        raise InputError(f"scale: {scale} is not a positive, finite number.")
    dataset = data_sets.load(data)
    unit = embed_items(dataset.items, encoder or DEFAULT, given=dataset.embeddings)
    scale = unit.shape[1] ** 0.5 if scale is None else scale
    space = decompose(unit * scale, null_dim=0)
    values = space.spectrum
    rows = nullities(unit * scale, width)
    result = {
        "data": dataset.name, "encoder": encoder or DEFAULT, "n_items": len(unit), "dimensions": unit.shape[1],
        "scale": scale, "width": width, "singular_values": values.tolist(),
        "exactly_null": int((space.gain == 0).sum()),
        "variance_kept": float(values[:width].sum() / values.sum()), "nullities": rows,
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"{dataset.name}: {len(unit):,} items, {unit.shape[1]} dimensions, scale {scale:.4g}; the first {width} "
          f"directions hold {100 * result['variance_kept']:.1f}% of the variance, {result['exactly_null']} are null")
    print("largest singular values of the covariance: " + ", ".join(f"{value:.4g}" for value in values[:8]))
    for row in rows:
        print(f"{row['rule']:>18} {row['value']:<6g} nullity {row['full_nullity']:4d} of {unit.shape[1]}, "
              f"{row['nullity']:4d} of the kept {width}")


@app.command()
@speaks
def reproduce(
    data: Data = "shop",
    preset: Annotated[str, typer.Option(help="quick (minutes), standard, or paper (the papers' sizes).")] = "standard",
    name: Annotated[Optional[str], typer.Option(help="Folder under reports/; default from data and preset.")] = None,
    parameter: Annotated[Optional[list[str]], typer.Option(
        "--parameter", "-p", metavar="NAME=VALUE",
        help="A notebook parameter, as a Python literal, none or a plain word, e.g. -p epochs=3.")] = None,
    only: Annotated[Optional[list[str]], typer.Option(help="A notebook's number or name; may be repeated.")] = None,
    timeout: Annotated[Optional[float], typer.Option(
        help="Seconds that one notebook may take; default half an hour, two for standard, a week for paper.")] = None,
    jobs: Annotated[int, typer.Option(help="Notebooks at a time, after the first.")] = 2,
) -> None:
    """Execute the numbered notebooks into reports/<name>/: notebooks, tables, figures, run.json.

    A notebook that fails does not stop the next; the status is 1 if any failed.
    """
    from nullrec_lib import notebooks
    from nullrec_lib.parameters import read

    parameters = {}
    for assignment in parameter or []:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"-p {assignment}: write name=value.")
        parameters[key] = read(text)
    report = notebooks.reproduce(data, preset, name, parameters, only, timeout_s=timeout, jobs=jobs)
    print(report.summary())
    if not report.ok:
        raise typer.Exit(1)


@app.command()
@speaks
def recommend(
    run: Annotated[str, typer.Argument(help="A run folder, or the key of one under runs/.")],
    history: Annotated[str, typer.Option(
        help="Items, oldest first, with commas between: ids of the source, or beginnings of titles.")] = "",
    item: Annotated[Optional[list[str]], typer.Option(
        help="The next item of the history; once for each. For ids and titles with commas in them.")] = None,
    top: Annotated[int, typer.Option(help="Items to list.")] = 10,
    keep_history: Annotated[bool, typer.Option("--keep-history", help="List items of the history too.")] = False,
    data: Annotated[Optional[str], typer.Option(help="Where the run's data lie now, if they have moved.")] = None,
    root: Annotated[Path, typer.Option(help="Where keys of runs are looked up.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """What a finished run would recommend after a history.

    \b
    nullrec recommend runs/mine --history item-0007,item-0042
    nullrec recommend runs/mine --item "Salt, Pepper & Co" --item item-0042
    """
    from nullrec_lib.recommend import recommend as recommend_after

    names = [name for name in history.split(",") if name.strip()] + (item or [])
    found = recommend_after(run, names, top, keep_history, root, data)
    if as_json:
        print(json.dumps(found.to_dict("records"), ensure_ascii=False))
        return
    if found.empty:
        print("Nothing is left to recommend: every item of the catalogue is in the history (--keep-history lists them).")
    for row in found.itertuples():
        print(f"{row.rank:>4}  {row.score:>10.4f}  {row.item_id:<16}  {row.title}")


@app.command()
@speaks
def grid(
    file: Annotated[str, typer.Argument(
        help=f"A YAML file, or a packaged grid: {', '.join(sorted(file.stem for file in GRIDS.glob('*.yaml')))}.")],
    jobs: Annotated[Optional[int], typer.Option(
        help="Processes side by side; default one for each core, or two where there is a GPU.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of each process.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    root: Annotated[Path, typer.Option(help="Where runs are stored, and found again.")] = Path("runs"),
    reports: Annotated[Path, typer.Option(help="Where the folder with the tables is made.")] = Path("reports"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run methods × data × splits × backbones × seeds from one file, and make tables with their statistics.

    The file maps fields of a spec to values; data, split, backbone, method, seed and lr may be lists:

    \b
    data: shop
    split: cold-start
    method: [ popularity, base, {method: alphafuse, null_dim: 32, label: af-32} ]
    seed: [22, 23, 24]
    lr: [0.01, 0.001]
    epochs: 40

    Each data × split × backbone is a table and each method a row. A row's learning rate is chosen on the first seed by
    validation N@20, never by test figures. The tables come with a comparison of each row with its best rival, or with the
    row that `reference: LABEL` names.

    Stopped or failed? The same command goes on with what is missing. Status 1: a row has no result at all.
    """
    import shlex
    import sys

    from nullrec_lib.grid import load, plan, run_grid

    asked = load(file)
    if not as_json:
        for note in asked.skipped:
            print(note)
    if dry_run:
        planned = plan(asked, root)
        print(json.dumps(planned) if as_json else "tables: {tables}, rows: {cells}, runs: at most {runs}, of which "
              "still to do: {to_do}".format(**planned))
        return
    command = shlex.join(["nullrec", *sys.argv[1:]])
    done = run_grid(asked, root, reports, jobs, threads, device, command)
    for failed in done["failures"]:
        where = ", ".join(f"{name} {failed[name]}" for name in ("label", "lr", "seed") if failed[name] is not None)
        typer.secho(f"nullrec: warning: {where} failed: {failed['error']}", err=True, fg="yellow")
    for row in done["missing"]:
        typer.secho(f"nullrec: no result: {row}", err=True, fg="red")
    if as_json:
        print(json.dumps(done, ensure_ascii=False))
    else:
        for table in done["tables"]:
            best = max(table["rows"], key=lambda row: row["test_consistent"]["N@20"])
            print(f"{table['data']}, {table['split']}, {table['backbone']}: {len(table['rows'])} rows; highest "
                  f"consistent N@20 {best['test_consistent']['N@20']:.4f} by {best['label']}")
        print(f"tables in {done['folder']}/results.md")
    if done["missing"]:
        raise typer.Exit(1)


@app.command()
@speaks
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes and short readings: about a minute.")] = False,
    only: Annotated[Optional[list[str]], typer.Option(
        help="A case; may be repeated. Kernels: dropout, attend, state, lookup, infonce, full_softmax, rank, "
        "top_k, cosine_histogram, covariance, overlap, ddim. Training: alphafuse, base, morec, unisrec, rlmrec-con, "
        "llm-esr, dreamrec, or engine for all of it. memory: 20,000 users ranked among 1,000,000 items. catalogue: a step "
        "by the number of items. prefixes: a step with a user's histories in one pass, or each for itself.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data: Annotated[str, typer.Option(help="Of the training: as in `nullrec run`.")] = "shop",
    keep: Annotated[Optional[str], typer.Option(
        help="Of the training: first:N or last:N interactions per user.")] = None,
    report_dir: Annotated[Path, typer.Option(help="Where this device's own folder is made.")] = Path("reports/bench"),
    as_json: AsJson = False,
) -> None:
    """How fast this machine is: kernels beside plain PyTorch, training beside a plain reference.

    Every kernel is compared with its naive form first and timed only if they agree; all variants of a case take turns,
    so that whatever else the machine does slows all of them. The folder <report-dir>/<device>, with -quick if it was,
    gets results.csv, engine.csv, profile.csv, a figure, and results.md with it all. Measured again, a case replaces its
    old rows and leaves those of other cases alone. For example:

    \b
    nullrec bench --quick                                  a first look
    nullrec bench --only infonce --only lookup             two kernels at all shapes
    nullrec bench --only engine --data ml-100k --keep last:50

    Status 1: a variant failed its check; that case has no times.
    """
    from nullrec_lib import bench as benches

    found = benches.run(quick, tuple(only or ()), threads, device, data, keep, report_dir)
    for failure in found.failures:
        typer.secho(f"nullrec: {failure}", err=True, fg="red")
    if as_json:
        print(json.dumps({"folder": str(found.folder), "results": found.results, "engine": found.engine,
                          "failures": found.failures}, ensure_ascii=False))
    else:
        print((found.folder / "results.md").read_text(encoding="utf-8"))
        print(f"written to {found.folder}/")
    if found.failures:
        raise typer.Exit(1)
