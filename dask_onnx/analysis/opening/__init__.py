"""Rewriting of graphs exported for a fixed number of rows, so that the batch axis is dynamic.

`opener` is the entry point, `search` the search for a rewrite of every node, `fixes` the table of
rewrites by operator, `draft` the graph under construction, and `assembly` turns it into a model.
It imports `analysis.axes` and lower layers only.
"""
