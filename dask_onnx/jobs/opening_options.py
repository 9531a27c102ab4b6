"""Options, beginnings of files and partitions, shared by the readers of all table formats."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from dask_onnx.core.specs import TensorSpec
from dask_onnx.io.foreign_content import foreign_content
from dask_onnx.io.table_files import TableFile
from dask_onnx.io.text_cells import infer_type
from dask_onnx.io.text_files import BLOCK_BYTES, read_head
from dask_onnx.jobs.table_request import TableRequest
from dask_onnx.jobs.table_source import explained

_READERS = 16
"""Threads that read the beginnings of files at a time."""


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """Options that decide how a table is read."""

    request: TableRequest
    inputs: tuple[TensorSpec, ...]
    """Inputs of the model that the outputs need."""
    is_verbatim: bool = False
    """True if columns that are only kept are written as text."""
    whole_files: bool = False
    """True to read files of CSV as streams: cells have line breaks."""
    block_bytes: int = BLOCK_BYTES
    """Bytes of a block of text."""


def heads_of(files: Sequence[TableFile], *, has_encoding: bool = False) -> list[bytes]:
    """Return whole lines from the beginning of each file.

    Parameters
    ----------
    files : sequence of TableFile
        Files of text.
    has_encoding : bool
        True if the caller names an encoding other than UTF-8.

    Raises
    ------
    InputError
        A file cannot be read, or its content is of another kind, such as a web page.
    """

    def head(file: TableFile) -> bytes:
        with explained(file):
            found = read_head(file)
        foreign = foreign_content(found, file.format, file.path, has_encoding=has_encoding)
        if foreign is not None:
            raise foreign
        return found

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(head, files))


def keys_of(files: Sequence[TableFile]) -> dict[str, list[str | None]]:
    """Return the texts of each Hive partition in all files."""
    found: dict[str, list[str | None]] = {}
    for file in files:
        for name, text in file.keys:
            found.setdefault(name, []).append(text)
    return found


def key_type(texts: Sequence[str | None]) -> pa.DataType:
    """Return the type of a Hive partition, all of whose texts are known."""
    return infer_type(pa.array(texts, pa.string()), (), exact=True, decimal=".")
