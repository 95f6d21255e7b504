"""The command: what it prints, what it returns, and one sentence for every mistake."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from nullrec_lib.cli import app

METRICS = {"R@10", "N@10", "M@10", "R@20", "N@20", "M@20"}
CONTRACT = {"best_epoch", "epochs", "seconds_per_epoch", "seconds_per_evaluation", "params_total",
            "params_trainable", "peak_memory_mb", "n_users", "n_items", "n_interactions"}
RUN = ["run", "--data", "shop-tiny", "--method", "base", "--epochs", "1"]
SMALL = ["--set", "width=16", "--set", "negatives=4"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs are stored under the current folder: here one of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def given(encoder):
    """Options that make a run small and spare it the language model."""
    return [*SMALL, "--set", f"encoder={encoder}"]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def last_line(result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


# run


@pytest.mark.parametrize("method", ["alphafuse", "popularity"])
def test_json_is_the_last_line_and_holds_the_contract(method, encoder):
    small = SMALL if method == "alphafuse" else []
    result = call("run", "--data", "shop-tiny", "--method", method, "--epochs", 2, *small,
                  "--set", f"encoder={encoder}", "--json")
    told = last_line(result)
    for part in ("test", "test_consistent", "valid", "valid_consistent"):
        assert set(told[part]) == METRICS
        assert all(0 <= value <= 1 for value in told[part].values())
        assert told[part]["R@20"] >= told[part]["N@20"] >= told[part]["M@20"] >= told[part]["M@10"]
    assert CONTRACT <= set(told)
    assert all(isinstance(told[name], (int, float)) and not isinstance(told[name], bool) for name in CONTRACT)
    assert (told["n_users"], told["n_items"], told["n_interactions"]) == (200, 120, 2096)
    assert told["epochs"] == (2 if method == "alphafuse" else 0)
    assert told["params_total"] >= told["params_trainable"] >= 0 and told["peak_memory_mb"] > 0
    assert (told["method"], told["seed"], told["split"]) == (method, 22, "cold-start")


def test_every_option_reaches_the_spec(encoder, tmp_path):
    options = {"--data": "shop-tiny-visible1", "--method": "llminit", "--split": "leave-one-out",
               "--backbone": "sasrec", "--seed": 7, "--epochs": 1, "--out": tmp_path / "mine", "--threads": 2,
               "--device": "cpu"}
    fields = {"encoder": encoder, "width": 16, "keep": "last:6", "lr": 0.01}
    words = [word for pair in options.items() for word in pair]
    words += [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    told = last_line(call("run", *words, "--json"))
    named = ("data", "method", "split", "backbone", "seed", "epochs")
    wanted = fields | {name: options[f"--{name}"] for name in named}
    assert {name: told["spec"][name] for name in wanted} == wanted
    assert (told["threads"], told["device"]) == (2, "cpu")
    assert (tmp_path / "mine" / "result.json").exists() and not (tmp_path / "runs").exists()
    torch.set_num_threads(1)


def test_without_json_it_speaks_to_people(given):
    result = call(*RUN, *given)
    assert result.exit_code == 0
    for part in ("200 users, 120 items, 2,096 interactions", "authors  R@10 0.", "consistent  R@10 0.",
                 "best epoch 1"):
        assert part in result.stdout


def test_the_same_command_twice_does_the_work_once(given, tmp_path, monkeypatch):
    from nullrec_lib import training

    first = last_line(call(*RUN, *given, "--json"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [first["key"]]
    monkeypatch.setattr(training, "_train_epoch", None)
    assert last_line(call(*RUN, *given, "--json")) == first


def test_out_goes_on_with_a_run_and_returns_a_finished_one(given, tmp_path, monkeypatch):
    from nullrec_lib import training

    whole = last_line(call(*RUN, *given, "--epochs", 3, "--out", "whole", "--json"))
    real = training._train_epoch

    def stops(model, train, optimiser, batch_size, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return real(model, train, optimiser, batch_size, epoch)

    monkeypatch.setattr(training, "_train_epoch", stops)
    assert call(*RUN, *given, "--epochs", 3, "--out", "pieces").exit_code != 0
    assert (tmp_path / "pieces" / "checkpoint.safetensors").exists()

    epochs = []
    monkeypatch.setattr(training, "_train_epoch", lambda *args: epochs.append(args[-1]) or real(*args))
    again = last_line(call(*RUN, *given, "--epochs", 3, "--out", "pieces", "--json"))
    assert epochs == [3]
    assert [again[part] for part in ("test", "valid", "best_epoch")] == [
        whole[part] for part in ("test", "valid", "best_epoch")]
    assert last_line(call(*RUN, *given, "--epochs", 3, "--out", "pieces", "--json")) == again
    assert epochs == [3]

    refused = call(*RUN, *given, "--epochs", 2, "--out", "pieces")
    assert refused.exit_code == 2 and "holds another run (epochs differ)" in refused.stderr


def test_a_quick_run_leaves_stderr_empty(given):
    """Bars are for what takes longer than two seconds."""
    assert call(*RUN, *given, "--json").stderr == ""


def test_a_run_that_diverges_is_one_sentence(given):
    result = call(*RUN, *given, "--set", "lr=1e30")
    assert result.exit_code == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("nullrec: the run failed: epoch 1: the training loss is")


# spectrum, describe


def test_spectrum(encoder):
    told = last_line(call("spectrum", "--data", "shop-tiny", "--encoder", encoder, "--width", 16, "--json"))
    assert (told["data"], told["n_items"], told["dimensions"], told["width"]) == ("shop-tiny", 120, 48, 16)
    values = told["singular_values"]
    assert len(values) == 48 and values == sorted(values, reverse=True) and min(values) >= 0
    assert told["scale"] == pytest.approx(48**0.5)
    assert told["variance_kept"] == pytest.approx(sum(values[:16]) / sum(values))
    for row in told["nullities"]:
        limit = row["value"] * (sum(values) / 48 if row["rule"] == "relative_threshold" else 1)
        assert row["full_nullity"] == sum(value <= limit for value in values)
        assert row["nullity"] == sum(value <= limit for value in values[:16])
    doubled = last_line(call("spectrum", "--data", "shop-tiny", "--encoder", encoder, "--width", 16,
                             "--scale", 2 * 48**0.5, "--json"))
    assert doubled["singular_values"] == pytest.approx([4 * value for value in values], rel=1e-4, abs=1e-9)
    assert "nullity" in call("spectrum", "--data", "shop-tiny", "--encoder", encoder, "--width", 16).stdout


def test_describe():
    told = last_line(call("data", "describe", "shop-tiny", "--json"))
    assert (told["n_users"], told["n_items"], told["n_interactions"]) == (200, 120, 2096)
    assert told["clock"] == "time"
    kept = last_line(call("data", "describe", "shop-tiny", "--keep", "first:3", "--json"))
    assert kept["n_interactions"] == 600 and kept["longest"] == 3
    assert "2,096" in call("data", "describe", "shop-tiny").stdout


def test_describe_prints_the_table_after_core_and_keep():
    asked = ("data", "describe", "shop-tiny", "--core", "6", "--keep", "last:4")
    lines = call(*asked).stdout.splitlines()
    assert lines[-3].split() == "data users items interactions density % sparsity % average length".split()
    told = last_line(call(*asked, "--json"))
    # Cores come first, whole users are counted there: the cut leaves four to each.
    assert (told["n_users"], told["n_items"], told["n_interactions"]) == (186, 114, 4 * 186)
    density = 100 * 4 / 114
    assert lines[-2].split() == ["shop-tiny", "186", "114", "744", f"{density:.4f}", f"{100 - density:.4f}", "4.0"]
    assert "sparsity" in lines[-1]
    assert call("data", "describe", "shop-tiny", "--core", "99").exit_code == 2


# Mistakes

MISTAKES = [
    (["--data", "nowhere"], "nowhere"),
    (["--method", "nothing"], "method: 'nothing' is not one of base"),
    (["--backbone", "nothing"], "backbone"),
    (["--split", "nothing"], "split: 'nothing'"),
    (["--epochs", "0"], "epochs"),
    (["--seed", "-1"], "seed"),
    (["--seed", "99999999999999999999999"], "seed"),
    (["--threads", "0"], "threads"),
    (["--device", "abacus"], "device"),
    (["--set", "wdth=3"], "width"),
    (["--set", "lr"], "key=value"),
    (["--set", "lr=fast"], "lr"),
    (["--set", "lr=0"], "lr"),
    (["--set", "lr=inf"], "lr"),
    (["--set", "seed=3"], "option of its own"),
    (["--set", "null_dim=4"], "base on sasrec does not read it"),
    (["--set", "heads=3"], "heads: 3 does not divide"),
    (["--set", "dropout=1"], "dropout"),
    (["--set", "temperature=0"], "temperature"),
    (["--set", "temperature=inf"], "temperature"),
    (["--set", "negatives=-1"], "negatives"),
    (["--set", "batch_size=0"], "batch_size"),
    (["--set", "exclude_history=1"], "bool"),
    (["--set", "keep=3"], "keep"),
    (["--set", "clock=noon"], "clock"),
    (["--set", "min_history=-1"], "min_history"),
    (["--set", "min_history=99"], "without an example"),
    (["--set", "clock=position", "--set", "split_seed=-1"], "split_seed"),
    (["--set", "scale=0"], "scale"),
    (["--set", "scale=nan"], "scale"),
    (["--set", "select=best"], "select"),
    (["--set", "encoder=missing.safetensors"], "missing.safetensors"),
    (["--set", "encoder=empty-folder"], "encoder"),
    (["--out", "a-file"], "a-file"),
]


def assert_one_sentence(result, said: str) -> None:
    assert result.exit_code == 2, (result.exit_code, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("nullrec: ") and said in lines[0], result.stderr
    assert "Traceback" not in result.output and result.stdout == ""


@pytest.mark.parametrize("wrong, said", MISTAKES, ids=[" ".join(wrong) for wrong, _ in MISTAKES])
def test_a_mistake_in_run_is_one_sentence(wrong, said, given, tmp_path):
    (tmp_path / "a-file").write_text("not a folder")
    (tmp_path / "empty-folder").mkdir()
    own = [] if any("encoder=" in word for word in wrong) else given[-2:]
    assert_one_sentence(call(*RUN, *SMALL, *own, *wrong, "--json"), said)


@pytest.mark.parametrize("wrong, said", [
    (["width=49"], "width"), (["null_dim=99"], "null_dim"), (["threshold=-1"], "threshold"),
    (["threshold=1", "null_dim=3"], "exactly one"), (["inject=both"], "inject"), (["init=ones"], "init"),
    (["cold=warm"], "cold"), (["weighting=none"], "weighting"), (["basis=any"], "basis"),
    (["standardise=some"], "standardise"), (["null_dim=16", "inject=replace", "init=zeros"], "init"),
], ids=str)
def test_a_mistake_in_alphafuse_is_one_sentence(wrong, said, given):
    sets = [word for one in wrong for word in ("--set", one)]
    result = call("run", "--data", "shop-tiny", "--method", "alphafuse", "--epochs", 1, *given, *sets)
    assert_one_sentence(result, said)


@pytest.mark.parametrize("arguments, said", [
    (["spectrum", "--data", "nowhere"], "nowhere"),
    (["spectrum", "--data", "shop-tiny", "--encoder", "missing.safetensors"], "missing.safetensors"),
    (["spectrum", "--data", "shop-tiny", "--threads", "0"], "threads"),
    (["data", "describe", "nowhere"], "nowhere"),
    (["data", "describe", "shop-tiny", "--keep", "some"], "keep"),
    (["reproduce", "--data", "shop-tiny"], "no notebooks"),
    (["reproduce", "-p", "epochs"], "name=value"),
], ids=str)
def test_a_mistake_elsewhere_is_one_sentence(arguments, said):
    assert_one_sentence(call(*arguments), said)


@pytest.mark.parametrize("option, said", [
    ("--width=0", "width"), ("--width=49", "width"), ("--scale=0", "scale"),
    ("--scale=nan", "scale"),
])
def test_a_number_out_of_range_in_spectrum_is_one_sentence(option, said, encoder):
    assert_one_sentence(call("spectrum", "--data", "shop-tiny", "--encoder", encoder, option), said)


@pytest.mark.parametrize("wrong, said", [
    (["-p", "epocs=3"], "no selected notebook has a parameter `epocs`; did you mean `epochs`?"),
    (["-p", "data=x"], "is not set as a parameter"),
    (["-p", "epochs=[3]"], "epochs: [3] is not a single value"), (["-p", "epochs=none"], "epochs: "),
    (["-p", "epochs=TRUE"], "epochs: True"),
    (["--preset", "slow"], "preset"), (["--only", "99"], "99"), (["--data", "nowhere"], "nowhere"),
], ids=str)
def test_a_mistake_in_reproduce_is_one_sentence_and_runs_nothing(wrong, said, tmp_path):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell('data = "shop"\nreport_dir = "."\nepochs = 1\n')]
    book.cells[0].metadata["tags"] = ["parameters"]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(book, tmp_path / "notebooks" / "01_one.ipynb")
    data = [] if "--data" in wrong else ["--data", "shop-tiny"]
    assert_one_sentence(call("reproduce", *data, *wrong), said)
    assert not (tmp_path / "reports").exists()


# Help


def commands(command=None, path=()):
    command = command or get_command(app)
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


HELP = [pytest.param(path, command, id=" ".join(["nullrec", *path])) for path, command in commands()]


@pytest.mark.parametrize("path, command", HELP)
def test_help_names_every_option(path, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERM", "dumb")
    result = call(*path, "--help")
    assert result.exit_code == 0 and "Usage:" in result.stdout
    for parameter in command.params:
        named = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name.upper()
        assert named.lower() in result.stdout.lower(), named
        assert parameter.help and parameter.help.split()[0] in result.stdout, named
    for name in getattr(command, "commands", {}):
        assert name in result.stdout


def test_help_of_a_run_lists_the_methods():
    from nullrec_lib.backbones import BACKBONES
    from nullrec_lib.methods import METHODS, RULES

    said = {parameter.name: parameter.help for parameter in get_command(app).commands["run"].params}
    for name in [*METHODS, *RULES]:
        assert name in said["method"], name
    assert all(name in said["backbone"] for name in BACKBONES)


# A real process


def test_as_a_program(encoder, tmp_path):
    """Status, streams and folders as a shell sees them."""
    script = "import sys; from nullrec_lib.cli import app; sys.argv[0] = 'nullrec'; app()"
    words = [*RUN, *SMALL, "--set", f"encoder={encoder}", "--json"]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, text=True, timeout=120,
                          capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert CONTRACT <= set(told) and set(told["test"]) == METRICS
    assert (tmp_path / "runs" / told["key"] / "result.json").exists()
