"""Choice of the sink of an output by the ending of its name, with the checks before any work."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.core.filesystems import filesystem_of
from dask_onnx.io.begun_outputs import BegunOutputs
from dask_onnx.io.optional_packages import require_package
from dask_onnx.io.sinks import NpySink, Sink, ZarrSink
from dask_onnx.io.table_sinks import CsvSink, JsonLinesSink, ParquetSink, TableSink
from dask_onnx.io.targets import absolute_target

SINKS: Mapping[str, tuple[type[Sink], str | None]] = {
    ".npy": (NpySink, None),
    ".zarr": (ZarrSink, "zarr"),
    ".parquet": (ParquetSink, "pyarrow"),
    ".csv": (CsvSink, "pandas"),
    ".csv.gz": (CsvSink, "pandas"),
    ".jsonl": (JsonLinesSink, None),
    ".jsonl.gz": (JsonLinesSink, None),
    ".ndjson": (JsonLinesSink, None),
}
"""Sink and the module that it needs, by ending of the path."""


def suffix_of(path: str) -> str:
    """Return the ending of a name by which its format is chosen, such as ".csv.gz"."""
    name = PurePosixPath(path.rstrip("/")).name.lower()
    return next((suffix for suffix in sorted(SINKS, key=len)[::-1] if name.endswith(suffix)), "")


def open_sink(
    path: str, *, overwrite: bool, tables: bool = False, begun: BegunOutputs | None = None
) -> Sink:
    """Return the sink for a path or URL, checked as far as this process can. Creates nothing.

    Parameters
    ----------
    path : str
        Path or URL ending in .npy, .zarr, .parquet, .csv or .jsonl.
    overwrite : bool
        Whether an existing output is replaced.
    tables : bool
        True if it must be a format of tables.
    begun : BegunOutputs, optional
        What an earlier run has begun and is resumed or removed.

    Raises
    ------
    InputError
        The ending is unknown, or not one of tables; a package is missing; the output exists, or has
        no folder.
    """
    suffix = suffix_of(path)
    kinds = {name: kind for name, (kind, _) in SINKS.items()}
    usable = [name for name, kind in kinds.items() if not tables or issubclass(kind, TableSink)]
    if suffix not in usable:
        ending = PurePosixPath(path.rstrip("/")).suffix
        near = difflib.get_close_matches(ending, usable, n=1, cutoff=0.5)
        raise InputError(
            f"the output {path} has a format that {'tables' if tables else 'results'} cannot be "
            "written in",
            f"use one of the endings {', '.join(usable)}",
            option="path",
            suggestions=[Suggestion("path", path.removesuffix(ending) + each) for each in near],
        )
    kind, module = SINKS[suffix]
    if module is not None:
        require_package(module, f"the output {path}")
    target = absolute_target(path)
    if is_url(target):
        filesystem_of(target)
        if kind is NpySink:
            raise InputError(
                f"{target} is a URL, and .npy is filled in place on a disk",
                "write .zarr or .parquet",
                option="path",
            )
    if kind is NpySink and Path(target).is_dir():
        raise InputError(
            f"the output {target} is a folder",
            "name a file, or another folder to write it in",
            option="path",
        )
    begun = begun or BegunOutputs()
    begun.check(target, overwrite=overwrite)
    return kind(target, begun.run, begun.will_replace(target))
