"""How an item looks: one file per method. A new method is its file and its line here."""

from nullrec_lib.methods.alphafuse import AlphaFuse
from nullrec_lib.methods.base import Base
from nullrec_lib.methods.frozen import Frozen
from nullrec_lib.methods.itemknn import ItemKNN
from nullrec_lib.methods.llminit import LLMInit
from nullrec_lib.methods.popularity import Popularity
from nullrec_lib.methods.textknn import TextKNN

METHODS = {"base": Base, "llminit": LLMInit, "frozen": Frozen, "alphafuse": AlphaFuse}
"""Item embeddings for a trained backbone, by the name they have on the command line."""

RULES = {"popularity": Popularity, "itemknn": ItemKNN, "textknn": TextKNN}
"""Rankers without training or backbone: the rows that keep everyone honest. Those with `reads_language` False need
no embeddings."""


def runs_on(method: str, backbone: str) -> bool:
    """Whether a trained method can be put on a backbone."""
    return True
