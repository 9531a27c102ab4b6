"""Text, SVG and HTML for people to read: plans, comparisons, summaries, loss of precision.

Imports `collections` and the layers below it.
"""
