"""Checks of the places of outputs: free, writable, and apart from each other and from the input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.core.filesystems import is_web_url
from dask_onnx.io.targets import absolute_target, foreign_files, is_writable, target_exists

_SHOWN = 3
"""Names of files that an error lists."""


def check_target(target: str, *, overwrite: bool) -> None:
    """Raise an error if an output exists already, holds the files of others, or has no folder.

    Raises
    ------
    InputError
        The output exists and `overwrite` is False, or it is a folder with files that dask_onnx has
        not written; its folder does not exist; it is on a server that is only read.
    """
    refuse_web_url(target)
    if target_exists(target):
        if not overwrite:
            raise already_exists(target)
        if foreign := foreign_files(target):
            raise InputError(
                f"the output {target} is a folder with files that dask_onnx has not written: "
                f"{', '.join(foreign[:_SHOWN])}{', ...' if len(foreign) > _SHOWN else ''}",
                "choose another name, or move these files away",
                option="overwrite",
                numbers={"foreign_files": len(foreign)},
            )
    check_folder(target)


def refuse_web_url(target: str) -> None:
    """Raise an error for an output on a web server.

    Raises
    ------
    InputError
        It is one.
    """
    if is_web_url(target):
        raise InputError(
            f"{target} cannot be written: servers of http:// are only read",
            "write to a path, or to s3://, gs:// or hf://",
            option="path",
        )


def check_folder(target: str, option: str = "path") -> None:
    """Raise an error if this process cannot write the folder that an output is to be in.

    Parameters
    ----------
    target : str
        Absolute path, or URL.
    option : str
        Name of the option that gives it, for errors.

    Raises
    ------
    InputError
        The folder does not exist, or is not writable.
    """
    if is_url(target):
        return
    folder = Path(target).parent
    if not folder.is_dir():
        raise InputError(
            f"the output's folder {folder} does not exist",
            "create the folder, or check the path",
            option=option,
        )
    if not is_writable(folder):
        raise InputError(
            f"the output's folder {folder} is not writable",
            "choose an output in a folder that you may write to",
            option=option,
        )


def already_exists(target: str) -> InputError:
    """Return the error for an output that exists and may not be replaced."""
    return InputError(
        f"the output {target} exists",
        "choose another name, or pass overwrite=True to replace it",
        option="overwrite",
        suggestions=[Suggestion("overwrite", True)],
    )


def check_distinct(options: Mapping[str, str | None]) -> None:
    """Raise an error if two outputs are one place.

    Parameters
    ----------
    options : mapping of str to str or None
        Path or URL of each output by the name of its option; None for an output that is not there.

    Raises
    ------
    InputError
        With the later of the two options.
    """
    found: dict[str, str] = {}
    for option, path in options.items():
        if path is None:
            continue
        other = found.setdefault(_place_of(path), option)
        if other != option:
            raise InputError(
                f"{other} and {option} are both {path}", "name another place", option=option
            )


def check_apart(
    outputs: Iterable[str], source: str, files: Iterable[str], *, may_be_inside: bool
) -> None:
    """Raise an error if an output would replace the input, or become a part of it.

    Parameters
    ----------
    outputs : iterable of str
        Paths or URLs.
    source : str
        Path, URL or pattern of the input.
    files : iterable of str
        Absolute paths or URLs of its files.
    may_be_inside : bool
        True if an output may be in a folder that is the input, as among pictures.

    Raises
    ------
    InputError
        With the output and the part of the input.
    """
    root = _place_of(source)
    for output in outputs:
        place = _place_of(output)
        if not may_be_inside and _is_inside(place, root):
            raise InputError(
                f"the output {output} is in the folder {source}, which is the input: it would be a "
                "part of the input of a later run",
                "choose an output in another folder",
                option="output",
            )
        # An output that does not exist replaces nothing.
        if place != root and not target_exists(absolute_target(output)):
            continue
        for file in (source, *files):
            inner = _place_of(file)
            if inner == place or _is_inside(inner, place):
                raise InputError(
                    f"the output {output} would replace {file}, which is the input",
                    "choose another output",
                    option="output",
                )


def _place_of(path: str) -> str:
    """Return the path behind links, or the URL."""
    target = absolute_target(path)
    return target if is_url(target) else os.path.realpath(target)


def _is_inside(place: str, folder: str) -> bool:
    if is_url(place) or is_url(folder):
        return place.startswith(f"{folder}/")
    return Path(place) != Path(folder) and Path(place).is_relative_to(folder)
