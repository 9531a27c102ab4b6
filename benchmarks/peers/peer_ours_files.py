"""dask_onnx from files to files (docs/how_to/files.md), on a cluster that is there."""

from __future__ import annotations

from distributed import Client
from peer_ours import started
from work import Work

import dask_onnx as dx

__all__ = ["sentences", "started", "table"]


# user code: table (peer_ours.start)
def table(work: Work, client: Client) -> None:
    dx.predict_files(
        work.model,
        work.folder,
        f"{work.output}/found.parquet",
        outputs=["probabilities"],
        append=["id"],
        scheduler=client,
    )


# end


# user code: sentences (peer_ours.start)
def sentences(work: Work, client: Client) -> None:
    dx.predict_files(
        work.model,
        work.folder,
        f"{work.output}/found.parquet",
        text="text",
        tokenizer=work.tokens,
        append=["id"],
        scheduler=client,
    )


# end
