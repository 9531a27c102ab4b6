"""What we tell Dask and ask of it: scheduler plugin, placement, barriers, links, delivery.

Imports `planning`, `runtime` and what is below.
"""
