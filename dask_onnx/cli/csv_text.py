"""CSV whose text is not in the encoding that it should be in.

Where bad rows are an error, files are read as ever, and what cannot be decoded is looked up after
the fact. Where they are put apart or left empty, a block with such bytes is read again, with the
bytes kept as lone surrogates: a row that holds some is one that the model cannot take.
"""

from __future__ import annotations

import codecs
import re
from typing import Any, BinaryIO

import dask.config
import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
from dask.dataframe.io.csv import make_reader

from dask_onnx.collections.text.text_columns import column_faults
from dask_onnx.core.errors import InputError

UTF_8 = "utf-8"
_PYTHON_TEXT = pd.StringDtype("python", na_value=np.nan)
"""As pandas reads it, but of Python's strings: Arrow's hold no surrogates."""
_CHUNK_BYTES = 2**22
_SHOWN_BYTES = 20
"""On either side of what cannot be decoded."""


def check_encoding(encoding: str) -> str:
    """What Python calls it.

    Raises
    ------
    InputError
        It is not known, or its line ends are not the bytes that files are cut at.
    """
    try:
        name = codecs.lookup(encoding).name
        is_fit = b'\n,"'.decode(encoding) == '\n,"'
    except LookupError:
        raise InputError(
            f"there is no encoding {encoding!r}", "name one that Python knows: latin-1, cp1252"
        ) from None
    except UnicodeDecodeError:
        is_fit = False
    if not is_fit:
        raise InputError(
            f"files in {encoding} cannot be read by blocks: their line ends are several bytes",
            f"convert them first: iconv -f {encoding} -t UTF-8",
        )
    return UTF_8 if name == "utf-8-sig" else name  # a mark at the start is skipped anyway


def read_csv(path: str, encoding: str, *, keeps_bad_rows: bool) -> dd.DataFrame:
    """A lazy table.

    Parameters
    ----------
    keeps_bad_rows : text that cannot be decoded comes as lone surrogates; else it is a
        UnicodeDecodeError, here or from a task
    """
    if not keeps_bad_rows:
        strict: dd.DataFrame = dd.read_csv(path, encoding=encoding)
        return strict
    # Text as pandas reads it: Dask would have it in Arrow, which holds no surrogates.
    with dask.config.set({"dataframe.convert-string": False}):
        read = make_reader(read_block, "read_csv", "CSV")
        tolerant: dd.DataFrame = read(path, encoding=encoding)
        return tolerant


def read_block(content: BinaryIO, **options: Any) -> pd.DataFrame:
    """`pandas.read_csv` with text as Python's strings, in which surrogates stand for what cannot be
    decoded."""
    start = content.tell()
    try:
        return _of_python(pd.read_csv(content, **options))
    except UnicodeDecodeError:
        content.seek(start)
    # Backslashes and hex digits for each byte: text of the same types in the same rows.
    frame = pd.read_csv(content, encoding_errors="backslashreplace", **options)
    content.seek(start)
    texts = [name for name, dtype in frame.dtypes.items() if pd.api.types.is_string_dtype(dtype)]
    raw = pd.read_csv(
        content,
        encoding_errors="surrogateescape",
        **{**options, "dtype": dict.fromkeys(texts, object)},
    )
    faulty = [name for name in texts if column_faults(raw[name])]
    return _of_python(frame.assign(**{name: raw[name].astype(_PYTHON_TEXT) for name in faulty}))


def _of_python(frame: pd.DataFrame) -> pd.DataFrame:
    # Of every block alike: to Dask another storage of strings is another dtype.
    texts = [name for name, dtype in frame.dtypes.items() if isinstance(dtype, pd.StringDtype)]
    found: pd.DataFrame = frame.astype(dict.fromkeys(texts, _PYTHON_TEXT))
    return found


_MISMATCH = "Mismatched dtypes found in `pd.read_csv`"
_MISMATCHED = re.compile(
    r"^\| (?P<column>.+?) +\| (?P<found>\S+) +\| (?P<expected>\S+) +\|$", re.MULTILINE
)


def other_types(path: str, error: ValueError) -> InputError | None:
    """The error for columns that are of another type further down than in the first rows, of which
    Dask's own speaks of code; None if it is about something else."""
    text = str(error)
    if not text.startswith(_MISMATCH):
        return None
    columns = [
        f"{match['column']!r} is {match['expected']} in its first rows and {match['found']} later"
        for match in _MISMATCHED.finditer(text)
        if match["column"] != "Column"
    ]
    values = re.findall(r"could not convert string to float: '(.*?)'", text)
    shown = f", such as {values[0]!r}" if values else ""
    return InputError(
        f"the table {path} cannot be read as it begins: column {' and '.join(columns)}{shown}",
        "mend these rows; or write the table as Parquet with the types that it should have",
    )


def undecodable(path: str, encoding: str) -> InputError | None:
    """The error that says where the first text is that is not in the encoding; None if all is."""
    for file in fsspec.open_files(path, "rb"):
        with file as opened:
            place = _first_undecodable(opened, encoding)
        if place is not None:
            others = "" if encoding != UTF_8 else " --encoding latin-1 or cp1252;"
            return InputError(
                f"the table {file.path} is not {encoding.upper()}: {place}",
                f"say what it is:{others or ' --encoding NAME;'} or treat such rows as bad ones: "
                "--on-error null, --quarantine PATH",
            )
    return None


def _first_undecodable(file: BinaryIO, encoding: str) -> str | None:
    offset = lines = 0
    rest = b""
    while chunk := file.read(_CHUNK_BYTES):
        # Whole lines, so that no character is cut.
        whole, end, tail = (rest + chunk).rpartition(b"\n")
        if place := _fault(whole + end, encoding, offset, lines):
            return place
        offset += len(whole + end)
        lines += (whole + end).count(b"\n")
        rest = tail
    return _fault(rest, encoding, offset, lines)


def _fault(content: bytes, encoding: str, offset: int, lines: int) -> str | None:
    """Where in some lines; parameters: bytes and lines of the file before them."""
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        start, end = error.start, max(error.end, error.start + 1)
        line_start = content.rfind(b"\n", 0, start) + 1
        line_end = content.find(b"\n", start)
        shown = content[
            max(line_start, start - _SHOWN_BYTES) : min(
                len(content) if line_end < 0 else line_end, end + _SHOWN_BYTES
            )
        ].rstrip(b"\r")
        wrong = " ".join(f"0x{byte:02x}" for byte in content[start:end])
        line = lines + content.count(b"\n", 0, start) + 1
        return (
            f"line {line:,}, byte {start - line_start:,} of it ({offset + start:,} of the file): "
            f"{wrong} in '{shown.decode('ascii', errors='backslashreplace')}'"
        )
    return None
