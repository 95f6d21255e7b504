"""Figures: what was given is what is drawn, and files appear only where they are asked for."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nullrec_lib import figures


@pytest.fixture
def curves():
    return pd.DataFrame([{"method": method, "seed": seed, "epoch": epoch, "valid N@20": epoch / 10 + seed}
                         for method in ("base", "alphafuse") for seed in (1, 2) for epoch in (1, 2, 3)])


def test_spectrum_draws_every_value_and_the_null_space():
    values = np.array([4.0, 2.0, 1.0, 0.0])
    axes = figures.spectrum(values, width=3, null_dim=1, thresholds=(0.5,)).axes[0]
    assert axes.lines[0].get_ydata()[:3].tolist() == [4.0, 2.0, 1.0]
    assert axes.get_yscale() == "log" and axes.patches[0].get_x() == 2.5 and axes.patches[0].get_width() == 1
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["null space of the kept 3", "1 exactly null"]


def test_histograms_name_mean_and_deviation():
    figure = figures.similarity_histograms({"a": np.array([-0.004, 0.0]), "b": np.array([0.5, 0.5])})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a: 0.00 ± 0.00", "b: 0.50 ± 0.00"]


def test_learning_curves_show_the_mean_over_seeds(curves):
    axes = figures.learning_curves(curves, {"valid N@20": "authors"}).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([1.6, 1.7, 1.8]) and axes.get_title() == "authors"


def test_learning_curves_end_with_the_first_seed_that_stopped(curves):
    short = curves[~((curves["method"] == "base") & (curves["seed"] == 2) & (curves["epoch"] == 3))]
    axes = figures.learning_curves(short, {"valid N@20": "authors"}).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines[:2]] == [[1, 2], [1, 2, 3]]


def test_a_sweep_shows_mean_and_deviation():
    frame = pd.DataFrame({"nullity": [0, 0, 64], "x": [1.0, 3.0, 5.0]})
    axes = figures.sweep(frame, "nullity", {"x": "authors"}, {"x": 2.5}).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0, 2], [64, 5]]
    assert 2.5 in axes.lines[-1].get_ydata()


def test_sweeps_have_a_panel_per_case_each_with_its_own_base():
    frame = pd.DataFrame({"case": ["a", "a", "b"], "tau": [0.01, 0.1, 0.1], "x": [1.0, 2.0, 3.0], "nullity": [3, 6, 5]})
    base = pd.DataFrame({"case": ["b", "a", "a"], "x": [9.0, 4.0, 6.0]})
    left, right, nullity, _ = figures.sweeps(frame, "tau", {"x": "authors"}, base, label="threshold", nullity=True,
                                             log=True).axes
    assert left.lines[0].get_xydata().tolist() == [[0.01, 1], [0.1, 2]] and left.get_xlabel() == "threshold"
    assert right.lines[0].get_xydata().tolist() == [[0.1, 3]] and right.get_xscale() == "log"
    assert 5.0 in left.lines[-1].get_ydata() and 9.0 in right.lines[-1].get_ydata()
    assert nullity.lines[0].get_xydata().tolist() == [[0.01, 3], [0.1, 6]]


def test_dots_show_mean_and_range_in_the_line_of_their_method():
    frame = pd.DataFrame({"method": ["b", "b", "a"], "backbone": ["s", "s", "d"], "x": [1.0, 3.0, 7.0]})
    left, right = figures.dots(frame, {"x": "authors"}, label="N@10").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["b", "a"]
    assert left.lines[0].get_xydata().tolist() == [[2, 0]] and right.lines[0].get_xydata().tolist() == [[7, 1]]
    assert left.collections[0].get_segments()[0].tolist() == [[1, 0], [3, 0]]


def test_a_scatter_marks_the_mean_of_each_name():
    frame = pd.DataFrame({"case": ["a", "a", "b"], "kept": [0.0, 1.0, 0.9], "x": [1.0, 3.0, 5.0]})
    axes = figures.scatter(frame, "kept", {"x": "authors"}, by="case").axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0.5, 2.0]], [[0.9, 5.0]]]
    assert [line.get_label() for line in axes.lines] == ["a", "b"]


def test_maps_have_a_scale_for_numbers_and_none_for_classes():
    points = {"before": np.zeros((4, 2)), "after": np.ones((4, 2))}
    assert len(figures.maps(points, np.array([0, 1, 0, 1]), "theme").axes) == 2
    assert figures.maps(points, np.arange(4.0), "popularity").axes[-1].get_ylabel() == "popularity"


def test_saving_is_asked_for_and_leaves_nothing_open(tmp_path, curves):
    figure = figures.learning_curves(curves, {"valid N@20": "authors"})
    assert figures.save(figure, "curves", "") is figure and not any(tmp_path.iterdir())
    figures.save(figure, "curves", tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["curves.png", "curves.svg"]
    first = (tmp_path / "report/curves.svg").read_bytes()
    figures.save(figure, "curves", tmp_path / "report")
    assert (tmp_path / "report/curves.svg").read_bytes() == first  # no date, no random ids
    assert plt.get_fignums() == [] and plt.rcParams["font.size"] == plt.rcParamsDefault["font.size"]


def test_a_plane_keeps_clusters_apart_and_is_seeded():
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(2, 8), 20, axis=0) + 0.05 * rng.standard_normal((40, 8))
    one, again = figures.plane(vectors, neighbours=5), figures.plane(vectors, neighbours=5)
    assert one.shape == (40, 2) and (one == again).all()
    gap = np.linalg.norm(one[:20].mean(0) - one[20:].mean(0))
    assert gap > max(one[:20].std(), one[20:].std())


def runs() -> pd.DataFrame:
    rows = [{"method": "popularity", "backbone": None, "seed": 22, "x": 0.1, "x tail": 0.0}]
    rows += [{"method": method, "backbone": backbone, "seed": seed, "x": value + seed, "x tail": 2 * value}
             for backbone in ("sasrec", "dreamrec") for method, value in (("base", 0.2), ("alphafuse", 0.3))
             for seed in (0, 1)]
    return pd.DataFrame(rows)


def test_dots_show_every_row_in_every_panel_with_its_mean():
    figure = figures.dots(runs(), {"x": "authors"})
    assert [ax.get_title() for ax in figure.axes] == ["sasrec", "dreamrec"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["popularity", "base", "alphafuse"]
    for ax in figure.axes:
        drawn = {round(float(y)): float(x) for x, y in ax.lines[0].get_xydata()}
        assert drawn == pytest.approx({0: 0.1, 1: 0.7, 2: 0.8})


def test_group_heatmap_prints_the_means():
    frame = runs().rename(columns={"x": "test N@10", "x tail": "test tail_item N@10"})
    figure = figures.group_heatmap(frame, "test", ["tail_item"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.100", "0.000", "0.700", "0.400", "0.800", "0.600"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["overall", "tail item"]


def test_bench_draws_speeds_and_shares():
    frame = pd.DataFrame({"case": ["a", "b"], "shape": ["B 1", "B 2"], "over_plain": [2.0, None],
                          "over_naive": [9.0, 3.0], "share_of_ceiling": [0.5, 0.25]})
    speeds, shares = figures.bench(frame).axes
    assert [bar.get_x() + bar.get_width() for bar in speeds.patches] == [2, 3] and speeds.get_xscale() == "log"
    assert [bar.get_width() for bar in shares.patches] == [50, 25]
    assert [label.get_text() for label in speeds.get_yticklabels()] == ["a  B 1", "b  B 2"]


def test_convergence_shows_both_sides_and_tells_their_rates():
    frame = pd.DataFrame({"side": ["user", "item"] * 2, "round": [0, 0, 1, 1], "distance": [np.nan, np.nan, 0.4, 0.2],
                          "homogenisation": [0.5, 0.3, 0.6, 0.4]})
    figure = figures.convergence(frame, {"user": 0.5, "item": None})
    left, right = figure.axes
    assert left.lines[0].get_xydata()[1].tolist() == [1, 0.4] and left.get_yscale() == "log"
    assert right.lines[1].get_ydata().tolist() == [0.3, 0.4]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["users: × 0.50 per round", "items"]


def test_rewards_show_each_training_by_side_and_step():
    frame = pd.DataFrame({"step": [1, 2], "user/reward": [0.1, 0.3], "item/reward": [0.2, 0.2], "user/alike": [0.5, 0.4],
                          "user/reward std": [0.1, 0.1], "user/collab": [0.6, 0.8], "kl": [0.0, 0.1], "entropy": [3.0, 2.0],
                          "completions/clipped_ratio": [0.5, 0.25]})
    figure = figures.rewards({"standard": frame, "log_sigmoid": frame}, smooth=2)
    reward, near, far, alike, divergence, entropy, clipped, spread = figure.axes
    drawn = [line for line in reward.lines if len(line.get_xdata())]
    assert [line.get_linestyle() for line in drawn] == ["-", "--"] * 2 and len(alike.lines) == 2
    assert drawn[0].get_ydata() == pytest.approx([0.1, 0.2]) and drawn[0].get_xdata().tolist() == [1, 2]
    low, high = reward.collections[0].get_paths()[0].vertices[:, 1].min(), reward.collections[0].get_paths()[0].vertices[:, 1].max()
    assert len(reward.collections) == 2 and (low, high) == (pytest.approx(0.0), pytest.approx(0.3))  # of users alone
    assert near.lines[0].get_ydata() == pytest.approx([0.6, 0.7]) and entropy.lines[0].get_ydata() == pytest.approx([3, 2.5])
    assert clipped.lines[0].get_ydata() == pytest.approx([0.5, 0.375])
    assert len(divergence.lines) == 2 and not spread.lines and not far.lines  # what was not logged is not drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["standard", "log_sigmoid", "items"]


def test_overlaps_show_median_and_quartiles_by_rank():
    ax = figures.overlaps(np.array([[0.8, 0.2], [0.6, 0.2], [0.4, 0.0]])).axes[0]
    assert ax.lines[0].get_xydata().tolist() == [[1, 0.6], [2, 0.2]]
