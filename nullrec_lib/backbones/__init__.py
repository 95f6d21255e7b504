"""How a history reads: one file per backbone. A backbone knows no method: it sees views and item vectors."""

from nullrec_lib.backbones.sasrec import SASRec

BACKBONES = {"sasrec": SASRec}
