"""What runs in a worker: sessions, kernels in Python, row batches, transfer, profiles.

Imports `core`, `modelio`, `analysis` and `store`.
"""
