"""Refusal of paths as inputs: `Model.predict` takes data, and its error names readers of files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec

_TABLES = (".parquet", ".parq", ".csv", ".tsv", ".jsonl", ".ndjson", ".arrow", ".feather", ".orc")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
_READERS = {
    ".npy": "np.load",
    ".zarr": "da.from_zarr",
    ".parquet": "dd.read_parquet",
    ".parq": "dd.read_parquet",
    ".csv": "dd.read_csv",
    ".tsv": "dd.read_csv",
    ".jsonl": "dd.read_json",
    ".ndjson": "dd.read_json",
    ".orc": "dd.read_orc",
}
"""Function that reads a file of a suffix, as a caller of Dask writes it."""
_LONGEST = 1024
"""Characters of the longest text that is looked up as a path."""
_OTHERS = (".npz", ".txt", ".json", ".gz", ".bz2", ".xz", ".zst", ".wav")


def refuse_paths(x: Any, inputs: tuple[TensorSpec, ...]) -> None:
    """Raise an error if a path was given where data are expected.

    Parameters
    ----------
    x : any
        Values that the caller gave for the inputs.
    inputs : tuple of TensorSpec
        Inputs of the model. A text goes into one of strings, unless it is a path of a known form.

    Raises
    ------
    InputError
        `x`, an item of it, or the first item of a list is a path.
    """
    if isinstance(x, Mapping):
        specs = {spec.name: spec for spec in inputs}
        for name, value in x.items():
            _refuse(value, specs.get(name), str(name))
    else:
        _refuse(x, inputs[0] if len(inputs) == 1 else None, None)


def _refuse(value: Any, spec: TensorSpec | None, name: str | None) -> None:
    first = value[0] if isinstance(value, list | tuple) and value else value
    is_list = first is not value
    takes_text = spec is not None and spec.dtype is not None and spec.dtype.kind == "O"
    if not isinstance(first, str | os.PathLike) or not _is_path(first, takes_text=takes_text):
        return
    if is_list and takes_text and isinstance(first, str):
        return  # texts, which may be names of files
    path = os.fspath(first)
    path = path if isinstance(path, str) else repr(path)
    suffix = PurePath(path.rstrip("/")).suffix.lower()
    raise InputError(
        f"{'a list that begins with the path' if is_list else 'the path'} {path!r} was "
        f"given for {f'input {name!r}' if name else 'the input'}, which takes data",
        _next_step(path, suffix),
        option="x",
        input=name or (None if spec is None else spec.name),
    )


def _is_path(value: Any, *, takes_text: bool) -> bool:
    """Return whether a value can only be a path; for an input of strings, that of a file."""
    if not isinstance(value, str):
        return True
    if takes_text:
        return "\n" not in value and _is_there(value) and Path(value).is_file()
    suffix = PurePath(value.rstrip("/")).suffix.lower()
    known = suffix in (*_TABLES, *_PICTURES, *_READERS, *_OTHERS)
    return known or "://" in value or _is_there(value)


def _is_there(text: str) -> bool:
    """Return whether a text is the path of something; one that cannot be a path is none."""
    try:
        return len(text) < _LONGEST and Path(text).exists()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        return False


def _next_step(path: str, suffix: str) -> str:
    job = f"dx.predict_files(model, {path!r}, OUTPUT) or `dask-onnx predict MODEL INPUT OUTPUT`"
    if reader := _READERS.get(suffix):
        return f"read it first, model.predict({reader}({path!r})), or run from file to file: {job}"
    if suffix in _PICTURES:
        return f"pass its pixels as an array, or run from file to file: {job}"
    return f"read it first and pass an array or a table, or run from file to file: {job}"
