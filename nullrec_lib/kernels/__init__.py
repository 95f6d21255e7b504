"""How fast: one file per operation, its naive reference beside the fast path. Kernels know only tensors."""
