"""The README's commands run as they stand, and its table is the report's."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("nullrec")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the notebooks and a small data set of the kind that the README describes."""
    root = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree(ROOT / "reports" / "papers", root / "reports" / "papers")
    folder = root / "my-data"
    folder.mkdir()
    rows = [f"u{user}\ti{(user * 3 + step) % 12}\t{1_600_000_000 + user * 1000 + step * 7}"
            for user in range(20) for step in range(5)]
    names = re.search(r"^my-data/my-data.inter +(.*)$", README, re.M)[1].split()
    (folder / "my-data.inter").write_text("\n".join(["\t".join(names), *rows]) + "\n")
    random = np.random.default_rng(0)
    np.save(root / "ids.npy", random.standard_normal((60, 4)))
    np.save(root / "texts.npy", random.standard_normal((60, 6)))
    names = re.search(r"^my-data/my-data.item +(.*)$", README, re.M)[1].split()
    items = [f"i{item}\tthing number {item}\tuseful for task {item % 3}" for item in range(12)]
    (folder / "my-data.item").write_text("\n".join(["\t".join(names), *items]) + "\n")
    return root


def test_there_are_commands_to_run():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs_as_written(command, project):
    script = "import sys; from nullrec_lib.cli import app; sys.argv[0] = 'nullrec'; app()"
    done = subprocess.run([sys.executable, "-c", script, *command.split()[1:]], cwd=project, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_the_table_is_the_one_in_the_report():
    report = (ROOT / "reports/table3-shop/results.md").read_text(encoding="utf-8")
    table = [line for line in README.split("## Commands")[0].splitlines() if line.startswith("| ")]
    assert len(table) >= 9  # a header, its rule and the methods
    assert [line for line in table if line not in report.splitlines()] == []


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_house_is_in_the_order_of_its_imports():
    """What stands further down the README's list is imported by nothing further up."""
    house = README.split("nullrec_lib/\n")[1].split("```")[0]
    order = [name.removesuffix("/").removesuffix(".py") for name in re.findall(r"^  (\w+(?:/|\.py))", house, re.M)]
    assert {"data", "kernels", "methods", "backbones", "training", "experiments", "cli"} <= set(order)
    for above, name in enumerate(order):
        place = ROOT / "nullrec_lib" / name
        for file in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
            used = re.findall(r"^\s*(?:from|import) nullrec_lib(?:\.(\w+)| import (.+))", file.read_text("utf-8"), re.M)
            names = {part.split()[0] for one, many in used for part in (one or many).split(",")}
            assert {below for below in order[above + 1:] if below in names} == set(), file
