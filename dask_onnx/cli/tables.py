"""``dask-onnx predict`` on tables: Parquet and CSV in and out, partition by partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.delayed import delayed
from distributed import Client, Future, futures_of

from dask_onnx.api.model import Model
from dask_onnx.api.text_model import TextModel
from dask_onnx.cli.csv_text import UTF_8, check_encoding, read_csv, undecodable
from dask_onnx.cli.table_request import TableRequest
from dask_onnx.collections.text.text_columns import storable
from dask_onnx.core.errors import InputError
from dask_onnx.io.sinks import Sink

VECTOR = "embedding"
"""What the column of a text's vectors is called."""


def open_table(path: str, job: TableRequest) -> dd.DataFrame:
    """A lazy table.

    Raises
    ------
    InputError
        It cannot be opened; it is CSV in another encoding, as far as its first rows tell.
    """
    is_csv = Path(path.rstrip("/")).suffix == ".csv"
    if job.encoding is not None and not is_csv:
        raise InputError(
            f"--encoding is for .csv, and {path} is none", "leave it out: Parquet's text is UTF-8"
        )
    encoding = _encoding_of(job)
    try:
        table: dd.DataFrame = (
            read_csv(path, encoding, keeps_bad_rows=job.keeps_bad_rows)
            if is_csv
            else dd.read_parquet(path)
        )
    except UnicodeDecodeError as error:
        raise undecodable_table(path, job, error) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"the table {path} cannot be opened: {' '.join(str(error).split())[:300]}",
            "check the path; a folder of Parquet files ends in .parquet",
        ) from None
    return table


def undecodable_table(path: str, job: TableRequest, error: UnicodeDecodeError) -> Exception:
    """The error that says where in a CSV file it was; the one at hand where it was elsewhere."""
    return undecodable(path, _encoding_of(job)) or error


def _encoding_of(job: TableRequest) -> str:
    return check_encoding(job.encoding or UTF_8)


def plan_table(
    model: Model,
    table: dd.DataFrame,
    job: TableRequest,
    outputs: Sequence[str] | None,
    batch_size: Any,
) -> tuple[Any, Any]:
    """The lazy result, and with a quarantine the bad rows; checked against the model; nothing has
    run."""
    lacking = [name for name in (*job.keep, *filter(None, [job.text])) if name not in table.columns]
    if lacking:
        raise InputError(
            f"the table has no column {lacking[0]!r}",
            f"its columns are {', '.join(map(str, table.columns[:20]))}",
        )
    if job.text is None or job.append:
        return _predicted(model, table, job, outputs, batch_size)
    if job.quarantine is None:
        table = table[list(dict.fromkeys([job.text, *job.keep]))]
    good, bad = _predicted(model, table, job, outputs, batch_size)
    return good[[*job.keep, VECTOR]], bad


def _predicted(
    model: Model,
    table: dd.DataFrame,
    job: TableRequest,
    outputs: Sequence[str] | None,
    batch_size: Any,
) -> tuple[Any, Any]:
    owner: Any = model
    options: dict[str, Any] = {"batch_size": batch_size, **job.row_options()}
    if job.text is not None:
        if job.tokenizer is None:
            raise InputError("--text needs a tokenizer", "name one: --tokenizer tokenizer.json")
        owner = TextModel(model, job.tokenizer, pooling=job.pooling)
        options |= {"column": job.text, "name": VECTOR}
    else:
        options |= {
            "outputs": outputs,
            "columns": job.named_columns(),
            "append": job.append or job.keep,
            "require_finite": job.require_finite,
            "length_buckets": job.length_buckets,
        }
    if job.quarantine is not None:
        good, bad = owner.predict_checked(table, **options)
        return good, bad
    return owner.predict(table, **options), None


def run_table(
    lazy: tuple[Any, Any],
    sinks: Sequence[Sink],
    client: Client,
    wait: Callable[..., None],
) -> Any:
    """Write every partition; the numbers of the run.

    Parameters
    ----------
    lazy : the results; the bad rows, or None
    sinks : one for each of them
    wait : function of the futures, which shows how far they are
    """
    began = time.perf_counter()
    for sink in sinks:
        sink.prepare(0, 0, ())
    futures: list[Future] = []
    try:
        parts = zip(*(table.to_delayed() for table in lazy if table is not None), strict=True)
        writes = [
            delayed(write_parts, pure=False)(list(tables), sinks, number)
            for number, tables in enumerate(parts)
        ]
        futures = futures_of(client.persist(writes))
        wait(futures)
        counts = np.sum(client.gather(futures), axis=0, dtype=int)
        for sink in sinks:
            sink.finish()
    except BaseException:
        client.cancel(futures, force=True)
        for sink in sinks:
            sink.discard()
        raise
    seconds = time.perf_counter() - began
    rows = int(counts[0])
    return {
        "rows": rows,
        **({"bad_rows": int(counts[1])} if len(counts) > 1 else {}),
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds, 3),
        "workers": len(client.scheduler_info(n_workers=-1)["workers"]),
        "blocks": len(futures),
        "output": sinks[0].target,
    }


def write_parts(tables: Sequence[pd.DataFrame], sinks: Sequence[Any], number: int) -> list[int]:
    """Write one partition, and its bad rows; how many rows these are. An index with a name becomes
    a column; what bad rows hold that is no text is written as ``\\xe9``."""
    for table, sink in zip(tables, sinks, strict=True):
        named = table.reset_index() if table.index.name is not None else table
        sink.write_frame(number, storable(named))
    return [len(table) for table in tables]
