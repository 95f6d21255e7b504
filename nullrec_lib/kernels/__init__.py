"""How fast: one stem per operation. Kernels know only tensors.

`<stem>.py` says what the operation is: a naive reference that can be checked by eye, and the public function, which
picks an implementation by device or takes the one that `impl=` names. `<stem>_cpu.py` is the fast path on a CPU
(Numba), `<stem>_gpu.py` the one on a GPU (Triton). Both are imported when first used.
"""
