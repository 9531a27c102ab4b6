"""Places that take results by rows: npy, zarr, Parquet. Each task writes its own block by path.

A local file appears under its name only when it is complete; a folder or an object store has a
file ``_SUCCESS`` in it when it is.
"""

from __future__ import annotations

import importlib.util
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

from dask_onnx.core.errors import InputError

Array = npt.NDArray[Any]

MARKER = "_SUCCESS"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output as a probe of the first rows found it."""

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    """Without the axis of rows."""

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * max(self.dtype.itemsize, 1)


@dataclass(frozen=True, slots=True)
class Sink(ABC):
    """Where results go. `prepare` on the client, `write` in tasks, `finish` or `discard` after."""

    target: str
    """Path or URL as the user gave it."""
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what is there already, and what cannot be written, before any work."""
        if "://" in self.target:
            return
        path = Path(self.target)
        if path.exists() and not self.overwrite:
            raise InputError(
                f"the output {path} exists", "remove it, choose another name, or pass --overwrite"
            )
        if not path.parent.is_dir():
            raise InputError(
                f"the output's folder {path.parent} does not exist", "make it, or check the path"
            )

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Refuse outputs that this format cannot hold."""
        return  # most formats hold all

    def problem(self) -> str | None:
        """What keeps this process from writing; None if nothing does."""
        if "://" in self.target:
            return None
        folder = Path(self.target).parent
        if not folder.is_dir():
            return f"the output's folder {folder} does not exist there"
        return None if os.access(folder, os.W_OK) else f"{folder} cannot be written to there"

    @abstractmethod
    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
        """Make room for so many rows."""

    @abstractmethod
    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> None:
        """Keep the rows of one block."""

    @abstractmethod
    def finish(self) -> None:
        """Give what is complete its name."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what is not complete."""


@dataclass(frozen=True, slots=True)
class NpySink(Sink):
    """One .npy file, which tasks fill in place under a temporary name."""

    @property
    def partial(self) -> Path:
        path = Path(self.target)
        return path.with_name(f".{path.name}.partial")

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        if len(outputs) > 1:
            names = ", ".join(spec.name for spec in outputs)
            raise InputError(
                f"a .npy file holds one output; there are {len(outputs)}: {names}",
                "choose one with --outputs, or write .zarr",
            )
        if outputs[0].dtype.hasobject:
            raise InputError(
                f"output {outputs[0].name!r} has strings, which .npy cannot hold unpickled",
                "write .parquet",
            )

    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
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
        with self.partial.open("r+b") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.target)

    def discard(self) -> None:
        self.partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ZarrSink(Sink):
    """A zarr array, or a group with one array for each of several outputs."""

    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
        import zarr  # an extra: only who writes zarr needs it

        _remove_marker(self.target)
        group = zarr.open_group(self.target, mode="w") if len(outputs) > 1 else None
        for spec in outputs:
            # A chunk is never in two blocks, so that no two tasks write the same one.
            options: dict[str, Any] = {
                "shape": (rows, *spec.row_shape),
                "chunks": (block_rows, *(max(size, 1) for size in spec.row_shape)),
                "dtype": spec.dtype,
            }
            if group is not None:
                group.create_array(array_name(spec.name), **options)
            else:
                zarr.create_array(self.target, overwrite=True, **options)

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> None:
        import zarr

        node = zarr.open(self.target, mode="r+")
        for name, value in values.items():
            _require_rows(value, start, stop, "zarr")
            array = node[array_name(name)] if len(values) > 1 else node
            _require_same(value, array.shape, np.dtype(array.dtype))
            array[start:stop] = value

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        for spec in outputs:
            if spec.dtype.hasobject:
                raise InputError(
                    f"output {spec.name!r} has strings, which are not written to zarr",
                    "write .parquet",
                )

    def finish(self) -> None:
        _write_marker(self.target)

    def discard(self) -> None:
        """An unfinished store stays without its marker: on a remote store removing costs much."""
        if "://" not in self.target:
            shutil.rmtree(self.target, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ParquetSink(Sink):
    """A folder of Parquet files, one for each block, in the order of their names.

    An output of rank 1, or with one value a row, becomes a column; one with more values a row a
    column of lists of fixed length.
    """

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        for spec in outputs:
            if len(spec.row_shape) > 1:
                raise InputError(
                    f"output {spec.name!r} has rows of shape {spec.row_shape}, which are no table",
                    "write .npy or .zarr, or bring rows to one axis with --post",
                )

    def prepare(self, rows: int, block_rows: int, outputs: tuple[OutputSpec, ...]) -> None:
        if "://" not in self.target and Path(self.target).exists():
            shutil.rmtree(self.target)
        _remove_marker(self.target)
        filesystem, root = fsspec.url_to_fs(self.target)
        filesystem.makedirs(root, exist_ok=True)

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> None:
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table({name: _column(value) for name, value in values.items()})
        _write_whole(self.target, block, ".parquet", lambda file: parquet.write_table(table, file))

    def write_frame(self, block: int, frame: Any) -> None:
        """Write a DataFrame. Without pandas' own notes: with them neither pandas nor Dask reads its
        columns of lists back."""
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
        _write_whole(self.target, block, ".parquet", lambda file: parquet.write_table(table, file))

    def finish(self) -> None:
        _write_marker(self.target)

    def discard(self) -> None:
        """As for zarr."""
        if "://" not in self.target:
            shutil.rmtree(self.target, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class CsvSink(ParquetSink):
    """A folder of CSV files, one for each partition of a table."""

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> None:
        raise InputError("arrays are not written as .csv", "write .npy, .zarr or .parquet")

    def write_frame(self, block: int, frame: Any) -> None:
        text = frame.to_csv(index=False).encode()
        _write_whole(self.target, block, ".csv", lambda file: file.write(text))


SINKS: Mapping[str, tuple[type[Sink], str | None, str | None]] = {
    ".npy": (NpySink, None, None),
    ".zarr": (ZarrSink, "zarr", "zarr"),
    ".parquet": (ParquetSink, "pyarrow", "parquet"),
    ".csv": (CsvSink, "pandas", "dataframe"),
}
"""Suffix to the sink, the module that it needs, and the extra that installs it."""


def open_sink(text: str, *, overwrite: bool) -> Sink:
    """The sink for a name, checked as far as this process can.

    Raises
    ------
    InputError
        A format that is not known or whose package is missing; the output exists; no folder.
    """
    suffix = Path(text.rstrip("/")).suffix
    if suffix not in SINKS:
        raise InputError(
            f"the output {text} is of a kind that cannot be written",
            f"give it one of the endings {', '.join(SINKS)}",
        )
    kind, module, extra = SINKS[suffix]
    if module is not None and importlib.util.find_spec(module) is None:
        raise InputError(
            f"{suffix} needs the package {module}, which is not installed",
            f"pip install 'dask-onnx[{extra}]'",
        )
    target = text if "://" in text else str(Path(text).expanduser().absolute())
    sink = kind(target, overwrite)
    sink.check()
    return sink


def _write_whole(target: str, block: int, suffix: str, write: Callable[[Any], Any]) -> None:
    """Write a file of a folder; a task may be repeated, or run twice at once, so that it appears
    whole or not at all."""
    filesystem, root = fsspec.url_to_fs(target)
    partial = f"{root}/.part-{block:06d}-{os.getpid()}.partial"
    with filesystem.open(partial, "wb") as file:
        write(file)
    filesystem.mv(partial, f"{root}/part-{block:06d}{suffix}")


def array_name(name: str) -> str:
    """An output's name as a name inside a zarr group, where / would nest."""
    return re.sub(r"[^0-9A-Za-z_.-]+", "_", name).strip(".") or "output"


def _require_rows(value: Array, start: int, stop: int, kind: str) -> None:
    if value.shape[:1] != (stop - start,):
        raise InputError(
            f"rows {start} to {stop} gave a result of shape {value.shape}, and {kind} needs one "
            "row for each",
            "write .parquet, which takes any number of rows, or change --post",
        )


def _require_same(value: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if value.shape[1:] != tuple(shape[1:]) or value.dtype != dtype:
        raise InputError(
            f"a block gave rows of {value.dtype} {value.shape[1:]}, the first rows were "
            f"{dtype} {tuple(shape[1:])}",
            "make --post give the same shape and dtype for all rows",
        )


def _column(value: Array) -> Any:
    import pyarrow

    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim == 1:
        return pyarrow.array(value)
    if value.ndim != 2:
        raise InputError(
            f"a result of shape {value.shape} is no column of a table", "write .npy or .zarr"
        )
    flat = pyarrow.array(np.ascontiguousarray(value).reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(flat, value.shape[1])


def _marker(target: str) -> tuple[Any, str]:
    filesystem, root = fsspec.url_to_fs(target)
    return filesystem, f"{root}/{MARKER}"


def _write_marker(target: str) -> None:
    filesystem, path = _marker(target)
    filesystem.pipe_file(path, b"")


def _remove_marker(target: str) -> None:
    filesystem, path = _marker(target)
    if filesystem.exists(path):
        filesystem.rm(path)
