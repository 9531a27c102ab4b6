"""Ray Data: `map_batches` with a class, whose instances are actors that keep their session.

https://docs.ray.io/en/latest/data/batch_inference.html,
https://docs.ray.io/en/latest/data/api/doc/ray.data.Dataset.map_batches.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import functions
import numpy as np
import pandas as pd
import ray
from PIL import Image
from work import Result, Work

# Half a core each: tasks that read files need the rest, else the two actors starve them.
ACTORS: dict[str, Any] = {"compute": ray.data.ActorPoolStrategy(size=2), "num_cpus": 0.5}


# user code: start
@contextlib.contextmanager
def started(work: Work) -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield None
    finally:
        ray.shutdown()


# end


# user code: images (start, session, prepared)
class PictureEncoder:
    def __init__(self, model: str) -> None:
        self.session = functions.session(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pictures = [functions.prepared(Image.fromarray(image)) for image in batch["image"]]
        vectors = self.session.run(None, {"data": np.stack(pictures)})[0]
        return {"path": batch["path"], "vector": vectors}


def images(work: Work, state: None) -> Result:
    rows = ray.data.read_images(work.folder, mode="RGB", include_paths=True)
    found = rows.map_batches(
        PictureEncoder, fn_constructor_args=[work.model], batch_size=work.batch, **ACTORS
    ).to_pandas()
    return {"names": found["path"].to_numpy(str), "values": np.stack(found["vector"])}


# end


# user code: table (start, probabilities)
class Scorer:
    def __init__(self, model: str, batch: int) -> None:
        self.model, self.batch = model, batch

    def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
        return functions.probabilities(frame, self.model, self.batch)


def table(work: Work, state: None) -> None:
    ray.data.read_parquet(work.folder).map_batches(
        Scorer,
        fn_constructor_args=[work.model, work.batch],
        batch_format="pandas",
        batch_size=max(4096, work.batch),
        **ACTORS,
    ).write_parquet(work.output)


# end


# user code: sentences (start, sentence_vectors)
class SentenceEncoder:
    def __init__(self, model: str, tokens: str, batch: int) -> None:
        self.model, self.tokens, self.batch = model, tokens, batch

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        vectors = functions.sentence_vectors(batch["text"], self.model, self.tokens, self.batch)
        return {"id": batch["id"], "embedding": vectors}


def sentences(work: Work, state: None) -> None:
    ray.data.read_parquet(work.folder).map_batches(
        SentenceEncoder,
        fn_constructor_args=[work.model, work.tokens, work.batch],
        batch_size=512,
        **ACTORS,
    ).write_parquet(work.output)


# end


# user code: large (start, block_vectors)
class BlockEncoder:
    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        vectors = functions.block_vectors(batch["data"], self.model)
        return {"path": batch["path"], "vector": vectors}


def large(work: Work, state: None) -> Result:
    found = (
        ray.data.read_numpy(work.folder, include_paths=True)
        .map_batches(
            BlockEncoder, fn_constructor_args=[work.model], batch_size=work.batch, **ACTORS
        )
        .to_pandas()
    )
    files = found.groupby("path")["vector"].apply(np.stack)
    return {"names": files.index.to_numpy(str), "values": np.stack(files.to_list())}


# end
