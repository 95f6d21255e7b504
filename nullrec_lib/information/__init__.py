"""How much of one embedding is in another: differential entropies, mutual information and the sufficiency index."""
