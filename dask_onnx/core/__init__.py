"""What every layer uses: errors, configuration, specs, files, number formatting.

Imports nothing else of this package.
"""
