"""Dask clusters: scheduler plugin, placement, barriers, capacity, links, overhead and delivery.

Imports `planning`, `runtime` and what is below.
"""
