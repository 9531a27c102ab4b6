"""Files in and out, and the job that takes a file to a file.

Imports `core`.
"""
