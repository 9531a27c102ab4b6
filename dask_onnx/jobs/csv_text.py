"""Encodings of CSV files: names that can be read by blocks, and places of invalid bytes.

Where bad rows are an error, the place of an invalid byte is searched for after the failure.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.table_files import TableFile
from dask_onnx.io.text_files import open_text

UTF_8 = "utf-8"
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


def undecodable(files: Sequence[TableFile], encoding: str) -> InputError | None:
    """Search for text that is not in the encoding.

    Parameters
    ----------
    files : sequence of TableFile
    encoding : str

    Returns
    -------
    InputError, which says where the first such text is, or None if there is none
    """
    for file in files:
        with open_text(file) as opened:
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
