"""The notebook runner, the rules for stored notebooks, and the Makefile that calls both."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from nullrec_lib.data import locate
from nullrec_lib.errors import InputError
from nullrec_lib.notebooks import PRESETS, check_stored, declared_parameters, execute, reproduce

ROOT = Path(__file__).resolve().parent.parent
STORED = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = 'data = "shop"\nreport_dir = None\nseeds = [1]  # small\nrate: float = -0.5'


def write(path, *sources, parameters=PARAMETERS):
    """A notebook whose first cell is tagged `parameters` (unless None), never executed."""
    cells = [new_markdown_cell("# Title")]
    if parameters is not None:
        cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells + [new_code_cell(source) for source in sources]), path)
    return path


def printed(path):
    return "".join(output.get("text", "") for cell in nbformat.read(path, as_version=4).cells
                   for output in cell.get("outputs", []))


# --- declared parameters

def test_declared_parameters_are_names_and_values(tmp_path):
    assert declared_parameters(write(tmp_path / "a.ipynb")) == {
        "data": "shop", "report_dir": None, "seeds": [1], "rate": -0.5}


@pytest.mark.parametrize("parameters, said", [
    (None, "0 code cells are tagged"),
    ("data = 1\nwidth = 2 * data", "line 2"),
    ("import os", "line 1"),
    ("a = b = 1", "line 1"),
    ("a, b = 1, 2", "line 1"),
    ("rate: float", "line 1"),
    ("data = (", "not Python"),
])
def test_a_parameters_cell_must_hold_plain_literals(tmp_path, parameters, said):
    path = write(tmp_path / "a.ipynb", parameters=parameters)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        declared_parameters(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"cells": 1}'])
def test_an_unreadable_notebook_is_named(tmp_path, content):
    path = tmp_path / "a.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="a.ipynb"):
        declared_parameters(path)


# --- execute

def test_an_unknown_parameter_is_refused_before_anything_runs(tmp_path):
    path = write(tmp_path / "a.ipynb")
    with pytest.raises(InputError, match="did you mean `seeds`.*report_dir") as caught:
        execute(path, tmp_path / "out" / "a.ipynb", {"seed": 3})
    assert "a.ipynb" in str(caught.value) and not (tmp_path / "out").exists()


def test_a_value_of_another_type_is_refused_before_anything_runs(tmp_path):
    path = write(tmp_path / "a.ipynb")
    with pytest.raises(InputError, match=r"^seeds: 22 is not a list; write \[22\]"):
        execute(path, tmp_path / "out" / "a.ipynb", {"seeds": 22})
    assert not (tmp_path / "out").exists()


def test_the_kernel_is_this_python_and_runs_in_the_folder_of_the_notebook(tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "wrong", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # an environment that is not activated
    monkeypatch.chdir(tmp_path)
    write(Path("in/a.ipynb"), "import os, sys\nprint(sys.executable, os.getcwd(), rate)")
    execute(Path("in/a.ipynb"), Path("out/a.ipynb"), {"rate": 7}, progress=False)
    assert printed(Path("out/a.ipynb")).split() == [sys.executable, str(tmp_path / "in"), "7"]


# --- reproduce

@pytest.fixture(scope="module")
def pass_over(tmp_path_factory):
    """Four notebooks in one pass: good, failing, hanging and dying; then good again, alone."""
    root = tmp_path_factory.mktemp("project")
    write(root / "notebooks/01_good.ipynb",
          "from pathlib import Path\nPath(report_dir, 'figure.txt').write_text(data)\nprint(seeds, rate)")
    write(root / "notebooks/02_fails.ipynb",
          "print('before')", "raise ValueError('too\\nmany')", "print('after')",
          parameters='data = ""\nreport_dir = ""\nepochs = 1')
    write(root / "notebooks/03_hangs.ipynb", "import time\nprint('waiting', flush=True)\ntime.sleep(300)")
    write(root / "notebooks/04_dies.ipynb", "import os\nos._exit(1)")
    write(root / "notebooks/scratch.ipynb", "raise ValueError('not numbered, not run')")
    (root / "my data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        given = {"rate": 2, "seeds": [9]}
        first = reproduce("my data", "quick", parameters=given, timeout_s=4, progress=False)
        record = json.loads((root / "reports/my-data-quick/run.json").read_text())
        second = reproduce("my data", "quick", name="my data/quick", only=[1], progress=False)
    return root, first, record, second


def test_a_failing_notebook_does_not_stop_the_next(pass_over):
    _, first, _, _ = pass_over
    assert [run.status for run in first.runs] == ["ok", "failed", "timeout", "failed"] and not first.ok
    assert first.runs[1].error == "ValueError: too (in cell [4])"
    assert first.runs[2].error == "stopped after 4 s" and first.runs[2].seconds < 30
    assert "died" in first.runs[3].error
    summary = first.summary()
    assert re.search(r"^02_fails.ipynb +failed +\d.*ValueError: too", summary, re.M)
    assert "1 of 4 notebooks ok" in summary and "scratch" not in summary


def test_executed_notebooks_are_written_whatever_happened(pass_over):
    root, first, _, _ = pass_over
    assert printed(root / first.folder / "02_fails.ipynb") == "before\n"
    assert printed(root / first.folder / "03_hangs.ipynb") == "waiting\n"
    assert (root / first.folder / "04_dies.ipynb").exists()


def test_parameters_reach_the_cells_that_declare_them(pass_over):
    root, first, _, second = pass_over
    assert (root / first.folder / "figure.txt").read_text() == os.path.join("..", "my data")
    assert first.runs[0].parameters == {"data": "my data", "seeds": [9], "rate": 2}
    assert first.runs[1].parameters == {"data": "my data", "epochs": PRESETS["quick"]["epochs"]}
    assert printed(root / second.folder / "01_good.ipynb") == f"{PRESETS['quick']['seeds']} -0.5\n"


def test_run_json_says_what_was_run_and_where_it_stands(pass_over):
    _, _, record, _ = pass_over
    assert (record["name"], record["data"], record["preset"]) == ("my-data-quick", "my data", "quick")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["started"])
    assert {"nullrec", "commit", "python", "torch", "platform", "cpu_count", "threads"} <= set(record)
    good = record["notebooks"]["01_good.ipynb"]
    assert good["status"] == "ok" and good["error"] is None and 0 < good["seconds"] < 60
    assert list(record["notebooks"]) == ["01_good.ipynb", "02_fails.ipynb", "03_hangs.ipynb", "04_dies.ipynb"]
    assert "/" not in json.dumps({**record, "platform": ""})  # no path of this machine


def test_running_again_replaces_its_own_and_keeps_the_rest(pass_over):
    root, first, before, second = pass_over
    assert second.folder == first.folder and second.ok and len(second.runs) == 1
    now = json.loads((root / second.folder / "run.json").read_text())["notebooks"]
    then = before["notebooks"]
    assert now["01_good.ipynb"]["parameters"] != then["01_good.ipynb"]["parameters"]
    assert now["02_fails.ipynb"] == then["02_fails.ipynb"]
    assert sorted(path.name for path in (root / second.folder).iterdir()) == [
        "01_good.ipynb", "02_fails.ipynb", "03_hangs.ipynb", "04_dies.ipynb", "figure.txt", "run.json"]


def test_after_the_first_two_run_at_a_time(tmp_path, monkeypatch):
    """Each of the two leaves a file and waits for the other's: one after the other they would wait for ever."""
    monkeypatch.chdir(tmp_path)
    meet = """
import os, time
from pathlib import Path
Path(report_dir, "{me}").touch()
while not Path(report_dir, "{other}").exists():
    time.sleep(0.05)"""
    write(Path("notebooks/01_first.ipynb"), "from pathlib import Path\nprint(list(Path(report_dir).glob('[ab]')))")
    write(Path("notebooks/02_a.ipynb"), meet.format(me="a", other="b"))
    write(Path("notebooks/03_b.ipynb"), meet.format(me="b", other="a"))
    found = reproduce("shop-tiny", "quick", timeout_s=60, jobs=2, progress=False)
    assert found.ok and [run.notebook for run in found.runs] == ["01_first.ipynb", "02_a.ipynb", "03_b.ipynb"]
    assert printed(found.folder / "01_first.ipynb") == "[]\n"
    alone = reproduce("shop-tiny", "quick", name="alone", only=[2], timeout_s=3, jobs=1, progress=False)
    assert [run.status for run in alone.runs] == ["timeout"]


def test_data_is_found_where_load_finds_it(tmp_path, monkeypatch):
    for name in ("shop", "here/books", "home/books", "home/toys"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NULLREC_DATA", "home")
    assert locate("./shop").resolve() == tmp_path / "shop"
    assert locate("toys").resolve() == tmp_path / "home" / "toys"
    monkeypatch.chdir(tmp_path / "here")
    assert locate("books").resolve() == tmp_path / "here" / "books"


@pytest.mark.parametrize("asked, said", [
    ({"data": "shopp"}, "shop"),
    ({"data": ""}, "data"),
    ({"preset": "standart"}, "did you mean `standard`"),
    ({"parameters": {"rates": 1}}, "did you mean `rate`"),
    ({"parameters": {"rate": 1}, "only": ["02_b"]}, "no selected notebook has a parameter `rate`"),
    ({"parameters": {"report_dir": "x"}}, "not set as a parameter"),
    ({"parameters": {"seeds": 22}}, r"^seeds: 22 is not a list; write \[22\]"),
    ({"parameters": {"rate": None}}, "^rate: 01_a.ipynb gives None no meaning"),
    ({"only": ["3"]}, "no notebook `3`.*01_a, 02_b"),
    ({"only": ["01_b"]}, "did you mean"),
    ({"name": "../.."}, "name a folder"),
    ({"jobs": 0}, "jobs: 0 is below 1"),
    ({"notebooks": Path("elsewhere")}, "elsewhere: no notebooks"),
])
def test_wrong_input_is_refused_before_anything_runs(tmp_path, monkeypatch, asked, said):
    monkeypatch.chdir(tmp_path)
    write(Path("notebooks/01_a.ipynb"))
    write(Path("notebooks/02_b.ipynb"), parameters='data = ""\nreport_dir = ""')
    with pytest.raises(InputError, match=said):
        reproduce(**asked, progress=False)
    assert not Path("reports").exists()


def test_every_notebook_must_declare_data_and_report_dir(tmp_path):
    write(tmp_path / "01_a.ipynb", parameters='data = "shop"')
    with pytest.raises(InputError, match="01_a.ipynb.*`report_dir`"):
        reproduce(notebooks=tmp_path, reports=tmp_path / "reports")


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_record_is_not_written_over(tmp_path, content):
    write(tmp_path / "01_a.ipynb")
    record = tmp_path / "reports" / "shop-quick" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    with pytest.raises(InputError, match="run.json: not readable"):
        reproduce(preset="quick", notebooks=tmp_path, reports=tmp_path / "reports")
    assert record.read_text() == content


# --- stored notebooks

@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_notebooks_keep_the_rules(path):
    assert check_stored(path) == []


def stored(path, change=lambda cells: None):
    """A notebook that keeps every rule, but for what `change` does to its two code cells."""
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}, execution_count=1),
             new_code_cell("print(data)", execution_count=2, outputs=[new_output("stream", text="shop\n")])]
    change(cells)
    nbformat.write(new_notebook(cells=cells), path)
    return check_stored(path)


def test_a_notebook_that_keeps_the_rules_has_no_problems(tmp_path):
    def harmless(cells):
        cells[1].source = "\n".join(["default = 1"] * 24)
        cells[1].outputs = [
            new_output("stream", text="https://a.org/home/x ../tmp/x reports/tmp/x 1/2 and/or\n"),
            new_output("display_data", {"image/png": "/tmp/abc+/home/x", "text/plain": "<Figure>"}),
        ]
        cells.append(new_code_cell(""))
        cells.append(new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}, execution_count=3,
                                   outputs=[new_output("error", ename="ZeroDivisionError", evalue="")]))
    assert stored(tmp_path / "a.ipynb") == []
    assert stored(tmp_path / "a.ipynb", harmless) == []


@pytest.mark.parametrize("change, said", [
    (lambda cells: cells[1].update(execution_count=None), "cell 2 is stored without having been run"),
    (lambda cells: cells[1].update(outputs=[new_output("error", ename="KeyError", evalue="x")]),
     "error: KeyError"),
    (lambda cells: cells[0].metadata.update(tags=[]), "0 code cells are tagged `parameters`"),
    (lambda cells: cells[1].metadata.update(tags=["parameters"]), "2 code cells are tagged `parameters`"),
    (lambda cells: cells[0].update(source="data = 1"), "must declare `report_dir`"),
    (lambda cells: cells[1].outputs[0].update(text="saved to /home/ada/x.csv"), "one machine: /home/ada"),
    (lambda cells: cells[1].update(outputs=[new_output("execute_result", {"text/html": "<b>/tmp/run3</b>"})]),
     "one machine: /tmp/run3"),
    (lambda cells: cells[1].update(source="\n".join(["x = 1"] * 25)), "cell 2 has 25 lines"),
    (lambda cells: cells[1].update(source="%time 1\nif data:\n    def f():\n        pass"),
     "cell 2 holds a `def`"),
    (lambda cells: cells[1].update(source="class A:\n    pass"), "cell 2 holds a `class`"),
])
def test_each_broken_rule_is_named_and_nothing_else(tmp_path, change, said):
    problems = stored(tmp_path / "a.ipynb", change)
    assert len(problems) == 1 and said in problems[0]


def test_a_file_that_is_no_notebook_is_a_problem(tmp_path):
    (tmp_path / "a.ipynb").write_text("nothing")
    assert "not a readable notebook" in check_stored(tmp_path / "a.ipynb")[0]


# --- Makefile

def make(*arguments):
    """Run make in the root, as a shell would: not as a child of the make that may run these tests."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True)


TARGETS = re.findall(r"^([a-z]+):.* ## ", (ROOT / "Makefile").read_text(), re.M)
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_planned_and_is_listed(target):
    planned = make("--dry-run", target)
    assert planned.returncode == 0, planned.stderr
    assert f"make {target} " in make().stdout


def test_every_target_has_its_line_of_help():
    phony = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)
    assert phony and phony[1].split() == TARGETS


@needs_make
def test_reproduce_hands_its_variables_on():
    given = ["DATA=books.csv", "PRESET=quick", "NAME=mine", "ARGS=-p epochs=2"]
    plan = make("--dry-run", "reproduce", *given).stdout
    for part in ('--data "books.csv"', '--preset "quick"', '--name "mine"', "-p epochs=2"):
        assert part in plan
    assert "--name" not in make("--dry-run", "reproduce").stdout


@needs_make
def test_setup_without_a_fitting_python_says_so():
    answer = make("--always-make", "setup", "PYTHON=no-such-python")
    assert answer.returncode != 0 and "needs Python 3.11 or newer; tried: no-such-python" in answer.stdout


def test_the_readme_names_only_targets_that_exist():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README yet")
    code = re.findall(r"```.*?```|`[^`\n]+`", readme.read_text(), re.S)  # in prose, "make" may mean anything
    assert set(re.findall(r"\bmake ([a-z]+)", "\n".join(code))) <= set(TARGETS)
