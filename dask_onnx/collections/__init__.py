"""Arrays, tables, bags, text and Delayed: checked, and turned into requests and graphs.

Imports `lowering`, `facts` and what is below.
"""
