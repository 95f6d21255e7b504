"""PtE: where the user's profile stands, which one it is, and what it must not know."""


import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from nullrec_lib import data
from nullrec_lib.data.examples import Examples
from nullrec_lib.data.splits import split
from nullrec_lib.errors import InputError
from nullrec_lib.experiments import run
from nullrec_lib.kernels.lookup import Items
from nullrec_lib.methods.method import Material
from nullrec_lib.methods.pte import PtE
from nullrec_lib.preparing import build, prepare
from nullrec_lib.profiles import build as builds
from nullrec_lib.profiles import vectors
from nullrec_lib.profiles.vectors import UserProfiles, Vectors
from nullrec_lib.spec import Spec

SHORT = dict(data="shop-tiny", method="pte", epochs=1, batch_size=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pte") / "profiles"
    builds.build(out, data="shop-tiny", rounds=1, say=lambda _: None)
    return out


@pytest.fixture(scope="module")
def parts():
    return split(data.load("shop-tiny"), "cold-start")


def method(parts, cuts, rows=None, seed=0):
    random = torch.Generator().manual_seed(seed)
    language = torch.randn(parts.n_items, 12, generator=random)
    rows = torch.randn(len(cuts), 12, generator=random) if rows is None else rows
    torch.manual_seed(1)
    return PtE(Material.of(parts, language, UserProfiles(torch.tensor(cuts), rows)), width=8)


def test_the_profile_stands_right_before_the_history_if_there_is_one_to_stand_there(parts):
    user = int(parts.user_of(parts.train)[0])
    made = method(parts, [[user, 2], [user, 4]])
    examples = Examples(parts, "train", 5)
    examples.context = made.context(examples)
    index = torch.nonzero(examples.user == user)[:, 0][:5]  # 1, 2, 3, 4, 5 items before the target
    batch = examples.batch(index)
    assert batch.context["profile"].tolist() == [-1, 0, 0, 1, 1]
    (tokens,) = made.views(batch, Items(made.rows()))
    assert tokens.mask.sum(dim=1).tolist() == [1, 3, 4, 5, 6]
    seen, said = tokens.vectors, made.read(made.spoken)
    torch.testing.assert_close(seen[1, 3], said[0])
    torch.testing.assert_close(seen[3, 1], said[1])
    torch.testing.assert_close(seen[3, 2:], made.vectors(batch.history[3, 1:]))
    torch.testing.assert_close(seen[0, -1], made.vectors(batch.history[0, -1]))
    assert (seen[0, :-1] == 0).all()


def test_a_longer_cut_of_a_held_out_user_moves_nothing_that_a_shorter_one_stands_beside(parts):
    held = int(parts.user_of(parts.test)[0])
    trained = int(parts.user_of(parts.train)[0])
    cuts = sorted([[held, 1], [held, 6], [trained, 1], [trained, 2]])
    rows = torch.randn(4, 12)
    changed = rows.clone()
    changed[cuts.index([held, 6])] = torch.randn(12)
    one, two = method(parts, cuts, rows), method(parts, cuts, changed)
    mine = cuts.index([held, 1])
    assert torch.equal(one.spoken[mine], two.spoken[mine])
    assert not torch.equal(one.spoken[cuts.index([held, 6])], two.spoken[cuts.index([held, 6])])


def test_a_run_with_profiles_without_and_with_those_of_others(folder, tmp_path):
    specs = {"text": Spec(**SHORT), "profiles": Spec(**SHORT, profiles=str(folder)),
             "shuffled": Spec(**SHORT, profiles=str(folder), shuffle_profiles=3)}
    results = {name: run(spec, root=tmp_path) for name, spec in specs.items()}
    assert len({result["key"] for result in results.values()}) == 3
    assert len({result["test"]["N@20"] for result in results.values()}) == 3
    plain, full = (prepare(specs[name]) for name in ("text", "profiles"))
    assert plain.profiles is None and full.profiles is not None
    width = plain.embeddings.shape[1]
    assert results["text"]["params_trainable"] < results["profiles"]["params_trainable"]
    assert results["profiles"]["params_trainable"] - results["text"]["params_trainable"] == (width + 1 + 1) * 128
    shuffled = prepare(specs["shuffled"]).profiles
    assert torch.equal(shuffled.cuts, full.profiles.cuts) and not torch.equal(shuffled.rows, full.profiles.rows)
    assert torch.equal(shuffled.rows.sort(dim=0).values, full.profiles.rows.sort(dim=0).values)
    same = (shuffled.rows == full.profiles.rows).all(dim=1)
    assert not same.any()


def test_profiles_of_users_with_other_ids_are_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    asked = json.loads((other / "asked.json").read_text())
    (other / "asked.json").write_text(json.dumps(asked | {"ids_fingerprint": "0" * 16}))
    with pytest.raises(InputError, match="are of users with other ids than shop-tiny has now"):
        prepare(Spec(**SHORT, profiles=str(other)))


def test_profiles_of_held_out_users_alone_are_refused(parts):
    held = int(parts.user_of(parts.test)[0])
    with pytest.raises(InputError, match="profiles: no user's is made of training interactions alone"):
        method(parts, [[held, 1]], torch.randn(1, 12))


def test_any_method_reads_items_by_their_profiles(folder):
    by_text, by_profile = (prepare(Spec(data="shop-tiny", method="alphafuse", profiles=given)).embeddings
                           for given in (None, str(folder)))
    assert by_text.shape == by_profile.shape and not np.allclose(by_text, by_profile)
    assert np.allclose(np.linalg.norm(by_profile, axis=1), by_profile.shape[1] ** 0.5, rtol=1e-4)


def test_stored_vectors_are_read_and_an_item_without_one_has_its_text(folder, tmp_path):
    found = vectors.load(folder)
    few = Vectors(found.item_ids[:5], found.items[:5], found.user_ids[:0], found.cuts[:0], found.users[:0], found.about)
    vectors.store(tmp_path, few)
    prepared = prepare(Spec(data="shop-tiny", method="pte", profiles=str(tmp_path)))
    text = prepare(Spec(data="shop-tiny", method="pte")).embeddings
    same = np.isclose(prepared.embeddings, text, atol=1e-5).all(axis=1)
    rows = [prepared.dataset.items["item_id"].tolist().index(name) for name in found.item_ids[:5]]
    assert not same[rows].any() and same.sum() == len(same) - 5 and prepared.profiles is None
    assert vectors.identity(tmp_path) != vectors.identity(folder)


def test_profiles_that_belong_elsewhere_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="another split or other data .shop-tiny, cold-start.; they may know"):
        prepare(Spec(data="shop-tiny", method="pte", split="leave-one-out", profiles=str(folder)))
    with pytest.raises(InputError, match="one for both"):
        prepare(Spec(data="shop-tiny", method="pte", profiles=str(folder), encoder="given"))
    with pytest.raises(InputError, match="no build has finished"):
        Spec(data="shop-tiny", method="pte", profiles=str(tmp_path)).key("x")
    with pytest.raises(InputError, match="shuffle_profiles: method alphafuse on sasrec does not read it"):
        Spec(data="shop-tiny", method="alphafuse", profiles=str(folder), shuffle_profiles=1)
    (tmp_path / vectors.VECTORS).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is damaged"):
        vectors.load(tmp_path)


def test_profiles_of_other_texts_or_items_are_refused_by_run_and_by_grid(tmp_path):
    from typer.testing import CliRunner

    from nullrec_lib.cli import app
    from tests.data.layouts import Sample, recbole

    events = tuple((f"u{n % 20}", f"i{(n * n + n // 20) % 9}", 1_500_000_000 + n) for n in range(160))
    titles = ["Space lasers", "Fresh tomatoes", "Medieval sword", "Quiet jazz", "Deep water", "Red chair", "Old lamp", "New shoes", "Salt"]
    others = {"pa": titles, "pb": titles[1:] + titles[:1]}
    for name, words in others.items():
        recbole(tmp_path / name, Sample(tuple((f"i{n}", word) for n, word in enumerate(words)), events))
    recbole(tmp_path / "pc", Sample(tuple((f"j{n}", word) for n, word in enumerate(titles)),
                                    tuple((user, item.replace("i", "j"), when) for user, item, when in events)))
    builds.build(tmp_path / "p", str(tmp_path / "pa"), rounds=1, cuts=(1,), say=lambda _: None)
    assert prepare(Spec(data=str(tmp_path / "pa"), method="pte", profiles=str(tmp_path / "p"))).profiles is not None
    for name in ("pb", "pc"):
        for method in ("pte", "textknn"):
            words = ["run", "--data", str(tmp_path / name), "--method", method, "--profiles", str(tmp_path / "p")]
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
            assert "profiles" in result.stderr and "other items" in result.stderr
        (tmp_path / "g.yaml").write_text(f"data: {tmp_path / name}\nmethod: pte\nprofiles: {tmp_path / 'p'}\nepochs: 1\n")
        result = CliRunner().invoke(app, ["grid", str(tmp_path / "g.yaml"), "--root", str(tmp_path), "--reports", str(tmp_path)])
        assert result.exit_code == 2 and "other items" in result.stderr
    whole = vectors.load(tmp_path / "p")
    with pytest.raises(InputError, match="other items"):
        vectors.item_rows(whole, ["x", "y"], np.zeros((2, whole.items.shape[1]), np.float32))
    with pytest.raises(InputError, match="dimensions"):
        vectors.item_rows(whole, [f"i{n}" for n in range(9)], np.zeros((9, 3), np.float32))


def test_histories_beside_profiles_are_not_read_together(folder):
    """A user's profile at one cut may know what comes after an earlier history."""
    spec = Spec(**SHORT, profiles=str(folder), prefixes="together")
    with pytest.raises(InputError, match="prefixes: pte reads more"):
        build(spec, prepare(spec))
    without = dataclasses.replace(spec, profiles=None)
    assert build(without, prepare(without)).backbone.together


@pytest.mark.parametrize("backbone", ["sasrec", "dreamrec"])
def test_both_backbones_learn_to_read_profiles(folder, tmp_path, backbone):
    spec = Spec(**SHORT, backbone=backbone, profiles=str(folder))
    results = [run(one, root=tmp_path) for one in (spec, dataclasses.replace(spec, profiles=None))]
    assert results[0]["test"]["N@20"] != results[1]["test"]["N@20"]
    prepared = prepare(spec)
    model = build(spec, prepared)
    train = Examples(prepared.split, "train", spec.history_length)
    train.context = model.method.context(train)
    with_profile = torch.nonzero(train.context["profile"] >= 0)[:8, 0]
    model.loss(train.batch(with_profile)).backward()
    assert len(with_profile) and all(p.grad is not None and p.grad.any() for p in model.method.read.parameters())


@pytest.mark.parametrize("backbone", ["sasrec", "dreamrec"])
def test_swapping_the_future_changes_no_state(folder, backbone):
    """What is after an example's target is other items: its state stays, to the last bit."""
    spec = Spec(**SHORT, backbone=backbone, profiles=str(folder))
    prepared = prepare(spec)
    model = build(spec, prepared).eval()
    examples = Examples(prepared.split, "test", spec.history_length)
    examples.context = model.method.context(examples)
    states = model.states(examples.batch(torch.arange(len(examples))), Items(model.method.rows()))
    served = examples.context["profile"]
    cuts, before = prepared.profiles.cuts[served.clamp(min=0)], examples.place - examples.begin
    there = served >= 0
    assert there.any() and (cuts[there, 0] == examples.user[there]).all() and (cuts[there, 1] <= before[there]).all()
    # Profiles made of more items than a history has: none of them is read by its example.
    rows = prepared.profiles.rows.clone()
    one = int(torch.nonzero(there)[0])
    later = (prepared.profiles.cuts[:, 0] == examples.user[one]) & (prepared.profiles.cuts[:, 1] > before[one])
    rows[later] = torch.nn.functional.normalize(torch.randn(int(later.sum()), rows.shape[1]), dim=1)
    swapped = build(spec, type(prepared)(prepared.dataset, prepared.split, prepared.embeddings,
                                         UserProfiles(prepared.profiles.cuts, rows))).eval()
    swapped.load_state_dict({name: tensor if name != "method.spoken" else swapped.state_dict()[name]
                             for name, tensor in model.state_dict().items()})
    again = swapped.states(examples.batch(torch.arange(len(examples))), Items(swapped.method.rows()))
    assert later.any() and torch.equal(again[one], states[one]) and not torch.equal(again, states)
