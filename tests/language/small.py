"""What the tests make their tiny language models of."""

PAIRS = [(f"Bought: red chair {n}, oak lamp {n % 7}. What now?", f"Enjoys oak lamps {n % 7}.") for n in range(30)]
CORPUS = [f"a red chair of oak, number {n}" for n in range(20)]
TINY = dict(steps=2, sft_steps=2, hidden=32, layers=2, vocabulary=300, context=128, batch=4)
