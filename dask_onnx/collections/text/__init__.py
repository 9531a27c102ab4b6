"""Encoding of text to vectors: tokens, columns of text, invalid text.

Imports the same layers as `collections`.
"""
