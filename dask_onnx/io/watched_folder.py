"""Folders whose files are frames of a stream, as they appear."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dask_onnx.core.errors import DaskOnnxError, InputError
from dask_onnx.io.optional_packages import require_package

_PICTURES = frozenset(".bmp .gif .jpeg .jpg .png .tif .tiff .webp".split())


@dataclass(frozen=True, slots=True)
class BadFrame:
    """A frame that is known to be bad when it is read; a stream fails it where it would start."""

    error: Exception
    """Reason."""


@dataclass(frozen=True, slots=True)
class WatchedFolder:
    """Iterable over the files of a folder, those that are there and those that come."""

    folder: Path
    """Folder to look at."""
    pattern: str
    """Pattern of names; files whose name begins with a dot are left out."""
    read: Callable[[Path], Any]
    """From a path to a frame."""
    poll: float
    """Seconds between looks."""
    timeout: float | None
    """Seconds without a new or growing file after which the stream ends; None for never."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set to end the iteration."""
    keeps_errors: bool = False
    """True to give a `BadFrame` for a file that cannot be read, rather than to raise."""

    def stopped_by(self, event: threading.Event) -> WatchedFolder:
        """Return the folder as the source of a stream, watched until an event is set."""
        return replace(self, stopped=event, keeps_errors=True)

    def __iter__(self) -> Iterator[Any]:
        seen: set[Path] = set()
        sizes: dict[Path, int] = {}
        last = time.monotonic()
        while not self.stopped.is_set():
            before = dict(sizes)
            found = self._complete(seen, sizes)
            for path in found:
                seen.add(path)
                yield self._frame(path)
            if found or sizes != before:  # a file that is still being written is news, too
                last = time.monotonic()
            if self.timeout is not None and time.monotonic() - last > self.timeout:
                return
            self.stopped.wait(self.poll)

    def _frame(self, path: Path) -> Any:
        if not self.keeps_errors:
            return self.read(path)
        try:
            return self.read(path)
        except DaskOnnxError as error:
            return BadFrame(error)

    def _complete(self, seen: set[Path], sizes: dict[Path, int]) -> list[Path]:
        """Return the new files in the order of their names, once their size has stayed the same.

        Files that are gone are forgotten: others of their names are new ones.
        """
        found = []
        paths = sorted(self.folder.glob(self.pattern))
        seen.intersection_update(paths)
        for path in paths:
            if path in seen or path.name.startswith("."):
                continue
            try:
                state = path.stat()
            except FileNotFoundError:  # removed since it was listed
                continue
            if not stat.S_ISREG(state.st_mode):
                continue
            if sizes.pop(path, None) == state.st_size and state.st_size:
                found.append(path)
            else:
                sizes[path] = state.st_size
        return found


def watch(
    folder: Any,
    pattern: str = "*",
    *,
    read: Callable[[Path], Any] | None = None,
    poll: float = 0.1,
    timeout: float | None = None,
) -> WatchedFolder:
    """Return the files of a folder as frames: those that are there, then new ones as they appear.

    A file counts as complete once its size has not changed between two looks. Files that are
    renamed into the folder are always complete.

    Parameters
    ----------
    folder : path-like
        Folder to watch.
    pattern : str
        Pattern of the files' names.
    read : callable, optional
        From a path to a frame. By default arrays of ``.npy`` as they are, and pictures as uint8,
        shape (height, width, 3).
    poll : float
        Seconds between looks.
    timeout : float, optional
        Seconds without a new or growing file after which there are no more; by default there is
        no end.

    Returns
    -------
    WatchedFolder
        An iterable for `dask_onnx.stream`.

    Raises
    ------
    InputError
        There is no such folder.

    Examples
    --------
    >>> frames = dx.io.watch("incoming", "*.png", timeout=60)
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"there is no folder {str(path)!r}", "make it first", option="folder")
    return WatchedFolder(path, pattern, read or read_frame, poll, timeout)


def read_frame(path: Path) -> np.ndarray:
    """Return a file as a frame: an array of an ``.npy``, or a picture as uint8.

    Raises
    ------
    InputError
        The file is neither, or is damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in _PICTURES and suffix != ".npy":
        raise InputError(
            f"{str(path)!r} is neither a picture nor an .npy file",
            "give a pattern of names, or a function: dx.io.watch(folder, read=...)",
            option="read",
        )
    try:
        if suffix == ".npy":
            array: np.ndarray = np.load(path, allow_pickle=False)
            return array
        require_package("PIL", "pictures")
        from PIL import Image  # optional: only pictures need it

        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read: {error}", "replace it", reason=str(error)
        ) from error
