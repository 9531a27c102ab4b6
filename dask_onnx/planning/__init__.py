"""How a graph is cut into stages, what that costs, and which cut is best. Draws nothing, runs
nothing.

Imports `core`, `modelio` and `analysis`.
"""
