"""Reading and writing of files by blocks, inside tasks, and the file-to-file job.

Imports `core`.
"""
