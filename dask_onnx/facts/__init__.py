"""Facts of one model, each found once: analysis, kernels, costs, measured times, cuts.

Imports `cluster`, `planning`, `runtime` and the layers below them.
"""
