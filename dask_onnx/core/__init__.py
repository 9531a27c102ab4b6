"""Foundations that every layer uses: errors, configuration, specs, files and formatting.

Imports nothing else of this package.
"""
