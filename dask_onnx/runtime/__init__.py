"""Work inside a worker: sessions, kernels in Python, micro-batches, transfer, node times.

Imports `core`, `modelio`, `analysis` and `store`.
"""
