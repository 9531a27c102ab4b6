"""ONNX Runtime alone: one process, one session with as many threads as the cores of the job.

https://onnxruntime.ai/docs/get-started/with-python.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import functions
import numpy as np
import pandas as pd
from work import Result, Work

THREADS = 2


@contextlib.contextmanager
def started(work: Work) -> Iterator[None]:
    yield None


# user code: images (picture_vectors)
def images(work: Work, state: Any, threads: int = THREADS) -> Result:
    vectors = [
        functions.picture_vectors(chunk, work.model, work.batch, threads) for chunk in work.chunks()
    ]
    return {"names": np.array(work.files), "values": np.concatenate(vectors)}


# end


# user code: table (probabilities)
def table(work: Work, state: Any, threads: int = THREADS) -> None:
    for file in work.files:
        found = functions.probabilities(pd.read_parquet(file), work.model, work.batch, threads)
        found.to_parquet(Path(work.output) / Path(file).name, index=False)


# end


# user code: sentences (sentence_vectors)
def sentences(work: Work, state: Any, threads: int = THREADS) -> None:
    for file in work.files:
        frame = pd.read_parquet(file)
        frame["embedding"] = list(
            functions.sentence_vectors(
                frame.pop("text"), work.model, work.tokens, work.batch, threads
            )
        )
        frame.to_parquet(Path(work.output) / Path(file).name, index=False)


# end


# user code: large (block_vectors)
def large(work: Work, state: Any, threads: int = THREADS) -> Result:
    found = [functions.block_vectors(np.load(file), work.model, threads) for file in work.files]
    return {"names": np.array(work.files), "values": np.stack(found)}


# end


# user code: picture (slice_boxes, best_of_each)
def picture(work: Work, state: Any, threads: int = THREADS) -> Result:
    page = np.load(work.files[0])
    found = [
        functions.slice_boxes(page, corner, work.model, threads)
        for corner in functions.slice_corners(page.shape[0])
    ]
    return {"values": functions.best_of_each(np.concatenate(found))}


# end
