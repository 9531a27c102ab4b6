"""Readers and writers that open files by path inside the tasks, block by block."""
