"""Paths of the pictures that `Plan.visualize` writes."""

from __future__ import annotations

import os
from pathlib import Path

from dask_onnx.core.errors import PlanError, Suggestion

_SUFFIXES = (".svg", ".html", ".onnx")


def check_picture(path: str | os.PathLike[str]) -> None:
    """Check that `Plan.visualize` can write to a path; possible before there is a plan.

    Parameters
    ----------
    path : str or path
        Path of the file.

    Raises
    ------
    PlanError
        The path has another extension than ``.svg``, ``.html`` and ``.onnx``, is a folder, or its
        folder does not exist.
    """
    target = Path(path).absolute()
    if target.suffix not in _SUFFIXES:
        raise PlanError(
            f"{path} ends in none of {', '.join(_SUFFIXES)}",
            "give a name that ends in one of these",
            option="path",
            suggestions=[
                Suggestion("path", str(Path(path).with_suffix(suffix)))
                for suffix in _SUFFIXES
                if Path(path).name
            ],
        )
    if target.is_dir():
        raise PlanError(f"{path} is a folder", "give the name of a file in it", option="path")
    if not target.parent.is_dir():
        raise PlanError(
            f"the folder {target.parent} does not exist", "create it first", option="path"
        )
