"""What is known of one model, each fact found once: analysis, kernels, costs, measured times.

Imports `cluster`, `planning`, `runtime` and what is below.
"""
