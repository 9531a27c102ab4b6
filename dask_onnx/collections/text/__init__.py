"""Texts in and vectors out: tokenising, columns of texts, bad texts.

Imports what `collections` may.
"""
