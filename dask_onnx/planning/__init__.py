"""Strategies that cut a graph into stages, their predicted cost, and the choice among them.

Draws nothing and runs nothing. Imports `core`, `modelio` and `analysis`.
"""
