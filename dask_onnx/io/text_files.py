"""Files of lines, CSV and JSON lines: opened, decompressed, decoded, and cut at line ends.

A file that can be cut is read as blocks of bytes. One that is compressed, comes from a server
without ranges, or has line breaks inside quotes is read as a stream by one task, block after block,
so that memory stays bounded by a block.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa

from dask_onnx.core.filesystems import open_seekable, open_stream
from dask_onnx.io.table_files import TableFile

BLOCK_BYTES = 32 * 2**20
"""Bytes of text in a block."""
HEAD_BYTES = 2**18
"""Bytes of the beginning of a file from which names and types of columns are found."""
_CHUNK_BYTES = 2**16
_BOM = codecs.BOM_UTF8


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Whole lines of a text file."""

    file: TableFile
    start: int
    """Offset of the first line, in bytes of the decompressed file."""
    stop: int | None
    """Offset before which the last line begins; None for the end of the file."""
    is_first: bool = False
    """True if a line begins at `start` exactly; otherwise the block begins with the next line."""
    is_stream: bool = False
    """True if the block is the whole rest of the file, which is read as a stream."""

    @property
    def is_whole(self) -> bool:
        """True if the block has all lines of the file."""
        return self.is_first and self.stop is None


def cut_blocks(file: TableFile, start: int, block_bytes: int, *, whole: bool) -> list[TextBlock]:
    """Return the blocks of a file from an offset on.

    Parameters
    ----------
    file : TableFile
    start : int
        Offset of the first line to read.
    block_bytes : int
        Bytes of a block.
    whole : bool
        True to read it as a stream although it can be cut.
    """
    if not file.can_be_cut or (whole and (file.size or 0) - start > block_bytes):
        return [TextBlock(file, start, None, is_first=True, is_stream=True)]
    assert file.size is not None
    starts = [start, *range(start + block_bytes, file.size, block_bytes)]
    stops = [*starts[1:], None]
    places = zip(starts, stops, strict=True)
    return [TextBlock(file, *place, is_first=place[0] == start) for place in places]


def open_text(file: TableFile) -> BinaryIO:
    """Open a file as a stream of its decompressed bytes.

    Raises
    ------
    InputError, OSError
        It cannot be opened.
    """
    raw = open_stream(file.path)
    if file.compression is None:
        return raw
    opened: Any
    if file.compression == "gzip":
        opened = gzip.GzipFile(fileobj=raw)
    elif file.compression == "bz2":
        opened = bz2.BZ2File(raw)
    elif file.compression == "xz":
        opened = lzma.LZMAFile(raw)  # noqa: SIM115 - the caller closes it
    else:
        opened = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
    return cast(BinaryIO, opened)


def read_head(file: TableFile) -> bytes:
    """Return whole lines from the beginning of a file, with its byte order mark.

    Raises
    ------
    InputError, OSError
        It cannot be read.
    """
    with open_text(file) as stream:
        head = read_exactly(stream, HEAD_BYTES)
    if len(head) == HEAD_BYTES and b"\n" in head:
        head = head[: head.rindex(b"\n") + 1]
    return head


def bom_bytes(head: bytes) -> int:
    """Return the length of the byte order mark of UTF-8 at the beginning of a file, or 0."""
    return len(_BOM) if head.startswith(_BOM) else 0


def read_exactly(stream: Any, size: int) -> bytes:
    """Return the next bytes of a stream: fewer than `size` only at its end."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(bytes(part))
        size -= len(part)
    return b"".join(parts)


def read_block_bytes(block: TextBlock) -> bytes:
    """Return the lines of a block that is no stream.

    Raises
    ------
    InputError, OSError
        The file cannot be read.
    """
    with open_seekable(block.file.path) as file:
        begin = block.start if block.is_first else _line_start(file, block.start)
        if block.stop is None:
            file.seek(begin)
            return file.read()
        end = _line_start(file, block.stop)
        file.seek(begin)
        return read_exactly(file, end - begin)


def _line_start(file: BinaryIO, offset: int) -> int:
    """Return the offset of the first line that begins at `offset` or after it."""
    place = offset - 1
    file.seek(place)
    while chunk := file.read(_CHUNK_BYTES):
        if (found := chunk.find(b"\n")) >= 0:
            return place + found + 1
        place += len(chunk)
    return place


def to_utf8(data: bytes, encoding: str, *, tolerant: bool) -> bytes:
    """Return text as UTF-8.

    Parameters
    ----------
    data : bytes
    encoding : str
        Encoding of `data`.
    tolerant : bool
        Keep bytes that cannot be decoded; those of other encodings than UTF-8 become the bytes of
        lone surrogates.

    Raises
    ------
    UnicodeDecodeError
        `data` are not in the encoding, and `tolerant` is False.
    """
    if encoding == "utf-8":
        if not tolerant:
            data.decode()
        return data
    text = data.decode(encoding, "surrogateescape" if tolerant else "strict")
    return text.encode("utf-8", "surrogatepass" if tolerant else "strict")


class Utf8Stream(io.RawIOBase):
    """Stream of a text file as UTF-8; as `to_utf8` does it.

    Parameters
    ----------
    stream : binary file
    encoding : str
    tolerant : bool
    """

    def __init__(self, stream: BinaryIO, encoding: str, *, tolerant: bool) -> None:
        super().__init__()
        self._stream, self._is_raw = stream, tolerant and encoding == "utf-8"
        self._decoder = codecs.getincrementaldecoder(encoding)(
            "surrogateescape" if tolerant else "strict"
        )
        self._errors = "surrogatepass" if tolerant else "strict"
        self._rest = b""
        self.tail = b""
        """Last bytes that were read, without line ends."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and return the number of bytes in it; 0 at the end."""
        size = len(buffer)
        while not self._rest:
            data = bytes(self._stream.read(size))
            if self._is_raw:
                self._rest = data
            else:
                text = self._decoder.decode(data, final=not data)
                self._rest = text.encode("utf-8", self._errors)
            if not data:
                break
        found, self._rest = self._rest[:size], self._rest[size:]
        buffer[: len(found)] = found
        if kept := found.rstrip(b"\r\n"):
            self.tail = kept[-1:]
        return len(found)


def read_line_blocks(stream: Any, block_bytes: int) -> Iterator[bytes]:
    """Return the whole lines of a stream in blocks of about `block_bytes`."""
    rest = b""
    while data := read_exactly(stream, block_bytes):
        lines, end, rest_of_line = (rest + data).rpartition(b"\n")
        rest = rest_of_line
        if end:
            yield lines + end
    if rest:
        yield rest
