"""Fit: the same to the last bit however often it is killed, and it stops where validation says."""

import copy
import json
import multiprocessing
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nullrec_lib import training
from nullrec_lib.backbones import BACKBONES
from nullrec_lib.data.examples import Examples
from nullrec_lib.errors import InputError
from nullrec_lib.experiments import run
from nullrec_lib.kernels import attend, dropout, infonce, lookup
from nullrec_lib.kernels.lookup import Items
from nullrec_lib.methods import METHODS, runs_on
from nullrec_lib.preparing import build, prepare
from nullrec_lib.spec import Spec
from nullrec_lib.training import CHECKPOINT, HISTORY, Optimiser, Scorer, fit

FIT = dict(lr=1e-3, batch_size=256, epochs=3, patience=9, select="authors", seed=5)
TIMES = ("seconds", "evaluation_seconds")


@pytest.fixture
def parts(tiny):
    """A fresh model of made-up embeddings, and its training and validation examples."""
    spec = tiny()
    prepared = prepare(spec)
    return build(spec, prepared), *(Examples(prepared.split, part, 10) for part in ("train", "valid"))


def told(history: list[dict]) -> list[dict]:
    """A history without its clock."""
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in history]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def scripted(monkeypatch):
    """`scripted(authors, consistent)`: validation N@20 of the epochs by protocol, whatever the model does."""

    def script(authors: list[float], consistent: list[float] | None = None) -> None:
        figures = [value for pair in zip(authors, consistent or authors, strict=True) for value in pair]
        feed = iter(figures)
        monkeypatch.setattr(training, "metrics", lambda ranks: {"N@20": next(feed)})

    return script


# Determinism


def fitted(tiny, folder, **chosen):
    spec = tiny()
    prepared = prepare(spec)
    model = build(spec, prepared)
    train, valid = (Examples(prepared.split, part, 10) for part in ("train", "valid"))
    return fit(model, train, valid, folder, **FIT | chosen), model


def test_the_same_seed_gives_the_same_bits(tiny, tmp_path):
    torch.manual_seed(1)
    one, ours = fitted(tiny, tmp_path / "one")
    torch.manual_seed(2)  # what happened outside before does not matter
    torch.rand(7)
    two, theirs = fitted(tiny, tmp_path / "two")
    other, different = fitted(tiny, tmp_path / "other", seed=6)
    assert told(one.history) == told(two.history) and one.best_epoch == two.best_epoch
    assert same(weights(ours), weights(theirs))
    assert told(one.history) != told(other.history) and not same(weights(ours), weights(different))


def test_epochs_differ_from_each_other(tiny, tmp_path, monkeypatch):
    orders = []
    real = Examples.batch
    spy = lambda self, index, count=None: orders.append(index.tolist()) or real(self, index, count)
    monkeypatch.setattr(Examples, "batch", spy)
    fitted(tiny, tmp_path, epochs=2, batch_size=2000)
    whole = [order for order in orders if len(order) > 1000]
    assert len(whole) == 2 and whole[0] != whole[1]
    assert sorted(whole[0]) == sorted(whole[1]) == list(range(len(whole[0])))
    assert whole[0] != sorted(whole[0])


def test_random_state_outside_is_untouched(parts, tmp_path, tiny):
    model, train, valid = parts
    np.random.seed(3)
    torch.manual_seed(3)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    build(tiny(), prepare(tiny()))
    fit(model, train, valid, tmp_path, **FIT)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()


# Killed and going on


def slow(tiny, **chosen):
    """Some hundred steps per epoch, so that a kill falls into the middle of one."""
    return tiny(batch_size=16, negatives=64, epochs=6, patience=6, null_dim=5, **chosen)


def epochs_done(folder) -> int:
    try:
        with safe_open(folder / CHECKPOINT, "pt") as handle:
            return len(json.loads(handle.metadata()["about"])["history"])
    except FileNotFoundError:
        return 0


def test_a_run_killed_again_and_again_ends_like_one_left_alone(tiny, tmp_path):
    spec = slow(tiny)
    alone = run(spec, folder=tmp_path / "alone")
    # a server process imports everything once, and each run is forked from it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nullrec_lib.experiments"])
    killed = tmp_path / "killed"
    seen = []
    for epoch in (1, 2, 4):
        process = context.Process(target=run, args=(spec,), kwargs={"folder": killed})
        process.start()
        deadline = time.monotonic() + 60
        while epochs_done(killed) < epoch and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -9, "the run ended before it could be killed"
        seen.append(epochs_done(killed))
        assert not (killed / "result.json").exists()
    assert seen == sorted(seen) and 1 <= seen[0] < seen[-1] < 6
    again = run(spec, folder=killed)

    for name in again.keys() - {"seconds", "seconds_per_epoch", "seconds_per_evaluation", "peak_memory_mb"}:
        assert again[name] == alone[name], name
    histories = [told(json.loads((tmp_path / name / HISTORY).read_text())) for name in ("alone", "killed")]
    assert histories[0] == histories[1] and len(histories[0]) == 6
    for name in ("model.safetensors", "ranks.safetensors"):
        assert same(load_file(tmp_path / "alone" / name), load_file(killed / name))
    # nothing half-written is left, nor the checkpoint
    assert {path.name for path in killed.iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}
    assert not (killed / CHECKPOINT).exists()


def test_going_on_after_any_epoch_gives_the_same_bits(tiny, tmp_path, monkeypatch):
    """The same, without chance: stopped in every epoch at every kind of place."""
    whole, ours = fitted(tiny, tmp_path / "whole", epochs=4)
    real_write, real_epoch = training.write_tensors, training._train_epoch
    calls = []

    class Stopped(BaseException):
        pass

    def stops(function):
        def called(*args):
            calls.append(1)
            if len(calls) == limit:
                raise Stopped
            return function(*args)

        return called

    monkeypatch.setattr(training, "write_tensors", stops(real_write))
    monkeypatch.setattr(training, "_train_epoch", stops(real_epoch))
    stopped = 0
    for limit in range(1, 30):
        calls.clear()
        try:
            ended, theirs = fitted(tiny, tmp_path / "pieces", epochs=4)
        except Stopped:
            stopped += 1
            continue
        break
    assert stopped >= 3
    assert told(ended.history) == told(whole.history) and ended.best_epoch == whole.best_epoch
    assert same(weights(ours), weights(theirs))


def test_a_finished_fit_trains_no_more(tiny, tmp_path, monkeypatch):
    first, ours = fitted(tiny, tmp_path)
    monkeypatch.setattr(training, "_train_epoch", None)
    second, theirs = fitted(tiny, tmp_path)
    assert first.history == second.history and same(weights(ours), weights(theirs))


# Stopping


@pytest.mark.parametrize("authors, patience, epochs, best, ended", [
    ([0.1, 0.3, 0.2, 0.2, 0.9], 2, 9, 2, 4),  # stops before the rise
    ([0.1, 0.3, 0.2, 0.2, 0.9], 3, 5, 5, 5),
    ([0.1, 0.2, 0.3, 0.4, 0.5], 1, 5, 5, 5),  # `epochs` ends it
    ([0.1, 0.2, 0.3, 0.4, 0.5], 1, 2, 2, 2),
    ([0.2, 0.2, 0.2, 0.2, 0.2], 3, 5, 1, 4),  # a tie is no rise
    ([0.0, 0.0, 0.0], 2, 3, 1, 3),
    ([0.5], 1, 1, 1, 1),
])
def test_the_best_epoch_counts(parts, tmp_path, scripted, authors, patience, epochs, best, ended):
    model, train, valid = parts
    scripted(authors)
    result = fit(model, train, valid, tmp_path, **FIT | {"patience": patience, "epochs": epochs})
    assert (result.best_epoch, len(result.history)) == (best, ended)
    assert [entry["epoch"] for entry in result.history] == list(range(1, ended + 1))


@pytest.mark.parametrize("select, best", [("authors", 3), ("consistent", 1)])
def test_the_selected_protocol_decides(parts, tmp_path, scripted, select, best):
    model, train, valid = parts
    scripted([0.1, 0.2, 0.3], [0.9, 0.8, 0.7])
    result = fit(model, train, valid, tmp_path, **FIT | {"select": select})
    assert result.best_epoch == best
    assert [entry["valid_consistent"]["N@20"] for entry in result.history] == [0.9, 0.8, 0.7]


def test_the_weights_of_the_best_epoch_are_left_behind(tiny, tmp_path, scripted):
    # The best of five epochs is the second: the same as training for two.
    scripted([0.1, 0.5, 0.3, 0.2, 0.4])
    result, ours = fitted(tiny, tmp_path / "five", epochs=5)
    scripted([0.1, 0.5])
    _, theirs = fitted(tiny, tmp_path / "two", epochs=2)
    assert result.best_epoch == 2 and same(weights(ours), weights(theirs))
    assert same(weights(ours), load_file(tmp_path / "five" / "model.safetensors"))
    last = load_file(tmp_path / "five" / CHECKPOINT)
    assert any(not torch.equal(tensor, last[f"model.{name}"]) for name, tensor in weights(ours).items())


# What else may happen


def test_loss_falls_and_is_a_mean_over_examples(parts, tmp_path, monkeypatch):
    model, train, valid = parts
    real, losses = model.loss, []

    def spy(batch):
        loss = real(batch)
        losses.append((float(loss.detach()), len(batch.target)))
        return loss

    monkeypatch.setattr(model, "loss", spy)
    history = fit(model, train, valid, tmp_path, **FIT).history
    first = losses[: len(losses) // 3]
    counts = [count for _, count in first]
    assert sum(counts) == len(train) and set(counts) == {256, len(train) % 256}
    mean = sum(loss * count for loss, count in first) / len(train)
    assert history[0]["loss"] == pytest.approx(mean, rel=1e-5)
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("chosen, said", [
    (dict(lr=1e30), r"epoch 1: the training loss is .*; lower lr \(now 1e\+30\)"),
    (dict(temperature=1e-45), r"epoch 1: the training loss is .*before any step.*raise temperature \(now 1e-45\)")])
def test_what_diverges_says_when_and_what_to_change(tiny, tmp_path, chosen, said):
    with pytest.raises(FloatingPointError, match=said):
        run(tiny(method="base", **chosen), folder=tmp_path)
    assert not (tmp_path / CHECKPOINT).exists() and not (tmp_path / "model.safetensors").exists()


def test_scores_that_are_nan_name_the_epoch(tiny, tmp_path, monkeypatch):
    def refuses(*_):
        raise FloatingPointError("a score is NaN")

    monkeypatch.setattr(training, "rank_all", refuses)
    with pytest.raises(FloatingPointError, match=r"epoch 1: a validation score is NaN; lower lr \(now .*guidance \(now 3\)"):
        run(tiny(method="base", backbone="dreamrec", guidance=3.0, heads=1), folder=tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_weights_that_one_step_broke_are_not_kept(tiny, tmp_path, monkeypatch):
    """The last step of an epoch, whose loss was finite still."""
    whole = training._train_epoch

    def breaks(model, train, optimiser, batch_size, epoch):
        loss = whole(model, train, optimiser, batch_size, epoch)
        if epoch == 2:
            with torch.no_grad():
                model.method.id.weight[3] = torch.nan
        return loss

    monkeypatch.setattr(training, "_train_epoch", breaks)
    with pytest.raises(FloatingPointError, match=r"epoch 2: the item vectors are not finite; lower lr \(now"):
        fitted(tiny, tmp_path, epochs=3)
    assert epochs_done(tmp_path) == 1


def test_a_loss_that_is_not_finite_is_said_and_leaves_no_checkpoint(parts, tmp_path):
    model, train, valid = parts
    with torch.no_grad():
        model.backbone.positions[-1, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="epoch 1: the training loss is nan; .*before any step.*temperature"):
        fit(model, train, valid, tmp_path, **FIT)
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("size", [1400, 1401, 1402])
def test_any_last_batch(parts, tmp_path, size):
    """1,401 examples: one left over, none, and more asked for than there are."""
    model, train, valid = parts
    assert len(train) == 1401
    result = fit(model, train, valid, tmp_path, **FIT | {"batch_size": size, "epochs": 1})
    assert np.isfinite(result.history[0]["loss"])


def test_a_model_with_nothing_to_learn_still_gets_its_figures(parts, tmp_path):
    model, train, valid = parts
    model.requires_grad_(False)
    before = weights(model)
    result = fit(model, train, valid, tmp_path, **FIT | {"epochs": 2})
    assert len(result.history) == 2 and np.isfinite(result.history[0]["loss"])
    assert result.history[0]["valid"] == result.history[1]["valid"] and same(weights(model), before)


def test_evaluation_is_in_evaluation_mode(parts, tmp_path):
    model, train, valid = parts
    modes = []
    real = model.states
    model.states = lambda *args: modes.append((model.training, torch.is_grad_enabled())) or real(*args)
    fit(model, train, valid, tmp_path, **FIT | {"epochs": 2})
    assert set(modes) == {(True, True), (False, False)} and not modes[-1][0]


def test_parameter_counts(tiny):
    tables = {"base": (120 * 16, 0), "frozen": (0, 120 * 16), "alphafuse": (120 * 8, 120 * 16)}
    for method, table in tables.items():
        spec = tiny(method=method)
        model = build(spec, prepare(spec))
        own = sum(p.numel() for p in model.backbone.parameters())
        counts = model.parameter_counts()
        assert counts["params_trainable"] == own + table[0], method
        assert counts["params_total"] == own + sum(table), method


def test_the_scorer_gives_dot_products_and_the_scale_to_cosines(parts):
    model, _, valid = parts
    batch = valid.batch(torch.arange(5))
    scorer = Scorer(model)
    states, table = model.states(batch, Items(model.method.rows())), model.method.table()
    torch.testing.assert_close(scorer.scores(batch), states @ table.T)
    cosines = torch.nn.functional.cosine_similarity(states[:, None], table[None], dim=-1)
    scaled = scorer.scores(batch) * scorer.similarity[0] / states.norm(dim=1, keepdim=True)
    torch.testing.assert_close(scaled, cosines)


# One step: rows of all items or of few, fast kernels or plain ones


PAIRS = [(method, backbone) for method in METHODS for backbone in BACKBONES if runs_on(method, backbone)]


def chosen_for(method: str, backbone: str = "sasrec") -> dict:
    """Few teachers and short histories, so that a step reads a part of the 120 items only."""
    more = {"similar_users": 2} if method == "llm-esr" else {}
    return {"method": method, "backbone": backbone, "width": 16, "history_length": 4, "dropout": 0.3} | more


def readied(spec):
    """A fresh model, and its training and validation examples with all that the method asks for."""
    prepared = prepare(spec)
    model = build(spec, prepared)
    parts = [Examples(prepared.split, part, spec.history_length) for part in ("train", "valid")]
    for part in parts:
        part.context = model.method.context(part)
    return model, *parts


def stepped(model, batch, seed: int = 4) -> tuple[torch.Tensor, dict]:
    """The loss of a step and what it tells every parameter."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = model.loss(batch)
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"blocks": 2, "cold": "zero"}, {"freeze": False, "inject": "replace"},
                                     {"null_dim": 0}], ids=str)
def test_few_rows_of_alphafuse_are_as_good_as_all(options, tiny):
    few_are_as_good_as_all(tiny(**chosen_for("alphafuse") | options), True)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("train", [True, False])
def test_few_rows_are_as_good_as_all(pair, train, tiny):
    """A step that computes the rows it reads has the loss and the gradients of one that computes all rows."""
    if pair[0] == "unisrec" and train:
        pytest.skip("draws noise for every row it computes")
    few_are_as_good_as_all(tiny(**chosen_for(*pair)), train)


def few_are_as_good_as_all(spec, train: bool) -> None:
    model, examples, _ = readied(spec)
    model.train(train)
    if getattr(model.method, "warm", None) is not None:
        model.method.warm[::2] = 0  # the tiny shop has no item that nobody bought
    batch, N = examples.batch(torch.tensor([0, 5, 700])), model.method.n_items
    assert (batch.history == N).any() and (batch.history < N).any()
    read, real = [], model._items
    model._items = lambda *args: read.append(real(*args)) or read[-1]
    told = {}
    for whole in (True, False):
        model.method.whole = whole
        told[whole] = stepped(model, batch)
    # the reference is not the switch itself: rows of all items, laid down by hand
    model._items = lambda *args: Items(model.method.rows())
    told["by hand"] = stepped(model, batch)
    few = read[1].ids
    if spec.method in ("base", "llminit", "frozen", "idreamrec", "alphafuse", "rlmrec-con", "rlmrec-gen"):
        assert read[0].ids is None  # tables that lie in memory are read where they are
    assert few is not None and len(few) < N and read[1].table.size == len(few)
    assert few.tolist() == sorted(set(few.tolist())) and few.max() < N
    assert {*batch.history.flatten().tolist(), *batch.target.tolist()} - {N} <= set(few.tolist())
    for other in (True, "by hand"):
        torch.testing.assert_close(told[False][0], told[other][0], rtol=1e-5, atol=1e-6)
        assert told[False][1].keys() == told[other][1].keys()
        for name, gradient in told[other][1].items():
            torch.testing.assert_close(told[False][1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


# Histories read together


CAUSAL = [method for method in METHODS if METHODS[method].causal and runs_on(method, "sasrec")]


def test_only_one_method_reads_a_history_as_a_whole():
    assert set(METHODS) - set(CAUSAL) == {"llm-esr", "idreamrec"}  # the latter is DreamRec's


@pytest.mark.parametrize("method", CAUSAL)
@pytest.mark.parametrize("blocks", [1, 2])
def test_one_pass_over_histories_learns_what_a_pass_for_each_learns(method, blocks, tiny):
    """Loss and gradients of a step, where no history is longer than a window."""
    model, train, _ = readied(tiny(method=method, blocks=blocks, history_length=40, prefixes="together"))
    assert train.longest_history() < 40
    torch.manual_seed(0)
    index, count = next(train.shuffled(200, together=True))
    assert count < len(index) / 2
    model.eval()
    told = [stepped(model, train.batch(index, windows)) for windows in (count, None)]
    torch.testing.assert_close(told[0][0], told[1][0], rtol=1e-5, atol=1e-6)
    for name, gradient in told[1][1].items():
        torch.testing.assert_close(told[0][1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    unread = f"backbone.blocks.{blocks - 1}.key.bias"
    assert told[0][1].keys() == told[1][1].keys() and unread not in told[0][1]


def test_training_together_learns_and_goes_on_where_it_was_stopped(tiny, tmp_path):
    spec = tiny(history_length=6, prefixes="together", epochs=4)
    prepared = prepare(spec)
    train, valid = (Examples(prepared.split, part, 6) for part in ("train", "valid"))
    whole, halves = build(spec, prepared), build(spec, prepared)
    history = fit(whole, train, valid, tmp_path / "whole", **FIT | {"epochs": 4}).history
    assert history[-1]["loss"] < history[0]["loss"]
    fit(halves, train, valid, tmp_path / "halves", **FIT | {"epochs": 2})
    resumed = build(spec, prepared)
    again = fit(resumed, train, valid, tmp_path / "halves", **FIT | {"epochs": 4}).history
    assert told(again) == told(history) and same(weights(whole), weights(resumed))


def test_what_knows_more_than_a_history_so_far_is_not_read_together(tiny):
    spec = tiny(method="llm-esr", width=16, similar_users=2, prefixes="together")
    with pytest.raises(InputError, match="prefixes: llm-esr"):
        build(spec, prepare(spec))


def test_a_table_is_computed_whole_where_a_step_would_read_most_of_it_anyway(tiny):
    model, examples, _ = readied(tiny(**chosen_for("morec")))
    batch = examples.batch(torch.arange(3))
    assert model._items(batch, batch.target[:, None]).ids is not None
    assert model._items(batch, None).ids is None  # all items are candidates
    # 3 · (4 + 1) looked up in the histories and as targets, 120 items: the whole table from 240 look-ups on
    for candidates, all_rows in ((224, False), (225, True)):
        drawn = torch.arange(candidates)[None] % 120
        assert (model._items(batch, drawn).ids is None) == all_rows, candidates


# Large catalogues, low precision


def once(model, batch, row_updates: bool) -> dict[str, torch.Tensor]:
    """The weights after one step of Adam at a large rate."""
    model.row_updates = row_updates
    optimiser = Optimiser(model, lr=0.5)
    torch.manual_seed(3)
    model.loss(batch).backward()
    optimiser.step()
    return weights(model)


@pytest.mark.parametrize("method", ["base", "alphafuse", "rlmrec-gen", "llm-esr"])
def test_row_updates_move_the_rows_that_a_step_reads(method, tiny):
    """The first step of a row is Adam's own; what was not looked up does not move at all, in no later step either."""
    spec = tiny(**chosen_for(method) | {"negatives": 2, "dropout": 0.0, "temperature": 1.0})
    model, train, _ = readied(spec)
    batch, before = train.batch(torch.arange(3)), weights(model)
    dense, rows = once(model, batch, False), once(readied(spec)[0], batch, True)
    for name in before:
        torch.testing.assert_close(rows[name], dense[name], rtol=1e-4, atol=1e-5, msg=lambda said: f"{name}: {said}")
    moved = (rows["method.id.weight"] != before["method.id.weight"]).any(dim=1)
    assert 3 <= int(moved.sum()) < len(moved) - 1


def test_dense_steps_are_torchs_adam_and_go_on_from_what_it_stored(tiny):
    """Also from a state without the parameters that never had a gradient, as torch keeps it."""
    model, train, _ = readied(tiny(**chosen_for("alphafuse")))
    twin = copy.deepcopy(model)
    theirs = torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=0.01, fused=True)
    ours = Optimiser(model, lr=0.01)
    for step in range(5):
        batch = train.batch(torch.arange(step, 60 + step))
        for one, optimiser in ((model, ours), (twin, theirs)):
            optimiser.zero_grad()
            torch.manual_seed(step)
            one.loss(batch).backward()
            optimiser.step()
        assert same(weights(model), weights(twin)), step
        if step == 2:
            stored = {f"dense.{index}.{name}": tensor.clone() for index, state in theirs.state_dict()["state"].items()
                      for name, tensor in state.items()}
            assert stored.keys() < ours.tensors().keys()  # of the last block's key.bias there is nothing
            ours = Optimiser(model, lr=0.01)
            ours.load(stored | {"steps": torch.tensor(3)})


def test_row_updates_leave_momentum_alone(tiny):
    spec = tiny(**chosen_for("base") | {"negatives": 2})
    found = {}
    for row_updates in (False, True):
        model, train, _ = readied(spec)
        first, second = train.batch(torch.arange(3)), train.batch(torch.arange(500, 503))
        model.row_updates = row_updates
        optimiser = Optimiser(model, lr=0.5)
        tables = []
        for part in (first, second):
            optimiser.zero_grad()
            torch.manual_seed(3)
            model.loss(part).backward()
            optimiser.step()
            tables.append(model.method.id.weight.detach().clone())
        read = torch.cat([second.history.flatten(), second.target]).unique()
        torch.manual_seed(3)
        read = torch.cat([read, model.backbone.candidates(second, model.method.n_items).flatten()])
        others = torch.ones(len(tables[0]), dtype=torch.bool)
        others[read] = False
        found[row_updates] = (tables[0] != tables[1])[others].any()
    assert found[False] and not found[True]


def test_row_updates_come_by_themselves_in_large_catalogues(parts, tmp_path, monkeypatch):
    model, train, valid = parts
    for limit, expected in ((model.method.n_items, False), (model.method.n_items - 1, True)):
        monkeypatch.setattr(training, "MANY_ITEMS", limit)
        fit(model, train, valid, tmp_path / str(limit), **FIT | {"epochs": 1})
        assert model.row_updates is expected
    fit(model, train, valid, tmp_path / "told", **FIT | {"epochs": 1, "row_updates": False})
    assert model.row_updates is False


def test_row_updates_go_on_where_they_were(tiny, tmp_path):
    whole, ours = fitted(tiny, tmp_path / "whole", row_updates=True, epochs=4)
    fitted(tiny, tmp_path / "parts", row_updates=True, epochs=2)
    resumed, theirs = fitted(tiny, tmp_path / "parts", row_updates=True, epochs=4)
    assert told(whole.history) == told(resumed.history) and same(weights(ours), weights(theirs))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_low_precision_is_near_and_leaves_float32_behind(pair, tiny):
    low_is_near_and_leaves_float32_behind(tiny(**chosen_for(*pair)))


@pytest.mark.parametrize("blocks", [1, 2])
def test_low_precision_reads_histories_together_too(blocks, tiny):
    low_is_near_and_leaves_float32_behind(tiny(**chosen_for("base"), prefixes="together", blocks=blocks, heads=2))


def low_is_near_and_leaves_float32_behind(spec):
    losses = []
    for bf16 in (False, True):
        model, train, _ = readied(spec)
        model.bf16 = bf16
        torch.manual_seed(3)
        count = int(train.window[0][49]) + 1 if spec.prefixes else None
        loss = model.train().loss(train.batch(torch.arange(50), count))
        loss.backward()
        assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
        losses.append(loss.item())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="precision: 'fp8' is not one of none, bf16"):
        Spec(precision="fp8")


def test_an_item_that_no_step_announced_is_not_taken_for_another(tiny):
    model, train, _ = readied(tiny(**chosen_for("morec")))
    items = Items(model.method.rows(torch.tensor([1, 4, 7])), torch.tensor([1, 4, 7]), 120)
    assert items.place(torch.tensor([[7, 1], [120, 4]])).tolist() == [[2, 0], [3, 1]]
    for unknown in (0, 2, 8, 119):
        with pytest.raises(RuntimeError, match="does not name"):
            items.place(torch.tensor([1, unknown]))


# Fast kernels and plain ones


@pytest.fixture
def kernels(monkeypatch):
    """`kernels("naive")`: from now on that implementation only; the fast one cannot even be imported."""

    def only(impl: str) -> None:
        from nullrec_lib.backbones import sasrec
        from nullrec_lib.kernels import attend_cpu, dropout_cpu, infonce_cpu, lookup_cpu, softmax, state_cpu

        classes = ((attend_cpu, "Attend"), (dropout_cpu, "Dropout"), (infonce_cpu, "InfoNCE"), (lookup_cpu, "Lookup"),
                   (state_cpu, "State"))
        references = ((attend, "attend_naive"), (dropout, "dropout_naive"), (infonce, "infonce_naive"),
                      (lookup, "lookup_naive"), (sasrec.Block, "last"))
        monkeypatch.undo()
        for module in (attend, dropout, infonce, lookup, softmax, sasrec):
            monkeypatch.setattr(module, "choose", lambda *_: impl)
        for module, name in classes if impl == "naive" else references:
            monkeypatch.delattr(module, name)

    return only


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_step_of_the_fast_kernels_is_a_step_of_the_plain_ones(pair, tiny, kernels):
    told, after = [], []
    for impl in ("cpu", "naive"):
        kernels(impl)
        model, examples, _ = readied(tiny(**chosen_for(*pair), blocks=2))
        model.train()
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        told.append(stepped(model, examples.batch(torch.arange(64))))
        optimiser.step()
        after.append(dict(model.named_parameters()))
    (fast, gradients), (plain, expected) = told
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys() and gradients
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
        # Adam's first step is lr times a gradient's sign, which nothing decides where the gradient is rounding
        sure = gradient.abs() > 1e-5
        torch.testing.assert_close(after[0][name][sure], after[1][name][sure], rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize(("method", "options"), [
    ("base", {}), ("base", {"blocks": 2, "exclude_history": True}), ("alphafuse", {}), ("llm-esr", {}),
], ids=str)
def test_a_training_with_the_fast_kernels_is_one_with_the_plain_ones(method, options, tiny, tmp_path, kernels):
    """Dropout is on: both drop the same places."""
    histories = []
    for impl in ("cpu", "naive"):
        kernels(impl)
        model, train, valid = readied(tiny(**chosen_for(method) | options))
        histories.append(fit(model, train, valid, tmp_path / impl, **FIT | {"batch_size": 128}).history)
    for fast, plain in zip(*histories, strict=True):
        assert fast["loss"] == pytest.approx(plain["loss"], rel=1e-4)
        assert fast["spread"] == pytest.approx(plain["spread"], rel=1e-4)
        for name in ("valid", "valid_consistent"):
            assert fast[name] == pytest.approx(plain[name], abs=0.005)
    assert histories[0][-1]["loss"] < histories[0][0]["loss"]
