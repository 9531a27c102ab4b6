"""``dask-onnx predict`` on tables: Parquet and CSV in and out, partition by partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
from dask.delayed import delayed
from distributed import Client, Future, futures_of

from dask_onnx.cli.table_request import TableRequest
from dask_onnx.collections.text import TextModel
from dask_onnx.errors import InputError
from dask_onnx.io.sinks import Sink
from dask_onnx.model import Model

_READERS: Mapping[str, Callable[..., Any]] = {
    ".parquet": dd.read_parquet,
    ".parq": dd.read_parquet,
    ".csv": dd.read_csv,
}
VECTOR = "embedding"
"""What the column of a text's vectors is called."""


def open_table(path: str) -> dd.DataFrame:
    """A lazy table.

    Raises
    ------
    InputError
        It cannot be opened.
    """
    try:
        table: dd.DataFrame = _READERS[Path(path.rstrip("/")).suffix](path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the table {path} cannot be opened: {' '.join(str(error).split())[:300]}",
            "check the path; a folder of Parquet files ends in .parquet",
        ) from None
    return table


def plan_table(
    model: Model,
    table: dd.DataFrame,
    job: TableRequest,
    outputs: Sequence[str] | None,
    batch_size: Any,
) -> Any:
    """The lazy result, checked against the model; nothing has run."""
    lacking = [name for name in (*job.keep, *filter(None, [job.text])) if name not in table.columns]
    if lacking:
        raise InputError(
            f"the table has no column {lacking[0]!r}",
            f"its columns are {', '.join(map(str, table.columns[:20]))}",
        )
    if job.text is not None:
        result = _vectors(model, table, job, batch_size)
    else:
        result = model.predict(
            table,
            outputs=outputs,
            batch_size=batch_size,
            columns=job.named_columns(),
            append=job.append or bool(job.keep),
        )
    if job.append or not job.keep:
        return result
    made = [name for name in result.columns if name not in table.columns]
    return result[[*job.keep, *made]]


def _vectors(model: Model, table: dd.DataFrame, job: TableRequest, batch_size: Any) -> Any:
    if job.tokenizer is None:
        raise InputError("--text needs a tokenizer", "name one: --tokenizer tokenizer.json")
    encoder = TextModel(model, job.tokenizer, pooling=job.pooling)
    vectors = encoder.predict(table[job.text], batch_size=batch_size).rename(VECTOR)
    if not (job.append or job.keep):
        return vectors.to_frame()
    return table.assign(**{VECTOR: vectors})


def run_table(lazy: dd.DataFrame, sink: Sink, client: Client, wait: Callable[..., None]) -> Any:
    """Write every partition; the numbers of the run.

    Parameters
    ----------
    wait : function of the futures, which shows how far they are
    """
    began = time.perf_counter()
    sink.prepare(0, 0, ())
    futures: list[Future] = []
    try:
        writes = [
            delayed(write_part, pure=False)(part, sink, number)
            for number, part in enumerate(lazy.to_delayed())
        ]
        futures = futures_of(client.persist(writes))
        wait(futures)
        rows = sum(client.gather(futures))
        sink.finish()
    except BaseException:
        client.cancel(futures, force=True)
        sink.discard()
        raise
    seconds = time.perf_counter() - began
    return {
        "rows": rows,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds, 3),
        "workers": len(client.scheduler_info(n_workers=-1)["workers"]),
        "blocks": len(futures),
        "output": sink.target,
    }


def write_part(part: pd.DataFrame, sink: Any, number: int) -> int:
    """Write one partition; how many rows it has. An index with a name becomes a column."""
    if part.index.name is not None:
        part = part.reset_index()
    sink.write_frame(number, part)
    return len(part)
