"""Outputs that are written by rows: npy, zarr, Parquet and CSV. Each task writes its own block.

A local file appears under its name only when it is complete; a folder or an object store contains a
file ``_SUCCESS`` once it is complete.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.io.optional_packages import require_package
from dask_onnx.io.targets import (
    absolute_target,
    check_target,
    partial_path,
    remove_marker,
    sync_and_rename,
    target_problem,
    write_marker,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Spec of one output, found by running the first rows."""

    name: str
    """Name of the output."""
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    """Shape without the axis of rows."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of strings the bytes of their pointers."""
        return math.prod(self.row_shape) * max(self.dtype.itemsize, 1)


@dataclass(frozen=True, slots=True)
class Sink(ABC):
    """An output file or folder.

    The client calls `prepare`, tasks call `write`, and then the client calls `finish`, or `discard`
    after a failure.
    """

    target: str
    """Absolute path, or URL."""
    overwrite: bool = False
    """True if an existing output is replaced."""

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Raise an error for outputs that this format cannot store.

        Raises
        ------
        InputError
            Too many outputs, or a dtype or shape that the format does not have.
        """
        return  # most formats store all

    def problem(self) -> str | None:
        """Return the reason why this process cannot write the output; None if it can."""
        return target_problem(self.target)

    @abstractmethod
    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
        """Create the incomplete output for `rows` rows, written in blocks of `block_rows`."""

    @abstractmethod
    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> None:
        """Write rows `start` to `stop` (exclusive) of the outputs: block number `block`."""

    @abstractmethod
    def finish(self) -> None:
        """Give the complete output its name or marker."""

    @abstractmethod
    def discard(self) -> None:
        """Remove the incomplete output."""


@dataclass(frozen=True, slots=True)
class NpySink(Sink):
    """One .npy file, which tasks fill in place under a temporary name."""

    @property
    def partial(self) -> Path:
        """Path of the incomplete file."""
        return partial_path(self.target)

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Raise an error for several outputs, and for strings."""
        if len(outputs) > 1:
            names = ", ".join(spec.name for spec in outputs)
            raise InputError(
                f"a .npy file stores one output; there are {len(outputs)}: {names}",
                "choose one with outputs=, or write .zarr",
                option="outputs",
                numbers={"outputs": len(outputs)},
                suggestions=[Suggestion("outputs", spec.name) for spec in outputs],
            )
        if outputs[0].dtype.hasobject:
            raise InputError(
                f"output {outputs[0].name!r} has strings, which .npy cannot store without pickling",
                "write .parquet",
                option="path",
            )

    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
        """Create a file of the final size, whose rows are holes until they are written."""
        (spec,) = outputs
        header = {
            "descr": npy_format.dtype_to_descr(spec.dtype),
            "fortran_order": False,
            "shape": (rows, *spec.row_shape),
        }
        with self.partial.open("wb") as file:
            npy_format.write_array_header_2_0(file, header)
            file.truncate(file.tell() + rows * spec.row_bytes)

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> None:
        """Write the rows at their offset in the file."""
        (value,) = values.values()
        _require_rows(value, start, stop, "npy")
        with self.partial.open("r+b") as file:
            npy_format.read_magic(file)
            shape, _, dtype = npy_format.read_array_header_2_0(file)
            _require_same(value, shape, dtype)
            row_bytes = math.prod(shape[1:]) * dtype.itemsize
            file.seek(file.tell() + start * row_bytes)
            file.write(np.ascontiguousarray(value).data)

    def finish(self) -> None:
        """Flush the file to the disk and rename it."""
        sync_and_rename(self.partial, self.target)

    def discard(self) -> None:
        """Remove the incomplete file."""
        self.partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ZarrSink(Sink):
    """A zarr array, or a group with one array for each of several outputs."""

    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
        """Create the arrays, with one row of chunks for each block."""
        import zarr  # optional: only zarr files need it

        remove_marker(self.target)
        group = zarr.open_group(self.target, mode="w") if len(outputs) > 1 else None
        for spec in outputs:
            # No chunk spans two blocks, so that no two tasks write the same one.
            options: dict[str, Any] = {
                "shape": (rows, *spec.row_shape),
                "chunks": (block_rows, *(max(size, 1) for size in spec.row_shape)),
                "dtype": spec.dtype,
            }
            if group is not None:
                group.create_array(zarr_array_name(spec.name), **options)
            else:
                zarr.create_array(self.target, overwrite=True, **options)

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> None:
        """Write the rows of all outputs."""
        import zarr  # optional: only zarr files need it

        node = zarr.open(self.target, mode="r+")
        for name, value in values.items():
            _require_rows(value, start, stop, "zarr")
            array = node[zarr_array_name(name)] if len(values) > 1 else node
            _require_same(value, array.shape, np.dtype(array.dtype))
            array[start:stop] = value

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Raise an error for strings."""
        for spec in outputs:
            if spec.dtype.hasobject:
                raise InputError(
                    f"output {spec.name!r} has strings, which are not written to zarr",
                    "write .parquet",
                    option="path",
                )

    def finish(self) -> None:
        """Write the marker."""
        write_marker(self.target)

    def discard(self) -> None:
        """Remove a local store; a remote one stays without its marker, as removal is expensive."""
        if not is_url(self.target):
            shutil.rmtree(self.target, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ParquetSink(Sink):
    """A folder of Parquet files, one for each block, in the order of their names.

    An output with one value in each row becomes a column of values, and one with several values in
    each row a column of lists of fixed length.
    """

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Raise an error for rows with more than one axis."""
        for spec in outputs:
            if len(spec.row_shape) > 1:
                raise InputError(
                    f"output {spec.name!r} has rows of shape {spec.row_shape}, which do not fit "
                    "into a column",
                    "write .npy or .zarr, or reshape rows to one axis with post=",
                    option="path",
                    numbers={"row_axes": len(spec.row_shape)},
                )

    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
        """Create an empty folder."""
        if not is_url(self.target) and Path(self.target).exists():
            shutil.rmtree(self.target)
        remove_marker(self.target)
        filesystem, root = fsspec.url_to_fs(self.target)
        filesystem.makedirs(root, exist_ok=True)

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> None:
        """Write one file with a column for each output."""
        import pyarrow  # optional: only Parquet files need it

        self._write_table(
            block, pyarrow.table({name: _column(value) for name, value in values.items()})
        )

    def write_frame(self, block: int, frame: Any) -> None:
        """Write one file with the columns of a DataFrame."""
        import pyarrow  # optional: only Parquet files need it

        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        # With pandas' metadata, neither pandas nor Dask can read columns of lists.
        self._write_table(block, table.replace_schema_metadata())

    def _write_table(self, block: int, table: Any) -> None:
        from pyarrow import parquet  # optional: only Parquet files need it

        _write_atomically(
            self.target, block, ".parquet", lambda file: parquet.write_table(table, file)
        )

    def finish(self) -> None:
        """Write the marker."""
        write_marker(self.target)

    def discard(self) -> None:
        """Remove a local folder; a remote one stays without its marker."""
        if not is_url(self.target):
            shutil.rmtree(self.target, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class CsvSink(ParquetSink):
    """A folder of CSV files, one for each partition of a table."""

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> None:
        """Raise an error: only tables are written as CSV."""
        raise InputError(
            "arrays are not written as .csv", "write .npy, .zarr or .parquet", option="path"
        )

    def write_frame(self, block: int, frame: Any) -> None:
        """Write one file with the columns of a DataFrame."""
        text = frame.to_csv(index=False).encode()
        _write_atomically(self.target, block, ".csv", lambda file: file.write(text))


SINKS: Mapping[str, tuple[type[Sink], str | None]] = {
    ".npy": (NpySink, None),
    ".zarr": (ZarrSink, "zarr"),
    ".parquet": (ParquetSink, "pyarrow"),
    ".csv": (CsvSink, "pandas"),
}
"""Sink and the module that it needs, by ending of the path."""


def open_sink(path: str, *, overwrite: bool) -> Sink:
    """Return the sink for a path or URL, checked as far as this process can. Creates nothing.

    Parameters
    ----------
    path : str
        Path or URL ending in .npy, .zarr, .parquet or .csv.
    overwrite : bool
        Whether an existing output is replaced.

    Raises
    ------
    InputError
        The ending is unknown or its package is missing; the output exists, or has no folder.
    """
    suffix = Path(path.rstrip("/")).suffix
    if suffix not in SINKS:
        raise InputError(
            f"the output {path} has a format that cannot be written",
            f"use one of the endings {', '.join(SINKS)}",
            option="path",
        )
    kind, module = SINKS[suffix]
    if module is not None:
        require_package(module, f"the output {path}")
    target = absolute_target(path)
    check_target(target, overwrite=overwrite)
    return kind(target, overwrite)


def _write_atomically(target: str, block: int, suffix: str, write: Callable[[Any], Any]) -> None:
    """Write one block's file in a folder so that it appears complete or not at all.

    Dask may repeat a task, or run it on two workers at a time.
    """
    filesystem, root = fsspec.url_to_fs(target)
    partial = f"{root}/.part-{block:06d}-{os.getpid()}.partial"
    with filesystem.open(partial, "wb") as file:
        write(file)
    filesystem.mv(partial, f"{root}/part-{block:06d}{suffix}")


def zarr_array_name(name: str) -> str:
    """Return the name of an output's array in a zarr group, where "/" would nest groups."""
    return re.sub(r"[^0-9A-Za-z_.-]+", "_", name).strip(".") or "output"


def _require_rows(value: Array, start: int, stop: int, kind: str) -> None:
    if value.shape[:1] != (stop - start,):
        raise InputError(
            f"the result of rows {start:,} to {stop:,} has shape {value.shape}, and {kind} needs "
            "one row for each",
            "write .parquet, which accepts any number of rows, or change post=",
            option="post",
            numbers={"rows": stop - start, "result_rows": value.shape[0] if value.ndim else 0},
        )


def _require_same(value: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if value.shape[1:] != tuple(shape[1:]) or value.dtype != dtype:
        raise InputError(
            f"the rows of a block are {value.dtype} {value.shape[1:]}, and the first rows were "
            f"{dtype} {tuple(shape[1:])}",
            "return the same shape and dtype for all rows from post=",
            option="post",
        )


def _column(value: Array) -> Any:
    """Return an output's rows as an Arrow array of values or of lists of fixed length."""
    import pyarrow  # optional: only Parquet files need it

    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim == 1:
        return pyarrow.array(value)
    if value.ndim != 2:
        raise InputError(
            f"a result of shape {value.shape} does not fit into a column of a table",
            "write .npy or .zarr",
            option="path",
        )
    flat = pyarrow.array(np.ascontiguousarray(value).reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(flat, value.shape[1])
