"""How an item looks: one file per method. A new method is its file and its line here."""

from nullrec_lib.methods.alphafuse import AlphaFuse
from nullrec_lib.methods.base import Base
from nullrec_lib.methods.frozen import Frozen
from nullrec_lib.methods.idreamrec import IDreamRec
from nullrec_lib.methods.itemknn import ItemKNN
from nullrec_lib.methods.llmesr import LLMESR
from nullrec_lib.methods.llminit import LLMInit
from nullrec_lib.methods.morec import MoRec
from nullrec_lib.methods.popularity import Popularity
from nullrec_lib.methods.pte import PtE
from nullrec_lib.methods.rlmrec_con import RLMRecCon
from nullrec_lib.methods.rlmrec_gen import RLMRecGen
from nullrec_lib.methods.textknn import TextKNN
from nullrec_lib.methods.unisrec import UniSRec
from nullrec_lib.methods.whitenrec import WhitenRec

METHODS = {
    "base": Base, "llminit": LLMInit, "frozen": Frozen, "morec": MoRec, "unisrec": UniSRec, "whitenrec": WhitenRec,
    "rlmrec-con": RLMRecCon, "rlmrec-gen": RLMRecGen, "llm-esr": LLMESR, "idreamrec": IDreamRec,
    "alphafuse": AlphaFuse, "pte": PtE,
}
"""Item embeddings for a trained backbone, by the name they have on the command line."""

RULES = {"popularity": Popularity, "itemknn": ItemKNN, "textknn": TextKNN}
"""Rankers without training or backbone: the rows that keep everyone honest. Those with `reads_language` False need
no embeddings."""

ONLY = {"idreamrec": ("dreamrec",)}
"""Methods that are defined for some backbones only."""


def runs_on(method: str, backbone: str) -> bool:
    """Whether a trained method is defined on a backbone."""
    return backbone in ONLY.get(method, (backbone,))
