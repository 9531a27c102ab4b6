"""Predictions for arrays, tables, bags, text and Delayed: checked requests and their graphs.

Imports `lowering`, `facts` and what is below.
"""
