"""Choice of the sink of an output by the ending of its name, with the checks before any work."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

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


Results = Literal["tables", "arrays", "any"]
"""Form of the results that an output has to store."""


def open_sink(
    path: str, *, overwrite: bool, results: Results = "any", begun: BegunOutputs | None = None
) -> Sink:
    """Return the sink for a path or URL, checked as far as this process can. Creates nothing.

    Parameters
    ----------
    path : str
        Path or URL ending in .npy, .zarr, .parquet, .csv or .jsonl.
    overwrite : bool
        True if an existing output is replaced.
    results : {"tables", "arrays", "any"}
        Form of the results, which the format must be able to store.
    begun : BegunOutputs, optional
        What an earlier run has begun and is resumed or removed.

    Raises
    ------
    InputError
        The ending is unknown, or its format does not store such results; a package is missing; the
        output exists, or has no folder.
    """
    suffix = suffix_of(path)
    usable = [name for name, (kind, _) in SINKS.items() if _stores(kind, results)]
    if suffix not in usable:
        raise _unusable(path, results, usable)
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


def _stores(kind: type[Sink], results: Results) -> bool:
    if results == "tables":
        return issubclass(kind, TableSink)
    return results == "any" or not issubclass(kind, CsvSink)


def _unusable(path: str, results: Results, usable: Sequence[str]) -> InputError:
    """Return the error for a name whose ending is none of those that can be used."""
    ending = PurePosixPath(path.rstrip("/")).suffix
    what = "results" if results == "any" else results
    near = difflib.get_close_matches(ending, usable, n=1, cutoff=0.5)
    return InputError(
        f"the ending of the output's name tells its format, and {path or 'the empty name'} "
        + (f"ends in {ending}, in which {what} cannot be written" if ending else "has none"),
        f"use one of the endings {', '.join(usable)}",
        option="path",
        suggestions=[Suggestion("path", path.removesuffix(ending) + each) for each in near],
    )
