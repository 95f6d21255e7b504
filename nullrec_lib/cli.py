"""The `nullrec` command. Heavy imports wait until a command needs them, so that --help answers at once."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any, Callable, Optional

import typer

from nullrec_lib.errors import InputError
from nullrec_lib.language.writers import WriterError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Language embeddings in sequential recommendation: look at data and spectra, run a method, reproduce all.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data sets, or download one.")
app.add_typer(data_app, name="data")
profiles_app = typer.Typer(no_args_is_help=True, help="Write profiles of users and items, and look at them.")
app.add_typer(profiles_app, name="profiles")
model_app = typer.Typer(no_args_is_help=True, help="A language model of one's own, to write profiles with.")
app.add_typer(model_app, name="model")

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
        except WriterError as error:
            said, status = str(error), 1
        except KeyboardInterrupt:
            said, status = "interrupted; the same command goes on from the last whole epoch.", 130
        typer.secho(f"nullrec: {said}", err=True, fg="red")
        raise typer.Exit(status)

    return wrapped


@app.command()
@speaks
def run(
    method: Annotated[str, typer.Option(
        help="base, llminit, frozen, morec, unisrec, whitenrec, rlmrec-con, rlmrec-gen, llm-esr, idreamrec or alphafuse "
        "on a backbone; popularity, itemknn or textknn without one. `nullrec methods` says what they are.")],
    data: Data = "shop",
    split: Annotated[str, typer.Option(help="cold-start (users), leave-one-out, or given by the data.")] = "cold-start",
    backbone: Annotated[str, typer.Option(help="sasrec or dreamrec.")] = "sasrec",
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
        help="A notebook parameter, as a Python literal or a plain word, e.g. -p epochs=3.")] = None,
    only: Annotated[Optional[list[str]], typer.Option(help="A notebook's number or name; may be repeated.")] = None,
    timeout: Annotated[Optional[float], typer.Option(
        help="Seconds that one notebook may take; default half an hour, two for standard, a week for paper.")] = None,
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


@app.command()
@speaks
def recommend(
    run: Annotated[str, typer.Argument(help="A run folder, or the key of one under runs/.")],
    history: Annotated[str, typer.Option(
        help="Items, oldest first, with commas between: ids of the source, or beginnings of titles.")],
    top: Annotated[int, typer.Option(help="Items to list.")] = 10,
    keep_history: Annotated[bool, typer.Option("--keep-history", help="List items of the history too.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a finished run would recommend after a history."""
    from nullrec_lib.recommend import recommend as recommend_after

    found = recommend_after(run, [name for name in history.split(",") if name.strip()], top, keep_history)
    if as_json:
        print(json.dumps(found.to_dict("records"), ensure_ascii=False))
        return
    for row in found.itertuples():
        print(f"{row.rank:>4}  {row.score:>10.4f}  {row.item_id:<16}  {row.title}")


@app.command()
@speaks
def grid(
    file: Annotated[str, typer.Argument(
        help="A YAML file, or a packaged grid: tiny, everything-shop, table3-shop, table4-shop.")],
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
    validation N@20, never by test figures. The tables come with a comparison of each row with its best rival.

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
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes and short readings: a minute or two.")] = False,
    only: Annotated[Optional[list[str]], typer.Option(
        help="A case; may be repeated. Kernels: dropout, attend, lookup, infonce, full_softmax, rank, top_k, "
        "cosine_histogram, covariance, overlap, ddim. Training: alphafuse, base, morec, unisrec, rlmrec-con, llm-esr, "
        "dreamrec, or engine for all of it. memory: 20,000 users ranked among 1,000,000 items. catalogue: a step by "
        "the number of items.")] = None,
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


@data_app.command()
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


@profiles_app.command("build")
@speaks
def build_profiles(
    out: Annotated[Path, typer.Option(help="Folder of the profiles; the same command there goes on or reads them.")],
    data: Data = "shop",
    writer: Annotated[str, typer.Option(
        help="extractive (keywords, no model), local:PATH (a causal language model, see `nullrec model build`), or "
        "server:URL (OpenAI-compatible; its key is read from NULLREC_API_KEY or OPENAI_API_KEY).")] = "extractive",
    mode: Annotated[str, typer.Option(help="full, single-pass, user-only or item-only.")] = "full",
    rounds: Annotated[int, typer.Option(help="Of the loop, at most.")] = 3,
    epsilon: Annotated[float, typer.Option(
        help="The loop ends when profiles moved less: mean cosine distance to the round before.")] = 0.01,
    split: Annotated[str, typer.Option(help="cold-start, leave-one-out, or given by the data.")] = "cold-start",
    keep: Annotated[Optional[str], typer.Option(help="first:N or last:N interactions per user.")] = None,
    cuts: Annotated[str, typer.Option(help="Lengths of history at which users get a profile.")] = "1,3,10",
    seed: Annotated[int, typer.Option(help="Of the writer, and of drawn users.")] = 22,
    limit_users: Annotated[Optional[int], typer.Option(help="So many users only, drawn, and their items.")] = None,
    model: Annotated[Optional[str], typer.Option(help="server: its model; without, the only one it lists.")] = None,
    temperature: Annotated[Optional[float], typer.Option(help="local, server: of sampling; 0 is greedy.")] = None,
    max_tokens: Annotated[Optional[int], typer.Option(help="local, server: longest answer.")] = None,
    context: Annotated[Optional[int], typer.Option(help="server: tokens of a prompt that fit.")] = None,
    concurrency: Annotated[Optional[int], typer.Option(help="server: requests at a time.")] = None,
    price_in: Annotated[Optional[float], typer.Option(help="server: per million prompt tokens.")] = None,
    price_out: Annotated[Optional[float], typer.Option(help="server: per million written tokens.")] = None,
    as_json: AsJson = False,
) -> None:
    """Profiles of users and items that refine each other (PtE, stage one); says first how many it will write.

    nullrec profiles build --data shop-tiny --out profiles/tiny
    nullrec profiles build --data shop --writer local:models/shop --rounds 2 --out profiles/shop-local

    Every text is stored the moment it exists. Status 1: the writer could not go on; the same command does.
    """
    from dataclasses import asdict

    from nullrec_lib.profiles.build import build

    settings = dict(model=model, temperature=temperature, max_tokens=max_tokens, context=context,
                    concurrency=concurrency, price_in=price_in, price_out=price_out)
    built = build(out, data, split, keep, writer, mode, rounds, _lengths(cuts), epsilon, limit_users, seed=seed,
                  say=functools.partial(typer.echo, err=True),
                  **{name: value for name, value in settings.items() if value is not None})
    if as_json:
        told = asdict(built) | {"out": str(out)}
        del told["neighbour_overlap"]  # thousands of numbers; they are in build.json
        print(json.dumps(told, ensure_ascii=False))
        return
    print(f"{'side':>5} {'round':>5} {'profiles':>9} {'written':>8} {'fallback':>8} {'seconds':>8} {'distance':>9} "
          f"{'alike':>6}")
    for done in built.rounds:
        moved, alike = ("" if value is None else f"{value:.4f}" for value in (done.distance, done.homogenisation))
        print(f"{done.side:>5} {done.round:>5} {done.profiles:>9,} {done.written:>8,} {done.fallbacks:>8,} "
              f"{done.seconds:>8.1f} {moved:>9} {alike:>6}")
    for side, rate in built.rates.items():
        if rate is not None:
            print(f"{side}: distances times {rate.rate:.2f} per round (95% interval {rate.low:.2f} to {rate.high:.2f})")
    print(f"{'converged' if built.converged else 'not converged'}; profiles in {out}")


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"cuts: {text!r} is not a list of numbers such as 1,3,10.") from None


@profiles_app.command()
@speaks
def show(
    subject: Annotated[str, typer.Argument(help="A user's or an item's id, as the data have it.")],
    out: Annotated[Path, typer.Option(help="Folder of the profiles.")],
) -> None:
    """One user's or item's profile, round by round, with the words that went (-) and came (+)."""
    from nullrec_lib.profiles.store import Store, journey

    if not (found := list(Store(out).profiles(id=subject))):
        raise InputError(f"{out}: no user or item {subject!r} has a profile here.")
    print(journey(found))


@profiles_app.command()
@speaks
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of the profiles.")],
    format: Annotated[str, typer.Option(help="jsonl: one object per line.")] = "jsonl",
) -> None:
    """All stored profiles: kind, id, cut (null for a whole), round, text, writer, fallback."""
    from nullrec_lib.profiles.build import export as lines

    if format != "jsonl":
        raise InputError(f"format: {format!r} is not jsonl.")
    for line in lines(folder):
        print(line)


@model_app.command("build")
@speaks
def build_model(
    out: Annotated[Path, typer.Option(help="Folder of the model, an ordinary one of `transformers`.")],
    data: Data = "shop",
    split: Annotated[str, typer.Option(help="cold-start, leave-one-out, or given by the data.")] = "cold-start",
    keep: Annotated[Optional[str], typer.Option(help="first:N or last:N interactions per user.")] = None,
    base: Annotated[Optional[str], typer.Option(
        help="A pretrained causal model to fine-tune, a folder or a name on the hub; without, a small one is trained "
        "from scratch.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="With --base: train low-rank adapters, merged in the end.")] = False,
    steps: Annotated[Optional[int], typer.Option(help="Of pretraining, without a base.")] = None,
    sft_steps: Annotated[Optional[int], typer.Option(help="Of fine-tuning on profiles.")] = None,
    limit_users: Annotated[Optional[int], typer.Option(help="Learn from so many users only, drawn.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and drawn users.")] = 22,
    as_json: AsJson = False,
) -> None:
    """A language model that writes profiles: from scratch in minutes, or a pretrained one fine-tuned.

    nullrec model build --data shop --out models/shop
    nullrec model build --data shop --base PATH_OR_HUB_NAME --lora --out models/large

    It learns from the extractive writer's profiles of items and training users. Its held-out perplexity and some
    answers are printed, and stored in build.json. A build that was stopped goes on after its last whole stage.
    """
    from nullrec_lib.language import model
    from nullrec_lib.profiles.build import SMALL_CONTEXT, examples

    pairs, corpus = examples(data, split, keep, seed=seed, limit_users=limit_users)
    given = {"steps": steps, "sft_steps": sft_steps, "context": None if base else SMALL_CONTEXT}
    record = model.build(pairs, corpus, out, base, lora, seed,
                         **{name: value for name, value in given.items() if value is not None})
    if as_json:
        print(json.dumps(record | {"out": str(out)}, ensure_ascii=False))
        return
    before, after = (record["perplexity"][when] for when in ("before", "after"))
    print(f"{record['parameters']:,} parameters, {record['pairs']['train']:,} pairs; perplexity of "
          f"{record['pairs']['held_out']:,} held-out profiles {before:.2f} before fine-tuning, {after:.2f} after")
    for sample in record["samples"]:
        print(f"\n{sample['prompt'].strip()}\n  should be: {sample['profile']}\n  written:   {sample['written']}")
    print(f"\nmodel in {out}: --writer local:{out}")
