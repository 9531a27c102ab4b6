"""Outputs in folders of tables: Parquet, CSV and JSON lines, one file for each block."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url
from dask_onnx.core.filesystems import filesystem_of
from dask_onnx.core.meters import metered
from dask_onnx.io.sinks import Array, FolderSink, OutputSpec
from dask_onnx.io.targets import explained_writes, new_run_name


@dataclass(frozen=True, slots=True)
class TableSink(FolderSink):
    """A folder of files, one for each block, in the order of their names.

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
        with explained_writes(self.target):
            system, root = filesystem_of(self.folder)
            system.makedirs(root, exist_ok=True)

    @abstractmethod
    def write_frame(self, block: int | str, frame: Any) -> list[str]:
        """Write one file with the columns of a DataFrame; return its path, if it is local.

        Parameters
        ----------
        block : int or str
            Position of the block, or the name of its place in the order of all.
        frame : pandas DataFrame
        """

    def kept(self, blocks: Collection[str]) -> set[str]:
        """Return the blocks whose files are there, and remove files that were not completed."""
        system, root = filesystem_of(self.folder)
        with contextlib.suppress(AttributeError):
            system.invalidate_cache(root)
        try:
            paths = system.find(root, maxdepth=1)
        except FileNotFoundError:
            return set()
        names = {path: path.rpartition("/")[2] for path in paths}
        for path in (path for path, name in names.items() if name.startswith(".part-")):
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(path)
        there = {name.removeprefix("part-").partition(".")[0] for name in names.values()}
        return {block for block in blocks if _part_name(block) in there}

    def _write_text(self, block: int | str, suffix: str, text: str) -> list[str]:
        """Write one block's file of text, compressed if the name of the folder says so."""
        data = text.encode()
        if self.target.lower().endswith(".gz"):
            suffix, data = f"{suffix}.gz", gzip.compress(data, mtime=0)
        return self._write_part(block, suffix, lambda file: file.write(data))

    @metered("write")
    def _write_part(self, block: int | str, suffix: str, write: Callable[[Any], Any]) -> list[str]:
        """Write one block's file so that it appears complete or not at all.

        Dask may repeat a task, or run it on two workers at a time.
        """
        with explained_writes(self.target):
            system, root = filesystem_of(self.folder)
            name = _part_name(block)
            place = f"{root}/part-{name}{suffix}"
            if is_url(self.folder) and not self.folder.startswith(("file://", "local://")):
                # An object appears when all of it has been sent.
                with system.open(place, "wb") as file:
                    write(file)
                return []
            partial = f"{root}/.part-{name}-{new_run_name()}.partial"
            try:
                with system.open(partial, "xb") as file:
                    write(file)
                system.mv(partial, place)
            except BaseException:
                if system.exists(partial):
                    system.rm_file(partial)
                raise
            return [place]


def _part_name(block: int | str) -> str:
    """Return the part of a file's name that says which block it is."""
    return f"{int(block):06d}" if str(block).isdigit() else str(block)


@dataclass(frozen=True, slots=True)
class ParquetSink(TableSink):
    """A folder of Parquet files."""

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> list[str]:
        """Write one file with a column for each output."""
        import pyarrow  # optional: only Parquet files need it

        table = pyarrow.table({name: _column(value) for name, value in values.items()})
        return self._write_table(block, table)

    def write_frame(self, block: int | str, frame: Any) -> list[str]:
        """Write one file with the columns of a DataFrame."""
        import pyarrow  # optional: only Parquet files need it

        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        # With pandas' metadata, neither pandas nor Dask can read columns of lists.
        return self._write_table(block, table.replace_schema_metadata())

    def _write_table(self, block: int | str, table: Any) -> list[str]:
        from pyarrow import parquet  # optional: only Parquet files need it

        return self._write_part(block, ".parquet", lambda file: parquet.write_table(table, file))


@dataclass(frozen=True, slots=True)
class CsvSink(TableSink):
    """A folder of CSV files."""

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> list[str]:
        """Raise an error: only tables are written as CSV."""
        raise InputError(
            "arrays are not written as .csv",
            "write .npy, .zarr, .parquet or .jsonl",
            option="path",
        )

    def check_outputs(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Raise an error: only tables are written as CSV."""
        self.write(0, 0, 0, {})

    def write_frame(self, block: int | str, frame: Any) -> list[str]:
        """Write one file with the columns of a DataFrame; lists are written as JSON."""
        lists = {
            name: _json_cells(column)
            for name, column in frame.items()
            if str(column.dtype).startswith(("list<", "fixed_size_list<"))
        }
        frame = frame.copy(deep=False)
        for name, cells in lists.items():
            frame[name] = cells
        return self._write_text(block, ".csv", frame.to_csv(index=False))


def _json_cells(column: Any) -> list[str | None]:
    """Return the lists of a column as JSON: pandas writes long ones with "..." in the middle."""
    rows = column.array.__arrow_array__().to_pylist()
    return [None if row is None else json.dumps(row) for row in rows]


@dataclass(frozen=True, slots=True)
class JsonLinesSink(TableSink):
    """A folder of files of JSON lines; missing values and NaN are null."""

    def write(self, block: int, start: int, stop: int, values: Mapping[str, Array]) -> list[str]:
        """Write one file with a field for each output."""
        return self._write_columns(block, {name: value.tolist() for name, value in values.items()})

    def write_frame(self, block: int | str, frame: Any) -> list[str]:
        """Write one file with the columns of a DataFrame."""
        columns = {
            str(name): column.astype(object).where(column.notna(), None).tolist()
            for name, column in frame.items()
        }
        return self._write_columns(block, columns)

    def _write_columns(self, block: int | str, columns: Mapping[str, list[Any]]) -> list[str]:
        names = list(columns)
        lines = [
            json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False)
            for row in zip(*map(_json_values, names, columns.values()), strict=True)
        ]
        suffix = ".ndjson" if self.target.lower().endswith(".ndjson") else ".jsonl"
        return self._write_text(block, suffix, "".join(f"{line}\n" for line in lines))


def _json_values(name: str, values: list[Any]) -> list[Any]:
    """Return the values of a column as JSON has them.

    Raises
    ------
    InputError
        One is infinite.
    """
    try:
        return [_json_value(value) for value in values]
    except OverflowError:
        raise InputError(
            f"column {name!r} has an infinite value, and JSON has no infinity",
            "write .parquet or .csv, or cut the values",
            option="path",
            column=name,
        ) from None


def _json_value(value: Any) -> Any:
    """Return a value as JSON has it; raise an OverflowError for an infinite one."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        if math.isinf(value):
            raise OverflowError
        return None if math.isnan(value) else value
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, list | tuple):
        return [_json_value(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _json_value(each) for name, each in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


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
