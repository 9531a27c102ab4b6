"""Dask by hand: `map_blocks` and `map_partitions` with a session cached in an imported module.

https://docs.dask.org/en/stable/generated/dask.array.map_blocks.html,
https://docs.dask.org/en/stable/best-practices.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import dask.array as da
import dask.dataframe as dd
import functions
import numpy as np
import pandas as pd
import pyarrow as pa
from distributed import Client, LocalCluster
from work import Result, Work


# user code: start
@contextlib.contextmanager
def started(work: Work) -> Iterator[Client]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        yield client


# end


# user code: images (start, picture_vectors)
def images(work: Work, client: Client) -> Result:
    files = da.from_array(np.array(work.files), chunks=work.chunk)
    vectors = files.map_blocks(
        functions.picture_vectors,
        work.model,
        work.batch,
        new_axis=1,
        chunks=(files.chunks[0], 1000),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
    )
    return {"names": np.array(work.files), "values": vectors.compute()}


# end


# user code: table (start, probabilities)
def table(work: Work, client: Client) -> None:
    meta = pd.DataFrame(
        {"id": np.empty(0, np.int64), "p0": np.empty(0, "f4"), "p1": np.empty(0, "f4")}
    )
    found = dd.read_parquet(work.folder).map_partitions(
        functions.probabilities, work.model, work.batch, meta=meta
    )
    found.to_parquet(work.output, write_index=False, compute=False).optimize().compute()


# end


# user code: sentences (start, sentence_vectors)
def with_vectors(frame: pd.DataFrame, model: str, tokens: str, batch: int) -> pd.DataFrame:
    vectors = functions.sentence_vectors(frame["text"], model, tokens, batch)
    return pd.DataFrame({"id": frame["id"], "embedding": list(vectors)})


def sentences(work: Work, client: Client) -> None:
    meta = pd.DataFrame({"id": np.empty(0, np.int64), "embedding": np.empty(0, object)})
    found = dd.read_parquet(work.folder).map_partitions(
        with_vectors, work.model, work.tokens, work.batch, meta=meta
    )
    schema = pa.schema([("id", pa.int64()), ("embedding", pa.list_(pa.float32()))])
    found.to_parquet(
        work.output, write_index=False, compute=False, schema=schema
    ).optimize().compute()


# end


# user code: large (start, block_vectors)
def load_vectors(files: Any, model: str) -> Any:
    return np.stack([functions.block_vectors(np.load(file), model) for file in files])


def large(work: Work, client: Client) -> Result:
    rows, _, width = np.load(work.files[0], mmap_mode="r").shape
    files = da.from_array(np.array(work.files), chunks=1)
    vectors = files.map_blocks(
        load_vectors,
        work.model,
        new_axis=[1, 2],
        chunks=(files.chunks[0], rows, width),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
    )
    return {"names": np.array(work.files), "values": vectors.compute()}


# end
