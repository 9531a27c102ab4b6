"""Model files at paths and URLs, read and decoded."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePath
from typing import Any

import onnx
from onnx import serialization

from dask_onnx.core.errors import InputError, ModelError
from dask_onnx.core.files import FileSource, is_url, read_file
from dask_onnx.modelio.forms import Context, decode, is_text, to_model
from dask_onnx.modelio.wire import MAX_PROTO_BYTES


def is_path(source: Any) -> bool:
    """Return whether a model is given as a path or URL, rather than as itself."""
    return isinstance(source, os.PathLike) or (isinstance(source, str) and not is_text(source))


def read_stored_proto(source: Any) -> onnx.ModelProto:
    """Return a model's proto as stored, before it is brought into its normal form.

    Functions, names, ``Constant`` nodes and references to external data are unchanged.

    Parameters
    ----------
    source : path, URL for fsspec, or a form that `to_model` takes
        An object of the caller is copied.

    Raises
    ------
    ModelError
        No such file, or not an ONNX model. External data are not looked at.
    """
    if not is_path(source):
        return to_model(source, Context())
    model, _, _ = read_model_file(os.fspath(source))
    return model


def read_model_file(path: str) -> tuple[onnx.ModelProto, bytes, FileSource]:
    """Return the model at a path or URL, the bytes of its file, and the file's identity.

    Raises
    ------
    ModelError
        No such file, a folder, unreadable, or not an ONNX model.
    """
    if not is_url(path):
        check_model_path(path)
        path = str(Path(path).expanduser().absolute())
    data, source = read_model_bytes(path)
    return decode(data, path, file_format=file_format_of(path)), data, source


def read_model_bytes(path: str) -> tuple[bytes, FileSource]:
    """Return the bytes of a model's file, and the file's identity.

    Parameters
    ----------
    path : str
        Absolute path or URL.

    Raises
    ------
    ModelError
        The file cannot be read.
    """
    try:
        return read_file(path)
    except InputError as error:
        # The protocol is unknown, or its package is missing.
        raise ModelError(error.cause, error.next_step, **error.fields) from error
    except Exception as error:  # file systems behind URLs raise errors of their own
        # That of HTTP says "not found" of a server that does not answer, with the reason behind it.
        known = error.__cause__ if is_url(path) and error.__cause__ is not None else error
        reason = getattr(known, "strerror", None) or str(known) or type(known).__name__
        next_step = "check the URL and the network" if is_url(path) else "check the file"
        raise ModelError(f"{path} cannot be read: {reason}", next_step, reason=reason) from error


def file_format_of(path: str) -> str | None:
    """Return the name in ``onnx.serialization`` of a file's format; None if it has no such name."""
    found: str | None = serialization.registry.get_format_from_file_extension(PurePath(path).suffix)
    return found


def check_model_path(given: str) -> None:
    """Raise a `ModelError` unless a path is that of a regular file of a size that can be read."""
    if not given:
        raise ModelError("the path of the model is empty", "pass the path of an .onnx file")
    path = Path(given).expanduser().absolute()
    if path.is_dir():
        raise ModelError(f"{path} is a folder", "pass the .onnx file inside it")
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.onnx")) if path.parent.is_dir() else []
        hint = f"{path.parent} contains {', '.join(near[:5])}" if near else "check the path"
        raise ModelError(f"{path} does not exist", hint)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(
            f"{path} is a pipe, socket or device, which may have no end", "pass a regular file"
        )
    if status.st_size > MAX_PROTO_BYTES:
        raise ModelError(
            f"{path} has {status.st_size:,} bytes; a model's file can have {MAX_PROTO_BYTES:,}",
            "save large weights as external data",
            numbers={"file_bytes": status.st_size, "most_bytes": MAX_PROTO_BYTES},
        )
