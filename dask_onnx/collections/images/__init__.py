"""Pictures for models that take images: decoding, preparation, and results in picture coordinates.

May import `io`, `analysis`, `facts` and the other modules of `collections`; used by `api`, `tiles`
and `jobs`.
"""
