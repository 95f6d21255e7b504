"""Tell: run the numbered notebooks as one experiment, and say what a stored notebook owes its readers."""

from __future__ import annotations

import difflib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any, Iterable, Sequence

import nbformat
import papermill
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from papermill.exceptions import PapermillExecutionError

from nullrec_lib.data import SHOPS, locate
from nullrec_lib.errors import InputError
from nullrec_lib.files import read_json, write_json
from nullrec_lib.machine import environment
from nullrec_lib.parameters import Parameter, declared
from nullrec_lib.processes import outcomes
from nullrec_lib.progress import bar

# A preset reaches the notebooks that declare its parameters; what it does not name keeps its default.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": [22, 23], "epochs": 5, "rounds": 2, "limit_users": 100},
    # The learning rate: of the papers' four, the one that validation prefers on the default data at this budget.
    "standard": {"seeds": [22, 23], "epochs": 6, "patience": 3, "lr": 0.01, "sweep_seeds": 1, "sweep_epochs": 1,
                 "compare": [], "contrasts": [], "table_seeds": [22], "table_epochs": 1, "rounds": 2,
                 "limit_users": 25, "drawn_users": 5, "variants": ["no GRPO"], "pretraining": 10, "sft": 8, "steps": 2,
                 "num_generations": 2, "max_tokens": 24, "thresholds": [0.5], "pca": 16, "dims": [16], "isi_seeds": [22],
                 "check_dims": [4], "check_rhos": [0.9], "noises": [0.1], "density_epochs": 6},
    "paper": {"seeds": [22, 23, 24, 25, 26], "epochs": 300, "patience": 20, "lr": 0.001,
              "null_dims": [0, 32, 64, 96, 128], "sweep_seeds": 5, "sweep_epochs": 300, "compare": ["shop-visible1"],
              "thresholds": [0.001, 0.01, 0.1, 0.25, 0.5], "relative_thresholds": [0.5, 1.0, 2.0],
              "table_seeds": [22, 23, 24, 25, 26], "table_epochs": 300, "rates": [1e-2, 1e-3, 1e-4, 1e-5],
              "pretraining": 200, "sft": 300, "drawn_users": 300, "steps": 100, "num_generations": 8, "max_tokens": 64,
              "splits": ["cold-start", "leave-one-out"], "candidates": 4, "moved_users": 300,
              "variants": ["user-only", "item-only", "single-pass", "no GRPO", "w/o distinctiveness",
                           "w/o collaborative alignment"],
              "contrasts": ["shop-visible0", "shop-visible1"], "case_epochs": 300,
              "isi_seeds": [22, 23, 24, 25, 26], "pca": 32, "noises": [0.03, 0.1, 0.3], "dims": [8, 16, 32],
              "density_epochs": 100, "check_dims": [1, 4, 16, 64], "check_rhos": [0, 0.5, 0.9, 0.99],
              "check_rows": [1000, 5000], "sizes": [100, 300, 1000], "probe_seeds": [22, 23, 24],
              "next_examples": 10_000, "rows": 20_000},
}
TIMEOUTS_S = {"quick": 1800, "standard": 7200, "paper": 7 * 86_400}  # per notebook
REQUIRED = ("data", "report_dir")  # what every notebook is told: where to read, where to leave its results
KERNEL = "nullrec_lib.kernel"  # what starts ipykernel, and ends with us
LONGEST_CELL = 24  # lines of code; a longer cell hides a function that belongs into the library


@dataclass(frozen=True)
class NotebookRun:
    """What became of one notebook."""

    notebook: str  # file name
    status: str  # ok, failed, timeout
    seconds: float  # wall clock, with the kernel's start
    started: str  # UTC, ISO 8601
    preset: str
    parameters: dict[str, Any]  # as the user gave them: data relative if given so, without report_dir
    error: str | None = None  # one line


@dataclass(frozen=True)
class Report:
    """One pass over the notebooks and the folder it filled."""

    folder: Path
    runs: list[NotebookRun]
    seconds: float  # wall clock of the whole pass

    @property
    def ok(self) -> bool:
        return all(run.status == "ok" for run in self.runs)

    def summary(self) -> str:
        """A text table, one line per notebook, and a closing line."""
        width = max([len("notebook"), *(len(run.notebook) for run in self.runs)])
        lines = [f"{'notebook':<{width}}  {'status':<7}  {'seconds':>7}"]
        for run in self.runs:
            line = f"{run.notebook:<{width}}  {run.status:<7}  {run.seconds:>7.1f}  {run.error or ''}"
            lines.append(line.rstrip())
        passed = sum(run.status == "ok" for run in self.runs)
        lines.append(f"{passed} of {len(self.runs)} notebooks ok in {self.seconds:.1f} s: {self.folder}")
        return "\n".join(lines)


class _ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs this code, whatever is registered as `python3` on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        quiet = ["--log-level=ERROR"]  # a kernel warns on the terminal that its local port is not encrypted
        about = get_kernel_dict(extra_arguments=quiet)
        about["argv"] = [KERNEL if word == "ipykernel_launcher" else word for word in about["argv"]]
        return KernelSpec(resource_dir=RESOURCES, **about)


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such notebook") from None
    except Exception as error:  # nbformat raises its own kinds for JSON, version and structure
        raise InputError(f"{path}: not a readable notebook ({type(error).__name__})") from None


def _parameters_in(notebook: nbformat.NotebookNode, path: Path) -> dict[str, Parameter]:
    cells = [cell for cell in notebook.cells
             if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{path}: {len(cells)} code cells are tagged `parameters`, there must be one")
    return declared(cells[0].source, path)


def declared_parameters(path: Path) -> dict[str, Any]:
    """Names and default values from the one cell tagged `parameters`.

    Raises InputError if the notebook cannot be read, has no such cell or several, or if the cell holds
    anything but assignments of literals to single names.
    """
    return {name: parameter.default for name, parameter in _parameters_in(_read(Path(path)), Path(path)).items()}


def _suggestion(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return (f"; did you mean `{close[0]}`?" if close else "") + f" (known: {', '.join(known) or 'none'})"


def execute(path: Path, output: Path, parameters: dict[str, Any], timeout_s: float = 1800,
            progress: bool = True) -> None:
    """Run a notebook in its own folder with these parameters and write it, executed, to `output`.

    `timeout_s` is the time for the whole notebook. `output` is written also when a cell fails or time is up.

    Raises InputError before anything runs if a parameter is not declared by the notebook or its value is of another
    type than the default (see `Parameter.taken`), TimeoutError when the time is up, papermill's
    PapermillExecutionError when a cell fails, RuntimeError when the kernel dies.
    """
    path, output = Path(path), Path(output)
    notebook = _read(path)
    known = _parameters_in(notebook, path)
    for name in parameters:
        if name not in known:
            raise InputError(f"{path}: no parameter is named `{name}`{_suggestion(name, known)}")
    parameters = {name: known[name].taken(value) for name, value in parameters.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    look = {"desc": path.stem, "delay": 2, "leave": False, "dynamic_ncols": True}
    deadline = time.monotonic() + timeout_s
    papermill.execute_notebook(
        path, output, parameters, kernel_name="python3", language="python", cwd=path.parent,
        progress_bar=look if progress else False,
        kernel_manager_class=_ThisPython,
        # papermill's own limit is for each cell; zero would mean no limit at all
        timeout_func=lambda cell: max(deadline - time.monotonic(), 0.1),
    )


def _select(notebooks: Path, only: Sequence[str | int] | None) -> list[Path]:
    found = sorted(Path(notebooks).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise InputError(f"{notebooks}: no notebooks named like 01_name.ipynb; run in the project's root")
    if only is None:
        return found
    chosen = set()
    for wanted in map(str, only):
        matches = [path for path in found if wanted in (path.stem, path.name)
                   or wanted.isdecimal() and int(wanted) == int(path.name[:2])]
        if not matches:
            hint = _suggestion(wanted, (path.stem for path in found))
            raise InputError(f"only: no notebook `{wanted}`{hint}")
        chosen.update(matches)
    return sorted(chosen)


def _plan(paths: list[Path], preset: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """What of the preset and the user's parameters each notebook gets; InputError for what nobody gets, and for a value
    that one of those who get it does not take."""
    if preset not in PRESETS:
        raise InputError(f"preset: there is no `{preset}`{_suggestion(preset, PRESETS)}")
    cells = [_parameters_in(_read(path), path) for path in paths]
    for path, names in zip(paths, cells):
        for name in REQUIRED:
            if name not in names:
                raise InputError(f"{path}: the parameters cell must declare `{name}`")
    known = set().union(*cells) - set(REQUIRED)
    for name in parameters:
        if name in REQUIRED:
            raise InputError(f"`{name}` is not set as a parameter: use the options for data and for the name")
        if name not in known:
            raise InputError(f"no selected notebook has a parameter `{name}`{_suggestion(name, known)}")
    wanted = {**PRESETS[preset], **parameters}
    return [{name: names[name].taken(value) for name, value in wanted.items() if name in names} for names in cells]


def _from(notebook: Path, target: str | Path) -> str:
    """Notebooks run in their own folder: a path as seen from there, which says nothing of the machine around."""
    return str(target) if target in SHOPS else os.path.relpath(Path(target).resolve(), notebook.parent.resolve())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _one_line(error: Exception) -> str:
    if isinstance(error, PapermillExecutionError):
        said = f"{error.ename}: {error.evalue}".strip(": ").splitlines()[0]
        return f"{said} (in cell [{error.exec_count}])"
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _earlier_runs(record: Path) -> dict[str, Any]:
    if not record.exists():
        return {}
    try:
        return dict(read_json(record, ["notebooks"])["notebooks"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{record}: not readable; delete it or choose another name for the run") from None


@dataclass(frozen=True)
class _Task:
    """One notebook of a pass, as a process of its own can take it."""

    path: Path
    output: Path
    told: dict[str, Any]
    given: dict[str, Any]
    preset: str
    timeout_s: float
    progress: bool
    threads: int | None
    """Of torch and numpy in its kernel, where the environment does not say; None leaves it to them."""


def _run(task: _Task) -> NotebookRun:
    if task.threads:  # two kernels that both use all cores wait for one another
        os.environ.setdefault("OMP_NUM_THREADS", str(task.threads))
    started, begin, status, problem = _now(), time.perf_counter(), "ok", None
    try:
        execute(task.path, task.output, task.told, task.timeout_s, task.progress)
    except TimeoutError:
        status, problem = "timeout", f"stopped after {task.timeout_s:g} s"
    except Exception as error:  # whatever stops one notebook, the others have a right to run
        status, problem = "failed", _one_line(error)
    seconds = round(time.perf_counter() - begin, 1)
    return NotebookRun(task.path.name, status, seconds, started, task.preset, task.given, problem)


def reproduce(data: str = "shop", preset: str = "standard", name: str | None = None,
              parameters: dict[str, Any] | None = None, only: Sequence[str | int] | None = None,
              notebooks: Path = Path("notebooks"), reports: Path = Path("reports"),
              timeout_s: float | None = None, jobs: int = 2, progress: bool = True) -> Report:
    """Run the numbered notebooks into `reports/<name>/`, and go on past one that fails.

    Every notebook gets `data` and `report_dir`, and of the preset and `parameters` (which win) what it
    declares. `only` selects by number or by name; `timeout_s` is for each notebook (default
    `TIMEOUTS_S` of the preset). The first notebook runs alone, as it embeds the texts that all others read; then
    `jobs` run at a time: while one trains on all cores, the other draws. Each is run from a process of its own:
    what runs a kernel takes interrupts for its own, and they are meant for the whole pass. `run.json` is brought up to
    date after every notebook; what an earlier run left in the same folder keeps its files and entries.

    Raises InputError, before anything runs, for unknown data, preset, notebook or parameter, for a value of another
    type than the parameter's default, for a notebook without `data` or `report_dir`, for `jobs` below 1, and for a name
    that leaves nothing to name a folder with.
    """
    if jobs < 1:
        raise InputError(f"jobs: {jobs} is below 1.")
    paths = _select(notebooks, only)
    plan = _plan(paths, preset, parameters or {})
    located = data if data in SHOPS else locate(data)
    folder_name = re.sub(r"[^\w.-]+", "-", name or f"{Path(data).name}-{preset}").strip("-.")
    if not folder_name:
        raise InputError(f"name: `{name}` has no letter or digit to name a folder with")
    folder = Path(reports) / folder_name
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "run.json"
    entries = _earlier_runs(record)
    begin = time.perf_counter()
    about = {"name": folder_name, "data": data, "preset": preset, "started": _now(), **environment(),
             "threads": os.environ.get("OMP_NUM_THREADS"), "jobs": jobs}
    shared = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    tasks = [_Task(path, folder / path.name,
                   {"data": _from(path, located), "report_dir": _from(path, folder), **chosen}, {"data": data, **chosen},
                   preset, TIMEOUTS_S[preset] if timeout_s is None else timeout_s, progress, shared if at else None)
             for at, (path, chosen) in enumerate(zip(paths, plan))]

    runs = {}
    with bar(total=len(paths), what="notebooks", disable=not progress) as done:
        first, others = outcomes(_run, tasks[:1], 1, apart=True), outcomes(_run, tasks[1:], jobs, apart=True)
        for task, run, died in chain(first, others):
            run = run or NotebookRun(task.path.name, "failed", 0.0, _now(), preset, task.given, died)
            runs[task.path] = run
            entry = asdict(run)
            entries[entry.pop("notebook")] = entry
            seconds = round(time.perf_counter() - begin, 1)
            write_json(record, {**about, "seconds": seconds, "notebooks": dict(sorted(entries.items()))})
            done.update()
    return Report(folder, [runs[path] for path in paths], time.perf_counter() - begin)


_MACHINE_PATH = re.compile(r"(?<![\w.~:/-])/(?:home|Users|root|tmp|work|mnt|opt|private|usr|var)/[\w.-]+")
_DEFINITION = re.compile(r"^\s*(?:async\s+)?(def|class)\s+\w+", re.MULTILINE)


def _texts(output: nbformat.NotebookNode) -> Iterable[str]:
    """Everything in an output that a reader or a search would find as text; images are left out."""
    yield from (output.get("text", ""), output.get("evalue", ""), *output.get("traceback", []))
    for kind, content in output.get("data", {}).items():
        if not kind.startswith("image/"):
            yield content if isinstance(content, str) else json.dumps(content)


def check_stored(path: Path) -> list[str]:
    """What is wrong with a notebook as it is stored, in sentences; an empty list if nothing is."""
    path = Path(path)
    try:
        notebook = _read(path)
    except InputError as error:
        return [str(error)]
    problems = []
    try:
        known = _parameters_in(notebook, path)
        missing = [name for name in REQUIRED if name not in known]
        problems += [f"the parameters cell must declare `{name}`" for name in missing]
    except InputError as error:
        problems.append(str(error).removeprefix(f"{path}: "))
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:  # nbval compares nothing in such a cell
            problems.append(f"cell {number} is stored without having been run: run all cells and save")
        lines = len(cell.source.splitlines())
        if lines > LONGEST_CELL:
            problems.append(f"cell {number} has {lines} lines, more than {LONGEST_CELL}")
        for keyword in _DEFINITION.findall(cell.source):
            problems.append(f"cell {number} holds a `{keyword}`: it belongs into the library")
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                problems.append(f"cell {number} is stored with an error: {output.get('ename', '')}")
            for found in {match for text in _texts(output) for match in _MACHINE_PATH.findall(text)}:
                problems.append(f"cell {number} shows a path of one machine: {found}")
    return problems
