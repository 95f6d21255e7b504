"""The `nullrec` command. Heavy imports wait until a command needs them, so that --help answers at once."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any, Callable, Optional

import typer

from nullrec_lib.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Language embeddings in sequential recommendation: look at data and spectra, run a method, reproduce all.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data sets.")
app.add_typer(data_app, name="data")

Data = Annotated[str, typer.Option(
    help="A generated set (shop, shop-tiny, …), a folder of data, or a folder's name under $NULLREC_DATA.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def speaks(command: Callable) -> Callable:
    """Turn errors meant for people into one line on stderr.

    Status 2: wrong input, or a file that cannot be read or written. 1: a run that failed. 130: interrupted.
    """

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except (InputError, OSError) as error:
            said, status = str(error), 2
        except FloatingPointError as error:
            said, status = f"the run failed: {error}", 1
        except KeyboardInterrupt:
            said, status = "interrupted; the same command goes on from the last whole epoch.", 130
        typer.secho(f"nullrec: {said}", err=True, fg="red")
        raise typer.Exit(status)

    return wrapped


@app.command()
@speaks
def run(
    method: Annotated[str, typer.Option(
        help="base, llminit, frozen or alphafuse on a backbone; popularity, itemknn or textknn without one.")],
    data: Data = "shop",
    split: Annotated[str, typer.Option(help="cold-start (users), leave-one-out, or given by the data.")] = "cold-start",
    backbone: Annotated[str, typer.Option(help="sasrec")] = "sasrec",
    seed: Annotated[int, typer.Option(help="Of initial weights, order, dropout and negatives.")] = 22,
    epochs: Annotated[Optional[int], typer.Option(help="At most; early stopping usually ends earlier.")] = None,
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
    if epochs is not None:
        chosen["epochs"] = epochs
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
    for protocol, label in (("test", "authors"), ("test_consistent", "consistent")):
        print(f"{label:>10}  " + "  ".join(f"{name} {value:.4f}" for name, value in result[protocol].items()))
    if "nullity" in result:
        print(f"nullity {result['nullity']} of the kept and {result['full_nullity']} of all directions")
    print(f"best epoch {result['best_epoch']} of {result['epochs']}; {result['seconds_per_epoch']:.2f} s per epoch, "
          f"{result['params_trainable']:,} trainable parameters; key {result['key']}")


@app.command()
@speaks
def spectrum(
    data: Data = "shop",
    encoder: Annotated[Optional[str], typer.Option(help="Default: all-MiniLM-L6-v2.")] = None,
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
        help="A notebook parameter, as a Python literal or a plain word, e.g. -p epochs=3.")] = None,
    only: Annotated[Optional[list[str]], typer.Option(help="A notebook's number or name; may be repeated.")] = None,
    timeout: Annotated[Optional[float], typer.Option(
        help="Seconds that one notebook may take; default half an hour, for paper a week.")] = None,
) -> None:
    """Execute the numbered notebooks in order into reports/<name>/: notebooks, tables, figures, run.json.

    A notebook that fails does not stop the next; the status is 1 if any failed.
    """
    import ast

    from nullrec_lib import notebooks

    parameters = {}
    for assignment in parameter or []:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"-p {assignment}: write name=value.")
        try:
            parameters[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[key] = text  # a plain word
    report = notebooks.reproduce(data, preset, name, parameters, only, timeout_s=timeout)
    print(report.summary())
    if not report.ok:
        raise typer.Exit(1)


@data_app.command()
@speaks
def describe(
    path: Annotated[str, typer.Argument(help="A generated set, a folder, or a name under $NULLREC_DATA.")],
    core: Annotated[Optional[int], typer.Option(
        help="Filter out users and items with fewer interactions, over and over.")] = None,
    keep: Annotated[Optional[str], typer.Option(help="first:N or last:N interactions per user, after that.")] = None,
    as_json: AsJson = False,
) -> None:
    """Counts, lengths, clock and notes of a data set; every problem in its files is named with its place."""
    from nullrec_lib import data as data_sets

    described = data_sets.cut(data_sets.core(data_sets.load(path), core), keep).describe()
    if as_json:
        print(json.dumps(described, ensure_ascii=False))
        return
    for key, value in described.items():
        for line in value if isinstance(value, list) else [value]:
            print(f"{key:>24}  {line:,}" if isinstance(line, int) else f"{key:>24}  {line}")
    table = {"data": "name", "users": "n_users", "items": "n_items", "interactions": "n_interactions",
             "density %": "density_percent", "sparsity %": "sparsity_percent", "average length": "mean_length"}
    cells = {head: f"{described[key]:,}" if head != "data" else described[key] for head, key in table.items()}
    wide = {head: max(len(head), len(cell)) for head, cell in cells.items()}
    print("\n" + "  ".join(f"{head:>{wide[head]}}" for head in cells))
    print("  ".join(f"{cell:>{wide[head]}}" for head, cell in cells.items()))
    print('The papers print sparsity, 100 less the density, under the name "density".')
