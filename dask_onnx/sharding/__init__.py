"""Sharded plans: one request on several workers, along a sequence, its heads, or as annotated.

Terms of this folder. The *sharded axis* is cut into shards of consecutive *positions*. A *layout*
says along which axis of a value those positions lie. A *layout candidate* of a node is a choice of
layouts for its inputs for which running each shard by itself is exact. A *submodel* is a part of
the model that runs as one task, once or for every shard.

Imports `collections` and lower layers.
"""
