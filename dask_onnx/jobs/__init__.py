"""Predictions from file to file: arrays, tables and rasters, block by block on a cluster.

Imports `tiles` and the layers below it.
"""
