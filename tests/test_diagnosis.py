"""Failure signatures, on rows that are made up so that one thing is wrong at a time."""

import numpy as np
import pandas as pd
import pytest

from nullrec_lib import experiments
from nullrec_lib.diagnosis import diagnose

BASE = {"valid N@20": 0.10, "valid_consistent N@20": 0.12, "test tail_item N@20": 0.01,
        "test_consistent tail_item N@20": 0.02}
LLMINIT = {name: 1.1 * value for name, value in BASE.items()}
GOOD = {name: 1.2 * value for name, value in BASE.items()} | {
    "nullity": 64, "full_nullity": 64, "width": 128, "row_space_identical": True, "spec standardise": "all",
    "spec freeze": None, "spec threshold": np.nan, "spec relative_threshold": np.nan}
SMOOTH = [3.0, 2.0, 2.1, 1.5]
SIGNATURES = ["worse than base", "no gain over llminit", "unstable training", "cold start still poor"]


def curve(losses):
    return pd.DataFrame({"epoch": range(1, len(losses) + 1), "loss": losses})


def verdicts(changes, losses=SMOOTH):
    return diagnose(GOOD | changes, BASE, LLMINIT, curve(losses))["verdict"].to_dict()


def test_a_healthy_run_has_none():
    assert verdicts({}) == dict.fromkeys(SIGNATURES, "absent")


LOW, NO_GAIN = {"valid N@20": 0.09, "valid_consistent N@20": 0.11}, {"valid N@20": 0.11, "valid_consistent N@20": 0.13}
POOR = {"test tail_item N@20": 0.01, "test_consistent tail_item N@20": 0.019}


@pytest.mark.parametrize("signature, symptom, losses, cause", [
    ("worse than base", LOW, SMOOTH, {"nullity": 31}),
    ("no gain over llminit", NO_GAIN, SMOOTH, {"spec standardise": "none"}),
    ("unstable training", {}, [3.0, 2.0, 2.3], {"spec threshold": 0.25, "full_nullity": 250}),
    ("unstable training", {}, [3.0, 2.0, 2.3], {"spec relative_threshold": 0.25, "full_nullity": 250}),
    ("cold start still poor", POOR, SMOOTH, {"spec freeze": False, "row_space_identical": np.nan}),
    ("cold start still poor", POOR, SMOOTH, {"nullity": 128, "full_nullity": 128}),
    ("cold start still poor", POOR, SMOOTH, {"row_space_identical": False}),
])
def test_each_signature_needs_its_symptom_and_its_cause(signature, symptom, losses, cause):
    others = set(SIGNATURES) - {signature}
    if symptom is LOW:
        others -= {"no gain over llminit"}  # below base is below llminit too
    for changes, told, expected in ((symptom | cause, losses, "recognised"), (symptom, losses, "symptom only"),
                                    (cause, SMOOTH, "cause only")):
        found = verdicts(changes, told)
        assert found[signature] == expected
        assert {found[other] for other in others} == {"absent"}


@pytest.mark.parametrize("place", [*LOW, *POOR])
def test_one_protocol_alone_is_no_symptom(place):
    assert verdicts({place: 0.0}) == dict.fromkeys(SIGNATURES, "absent")


def test_a_tie_is_no_gain_and_not_worse():
    same = diagnose(GOOD | BASE, BASE, BASE)
    assert same["symptom"].to_dict() == dict(zip(SIGNATURES, [False, True, False, True]))
    assert "no curve" in same.loc["unstable training", "why"]


def test_why_gives_the_numbers():
    why = diagnose(GOOD | LOW | {"nullity": 31}, BASE, LLMINIT).loc["worse than base", "why"]
    assert why == ("valid N@20 0.0900 against 0.1000 and 0.1100 against 0.1200; null space 31 of 128 kept directions")


def test_stored_runs_have_what_it_reads(tiny, tmp_path):
    specs = [tiny(freeze=False), tiny(threshold=5.0), tiny(method="base"), tiny(method="llminit")]
    rows = experiments.run_all(specs, tmp_path, jobs=1)
    thawed, low = (diagnose(rows.loc[i], rows.loc[2], rows.loc[3], experiments.learning_curves([specs[i]], tmp_path))
                   for i in (0, 1))
    assert thawed["cause"].tolist() == [False, False, False, True]
    assert bool(low.loc["unstable training", "cause"])
