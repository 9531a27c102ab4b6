"""Facts of a graph: shapes, costs, axes, branches. Builds no session and knows no Dask.

Imports `core` and `modelio`.
"""
