"""Paths and URLs of outputs: checks, names of incomplete files, and completion markers."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import fsspec

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url

MARKER = "_SUCCESS"
"""Name of the file that marks a complete folder, as Spark and Hadoop write it."""


def absolute_target(path: str) -> str:
    """Return a local path as an absolute one, which is the same in every worker; a URL as it is."""
    return path if is_url(path) else str(Path(path).expanduser().absolute())


def check_target(target: str, *, overwrite: bool) -> None:
    """Raise an error if an output exists already or has no folder; a URL is not checked.

    Raises
    ------
    InputError
        The output exists and `overwrite` is False, or its folder does not exist.
    """
    if is_url(target):
        return
    path = Path(target)
    if path.exists() and not overwrite:
        raise InputError(
            f"the output {path} exists",
            "remove it, choose another name, or pass overwrite=True",
            option="overwrite",
            suggestions=[Suggestion("overwrite", True)],
        )
    if not path.parent.is_dir():
        raise InputError(
            f"the output's folder {path.parent} does not exist",
            "create the folder, or check the path",
            option="path",
        )


def target_problem(target: str) -> str | None:
    """Return the reason why this process cannot write an output; None if it can."""
    if is_url(target):
        return None
    folder = Path(target).parent
    if not folder.is_dir():
        return f"the output's folder {folder} does not exist"
    return None if os.access(folder, os.W_OK) else f"the folder {folder} is not writable"


def partial_path(target: str) -> Path:
    """Return the path of an incomplete output, a hidden file or folder beside its target."""
    path = Path(target)
    return path.with_name(f".{path.name}.partial")


def _marker(target: str) -> tuple[Any, str]:
    filesystem, root = fsspec.url_to_fs(target)
    return filesystem, f"{root}/{MARKER}"


def write_marker(target: str) -> None:
    """Mark a folder or store, at a path or URL, as complete."""
    filesystem, path = _marker(target)
    filesystem.pipe_file(path, b"")


def remove_marker(target: str) -> None:
    """Remove the marker of a folder or store, if it has one."""
    filesystem, path = _marker(target)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm(path)


def sync_and_rename(partial: Path, target: str) -> None:
    """Flush a complete file to the disk and give it its final name."""
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
    partial.replace(target)
