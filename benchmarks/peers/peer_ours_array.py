"""dask_onnx on a dask.array of pictures that a function of the user's prepares."""

from __future__ import annotations

from typing import Any

import dask.array as da
import functions
import numpy as np
from distributed import Client
from peer_ours import started
from work import Result, Work

import dask_onnx as dx

__all__ = ["images", "started"]


# user code: images (peer_ours.start, picture)
def read(files: Any) -> Any:
    return np.stack([functions.picture(file) for file in files])


def images(work: Work, client: Client) -> Result:
    files = da.from_array(np.array(work.files), chunks=work.chunk)
    array = files.map_blocks(
        read,
        new_axis=[1, 2, 3],
        chunks=(files.chunks[0], 3, 224, 224),
        dtype=np.float32,
        meta=np.empty((0, 0, 0, 0), np.float32),
    )
    vectors = dx.load(work.model).predict(array).compute()
    return {"names": np.array(work.files), "values": vectors}


# end
