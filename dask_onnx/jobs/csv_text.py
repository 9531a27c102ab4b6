"""CSV files: blocks with bytes that are not in the encoding, and errors that say where they are.

Where bad rows are an error, files are read in the usual way, and the place of an invalid byte is
searched for after the failure. Where bad rows are written apart or become missing values, a block
with invalid bytes is read again, with these bytes kept as lone surrogates, by which the bad rows
are recognised.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

import dask.config
import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
from dask.dataframe.io.csv import make_reader

from dask_onnx.collections.text.text_columns import column_faults
from dask_onnx.core.errors import InputError, Suggestion

UTF_8 = "utf-8"
_PYTHON_TEXT = pd.StringDtype("python", na_value=np.nan)
"""Default string dtype of pandas, but stored as Python's str: Arrow cannot hold surrogates."""
_CHUNK_BYTES = 2**22
_SHOWN_BYTES = 20
"""Bytes that an error shows on either side of those that cannot be decoded."""


def check_encoding(encoding: str) -> str:
    """Return Python's name of an encoding.

    Raises
    ------
    InputError
        It is not known, or its line ends are not the bytes at which files are cut into blocks.
    """
    try:
        name = codecs.lookup(encoding).name
        is_ascii_based = b'\n,"'.decode(encoding) == '\n,"'
    except LookupError:
        raise InputError(
            f"there is no encoding {encoding!r}",
            "name one that Python knows: latin-1, cp1252",
            option="encoding",
        ) from None
    except UnicodeDecodeError:
        is_ascii_based = False
    if not is_ascii_based:
        raise InputError(
            f"files in {encoding} cannot be read by blocks: their line ends are several bytes",
            f"convert them first: iconv -f {encoding} -t UTF-8",
            option="encoding",
        )
    # pandas skips the byte order mark of "utf-8-sig" anyway, and only the first block has it.
    return UTF_8 if name == "utf-8-sig" else name


def read_csv(path: str, encoding: str, *, keeps_bad_rows: bool) -> dd.DataFrame:
    """Return a lazy table.

    Parameters
    ----------
    path : str
        Path, URL or glob.
    encoding : str
    keeps_bad_rows : bool
        Keep bytes that cannot be decoded as lone surrogates; otherwise they raise a
        UnicodeDecodeError, here or in a task.
    """
    if not keeps_bad_rows:
        strict: dd.DataFrame = dd.read_csv(path, encoding=encoding)
        return strict
    # Dask would convert text to Arrow strings, which cannot hold surrogates.
    with dask.config.set({"dataframe.convert-string": False}):
        read = make_reader(read_block, "read_csv", "CSV")
        tolerant: dd.DataFrame = read(path, encoding=encoding)
        return tolerant


def read_block(content: BinaryIO, **options: Any) -> pd.DataFrame:
    """Read a block as `pandas.read_csv` does, with lone surrogates for bytes that are not text.

    Parameters
    ----------
    content : binary file
    **options
        Keywords of `pandas.read_csv`.
    """
    start = content.tell()
    try:
        return _with_python_text(pd.read_csv(content, **options))
    except UnicodeDecodeError:
        content.seek(start)
    # Escapes are text of the same dtypes in the same rows, from which pandas infers the types.
    frame = pd.read_csv(content, encoding_errors="backslashreplace", **options)
    content.seek(start)
    texts = [name for name, dtype in frame.dtypes.items() if pd.api.types.is_string_dtype(dtype)]
    raw = pd.read_csv(
        content,
        encoding_errors="surrogateescape",
        **{**options, "dtype": dict.fromkeys(texts, object)},
    )
    faulty = [name for name in texts if column_faults(raw[name])]
    return _with_python_text(
        frame.assign(**{name: raw[name].astype(_PYTHON_TEXT) for name in faulty})
    )


def _with_python_text(frame: pd.DataFrame) -> pd.DataFrame:
    # Also in blocks without invalid bytes: to Dask, another storage of strings is another dtype.
    texts = [name for name, dtype in frame.dtypes.items() if isinstance(dtype, pd.StringDtype)]
    found: pd.DataFrame = frame.astype(dict.fromkeys(texts, _PYTHON_TEXT))
    return found


_MISMATCH = "Mismatched dtypes found in `pd.read_csv`"
"""Start of the message of Dask's ValueError, whose table of columns is the only place where it
names them."""
_MISMATCHED = re.compile(
    r"^\| (?P<column>.+?) +\| (?P<found>\S+) +\| (?P<expected>\S+) +\|$", re.MULTILINE
)


def other_types(path: str, error: ValueError) -> InputError | None:
    """Translate Dask's error about columns whose type changes after the sampled rows.

    Its own message proposes arguments of `read_csv`, which the caller did not call.

    Returns
    -------
    InputError, or None if the error is about something else
    """
    text = str(error)
    if not text.startswith(_MISMATCH):
        return None
    found = [match for match in _MISMATCHED.finditer(text) if match["column"] != "Column"]
    columns = [
        f"{match['column']!r} is {match['expected']} in its first rows and {match['found']} later"
        for match in found
    ]
    values = re.findall(r"could not convert string to float: '(.*?)'", text)
    shown = f", such as {values[0]!r}" if values else ""
    return InputError(
        f"column dtypes of the table {path} change after the sampled rows: "
        f"{' and '.join(columns)}{shown}",
        "fix these rows, or write the table as Parquet with the types that it should have",
        column=found[0]["column"] if found else None,
        reason=text,
    )


def undecodable(path: str, encoding: str) -> InputError | None:
    """Search for text that is not in the encoding.

    Returns
    -------
    InputError, which says where the first such text is, or None if there is none
    """
    for file in fsspec.open_files(path, "rb"):
        with file as opened:
            fault = _first_fault(opened, encoding)
        if fault is not None:
            others = ("latin-1", "cp1252") if encoding == UTF_8 else (None,)
            return InputError(
                f"the table {file.path} is not {encoding.upper()}: {fault}",
                "name its encoding, or treat such rows as bad ones",
                option="encoding",
                numbers={
                    "line": fault.line,
                    "byte_of_line": fault.byte_of_line,
                    "byte_of_file": fault.byte_of_file,
                },
                suggestions=(
                    *(Suggestion("encoding", name) for name in others),
                    Suggestion("on_error", "null"),
                    Suggestion("quarantine"),
                ),
            )
    return None


@dataclass(frozen=True, slots=True)
class _Fault:
    """Place of bytes that cannot be decoded."""

    line: int
    """Number of the line in the file, from 1."""
    byte_of_line: int
    """Offset of the first of these bytes in the line, from 0."""
    byte_of_file: int
    """Offset of the first of these bytes in the file, from 0."""
    wrong: bytes
    around: bytes
    """The line's bytes near them."""

    def __str__(self) -> str:
        wrong = " ".join(f"0x{byte:02x}" for byte in self.wrong)
        return (
            f"line {self.line:,}, byte {self.byte_of_line:,} of it ({self.byte_of_file:,} of the "
            f"file): {wrong} in '{self.around.decode('ascii', errors='backslashreplace')}'"
        )


def _first_fault(file: BinaryIO, encoding: str) -> _Fault | None:
    offset = lines = 0
    rest = b""
    while chunk := file.read(_CHUNK_BYTES):
        # Only whole lines are decoded, so that no character is cut.
        whole, end, tail = (rest + chunk).rpartition(b"\n")
        if fault := _fault(whole + end, encoding, offset, lines):
            return fault
        offset += len(whole + end)
        lines += (whole + end).count(b"\n")
        rest = tail
    return _fault(rest, encoding, offset, lines)


def _fault(content: bytes, encoding: str, offset: int, lines: int) -> _Fault | None:
    """Search some lines of a file, which has `offset` bytes and `lines` lines before them."""
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        start, end = error.start, max(error.end, error.start + 1)
        line_start = content.rfind(b"\n", 0, start) + 1
        line_end = content.find(b"\n", start)
        line_end = len(content) if line_end < 0 else line_end
        around = content[max(line_start, start - _SHOWN_BYTES) : min(line_end, end + _SHOWN_BYTES)]
        return _Fault(
            line=lines + content.count(b"\n", 0, start) + 1,
            byte_of_line=start - line_start,
            byte_of_file=offset + start,
            wrong=content[start:end],
            around=around.rstrip(b"\r"),
        )
    return None
