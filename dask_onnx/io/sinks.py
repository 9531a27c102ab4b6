"""Outputs that are written by rows: npy and zarr. Each task writes its own block.

A local output appears under its name only when it is complete; a folder contains a file
``_SUCCESS`` once it is complete. `table_sinks` has the formats of tables.
"""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from dask_onnx.core.errors import InputError, OutputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.core.meters import metered
from dask_onnx.io.npy_headers import read_header
from dask_onnx.io.targets import (
    explained_writes,
    partial_path,
    remove_folder,
    staging_of,
    swap_folder,
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
    after a failure, also one of `prepare`.
    """

    target: str
    """Absolute path, or URL."""
    run: str = ""
    """Name of the run, in the names of incomplete files; empty for names that all runs share."""
    replaces: bool = False
    """True if the target exists and is replaced when the output is complete."""

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Raise an error for outputs that this format cannot store.

        Raises
        ------
        InputError
            Too many outputs, or a dtype or shape that the format does not have.
        """
        return  # most formats store all

    def check_rows(self, value: Array, rows: int, where: str) -> None:
        """Raise an error if an output does not have the rows that this format needs.

        Parameters
        ----------
        value : ndarray
            Results of some rows of the input.
        rows : int
            Number of these.
        where : str
            Description of these, for the error.

        Raises
        ------
        InputError
            There are more or fewer results than rows, and the format needs one for each.
        """
        return  # tables take any number of rows

    def problem(self) -> str | None:
        """Return the reason why this process cannot write the output; None if it can."""
        return target_problem(self.target)

    @property
    def is_complete(self) -> bool:
        """True if there is no incomplete output any more, and the target exists."""
        partial = partial_path(self.target, self.run)
        return not is_url(self.target) and not partial.exists() and os.path.lexists(self.target)

    @abstractmethod
    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
        """Create the incomplete output for `rows` rows, written in blocks of `block_rows`.

        Raises
        ------
        OutputError
            It cannot be written; so for `write` and `finish`.
        """

    @abstractmethod
    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> list[str]:
        """Write rows `start` to `stop` (exclusive) of the outputs: block number `block`.

        Returns
        -------
        list of str
            Local files that hold the block; empty at a URL.
        """

    @abstractmethod
    def kept(self, blocks: Collection[str]) -> Collection[str]:
        """Return those of the blocks of an earlier run whose data are still there.

        Parameters
        ----------
        blocks : collection of str
            Names of blocks that are recorded as complete; returned itself if all are there.

        Raises
        ------
        OutputError
            What is there cannot be read.
        """

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
        return partial_path(self.target, self.run)

    def check_rows(self, value: Array, rows: int, where: str) -> None:
        """Raise an error unless there is a result for each row."""
        require_rows(value, rows, where)

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
        # The name of a run is new; a name that all runs share may be left from another.
        with explained_writes(self.target), self.partial.open("xb" if self.run else "wb") as file:
            npy_format.write_array_header_2_0(file, header)
            file.truncate(file.tell() + rows * spec.row_bytes)

    @metered("write")
    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> list[str]:
        """Write the rows at their offset in the file."""
        (value,) = values.values()
        require_rows(value, stop - start, _rows_text(start, stop))
        with explained_writes(self.target), self.partial.open("r+b") as file:
            shape, _, dtype = read_header(file)
            _require_same(value, shape, dtype)
            row_bytes = math.prod(shape[1:]) * dtype.itemsize
            file.seek(file.tell() + start * row_bytes)
            file.write(np.ascontiguousarray(value).data)
        return [str(self.partial)]

    def kept(self, blocks: Collection[str]) -> Collection[str]:
        """Return all blocks if the incomplete file has its header and size."""
        try:
            with explained_writes(self.target), self.partial.open("rb") as file:
                shape, _, dtype = read_header(file)
                size = file.tell() + math.prod(shape) * dtype.itemsize
                return blocks if self.partial.stat().st_size == size else set()
        except (OutputError, ValueError) as error:
            # What cannot be read at the moment is not thrown away.
            if isinstance(error, OutputError) and not _is_missing(error):
                raise
            return set()

    def finish(self) -> None:
        """Flush the file to the disk and rename it."""
        with explained_writes(self.target):
            sync_and_rename(self.partial, self.target)

    def discard(self) -> None:
        """Remove the incomplete file."""
        self.partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class FolderSink(Sink):
    """A folder, written beside its target and renamed when it is complete.

    An object store cannot rename. There a new output has its final name from the beginning, and
    one that replaces another is moved, file by file, when it is complete.
    """

    @property
    def folder(self) -> str:
        """Path or URL of the incomplete folder."""
        is_direct = not self.run or (is_url(self.target) and not self.replaces)
        return self.target if is_direct else staging_of(self.target, self.run)

    def finish(self) -> None:
        """Write the marker, and give the folder its name."""
        with explained_writes(self.target):
            write_marker(self.folder)
            if self.folder != self.target:
                swap_folder(self.folder, self.target, self.run)

    def discard(self) -> None:
        """Remove the incomplete folder."""
        remove_folder(self.folder)


@dataclass(frozen=True, slots=True)
class ZarrSink(FolderSink):
    """A zarr array, or a group with one array for each of several outputs."""

    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
        """Create the arrays, with one row of chunks for each block."""
        import zarr  # optional: only zarr files need it

        with explained_writes(self.target):
            group = zarr.open_group(self.folder, mode="w") if len(outputs) > 1 else None
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
                    zarr.create_array(self.folder, overwrite=True, **options)

    @metered("write")
    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> list[str]:
        """Write the rows of all outputs."""
        import zarr  # optional: only zarr files need it

        written = []
        with explained_writes(self.target):
            node = zarr.open(self.folder, mode="r+")
            for name, value in values.items():
                require_rows(value, stop - start, _rows_text(start, stop))
                array = node[zarr_array_name(name)] if len(values) > 1 else node
                _require_same(value, array.shape, np.dtype(array.dtype))
                array[start:stop] = value
                inner = zarr_array_name(name) if len(values) > 1 else ""
                key = array.metadata.encode_chunk_key((block, *(0 for _ in array.shape[1:])))
                written.append(str(Path(self.folder, inner, key)))
        return [] if is_url(self.folder) else written

    def kept(self, blocks: Collection[str]) -> Collection[str]:
        """Return all blocks if the incomplete store can be opened.

        Chunks are not looked for: those of zeros only are not stored. Files that were not completed
        are removed.
        """
        import zarr  # optional: only zarr files need it

        try:
            with explained_writes(self.target):
                zarr.open(self.folder, mode="r")
        except (OutputError, ValueError, KeyError) as error:
            if isinstance(error, OutputError) and not _is_missing(error):
                raise
            return set()
        if not is_url(self.folder):
            for path in Path(self.folder).rglob("*.partial"):
                path.unlink(missing_ok=True)
        return blocks

    def check_rows(self, value: Array, rows: int, where: str) -> None:
        """Raise an error unless there is a result for each row."""
        require_rows(value, rows, where)

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Raise an error for strings, and for outputs that would have one name."""
        for spec in outputs:
            if spec.dtype.hasobject:
                raise InputError(
                    f"output {spec.name!r} has strings, which are not written to zarr",
                    "write .parquet",
                    option="path",
                )
        names: dict[str, str] = {}
        for spec in outputs:
            other = names.setdefault(zarr_array_name(spec.name), spec.name)
            if other != spec.name:
                raise InputError(
                    f"outputs {other!r} and {spec.name!r} would both be the zarr array "
                    f"{zarr_array_name(spec.name)!r}",
                    "choose one with outputs=, or rename them with post=",
                    option="outputs",
                )


def _is_missing(error: OutputError) -> bool:
    return isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)


def zarr_array_name(name: str) -> str:
    """Return the name of an output's array in a zarr group, where "/" would nest groups."""
    return re.sub(r"[^0-9A-Za-z_.-]+", "_", name).strip(".") or "output"


def require_rows(value: Array, rows: int, where: str) -> None:
    """Raise an error unless there is a result for each row of a block.

    Parameters
    ----------
    value : ndarray
        Results.
    rows : int
        Rows of the block.
    where : str
        Description of the block, for the error.

    Raises
    ------
    InputError
        There are more or fewer.
    """
    if value.shape[:1] != (rows,):
        raise InputError(
            f"the result for {where} has shape {value.shape}, and this format needs one row for "
            f"each of {rows:,}",
            "write .parquet, which accepts any number of rows, or change post=",
            option="post",
            numbers={"rows": rows, "result_rows": value.shape[0] if value.ndim else 0},
        )


def _rows_text(start: int, stop: int) -> str:
    return f"rows {start:,} to {stop - 1:,}"


def _require_same(value: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if value.shape[1:] != tuple(shape[1:]) or value.dtype != dtype:
        raise InputError(
            f"the rows of a block are {value.dtype} {value.shape[1:]}, and the first rows were "
            f"{dtype} {tuple(shape[1:])}",
            "return the same shape and dtype for all rows from post=",
            option="post",
        )
