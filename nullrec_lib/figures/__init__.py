"""Show: every figure is a function, data in and Figure out. Nothing here reads a disk or trains a model."""

from nullrec_lib.figures.information import calibration, risks, sufficiency
from nullrec_lib.figures.profiles import convergence, overlaps, rewards
from nullrec_lib.figures.results import dots, group_heatmap, learning_curves, scatter, sweep, sweeps
from nullrec_lib.figures.space import maps, plane, similarity_histograms, spectrum
from nullrec_lib.figures.speed import bench
from nullrec_lib.figures.style import save

__all__ = [
    "bench", "calibration", "convergence", "dots", "group_heatmap", "learning_curves", "maps", "overlaps", "plane",
    "rewards", "risks", "save", "scatter", "similarity_histograms", "spectrum", "sufficiency", "sweep", "sweeps",
]
