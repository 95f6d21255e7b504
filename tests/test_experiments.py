"""Remember: every field of a spec reaches a result, and a stored run is the only source of a table."""

import dataclasses
import functools
import json
import os
import pickle
import shutil
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from threadpoolctl import threadpool_info, threadpool_limits

from nullrec_lib import data, experiments, training
from nullrec_lib.errors import InputError
from nullrec_lib.evaluation import metrics
from nullrec_lib.experiments import learning_curves, run, run_all, stored
from nullrec_lib.language import encoder as encoder_module
from nullrec_lib.language.encoder import DEFAULT
from nullrec_lib.preparing import build, fingerprint, prepare
from nullrec_lib.profiles import vectors
from nullrec_lib.results import summary
from nullrec_lib.spec import RESULTS_VERSION, Spec, parse

CLOCKS = {"seconds", "seconds_per_epoch", "seconds_per_evaluation", "evaluation_seconds", "peak_memory_mb"}


@functools.wraps(experiments.fit)
def no_fit(*_, **__):
    raise AssertionError("nothing was to be trained here")


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def timeless(result: dict) -> dict:
    return {name: value for name, value in result.items() if name not in CLOCKS}


# Every field reaches something

# field: (another value, what else the spec says so that the field matters). `None`: made below.
CHANGES = {
    "data": ("shop-tiny-visible1", {}),
    "clock": ("position", {}),
    "core": (5, {"method": "popularity"}),
    "keep": ("last:5", {}),
    "split": ("leave-one-out", {}),
    "min_history": (3, {}),
    "split_seed": (23, {"clock": "position"}),
    "history_length": (4, {}),
    "tail_user": (5, {}),
    "tail_item": (5, {}),
    "encoder": (None, {}),
    "scale": (2.0, {"threshold": 1.0}),
    "template": ("{title}", {"encoder": None}),  # made below: embeddings of a file have no texts
    "profiles": (None, {"method": "pte"}),
    "shuffle_profiles": (3, {"method": "pte", "profiles": None}),
    "method": ("llminit", {"method": "base"}),
    "width": (32, {}),
    "threshold": (1.2, {"threshold": 0.8}),
    "relative_threshold": (1.2, {"relative_threshold": 0.8}),
    "null_dim": (3, {}),
    "standardise": ("row", {}),
    "basis": ("random", {}),
    "weighting": ("popularity", {}),
    "inject": ("replace", {}),
    "init": ("zeros", {}),
    "cold": ("zero", {}),
    "freeze": (False, {}),
    "neighbours": (2, {"method": "itemknn"}),
    "experts": (2, {"method": "unisrec"}),
    "adaptor_dropout": (0.5, {"method": "unisrec"}),
    "alignment": ("cosine", {"method": "rlmrec-con"}),
    "beta": (1.0, {"method": "rlmrec-gen"}),
    "align_temperature": (0.5, {"method": "rlmrec-con"}),
    "alpha": (1.0, {"method": "llm-esr"}),
    "similar_users": (3, {"method": "llm-esr"}),
    "backbone": ("dreamrec", {"negatives": 64}),  # its default, which DreamRec does not read
    "blocks": (2, {}),
    "heads": (4, {}),
    "dropout": (0.5, {}),
    "temperature": (0.5, {}),
    "negatives": (9, {}),
    "exclude_history": (True, {}),
    "prefixes": ("together", {}),
    "noise_steps": (500, {"backbone": "dreamrec"}),
    "sampling_steps": (3, {"backbone": "dreamrec"}),
    "guidance": (1.0, {"backbone": "dreamrec"}),
    "unconditional": (0.5, {"backbone": "dreamrec"}),
    "detach_target": (True, {"backbone": "dreamrec"}),
    "lr": (1e-2, {}),
    "batch_size": (100, {}),
    "epochs": (3, {}),
    "patience": (1, {"epochs": 4}),
    "select": ("consistent", {"epochs": 3}),
    "row_updates": (True, {}),
    "precision": ("bf16", {}),
    "seed": (23, {}),
}
FIELDS = [field.name for field in dataclasses.fields(Spec)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """spec → what it made: result without clocks and spec, history without clocks, and all tensors."""
    root, known = tmp_path_factory.mktemp("fields"), {}

    def get(spec: Spec, fresh: bool = False) -> dict:
        if fresh or spec not in known:
            folder = root / str(len(known))
            shutil.rmtree(folder, ignore_errors=True)
            result = timeless(run(spec, folder=folder))
            del result["spec"], result["key"]
            for name in ("seed", "encoder", "data", "keep", "split", "method", "backbone"):
                del result[name]  # these echo the spec and would prove nothing
            made = {"result": result}
            if (folder / "history.json").exists():
                made["history"] = [timeless(entry) for entry in read(folder, "history.json")]
            for name in ("ranks", "model"):
                if (path := folder / f"{name}.safetensors").exists():
                    made[name] = {key: tensor.tolist() for key, tensor in load_file(path).items()}
            known[spec] = made
        return known[spec]

    return get


@pytest.fixture
def texts_as_rows(tmp_path, monkeypatch):
    """The folder of a model that embeds by a hash of the text."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    row = lambda text: np.random.default_rng(zlib.crc32(text.encode())).standard_normal(48)
    monkeypatch.setattr(encoder_module, "encode", lambda texts, _: np.stack([*map(row, texts)]).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def spoken(tiny, tmp_path_factory):
    """A folder of profiles' vectors: of all items, and of all users at one item."""
    prepared, folder, random = prepare(tiny()), tmp_path_factory.mktemp("spoken"), np.random.default_rng(2)
    width = prepared.embeddings.shape[1]
    rows = lambda count: random.standard_normal((count, width)).astype(np.float32)
    items, users = list(prepared.dataset.items["item_id"]), list(prepared.dataset.user_ids)
    about = {"split_fingerprint": prepared.split.fingerprint(), "encoder": tiny().encoder,
             "items_fingerprint": prepared.dataset.items_fingerprint(), "ids_fingerprint": prepared.dataset.ids_fingerprint()}
    vectors.store(folder, vectors.Vectors(items, rows(len(items)), users, np.ones(len(users), np.int64),
                                          rows(len(users)), about))
    return str(folder)


def key(spec: Spec) -> str:
    return spec.key(prepare(spec).dataset.fingerprint())


def test_no_field_is_missing_here():
    # How data are read is tested with data in which it matters, below.
    assert set(CHANGES) | {"clean", "missing_text"} == set(FIELDS), "a new field of Spec needs a line in CHANGES"


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_reaches_something(name, tiny, other_encoder, texts_as_rows, spoken, ran, monkeypatch):
    value, chosen = CHANGES[name]
    value = {"encoder": other_encoder, "profiles": spoken}.get(name, value)
    if name == "shuffle_profiles":
        chosen = chosen | {"profiles": spoken}
    if name == "template":
        chosen = {"encoder": str(texts_as_rows)}
    if name in ("patience", "select"):
        # Validation says different things by protocol: best at once, or never good again.
        figures = {"authors": [0.5, 0.1, 0.1, 0.1], "consistent": [0.1, 0.2, 0.3, 0.4]}

        def scripted():
            feed = iter([v for pair in zip(*figures.values(), strict=True) for v in pair])
            monkeypatch.setattr(training, "metrics", lambda ranks: {"N@20": next(feed)})

        scripted()
    spec = tiny(**chosen)
    other = dataclasses.replace(spec, **{name: value})
    assert getattr(spec, name) != getattr(other, name)
    assert key(spec) != key(other)
    before = ran(spec, fresh=name in ("patience", "select"))
    if name in ("patience", "select"):
        scripted()
    assert before != ran(other), f"{name} changes the key and nothing else"


def test_the_same_spec_gives_the_same(tiny, ran):
    assert ran(tiny()) == json.loads(json.dumps(ran(tiny(), fresh=True)))


REFUSED = [
    ("base", "null_dim"), ("base", "threshold"), ("base", "standardise"), ("base", "inject"),
    ("base", "neighbours"), ("llminit", "weighting"), ("frozen", "cold"), ("frozen", "init"),
    ("alphafuse", "neighbours"), ("popularity", "width"), ("popularity", "neighbours"), ("popularity", "lr"),
    ("popularity", "dropout"), ("itemknn", "negatives"), ("itemknn", "null_dim"), ("textknn", "batch_size"),
    ("textknn", "select"), ("base", "guidance"), ("alphafuse", "beta"), ("rlmrec-con", "alpha"), ("morec", "experts"),
]


@pytest.mark.parametrize("method, name", REFUSED)
def test_a_field_that_the_method_does_not_read_is_refused(method, name):
    with pytest.raises(InputError, match=f"{name}: method {method}.* does not read it"):
        Spec(method=method, **{name: CHANGES[name][0]})


@pytest.mark.parametrize("options, name", [({"negatives": 0, "exclude_history": True}, "exclude_history"), (
    {"method": "rlmrec-gen", "alignment": "cosine", "align_temperature": 0.5}, "align_temperature")])
def test_an_option_of_what_is_not_there_is_refused(options, name):
    with pytest.raises(InputError, match=f"{name}: method .* does not read it"):
        Spec(**options)


def test_an_empty_history_cannot_be_read_together():
    with pytest.raises(InputError, match="min_history: 0"):
        Spec(min_history=0, prefixes="together")


@pytest.mark.parametrize("name, value", [("clock", "time"), ("core", 5), ("keep", "last:5"), ("min_history", 0),
                                         ("split_seed", 1)])
def test_a_given_split_reads_nothing_that_cuts_users(name, value):
    with pytest.raises(InputError, match=f"{name}: split given does not read it"):
        Spec(split="given", **{name: value})


@pytest.fixture
def folder(tmp_path):
    """Embeddings and a split, no text: AlphaFuse's layout with ten items."""
    random = np.random.default_rng(1)
    for name in ("train", "val", "test"):
        histories = random.integers(0, 10, (40, 10))
        rows = {"seq": histories.tolist(), "len_seq": 10, "next": random.integers(0, 10, 40)}
        pd.DataFrame(rows).to_pickle(tmp_path / f"{name}_data.df")
    pd.DataFrame({"seq_size": [10], "item_num": [10]}).to_pickle(tmp_path / "data_statis.df")
    (tmp_path / "small_emb.pickle").write_bytes(pickle.dumps(random.standard_normal((10, 8))))
    return tmp_path


def test_embeddings_and_split_that_came_with_the_data(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    given = dict(data=str(folder), split="given", method="frozen", encoder="given", width=8, negatives=4, epochs=1)
    embeddings = prepare(Spec(**given)).embeddings
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), np.sqrt(8), rtol=1e-6)
    told = run(Spec(**given), root=root)
    assert (told["train_examples"], told["test_examples"], told["encoder"]) == (40, 40, "given")
    unnamed = {name: value for name, value in given.items() if name != "encoder"}
    assert run(Spec(**unnamed), root=root) == told  # taken without being named
    with pytest.raises(InputError, match="cannot be split by cold-start, .*; use given"):
        run(Spec(data=str(folder), encoder="given"), root=root)

    # The key follows the content of what came along, which nothing else names.
    (folder / "small_emb.pickle").write_bytes(pickle.dumps(np.random.default_rng(2).standard_normal((10, 8))))
    again = run(Spec(**given), root=root)
    assert again["key"] != told["key"] and key(Spec(**given)) == again["key"]
    assert not np.allclose(prepare(Spec(**given)).embeddings, embeddings)


@pytest.mark.parametrize("method", experiments.RULES)
def test_rules_take_what_a_grid_gives_to_all_and_have_one_key(method, tiny):
    plain = Spec(data="shop-tiny", method=method)
    for chosen in ({"seed": 5}, {"epochs": 3}, {"patience": 2}):
        assert Spec(data="shop-tiny", method=method, **chosen).key("x") == plain.key("x")


@pytest.mark.parametrize("method", ["popularity", "itemknn"])
@pytest.mark.parametrize("name, value", [("encoder", "other"), ("scale", 3.0)])
def test_what_a_rule_without_language_does_not_read_does_not_name_its_run(method, name, value):
    plain = Spec(method=method)
    try:
        other = Spec(method=method, **{name: value})
    except InputError:
        return  # refused: as good
    assert other.key("x") == plain.key("x")


@pytest.mark.parametrize("wrong", [
    {"method": "nope"}, {"backbone": "nope"}, {"select": "nope"}, {"history_length": 0}, {"width": 0},
    {"batch_size": 0}, {"epochs": 0}, {"patience": 0}, {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")},
    {"method": "itemknn", "neighbours": 0}, {"core": 0},
    {"lr": float("inf")}, {"temperature": float("inf")}, {"scale": 0.0}, {"scale": float("nan")},
    {"scale": float("inf")}, {"scale": -1.0}, {"seed": -1}, {"seed": 2**64}, {"split_seed": -1},
], ids=str)
def test_values_out_of_range_are_refused_at_once(wrong):
    with pytest.raises(InputError, match=list(wrong)[-1]):
        Spec(**wrong)


# parse


def test_parse_types_values_as_in_the_spec():
    assert parse(["lr=1e-3", "keep=last:50", "threshold=none", "null_dim=32", "exclude_history=True",
                  "scale=40", "encoder=/a=b", "data=x"]) == {
        "lr": 1e-3, "keep": "last:50", "threshold": None, "null_dim": 32, "exclude_history": True,
        "scale": 40.0, "encoder": "/a=b", "data": "x"}
    values = parse(["scale=40", "null_dim=32", "lr=1"])
    assert [type(v) for v in values.values()] == [float, int, float]
    assert parse(["exclude_history=false"]) == {"exclude_history": False}
    assert parse(["keep=None"]) == {"keep": None}
    assert parse([]) == {}


@pytest.mark.parametrize("assignment, said", [
    ("lr", "key=value"), ("learning=1", "key among data, clock"), ("lr=fast", "'fast' is not float"),
    ("epochs=1.5", "'1.5' is not int"), ("exclude_history=1", "'1' is not bool"),
    ("blocks=none", "'none' is not int"),
    ("null_dim=", "'' is not int"), ("=3", "key among"),
])
def test_parse_names_what_is_wrong(assignment, said):
    with pytest.raises(InputError) as error:
        parse([assignment])
    assert assignment in str(error.value) and said in str(error.value)


def test_numbers_that_are_equal_give_the_same_key():
    """scale=40 in a notebook and --set scale=40 on the command line are one run."""
    assert Spec(scale=40) == Spec(scale=40.0)
    assert Spec(scale=40).key("x") == Spec(scale=40.0).key("x")
    assert Spec(lr=1).key("x") == Spec(lr=1.0).key("x")


def test_what_none_means_is_the_same_run_and_renames_none():
    """The default has one spelling in a key: a run is not done twice, and none is renamed."""
    plain = Spec()
    assert Spec(template="{title}. {description}") == plain == Spec(freeze=True)
    assert plain.key("x") == Spec(template=None, freeze=None).key("x")
    assert Spec(freeze=False).key("x") != plain.key("x") != Spec(template="{title}").key("x")
    assert parse(["freeze=false", "template={title}"]) == {"freeze": False, "template": "{title}"}
    with pytest.raises(InputError, match="freeze"):
        Spec(freeze=1)
    with pytest.raises(InputError, match="freeze: method base .*does not read it"):
        Spec(method="base", freeze=False)
    Spec(method="popularity", template="{title}")  # a table's rows have it in common


# A run's folder


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A spec, its result and its folder; not to be written into."""
    root = tmp_path_factory.mktemp("runs")
    spec = tiny(epochs=3)
    result = run(spec, root)
    return spec, result, root / result["key"]


def test_a_run_stores_everything_and_no_checkpoint(finished):
    spec, result, folder = finished
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        "spec.json", "environment.json", "data.json", "history.json", "ranks.safetensors",
        "model.safetensors", "result.json"}
    assert folder.name == result["key"] == key(spec)
    assert read(folder, "spec.json") == {"key": key(spec), "version": RESULTS_VERSION, "spec": dataclasses.asdict(spec)}
    assert read(folder, "result.json") == result
    assert Spec(**read(folder, "spec.json")["spec"]) == spec
    assert {"nullrec", "commit", "python", "torch", "numpy", "threads", "device"} <= set(
        read(folder, "environment.json"))
    about = read(folder, "data.json")
    assert about["n_users"] == result["n_users"] == 200 and about["test_examples"] == result["test_examples"]
    history = read(folder, "history.json")
    assert [entry["epoch"] for entry in history] == [1, 2, 3] and result["epochs"] == 3
    best = max(history, key=lambda entry: entry["valid"]["N@20"])
    assert result["best_epoch"] == best["epoch"] and result["valid"] == best["valid"]
    assert result["row_space_identical"] is True


def test_metrics_are_those_of_the_stored_ranks(finished):
    _, result, folder = finished
    ranks = load_file(folder / "ranks.safetensors")
    assert set(ranks) == {f"{part}_{name}" for part in ("valid", "test") for name in ("authors", "consistent", "user")}
    parts = prepare(finished[0]).split
    for part in ("valid", "test"):
        # An example's user owns the place of its target in the flat sequence of items.
        user, place = ranks[f"{part}_user"].numpy(), getattr(parts, part)
        assert np.all((parts.offsets[user] <= place) & (place < parts.offsets[user + 1]))
    for part in ("valid", "test"):
        for name, place in (("authors", part), ("consistent", f"{part}_consistent")):
            own = ranks[f"{part}_{name}"]
            assert len(own) == result[f"{part}_examples"]
            assert 1 <= own.min() and own.max() <= result["n_items"]
            assert result[place] == metrics(own)
            assert result[place]["R@10"] == np.mean(own.numpy() <= 10)
            dcg = [1 / np.log2(r + 1) if r <= 20 else 0 for r in own.tolist()]
            assert result[place]["N@20"] == pytest.approx(np.mean(dcg), rel=1e-12)


def test_the_stored_model_gives_the_stored_ranks(finished):
    from nullrec_lib.data.examples import Examples
    from nullrec_lib.evaluation import rank_all

    spec, _, folder = finished
    prepared = prepare(spec)
    model = build(spec, prepared)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    scorer = training.Scorer(model)
    again = rank_all(scorer, Examples(prepared.split, "test", spec.history_length), scorer.similarity)
    ranks = load_file(folder / "ranks.safetensors")
    for name, rank in again.items():
        assert torch.equal(rank, ranks[f"test_{name}"])


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    spec, result, folder = finished
    monkeypatch.setattr(experiments, "fit", no_fit)
    assert run(spec, folder.parent) == result == run(spec, folder=folder)


def test_another_specs_folder_is_refused(finished, tiny):
    _, result, folder = finished
    with pytest.raises(InputError, match="holds another run .lr, epochs differ.; choose another folder"):
        run(tiny(lr=0.5), folder=folder)
    assert read(folder, "result.json") == result


def test_wrong_input_leaves_nothing_that_looks_like_a_run(tiny, tmp_path):
    for wrong in ({"heads": 3}, {"null_dim": 99}, {"inject": "both"}):
        with pytest.raises(InputError):
            run(tiny(**wrong), tmp_path)
    assert list(tmp_path.rglob("*.json")) == []


def test_results_do_not_depend_on_the_memory_for_scores(tiny, tmp_path):
    spec = tiny()
    assert timeless(run(spec, tmp_path / "a", memory_mb=0)) == timeless(run(spec, tmp_path / "b"))


def test_the_key_follows_the_content_of_the_data_and_not_its_place(tmp_path, encoder):
    def write(folder: Path, title: str) -> str:
        folder.mkdir(parents=True)
        rows = [f"i{i}\t{title if i == 3 else f'Title {i}'}" for i in range(6)]
        (folder / "x.item").write_text("item_id:token\ttitle:token_seq\n" + "\n".join(rows) + "\n")
        log = [f"u{u}\ti{(u + t) % 6}\t{100 * u + 7 * t}" for u in range(12) for t in range(4)]
        head = "user_id:token\titem_id:token\ttimestamp:float"
        (folder / "x.inter").write_text("\n".join([head, *log]) + "\n")
        return str(folder)

    titles = {"a": "T", "b": "T", "c": "New"}
    places = [write(tmp_path / parent / "x", title) for parent, title in titles.items()]
    keys = [Spec(data=place).key(data.load(place).fingerprint()) for place in places]
    assert keys[0] == keys[1] != keys[2]


def test_a_file_replaced_by_an_older_one_is_noticed(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "x.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"i{n}\tthing {n}\n" for n in range(9)))
    head, log = "user_id:token\titem_id:token\ttimestamp:float\n", folder / "x.inter"
    for shift, when in ((1, 2_000_000_000), (2, 1_000_000_000)):
        log.write_text(head + "".join(f"u{u}\ti{(u * shift + s) % 9}\t{s}\n" for u in range(10) for s in range(4)))
        os.utime(log, (when, when))
        (folder / ".#x.inter").unlink(missing_ok=True)
        (folder / ".#x.inter").symlink_to("nowhere")  # an editor's lock
        fresh = data.load(str(folder)).fingerprint()
        assert prepare(Spec(data=str(folder), method="popularity")).dataset.fingerprint() == fresh


def test_one_trained_item_has_no_spread_to_keep(tiny, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "x.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"i{n}\tthing {n}\n" for n in range(9)))
    (folder / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n"
                                    + "".join(f"u{u}\ti0\t{u * 10 + s}\n" for u in range(20) for s in range(3)))
    assert run(tiny(data=str(folder), method="base", encoder=DEFAULT), root=tmp_path)["spread_kept"] is None


# Tables


@pytest.fixture(scope="module")
def grid(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    specs = [tiny(method=method, seed=seed) for method in ("base", "frozen") for seed in (1, 2)]
    specs.append(tiny(method="popularity"))
    return specs, root, run_all(specs, root, jobs=1)


def test_a_table_has_a_row_per_spec_from_the_stored_runs(grid, monkeypatch):
    specs, root, frame = grid
    monkeypatch.setattr(experiments, "run", None)
    monkeypatch.setattr(experiments, "fit", no_fit)
    again = experiments.stored(specs, root)
    pd.testing.assert_frame_equal(frame, again)
    assert frame["method"].tolist() == ["base", "base", "frozen", "frozen", "popularity"]
    assert frame["seed"].tolist() == [1, 2, 1, 2, 22]
    for spec, (_, row) in zip(specs, frame.iterrows(), strict=True):
        result = read(root / key(spec), "result.json")
        for part in ("test", "test_consistent", "valid", "valid_consistent"):
            for name, value in result[part].items():
                assert row[f"{part} {name}"] == value
        assert row["params_trainable"] == result["params_trainable"]
    assert frame.loc[0, "test N@10"] != frame.loc[1, "test N@10"]


def test_summary_is_mean_and_sample_deviation(grid):
    _, _, frame = grid
    table = summary(frame, ["test N@20", "valid R@10"])
    assert table.index.tolist() == ["base", "frozen", "popularity"] and table["seeds"].tolist() == [2, 2, 1]
    one, two = frame["test N@20"][:2]
    mean, deviation = (one + two) / 2, abs(one - two) / 2**0.5
    assert table.loc["base", "test N@20"] == f"{mean:.4f} ± {deviation:.4f}"
    assert table.loc["popularity", "test N@20"] == f"{frame['test N@20'][4]:.4f}"
    by_hand = pd.DataFrame({"method": ["b", "a", "b", "b"], "seed": [1, 1, 2, 3], "x": [1.0, 5.0, 2.0, 6.0]})
    table = summary(by_hand, ["x"])
    assert table.index.tolist() == ["b", "a"]
    assert table["x"].tolist() == ["3.0000 ± 2.6458", "5.0000"]


def test_learning_curves_are_the_stored_histories(grid):
    specs, root, _ = grid
    curves = learning_curves(specs[:4], root)
    assert len(curves) == 8 and curves["epoch"].tolist() == [1, 2] * 4
    assert curves["method"].tolist() == ["base"] * 4 + ["frozen"] * 4
    history = read(root / key(specs[1]), "history.json")
    rows = curves[(curves["method"] == "base") & (curves["seed"] == 2)]
    assert rows["loss"].tolist() == [entry["loss"] for entry in history]
    for part in ("valid", "valid_consistent"):
        assert rows[f"{part} N@20"].tolist() == [entry[part]["N@20"] for entry in history]
    assert learning_curves([specs[4]], root).empty  # a rule has nothing to learn


@pytest.mark.parametrize("table", [experiments.stored, learning_curves])
def test_a_run_that_is_missing_is_named(table, grid, tiny):
    specs, root, _ = grid
    with pytest.raises(InputError, match="no finished run of base with seed 77; run it first"):
        table([specs[0], tiny(method="base", seed=77)], root)


def test_side_by_side_is_the_same_and_a_failure_stops_nobody(grid, tiny, tmp_path):
    specs, root, frame = grid
    specs = [specs[0], specs[3], specs[4]]
    broken = tiny(method="base", lr=1e30, seed=9)
    with pytest.raises(RuntimeError, match="1 of 4 runs failed: base seed 9: FloatingPointError: epoch 1"):
        run_all([specs[0], broken, *specs[1:]], tmp_path, jobs=2)
    assert not (tmp_path / key(broken) / "result.json").exists()
    side_by_side = experiments.stored(specs, tmp_path)
    expected = frame.iloc[[0, 3, 4]].reset_index(drop=True)
    columns = [name for name in expected if name not in CLOCKS]
    pd.testing.assert_frame_equal(side_by_side[columns], expected[columns], check_exact=True)
    for spec in specs[:2]:
        ours, theirs = (load_file(place / key(spec) / "model.safetensors") for place in (root, tmp_path))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_failure_stops_nobody_one_by_one_either(tiny, tmp_path):
    broken, good = tiny(method="base", lr=1e30), tiny(method="base")
    with pytest.raises(RuntimeError, match="1 of 2 runs failed: base seed 22"):
        run_all([broken, good], tmp_path, jobs=1)
    assert len(experiments.stored([good], tmp_path)) == 1


def test_ranks_are_whole_numbers(finished):
    _, _, folder = finished
    with safe_open(folder / "ranks.safetensors", "pt") as handle:
        assert all(handle.get_tensor(name).dtype == torch.int64 for name in handle.keys())


def test_numpy_too_runs_on_the_threads_that_were_asked_for(tiny, tmp_path, monkeypatch):
    """BLAS adds up in another order on more threads, which reaches the last digits of a decomposition."""
    seen = []
    build = experiments.build

    def looking(*arguments):
        seen.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
        return build(*arguments)

    monkeypatch.setattr(experiments, "build", looking)
    with threadpool_limits(3):
        run(tiny(epochs=1), tmp_path, threads=2)
        run(tiny(epochs=1, seed=1), tmp_path, threads=1)
    assert seen == [{2}, {1}]


def test_parameters_are_counted_where_items_and_dimensions_agree(tmp_path):
    """N + 1 = width: no square matrix of the backbone may pass for a padded table."""
    prepared = prepare(Spec(data="shop-tiny", method="popularity"))
    embeddings = np.random.default_rng(0).standard_normal((120, 128)).astype(np.float32)
    prepared = dataclasses.replace(prepared, embeddings=embeddings)
    for method, trainable, frozen in (("base", 120 * 121, 0), ("frozen", 0, 120 * 121), ("alphafuse", 120 * 60, 120 * 121)):
        model = build(Spec(data="shop-tiny", method=method, width=121), prepared)
        backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
        counts = model.parameter_counts()
        assert counts["params_trainable"] == backbone + trainable, method
        assert counts["params_total"] == backbone + trainable + frozen, method


def test_two_items_have_no_rank_correlation_and_still_a_result(tmp_path):
    folder = tmp_path / "pair"
    folder.mkdir()
    lines = [f"u{user}\ti{(user + step) % 2}\t{user * 10 + step}" for user in range(20) for step in range(3)]
    (folder / "pair.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]))
    (folder / "pair.item").write_text("item_id:token\ttitle:token_seq\ni0\tred hat\ni1\tblue shoe\n")
    result = run(Spec(data=str(folder), method="base", epochs=1, width=4), tmp_path / "runs")
    assert result["cosine_rank_correlation"] is None and result["neighbour_overlap"] == 1


@pytest.mark.parametrize("layout", ["llmesr", "alphafuse"])
def test_data_with_embeddings_and_no_text_are_run_on_their_embeddings(tmp_path, layout):
    from tests.data.layouts import LAYOUTS, Sample

    events = tuple((f"u{n % 20}", f"i{(n * n + n // 20) % 9}", 1_500_000_000 + n) for n in range(160))
    LAYOUTS[layout](tmp_path / "set", Sample(tuple((f"i{n}", "") for n in range(9)), events))
    protocol = "given" if layout == "alphafuse" else "leave-one-out"
    chosen = {"data": str(tmp_path / "set"), "method": "textknn", "split": protocol}
    plain, named = run(Spec(**chosen), tmp_path / "runs"), run(Spec(**chosen, encoder="given"), tmp_path / "runs")
    assert plain == named and plain["encoder"] == "given"  # one run, found again by either
    assert any("taken where no encoder is named" in note for note in plain["notes"])
    assert stored([Spec(**chosen)], tmp_path / "runs")["encoder"].tolist() == ["given"]


def test_how_data_are_read_is_part_of_a_run(tmp_path):
    from tests.data.layouts import Sample, recbole

    events = tuple((f"u{n % 20}", f"i{(n * n + n // 20) % 9}", 1_500_000_000 + n) for n in range(160))
    recbole(tmp_path / "set", Sample((("i0", "<b>Fish</b> &amp; chips"), *((f"i{n}", f"Title {n}") for n in range(1, 8)), ("i8", "")),
                                     events))
    spec = Spec(data=str(tmp_path / "set"), method="popularity")
    assert Spec(**asdict(spec) | {"clean": True, "missing_text": "mean"}) == spec  # None means just that
    raw = replace(spec, clean=False)
    assert spec.key(fingerprint(spec)) != raw.key(fingerprint(raw))
    assert prepare(raw).dataset.items["title"][0].startswith("<b>")
    with pytest.raises(InputError, match="missing_text"):
        run(replace(spec, missing_text="refuse"), tmp_path / "runs")
    with pytest.raises(InputError, match="missing_text: 'drop' is not one of"):
        replace(spec, missing_text="drop")
