"""Tiles: exact inference of pictures and volumes piece by piece; imports any lower layer."""
