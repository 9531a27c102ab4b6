"""Folders of pictures as outputs: masks, and pictures with results drawn over them."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url
from dask_onnx.core.meters import metered
from dask_onnx.io.begun_outputs import BegunOutputs
from dask_onnx.io.output_places import already_exists, check_folder
from dask_onnx.io.targets import (
    MARKER,
    absolute_target,
    explained_writes,
    new_run_name,
    remove_folder,
    staging_of,
    swap_folder,
    target_problem,
    write_marker,
)

_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """A folder of PNG files, which appears under its name when it is complete."""

    target: str
    """Absolute path."""
    run: str
    """Name of the run, in the name of the incomplete folder."""
    replaces: bool = False
    """True if the target exists and is replaced when the folder is complete."""

    @property
    def folder(self) -> Path:
        """Path of the incomplete folder."""
        return Path(staging_of(self.target, self.run))

    def problem(self) -> str | None:
        """Return why this process cannot write the folder; None if it can."""
        return target_problem(self.target)

    def prepare(self) -> None:
        """Create the incomplete folder."""
        with explained_writes(self.target):
            self.folder.mkdir()

    @property
    def is_complete(self) -> bool:
        """True if there is no incomplete folder any more, and the target exists."""
        return not self.folder.exists() and Path(self.target).exists()

    def kept(self, blocks: Collection[str]) -> Collection[str]:
        """Return all blocks of an earlier run if its folder exists; remove files not completed."""
        if not self.folder.is_dir():
            return set()
        for path in self.folder.rglob(".*.partial"):
            path.unlink(missing_ok=True)
        return blocks

    @metered("write")
    def write(self, name: str, content: bytes) -> str:
        """Write one file so that it appears complete or not at all; return its path.

        Parameters
        ----------
        name : str
            Path inside of the folder.
        content : bytes
        """
        place = self.folder / name
        partial = place.with_name(f".{place.name}.{new_run_name()}.partial")
        with explained_writes(self.target):
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(place)
        return str(place)

    def finish(self) -> None:
        """Write the marker, and give the folder its name."""
        with explained_writes(self.target):
            write_marker(str(self.folder))
            swap_folder(str(self.folder), self.target, self.run, _foreign_pictures)

    def discard(self) -> None:
        """Remove the incomplete folder."""
        remove_folder(str(self.folder))


def open_picture_folder(
    path: str, *, overwrite: bool, option: str = "path", begun: BegunOutputs | None = None
) -> PictureFolder:
    """Return a folder as an output, checked as far as this process can. Creates nothing.

    Parameters
    ----------
    path : str
        Local path of the folder.
    overwrite : bool
        True if a folder that a former run has written is replaced.
    option : str
        Name of the option, for errors.
    begun : BegunOutputs, optional
        What an earlier run has begun and is resumed or removed.

    Raises
    ------
    InputError
        It is a URL, or exists, or its parent does not; or it holds the files of others.
    """
    target = absolute_target(path)
    if is_url(target):
        raise InputError(
            f"{target} is a URL, and folders of pictures are written to a disk",
            "give a local path",
            option=option,
        )
    place = Path(target)
    begun = begun or BegunOutputs()
    if os.path.lexists(place):
        is_ours = begun.is_completed or (begun.is_resumed and target in begun.targets)
        overwrite = overwrite or is_ours
        _check_replaceable(place, option, overwrite=overwrite)
    check_folder(target, option)
    return PictureFolder(target, begun.run, begun.will_replace(target))


def _check_replaceable(place: Path, option: str, *, overwrite: bool) -> None:
    if not place.is_dir() or place.is_symlink():
        raise InputError(f"{place} is no folder", "choose another name", option=option)
    names = _files_in(place)
    is_own = not names or MARKER in names
    foreign = _foreign_pictures(str(place))
    if foreign or not is_own:
        shown = ", ".join((foreign or names)[:_NAMES_SHOWN])
        raise InputError(
            f"the output {place} is a folder with files that dask_onnx has not written: {shown}",
            "choose another name, or move these files away",
            option=option,
            numbers={"foreign_files": len(foreign or names)},
        )
    if names and not overwrite:
        raise already_exists(str(place))


def _files_in(folder: Path) -> list[str]:
    """Return the names of the files of a folder, also of those in folders inside it."""
    return [str(each.relative_to(folder)) for each in sorted(folder.rglob("*")) if each.is_file()]


def _foreign_pictures(folder: str) -> list[str]:
    """Return the names of files that a folder of pictures does not have."""
    names = _files_in(Path(folder))
    return [name for name in names if name != MARKER and not name.lower().endswith(".png")]
