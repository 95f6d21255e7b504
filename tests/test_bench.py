"""The bench: nothing wrong is timed, variants take turns, and the reference is the same model as ours."""

import copy
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.main import get_command
from typer.testing import CliRunner

from nullrec_lib import bench
from nullrec_lib.bench import case, cases, catalogue, ceilings, engine, memory, prefixes, reference, report, timing
from nullrec_lib.cli import app
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.infonce_cpu import InfoNCE

CEILINGS = ceilings.Ceilings({2**20: 100.0, 2**24: 10.0}, {"float32": 50.0, "float64": 25.0}, [])


def operation(fast=lambda inputs, impl: inputs.x * 2, **chosen) -> case.Operation:
    """Doubling n numbers."""
    settings = {
        "name": "double", "make": lambda device, n: SimpleNamespace(x=torch.rand(n, device=device)),
        "naive": lambda inputs: inputs.x + inputs.x, "fast": fast, "plain": lambda inputs: torch.mul(inputs.x, 2),
        "moved": lambda n: 8 * n, "flops": lambda n: n, "quick": ({"n": 1000},),
    }
    return case.Operation(**settings | chosen)


def measured(made: case.Operation) -> case.Measured:
    return case.measure(made.cases("cpu", quick=True)[0], "cpu", 0.02, CEILINGS)


@pytest.fixture
def hasty(monkeypatch):
    """Little time for everything, and small matrices."""
    monkeypatch.setattr(bench, "SECONDS", {True: (0.02, 0.05), False: (0.02, 0.05)})
    monkeypatch.setattr(ceilings, "SECONDS", {True: 0.05})
    monkeypatch.setattr(ceilings, "COPIES", {"cpu": {True: (1, 4)}})
    monkeypatch.setattr(ceilings, "MATMULS", {"cpu": {True: 64}})
    monkeypatch.setattr(cases, "OPERATIONS", (operation(),))
    monkeypatch.setattr(cases, "NAMES", ("double",))
    monkeypatch.setattr(memory, "SIZES", {True: {"N": 500, "B": 40, "d": 8}})
    monkeypatch.setattr(bench, "NAMES", ("double", "memory", "catalogue", "prefixes", "engine", *engine.METHODS))


# Cases


def test_variants_that_agree_are_timed():
    found = measured(operation())
    assert [row["variant"] for row in found.rows] == ["naive", "plain", "cpu"]
    assert found.failures == []
    for row in found.rows:
        assert row["check"] == "ok" and row["shape"] == "n 1,000" and row["repeats"] >= timing.LEAST
        assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"]
        assert row["gb_per_s"] == pytest.approx(8000 / row["median_s"] / 1e9)
        assert row["share_of_ceiling"] == pytest.approx(80e-9 / row["median_s"])


def raises(inputs, impl):
    raise RuntimeError("an index\nout of range")


@pytest.mark.parametrize("fast, said", [
    (lambda inputs, impl: inputs.x * 2.001, "off by 0.0005 of its largest number"),
    (lambda inputs, impl: inputs.x * torch.nan, "off by nan"),
    (lambda inputs, impl: inputs.x[1:] * 2, "has shape (999,) instead of (1000,)"),
    (lambda inputs, impl: (inputs.x, inputs.x), "2 tensors came instead of 1"),
    (raises, "RuntimeError: an index out of range"),
])
def test_a_wrong_kernel_is_refused_and_nothing_is_timed(fast, said, monkeypatch):
    monkeypatch.setattr(case, "take_turns", None)
    found = measured(operation(fast))
    assert len(found.failures) == 1 and said in found.failures[0]
    assert found.failures[0].startswith("double (n 1,000): cpu failed: ")
    assert {row["variant"]: row["check"][:6] for row in found.rows} == {"naive": "ok", "plain": "ok", "cpu": "failed"}
    assert all("median_s" not in row for row in found.rows)


def test_whole_numbers_must_be_equal():
    counts = lambda last: torch.tensor([1, 2, last])
    assert case.close(counts(3), counts(3)) is None
    assert "differs in 1 of 3 whole numbers" in case.close(counts(3), counts(4))


def test_a_gpu_gets_its_own_shapes_and_variant():
    made = operation(full=({"n": 10},), gpu=({"n": 20},), fast_devices=("cuda",))
    shapes = lambda *asked: [found.shape["n"] for found in made.cases(*asked)]
    assert shapes("cpu", True) == [1000] and shapes("cpu", False) == [1000, 10] and shapes("cuda", False)[2] == 20
    assert list(made.cases("cpu", True)[0].variants) == ["naive", "plain"]
    assert list(made.cases("cuda", True)[0].variants) == ["naive", "plain", "triton"]


@pytest.mark.parametrize("made", cases.OPERATIONS, ids=cases.NAMES)
def test_the_stated_least_work_is_a_number_at_every_shape(made):
    for shape in made.quick + made.full + made.gpu:
        assert made.moved(**shape) > 0 and made.flops(**shape) >= 0


def test_rows_that_are_met_twice_are_read_once():
    random = np.random.default_rng(0)
    met = np.mean([len(np.unique(random.integers(0, 50, 120))) for _ in range(2000)])
    assert cases.distinct(50, 120) == pytest.approx(met, rel=0.01) and cases.distinct(10**9, 7) == pytest.approx(7)


def test_the_stored_shares_are_of_work_that_cannot_be_avoided():
    """What is told as the least that any implementation must do cannot take longer than what was done."""
    assert (stored := list(Path("reports/bench").glob("*/results.csv")))
    for path in stored:
        shares = pd.read_csv(path).set_index(["case", "shape", "variant"])["share_of_ceiling"].dropna()
        assert (shares < 1.15).all(), shares[shares >= 1.15]


@pytest.mark.parametrize("name", engine.TARGETS)
def test_the_least_work_of_a_step_is_no_more_than_what_we_do(name, encoder):
    made = engine.prepare_case(name, "cpu", "shop-tiny", encoder=encoder, width=16, negatives=8)
    moved, flops = engine.least_work(made)
    ours = engine.Ours(made.model, made.train, made.spec.batch_size, made.spec.lr)
    ours.batches = iter([made.train.batch(torch.arange(made.spec.batch_size))])
    with FlopCounterMode(display=False) as counted:
        ours.step()
    kernel = 6 * made.spec.batch_size * 9 * sum(made.model.method.widths)  # InfoNCE, which the counter cannot see
    assert 0.1 * counted.get_total_flops() < flops - kernel <= 1.02 * counted.get_total_flops()
    assert moved > 4 * 8 * made.model.parameter_counts()["params_trainable"]


def test_kernels_are_opaque_within_a_block_only(encoder):
    made = engine.prepare_case("base", "cpu", "shop-tiny", encoder=encoder, width=16, negatives=8, dropout=0.0)
    batch = made.train.batch(torch.arange(8))
    before = InfoNCE.apply
    losses = []
    for block in (nullcontext(), engine.opaque_kernels()):
        with block, torch.random.fork_rng():
            losses.append(made.model.loss(batch))
            inside = InfoNCE.apply
    assert losses[0] == losses[1] and inside != before == InfoNCE.apply


def test_targets_stand_beside_what_was_measured():
    row = {"data": "ml-100k", "keep": "last:50", "engine": "nullrec", "training_examples": 30859, "step_s": 0.004,
           "floor_s": 0.002, "authors_epoch_s": 4.7}
    rows = [row | {"method": "alphafuse", "epoch_s": 0.47}, row | {"method": "morec", "epoch_s": 0.47},
            row | {"method": "base", "epoch_s": 0.47}, row | {"method": "alphafuse", "epoch_s": 1, "engine": "reference"}]
    text = report.text(pd.DataFrame(columns=report.RESULTS), pd.DataFrame(rows, columns=report.ENGINE),
                       pd.DataFrame(columns=report.PROFILE))
    lines = text.split("## Targets of training")[1].split("##")[0].strip().splitlines()[2:4]
    cells = [[cell.strip() for cell in line.split("|")[3:6]] for line in lines]
    assert cells == [["10", "10", "met"], ["20", "10", "missed"]]


# Timing


def test_variants_take_turns():
    order = []
    works = {name: lambda name=name: (order.append(name), time.sleep(0.003)) for name in "ab"}
    found = timing.take_turns(works, 0.05)
    repeats = found["a"].repeats
    assert repeats == found["b"].repeats >= timing.LEAST
    assert order[-2 * repeats :] == ["a", "b"] * repeats


def test_one_slow_variant_is_timed_once():
    found = timing.take_turns({"slow": lambda: time.sleep(0.03), "fast": lambda: time.sleep(0.001)}, 0.02)
    assert found["slow"].repeats == 1 and found["fast"].repeats >= timing.LEAST


def test_short_calls_are_made_several_times_per_reading():
    count = 0

    def work():
        nonlocal count
        count += 1

    found = timing.take_turns({"short": work}, 0.01)["short"]
    assert count > 20 * found.repeats and found.median_s < 1e-4


def test_extra_memory_is_what_a_call_takes():
    if (taken := timing.extra_memory_mb(lambda: None)) is None:
        pytest.skip("no high-water mark here")
    assert taken < 4
    # In a process of its own, as a bench is: this one has freed so much that a call may find its memory at hand.
    code = ("import torch; from nullrec_lib.bench.timing import extra_memory_mb; "
            "print(extra_memory_mb(lambda: torch.ones(32 * 2**18).add(1)))")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(said) == pytest.approx(64, abs=4)


def test_threads_are_as_asked_within_the_block_only():
    before = torch.get_num_threads()
    with timing.cpu_threads(2):
        assert torch.get_num_threads() == 2
    with timing.cpu_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="threads: 0 is below 1"):
        with timing.cpu_threads(0):
            pass


def test_a_share_compares_with_the_nearest_larger_copy_or_with_arithmetic():
    assert CEILINGS.share(1e-3, moved=1e6, flops=0) == pytest.approx(1e-5 / 1e-3)  # fits 1 MiB: 100 GB/s
    assert CEILINGS.share(1e-3, moved=2e6, flops=0) == pytest.approx(2e-4 / 1e-3)  # 16 MiB: 10 GB/s
    assert CEILINGS.share(1e-3, moved=1e9, flops=0) == pytest.approx(0.1 / 1e-3)
    assert CEILINGS.share(1e-3, moved=1e6, flops=5e9) == pytest.approx(0.1 / 1e-3)
    assert CEILINGS.share(1e-3, moved=1e6, flops=5e9, kind="float64") == pytest.approx(0.2 / 1e-3)


# The reference


@pytest.mark.parametrize("name", reference.KINDS)
def test_the_reference_has_our_loss_and_gradients(name, encoder, monkeypatch):
    from nullrec_lib.backbones import sasrec
    from nullrec_lib.data import negatives

    more = {"unisrec": {"adaptor_dropout": 0.0}, "llm-esr": {"similar_users": 4}}.get(name, {})
    made = engine.prepare_case(name, "cpu", "shop-tiny", encoder=encoder, width=16, negatives=8, dropout=0.0, **more)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)  # UniSRec's gates
    batch = made.train.batch(torch.arange(0, len(made.train), 3))
    drawn = negatives.draw(batch.target, made.model.method.n_items, 8)
    for module in (sasrec, negatives):
        monkeypatch.setattr(module, "draw", lambda *a, **b: drawn, raising=False)
    similar = batch.context.get("similar")
    ours, theirs = made.model.loss(batch), made.reference.loss(batch.history, batch.target, drawn, similar)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)

    ours.backward()
    theirs.backward()
    # A model whose weights are our gradients makes a reference whose weights they are: names meet in one place only.
    gradients = copy.deepcopy(made.model)
    for to, parameter in zip(gradients.parameters(), made.model.parameters()):
        to.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
    for (which, expected), found in zip(reference.like(gradients, name).named_parameters(), made.reference.parameters()):
        if expected.requires_grad:
            assert found.grad is not None, which
            torch.testing.assert_close(found.grad, expected.data, rtol=1e-4, atol=1e-6, msg=lambda m: f"{which}: {m}")


@pytest.mark.parametrize("name", ["base", "llm-esr"])
def test_the_reference_learns_and_ranks_as_we_do(name, encoder):
    from nullrec_lib.evaluation import metrics, rank_all
    from nullrec_lib.training import Scorer

    more = {"similar_users": 4} if name == "llm-esr" else {}
    made = engine.prepare_case(name, "cpu", "shop-tiny", encoder=encoder, width=16, negatives=8, **more)
    valid = reference.as_lists(made.valid)
    ours = metrics(rank_all(Scorer(made.model), made.valid)["authors"])
    theirs = reference.evaluate(made.reference, valid)
    assert theirs == pytest.approx({name: ours[name] for name in theirs}, abs=2 / len(valid))  # ties
    before = copy.deepcopy(made.reference.state_dict())
    trainer = reference.Trainer(made.reference, reference.as_lists(made.train), 256, 8, 1e-3)
    for _ in range(len(made.train) // 256 + 2):  # into a second epoch
        trainer.step()
    assert not torch.equal(before["id.weight"], made.reference.state_dict()["id.weight"])


# Reports


def test_new_rows_replace_their_own_case_only(tmp_path):
    path, columns = tmp_path / "results.csv", ["threads", "case", "median_s"]
    row = lambda case, seconds: {"threads": 1, "case": case, "median_s": seconds}
    report.merge(path, [row("a", 1.0), row("a", 2.0), row("b", 3.0)], columns, ["threads", "case"]).to_csv(path)
    merged = report.merge(path, [row("a", 9.0)], columns, ["threads", "case"])
    assert merged[["case", "median_s"]].to_numpy().tolist() == [["b", 3.0], ["a", 9.0]]
    assert len(report.merge(path, [], columns, ["threads", "case"])) == 3
    later = report.merge(path, [], [*columns, "floor_s"], ["threads", "case"])  # a column that the stored table has not
    assert len(later) == 3 and later["floor_s"].isna().all()


def test_a_quick_run_from_end_to_end(hasty, encoder, tmp_path):
    before = torch.random.get_rng_state()
    found = bench.run(True, ("double", "alphafuse"), data="shop-tiny", report_dir=tmp_path, device="cpu",
                      encoder=encoder, width=16, negatives=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.failures == [] and found.folder.parent == tmp_path and found.folder.name.endswith("-quick")
    assert {path.name for path in found.folder.iterdir()} == {
        "results.csv", "engine.csv", "profile.csv", "results.md", "bench.png", "bench.svg"}
    results = pd.read_csv(found.folder / "results.csv")
    assert list(results) == report.RESULTS and set(results["variant"]) >= {"copy", "product float32", "naive", "cpu"}
    assert results["median_s"].notna().all() and set(results["threads"]) == {1}
    trained = pd.read_csv(found.folder / "engine.csv")
    assert list(trained) == report.ENGINE and list(trained["engine"]) == ["reference", "nullrec", "nullrec, bf16"]
    assert (trained["epoch_s"] / trained["step_s"] / trained["steps"]).tolist() == pytest.approx([1, 1, 1], rel=1e-4)
    profiled = pd.read_csv(found.folder / "profile.csv")
    assert list(profiled) == report.PROFILE and 0 < profiled["share"].sum() <= 1
    text = (found.folder / "results.md").read_text()
    for part in ("## What the machine can do", "| double | n 1,000 | cpu |", "| shop-tiny | alphafuse | nullrec |"):
        assert part in text

    again = bench.run(True, ("double",), report_dir=tmp_path, device="cpu")
    assert len(pd.read_csv(again.folder / "results.csv")) == len(results)
    assert len(pd.read_csv(again.folder / "engine.csv")) == 3


def test_a_short_run_leaves_the_slow_references_out(encoder):
    assert set(reference.SLOW) < set(reference.KINDS)
    engines = {}
    for name in ("base", "unisrec"):
        made = engine.prepare_case(name, "cpu", "shop-tiny", encoder=encoder, width=16, negatives=8)
        engines[name] = {row["engine"]: row for row in engine.measure(name, made, "cpu", 0.05, CEILINGS)}
    assert list(engines["base"]) == ["reference", "nullrec", "nullrec, bf16"]
    assert list(engines["unisrec"]) == ["nullrec", "nullrec, bf16"]
    assert engines["unisrec"]["nullrec"]["floor_s"] > 0 and engines["unisrec"]["nullrec, bf16"]["floor_s"] is None


def test_larger_batches_make_an_epoch_of_fewer_steps(encoder, monkeypatch):
    monkeypatch.setattr(engine, "SEEDED", ("rlmrec-con",))  # without a reference nothing is compiled
    case = engine.prepare_case("rlmrec-con", "cpu", "shop-tiny", encoder=encoder, width=16, negatives=8, batch_size=50)
    rows = {row["engine"]: row for row in engine.measure("rlmrec-con", case, "cpu", 0.05, CEILINGS, thorough=True)}
    large = rows["nullrec, batches of 250"]
    assert rows["nullrec"]["steps"] == -(-len(case.train) // 50) and large["steps"] == -(-len(case.train) // 250)
    assert large["epoch_s"] == pytest.approx(large["step_s"] * large["steps"])


def test_published_figures_stand_beside_their_data_only():
    rows = [{"data": "ml-100k", "keep": "last:50", "method": "base", "engine": "nullrec", "training_examples": 30859,
             "evaluated_examples": 3723, "steps": 121, "step_s": 0.01, "epoch_s": 1.21, "authors_epoch_s": 4.7}]
    made = lambda rows: report.text(pd.DataFrame(columns=report.RESULTS), pd.DataFrame(rows, columns=report.ENGINE),
                                    pd.DataFrame(columns=report.PROFILE))
    assert "authors' s per epoch" in made(rows) and "| 4.7 |" in made(rows)
    assert "authors' s per epoch" not in made([rows[0] | {"authors_epoch_s": None}])


# The command


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("wrong, said", [
    (["--only", "infonse"], "--only infonse: there is no such case (meant infonce?); there are dropout, "),
    (["--threads", "0"], "threads: 0 is below 1"),
    (["--device", "tpu"], "device: 'tpu' is not one of auto, cpu, cuda"),
    (["--only", "base", "--data", "nowhere"], "data: 'nowhere' is neither a folder nor a generated set"),
])
def test_a_mistake_is_one_sentence(wrong, said, tmp_path):
    result = call("bench", "--quick", "--report-dir", tmp_path, *wrong)
    assert result.exit_code == 2 and result.stderr.startswith(f"nullrec: {said}") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_is_told_and_is_the_status(hasty, tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "OPERATIONS", (operation(lambda inputs, impl: inputs.x),))
    result = call("bench", "--quick", "--only", "double", "--device", "cpu", "--report-dir", tmp_path, "--json")
    told = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == 1 and "nullrec: double (n 1,000): cpu failed: result 0 is off by" in result.stderr
    assert len(told["failures"]) == 1 and {"folder", "results", "engine", "failures"} == set(told)
    assert "## Failed checks: not timed" in (next(tmp_path.iterdir()) / "results.md").read_text()


def test_help_names_every_case():
    said = {parameter.name: parameter.help for parameter in get_command(app).commands["bench"].params}["only"]
    assert all(name in said for name in bench.NAMES)


def test_a_step_by_the_number_of_items():
    rows = catalogue.measure(3000, "cpu", 0.1)
    assert [row["engine"] for row in rows] == ["all rows", "rows read"]
    assert all(row["step_s"] > 0 and row["data"] == "3,000 made-up items" for row in rows)
    text = report.text(pd.DataFrame(columns=report.RESULTS), pd.DataFrame(rows, columns=report.ENGINE).assign(
        machine="m", torch="2", threads=1, date="d"), pd.DataFrame(columns=report.PROFILE))
    assert "| 3,000 made-up items | base | rows read |" in text


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_step_by_how_histories_are_read(blocks, encoder):
    state = torch.random.get_rng_state()
    rows = prefixes.measure(blocks, "cpu", 0.1, "shop-tiny", None, encoder=encoder, width=16)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [row["engine"] for row in rows] == ["one by one", "together"]
    assert {row["method"] for row in rows} == {"alphafuse, 1 block" if blocks == 1 else "alphafuse, 2 blocks"}
    assert all(row["step_s"] > 0 and row["epoch_s"] == pytest.approx(row["step_s"] * row["steps"]) for row in rows)
    assert abs(rows[0]["steps"] - rows[1]["steps"]) <= 1


def test_all_users_are_ranked_in_one_call_and_some_are_checked(hasty, monkeypatch):
    row = memory.measure("cpu", True, CEILINGS)
    assert row["check"] == "ok" and row["shape"] == "N 500 B 40 d 8" and row["median_s"] > 0
    assert row["gflop_per_s"] == pytest.approx(2 * 500 * 40 * 8 / row["median_s"] / 1e9)
    right = memory.variants.rank
    monkeypatch.setattr(memory.variants, "rank", lambda i, impl: tuple(place + 5 for place in right(i, impl)))
    row = memory.measure("cpu", True, CEILINGS)
    assert row["check"].startswith("failed: 32 of 32 ranks are off") and "median_s" not in row
