"""Types of the keyword arguments in the overloads of `Model.predict`; see there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypedDict

from dask_onnx.api.plan import Plan
from dask_onnx.collections.run_options import BatchSize, Columns, OnError
from dask_onnx.sharding.on_shards import ShardedPlan


class ArrayOptions(TypedDict, total=False):
    """Options for arrays and Delayed, besides `outputs`."""

    batch_size: BatchSize
    """Rows of each run of a session."""
    plan: Plan | ShardedPlan | None
    """Plan of this model; None for the whole model as one stage."""
    retries: int | None
    """Times that Dask repeats a task that raised; None for ``onnx.retries``."""
    checkpoint: str | os.PathLike[str] | None
    """Folder that keeps finished chunks; None for none."""
    progress: bool
    """True to show rows, rate and time left."""


class BagOptions(ArrayOptions, total=False):
    """Options for bags, besides `outputs`."""

    require_finite: bool
    """True if NaN and infinities make a row bad."""
    on_error: OnError
    """Treatment of bad rows."""


class TableOptions(BagOptions, total=False):
    """Options for tables, besides `outputs`."""

    columns: Columns
    """Columns that feed the inputs."""
    append: bool | Sequence[str]
    """True to keep the table's columns, or the labels of those to keep."""
    max_columns: int
    """Largest number of columns that one output becomes."""
    length_buckets: Sequence[int] | None
    """Lengths that lists are padded to."""
