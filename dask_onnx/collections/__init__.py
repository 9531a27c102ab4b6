"""Each of Dask's collections, in and out."""
