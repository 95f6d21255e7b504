"""nullrec: language embeddings in sequential recommendation, studied, measured and reproduced."""

__version__ = "0.1.0"
