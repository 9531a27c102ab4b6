"""One request spread over workers: along its tokens, its heads, or as its model says.

Imports `collections` and what is below.
"""
