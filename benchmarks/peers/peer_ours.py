"""dask_onnx on two workers of one thread, as its documentation has it (docs/how_to)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster
from functions import SLICE
from work import Result, Work

import dask_onnx as dx


# user code: start
@contextlib.contextmanager
def started(work: Work) -> Iterator[Client]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        yield client


# end


# user code: images (start)
def images(work: Work, client: Client) -> Result:
    net = dx.ImageModel(dx.load(work.model), preset="imagenet", task="raw")
    paths = dd.from_pandas(pd.DataFrame({"path": work.files}), chunksize=work.chunk)
    found = net.predict(paths, column="path", append=["path"]).compute()
    return {"names": found["path"].to_numpy(str), "values": np.stack(found["vector"])}


# end


# user code: table (start)
def table(work: Work, client: Client) -> None:
    rows = dd.read_parquet(work.folder)
    found = dx.load(work.model).predict(rows, outputs=["probabilities"], append=["id"])
    found.to_parquet(work.output, write_index=False, compute=False).optimize().compute()


# end


# user code: sentences (start)
def sentences(work: Work, client: Client) -> None:
    encoder = dx.TextModel(dx.load(work.model), work.tokens, max_length=256)
    found = encoder.predict(dd.read_parquet(work.folder), column="text").drop(columns="text")
    found.to_parquet(work.output, write_index=False, compute=False).optimize().compute()


# end


# user code: large (start)
def read(files: Any, block_id: Any = None) -> Any:
    return np.load(files[block_id[0]])


def large(work: Work, client: Client) -> Result:
    rows, *sizes = np.load(work.files[0], mmap_mode="r").shape
    chunks = ((rows,) * len(work.files), *((size,) for size in sizes))
    array = da.map_blocks(
        read, work.files, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )
    vectors = dx.load(work.model).predict(array).mean(axis=1).compute()
    return {"names": np.array(work.files), "values": vectors.reshape(len(work.files), rows, -1)}


# end


# user code: picture (start)
def read_rows(file: str, block_info: Any = None) -> Any:
    (top, bottom), *_ = block_info[None]["array-location"]
    return np.load(file, mmap_mode="r")[top:bottom]


def to_model(pixels: Any) -> Any:
    return pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


def picture(work: Work, client: Client) -> Result:
    shape = np.load(work.files[0], mmap_mode="r").shape
    rows = da.core.normalize_chunks((SLICE, -1, -1), shape)
    page = da.map_blocks(
        read_rows, work.files[0], chunks=rows, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    lazy = dx.detect_sliced(
        dx.load(work.model),
        page,
        preprocess=to_model,
        format="xyxysc",
        score_threshold=0.3,
        merge="nms",
        metric="iou",
    )
    found = lazy.compute()
    labels = np.zeros((len(found.scores), 1))
    return {"values": np.hstack([found.boxes, found.scores[:, None], labels])}


# end
