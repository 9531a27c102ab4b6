"""Weights on a host: addressed by content, mapped, fetched, verified, evicted.

Imports `core` and `modelio`.
"""
