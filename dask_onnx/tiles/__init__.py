"""Tiled prediction whose result equals the untiled one, and sliced detection; built on `Model`."""
