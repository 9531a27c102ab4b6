"""Giving graphs that were exported for a fixed number of rows an open batch, by rewriting."""
