"""The case study's embeddings, and `nullrec isi` on files."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from nullrec_lib import figures
from nullrec_lib.cli import app
from nullrec_lib.errors import InputError
from nullrec_lib.information.case import Fusion, case_study
from nullrec_lib.information.knife import Kernels
from nullrec_lib.information.sufficiency import matrix, table
from nullrec_lib.information.risk import curves
from nullrec_lib.spec import Spec

SHORT = Spec(data="shop-tiny", method="base", epochs=1, batch_size=64, width=16)


def test_five_views_of_the_items_that_were_trained_on(tmp_path):
    case = case_study(SHORT, tmp_path, jobs=1)
    assert list(case.views) == ["id", "lm", "fusion", "alphafuse", "pte"]
    assert (case.split.popularity()[case.items] > 0).all() and len(case.items) == (case.split.popularity() > 0).sum()
    assert {len(rows) for rows in case.views.values()} == {len(case.items)}
    assert case.views["lm"].shape[1] == 384 and case.views["fusion"].shape[1] == 16
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = case_study(SHORT, tmp_path, jobs=1)
    assert all(np.array_equal(case.views[name], again.views[name]) for name in case.views)
    assert stored == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    with pytest.raises(InputError, match="not of alphafuse on sasrec"):
        case_study(Spec(data="shop-tiny"), tmp_path)


def test_a_fusion_reads_both_and_learns_from_neither():
    z_id, z_lm = torch.randn(6, 3), torch.randn(6, 5)
    made = Fusion(z_id, z_lm, 4)
    assert made.language.shape == (7, 8) and not made.language.requires_grad
    ids = torch.arange(6)
    before = made.vectors(ids)
    for part in (slice(0, 3), slice(3, 8)):
        changed = Fusion(z_id, z_lm, 4)
        changed.load_state_dict(made.state_dict())
        changed.language[:, part] += 1
        assert not torch.allclose(before, changed.vectors(ids))


@pytest.fixture()
def files(tmp_path):
    random = np.random.default_rng(0)
    u = random.standard_normal((200, 3)).astype(np.float32)
    np.save(tmp_path / "u.npy", u)
    save_file({"items": u + random.standard_normal((200, 3)).astype(np.float32), "users": u}, tmp_path / "v.safetensors")
    return tmp_path


def test_the_command(files):
    asked = ["isi", str(files / "u.npy"), f"{files / 'v.safetensors'}#items", "--seeds", "1,2", "--epochs", "2"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for name in ("h_v", "h_v_given_u", "mi_nats", "isi"):
        assert set(told[name]) == {"value", "low", "high"} and told[name]["low"] <= told[name]["high"]
    assert told["seeds"] == [1, 2] and told["rows"]["all"] == 200 and told["rows"]["held_out"] == 40
    assert told["mi_nats"]["value"] == pytest.approx(1.5 * np.log(2), abs=0.4) and told["why"] is None
    assert "I(U;V)" in CliRunner().invoke(app, asked).stdout


@pytest.mark.parametrize("given, said", [
    (["nowhere.npy"], "nowhere.npy: there is no such file"), (["v.safetensors"], "holds items, users; write"),
    (["v.safetensors#none"], "holds items, users"), (["u.txt"], "is neither .npy nor .safetensors"),
    (["u.npy", "--seeds", "a"], "seeds: 'a' is not a list"), (["bad.npy"], "bad.npy: not readable"),
    (["u.npy", "--components", "0"], "components: 0"),
])
def test_a_mistake_is_one_sentence(files, monkeypatch, given, said):
    monkeypatch.chdir(files)
    (files / "u.txt").write_text("1")
    np.save(files / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    done = CliRunner().invoke(app, ["isi", given[0], "u.npy", *given[1:]])
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1


def damaged(folder):
    """Files with the right ending that are no matrix: name → bytes."""
    whole = (folder / "u.npy").read_bytes()
    shape = b"'shape': (200, 3), }"
    lie = lambda told: whole.replace(shape + b" " * 12, told.ljust(len(shape) + 12))
    np.savez(folder / "archive.npz", a=np.ones((30, 2)))
    tensors = (folder / "v.safetensors").read_bytes()
    return {
        "empty.npy": b"", "cut.npy": whole[:-40], "header.npy": whole[:50], "text.npy": b"1 2 3", "huge.npy":
        lie(b"'shape': (200000000000, 3), }"), "below.npy": lie(b"'shape': (-200, -3), }"), "zip.npy":
        (folder / "archive.npz").read_bytes(), "empty.safetensors": b"", "cut.safetensors": tensors[:-40],
        "header.safetensors": b"\xff" * 8 + tensors[8:], "short.safetensors": tensors[:30], "archive.npz": b"PK"}


def test_a_damaged_file_is_one_sentence_and_no_memory(files):
    import resource

    for name, content in damaged(files).items():
        (files / name).write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for pair in ([name, "u.npy"], ["u.npy", name]):
            done = CliRunner().invoke(app, ["isi", *(str(files / end) for end in pair)])
            assert done.exit_code == 2 and done.stderr.count("\n") == 1 and f"{files / name}: " in done.stderr, name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, name  # KB


def test_a_file_is_read_whatever_its_name_and_number_type(files):
    import torch
    from safetensors.torch import save_file as save_tensors

    rows = np.random.default_rng(0).standard_normal((40, 2))
    np.save(files / "a#b [1].npy", (rows * 50).astype(np.int8))
    save_tensors({"rows": torch.from_numpy(rows).bfloat16()}, files / "b#c.safetensors")
    few = ["--seeds", "1", "--epochs", "1", "--components", "2"]
    for end in ("", "#rows"):
        done = CliRunner().invoke(app, ["isi", str(files / "a#b [1].npy"), f"{files / 'b#c.safetensors'}{end}", *few])
        assert done.exit_code == 0, done.stderr


def test_figures_show_every_pair_and_every_view():
    random = np.random.default_rng(0)
    named = {name: random.standard_normal((60, 2)) for name in ("one", "two", "three")}
    frame = table(matrix(named, seeds=(1,), kernels=Kernels(epochs=1)))
    drawn = figures.sufficiency(frame)
    assert len([text for text in drawn.axes[0].texts if "±" in text.get_text()]) == 6
    curve = curves(named, random.integers(3, size=60), sizes=(20, None), probes=("linear", "knn"), seeds=(1,))
    drawn = figures.risks(curve, known=0.1)
    assert [ax.get_title() for ax in drawn.axes] == ["linear", "knn"] and len(drawn.axes[0].lines) == 4
