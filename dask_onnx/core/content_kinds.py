"""Kinds of files, told by their first bytes: for errors about files that are not what they seem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

HEAD_BYTES = 300
"""Bytes from the beginning of a file that tell its kind."""

KIND_NAMES: Mapping[str, str] = {
    "arrow": "an Arrow file",
    "arrow stream": "an Arrow stream",
    "avro": "an Avro file",
    "bzip2": "a bzip2 archive",
    "feather 1": "a Feather file of version 1",
    "gguf": "a model of llama.cpp",
    "gzip": "a gzip archive",
    "hdf5": "an HDF5 file, as Keras writes",
    "jpeg": "a JPEG picture",
    "lfs": "a pointer of Git LFS in place of the file",
    "npy": "a numpy file",
    "orc": "an ORC file",
    "ort": "a model in ORT's own format",
    "page": "a web page",
    "parquet": "a Parquet file",
    "pdf": "a PDF document",
    "pickle": "a Python pickle",
    "png": "a PNG picture",
    "pytorch": "a model of PyTorch",
    "spreadsheet": "a spreadsheet",
    "sqlite": "an SQLite database",
    "tar": "a tar archive",
    "tflite": "a model of TensorFlow Lite",
    "utf-16": "text in UTF-16",
    "utf-32": "text in UTF-32",
    "xz": "an xz archive",
    "zip": "a zip archive",
    "zstd": "a zstd archive",
}
"""Kinds, and each as a noun phrase."""

_STARTS: Sequence[tuple[int, bytes, str]] = (
    (0, b"version https://git-lfs.github.com/spec/", "lfs"),
    (0, b"<!doctype html", "page"),
    (0, b"<html", "page"),
    (4, b"ortm", "ort"),
    (4, b"tfl3", "tflite"),
    (0, b"\x89hdf\r\n\x1a\n", "hdf5"),
    (0, b"gguf", "gguf"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zxz\x00", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"bzh", "bzip2"),
    (257, b"ustar", "tar"),
    (0, b"par1", "parquet"),
    (0, b"arrow1\x00\x00", "arrow"),
    (0, b"\xff\xff\xff\xff", "arrow stream"),
    (0, b"fea1", "feather 1"),
    (0, b"orc\n", "orc"),
    (0, b"orc\x08", "orc"),
    (0, b"obj\x01", "avro"),
    (0, b"sqlite format 3\x00", "sqlite"),
    (0, b"%pdf-", "pdf"),
    (0, b"\x93numpy", "npy"),
    (0, b"\x89png\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "spreadsheet"),  # .xls, and other old files of Office
    (0, b"\xff\xfe\x00\x00", "utf-32"),
    (0, b"\xff\xfe", "utf-16"),
    (0, b"\xfe\xff", "utf-16"),
)
"""Offset and lower-case bytes there, and the kind of files that have them."""


def content_kind(data: bytes) -> str | None:
    """Return the kind of a file by its first bytes, one of `KIND_NAMES`; None for all others.

    Parameters
    ----------
    data : bytes
        The file's bytes, or its first `HEAD_BYTES`.
    """
    head = data[:HEAD_BYTES]
    if head[:4] == b"PK\x03\x04":
        if b"/data.pkl" in head or b"/version" in head or b"constants.pkl" in head:
            return "pytorch"
        return "spreadsheet" if b"[Content_Types].xml" in head else "zip"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for offset, start, kind in _STARTS:
        if (text if offset == 0 else head.lower())[offset : offset + len(start)] == start:
            return kind
    return None
