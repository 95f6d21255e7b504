"""`nullrec data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from nullrec_lib.cli.common import AsJson, speaks

app = typer.Typer(no_args_is_help=True, help="Look at data sets, or download one.")


@app.command()
@speaks
def describe(
    path: Annotated[str, typer.Argument(help="A generated set, a folder, or a name under $NULLREC_DATA.")],
    core: Annotated[Optional[int], typer.Option(
        help="Filter out users and items with fewer interactions, over and over.")] = None,
    keep: Annotated[Optional[str], typer.Option(help="first:N or last:N interactions per user, after that.")] = None,
    clean: Annotated[bool, typer.Option("--clean/--no-clean", help="Take markup and entities out of texts.")] = True,
    missing_text: Annotated[str, typer.Option(
        help="mean: items without text stay, refuse: they are an error.")] = "mean",
    as_json: AsJson = False,
) -> None:
    """Counts, lengths, clock and notes of a data set; every problem in its files is named with its place."""
    from nullrec_lib import data as data_sets

    dataset = data_sets.load(path, clean=clean, missing_text=missing_text)
    described = data_sets.cut(data_sets.core(dataset, core), keep).describe()
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


@app.command()
@speaks
def download(
    name: Annotated[Optional[str], typer.Argument(help="A name from the list; none prints the list.")] = None,
    to: Annotated[Optional[Path], typer.Option(help="Folder; default $NULLREC_DATA/NAME or data/NAME.")] = None,
    mirror: Annotated[Optional[str], typer.Option(help="Address in place of the sources' scheme and host.")] = None,
) -> None:
    """Fetch a public data set from its owner, check and unpack it; the same command goes on after a cut.

    Its owner's terms hold: read them first. Without a name: what there is, how large, from where.
    """
    from nullrec_lib.data import download as downloads

    if name is None:
        for known, files in downloads.SETS.items():
            for file in files:
                size = f"{file.size / 1e6:.1f} MB" if file.size else "size not published"
                print(f"{known:>24}  {size:>18}  {file.url}")
        for known, page in downloads.BY_HAND.items():
            print(f"{known:>24}  {'by hand':>18}  {page}")
        return
    folder, notes = downloads.download(name, to, mirror)
    print(*notes, sep="\n")
    print(f"ready: {folder}")
