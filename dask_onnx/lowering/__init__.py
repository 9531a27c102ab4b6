"""Lowering of a stage graph and its placement to tasks of Dask.

Imports `cluster` and what is below.
"""
