"""A stage graph and its placement into tasks of Dask.

Imports `cluster` and what is below.
"""
