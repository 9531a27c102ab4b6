"""Kinds of files that are mistaken for ONNX models, told by their first bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileKind:
    """One kind of file that is no ONNX model."""

    name: str
    """Noun phrase, such as "a web page"."""
    next_step: str
    """Action that gives the caller an ONNX model."""


LFS_POINTER = FileKind("a pointer of Git LFS in place of the file", "fetch the file: git lfs pull")
_PAGE = FileKind(
    "a web page", "download the file itself: on a hub, its address has resolve/ in place of blob/"
)
_PYTORCH = FileKind("a model of PyTorch", "export it: torch.onnx.export(model, args, path)")
_ORT = FileKind(
    "a model in ORT's own format", "use the ONNX model that it was made from: it cannot be cut"
)
_TFLITE = FileKind("a model of TensorFlow Lite", "convert it: python -m tf2onnx.convert --tflite")
_PACKED = "unpack it first"

_STARTS: Sequence[tuple[int, bytes, FileKind]] = (
    (0, b"version https://git-lfs.github.com/spec/", LFS_POINTER),
    (0, b"<!doctype html", _PAGE),
    (0, b"<html", _PAGE),
    (4, b"ortm", _ORT),
    (4, b"tfl3", _TFLITE),
    (0, b"\x89hdf\r\n\x1a\n", FileKind("an HDF5 file, as Keras writes", "convert it: tf2onnx")),
    (0, b"gguf", FileKind("a model of llama.cpp", "export the model that it was made from")),
    (0, b"\x1f\x8b", FileKind("a gzip archive", _PACKED)),
    (0, b"\xfd7zxz\x00", FileKind("an xz archive", _PACKED)),
    (0, b"\x28\xb5\x2f\xfd", FileKind("a zstd archive", _PACKED)),
    (0, b"bzh", FileKind("a bzip2 archive", _PACKED)),
    (257, b"ustar", FileKind("a tar archive", _PACKED)),
)
"""Offset and lower-case bytes there, and the kind of files that have them."""


def kind_of_file(data: bytes) -> FileKind | None:
    """Return the kind of a file that is known not to be an ONNX model; None for all others.

    Parameters
    ----------
    data : bytes
        The file's bytes, or its first 300.
    """
    head = data[:300]
    if head[:4] == b"PK\x03\x04":
        is_torch = b"/data.pkl" in head or b"/version" in head or b"constants.pkl" in head
        return _PYTORCH if is_torch else FileKind("a zip archive", _PACKED)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind(
            "a Python pickle",
            "load it with the library that wrote it, and export the model: skl2onnx.to_onnx or "
            "torch.onnx.export",
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for offset, start, kind in _STARTS:
        if (text if offset == 0 else head.lower())[offset : offset + len(start)] == start:
            return kind
    return None
