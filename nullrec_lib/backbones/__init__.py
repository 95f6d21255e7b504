"""How a history reads: one file per backbone. A backbone knows no method: it sees views and item vectors."""

from nullrec_lib.backbones.dreamrec import DreamRec
from nullrec_lib.backbones.sasrec import SASRec

BACKBONES = {"sasrec": SASRec, "dreamrec": DreamRec}

WIDTHS = {"sasrec": 128, "dreamrec": None}
"""Default width of an item vector; None is the width of the language embeddings, which diffusion needs not clip."""
