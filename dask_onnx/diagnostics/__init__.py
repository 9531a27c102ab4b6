"""What people look at: plans as text, SVG and HTML; comparisons, summaries, loss.

Imports `collections` and what is below.
"""
