"""Kinds of files that are mistaken for ONNX models, told by their first bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dask_onnx.core.content_kinds import KIND_NAMES, content_kind


@dataclass(frozen=True, slots=True)
class FileKind:
    """One kind of file that is no ONNX model."""

    name: str
    """Noun phrase, such as "a web page"."""
    next_step: str
    """Action that gives the caller an ONNX model."""


_UNPACK = "unpack it first"
_NEXT_STEPS: Mapping[str, str] = {
    "lfs": "fetch the file: git lfs pull",
    "page": "download the file itself: on a hub, its address has resolve/ in place of blob/",
    "pytorch": "export it: torch.onnx.export(model, args, path)",
    "ort": "use the ONNX model that it was made from: it cannot be cut",
    "tflite": "convert it: python -m tf2onnx.convert --tflite",
    "hdf5": "convert it: tf2onnx",
    "gguf": "export the model that it was made from",
    "pickle": "load it with the library that wrote it, and export the model: skl2onnx.to_onnx or "
    "torch.onnx.export",
    **dict.fromkeys(("gzip", "xz", "zstd", "bzip2", "tar", "zip"), _UNPACK),
}
_SHORT_MARKS = ("arrow stream", "jpeg", "utf-16", "utf-32")
"""Kinds whose marks are so short that weights may begin with them by chance."""


def kind_of_file(data: bytes) -> FileKind | None:
    """Return the kind of a file that is known not to be an ONNX model; None for all others.

    Parameters
    ----------
    data : bytes
        The file's bytes, or its first `HEAD_BYTES`.
    """
    kind = content_kind(data)
    if kind is None or kind in _SHORT_MARKS:
        return None
    return FileKind(KIND_NAMES[kind], _NEXT_STEPS.get(kind, "pass an .onnx file"))
