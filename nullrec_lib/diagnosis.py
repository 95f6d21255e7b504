"""What goes wrong with AlphaFuse, and how a stored run shows it: four failure signatures."""

from __future__ import annotations

from typing import Any, Mapping

import pandas as pd

SMALL = 0.25
"""A null space of less than this share of the kept width is too small."""
UNSTABLE = 1.1
"""A loss that rises to this multiple of its lowest value so far is unstable."""

Row = Mapping[str, Any]


def diagnose(row: Row, base: Row, llminit: Row, curve: pd.DataFrame | None = None) -> pd.DataFrame:
    """The four signatures in one run of AlphaFuse: is the symptom there, and the setting that explains it?

    A symptom needs both scoring protocols to agree. A symptom without its cause has another explanation; a cause
    without its symptom is a warning: on these data, with this budget, it did no harm.

    Args:
        row, base, llminit: rows of `experiments.stored` on the same data, split and seed.
        curve: the run's rows of `experiments.learning_curves`; without it no instability can be seen.

    Returns: a row per signature, `signature` as its index: `symptom` and `cause` (bool), `verdict` (recognised,
        symptom only, cause only, absent) and `why`, which gives the numbers.
    """
    signs = {
        "worse than base": (_not_above(row, base, "valid", strictly=True), _small(row)),
        "no gain over llminit": (_not_above(row, llminit, "valid"), _unweighted(row)),
        "unstable training": (_unstable(curve), _mismatched(row)),
        "cold start still poor": (_not_above(row, base, "tail_item"), _thawed(row)),
    }
    rows = []
    for name, ((symptom, seen), (cause, told)) in signs.items():
        verdict = {(True, True): "recognised", (True, False): "symptom only", (False, True): "cause only"}
        rows.append({"signature": name, "symptom": symptom, "cause": cause,
                     "verdict": verdict.get((symptom, cause), "absent"), "why": f"{seen}; {told}"})
    return pd.DataFrame(rows).set_index("signature")


def _not_above(row: Row, other: Row, where: str, strictly: bool = False) -> tuple[bool, str]:
    """Whether `row` gains nothing on `other` (or is worse, if `strictly`) under both protocols."""
    parts = {"valid": ("valid", "valid_consistent")}.get(where, (f"test {where}", f"test_consistent {where}"))
    pairs = [(float(row[f"{part} N@20"]), float(other[f"{part} N@20"])) for part in parts]
    said = " and ".join(f"{ours:.4f} against {theirs:.4f}" for ours, theirs in pairs)
    return all(ours < theirs or ours == theirs and not strictly for ours, theirs in pairs), f"{where} N@20 {said}"


def _small(row: Row) -> tuple[bool, str]:
    nullity, width = int(row["nullity"]), int(row["width"])
    return nullity < SMALL * width, f"null space {nullity} of {width} kept directions"


def _unweighted(row: Row) -> tuple[bool, str]:
    how = row["spec standardise"]
    return how == "none", f"standardised: {how}"


def _unstable(curve: pd.DataFrame | None) -> tuple[bool, str]:
    if curve is None or len(curve) < 2:
        return False, "no curve to see"
    loss = curve.sort_values("epoch")["loss"]
    worst = float((loss / loss.cummin().shift()).max())
    return worst > UNSTABLE, f"loss at most {worst:.2f} times its lowest so far"


def _mismatched(row: Row) -> tuple[bool, str]:
    """A rule that was meant for all d_l directions and leaves a different null space in the kept ones."""
    kept, full = int(row["nullity"]), int(row["full_nullity"])
    by_rule = any(pd.notna(row[f"spec {name}"]) for name in ("threshold", "relative_threshold"))
    return by_rule and kept != full, f"nullity {full} by the rule over all directions, {kept} in the kept width"


def _thawed(row: Row) -> tuple[bool, str]:
    if row["spec freeze"] == 0:
        return True, "row space trained along with the IDs"
    if row["nullity"] == row["width"]:
        return True, "no row space: an ID is added to every direction"
    if not row["row_space_identical"]:
        return True, "row space has moved, which is an error"
    return False, "row space bit-identical"
