"""Loads of a file that has not changed since it was loaded before: nothing is read again.

A file counts as unchanged if its path, inode, size and times of modification and of change are the
same; the last cannot be set. A file system that ticks slowly gives two contents the same time if
one follows the other at once, so a file that was written a moment before it was read is not
remembered. Git's index has the same rule ("racy git").
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING

from dask_onnx.core import config
from dask_onnx.core.files import OpenFiles, is_url
from dask_onnx.core.process_caches import BoundedCache

if TYPE_CHECKING:
    from dask_onnx.modelio.onnx_model import OnnxModel

_SETTLED_SECONDS = 2.0
"""Age of a file from which its times tell of each later change."""
_MOST_HELD_BYTES = 8 * 2**20
"""Bytes of a model that is remembered: its proto, and weights that have no place in its file."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Identity:
    """A local file as it is."""

    path: str
    device: int
    inode: int
    size: int
    modified: int
    """Nanoseconds since 1970, as `changed`."""
    changed: int

    @classmethod
    def of(cls, given: str) -> _Identity | None:
        """Return the identity of a local file; None of a URL and of what cannot be accessed."""
        if is_url(given):
            return None
        path = Path(given).expanduser().absolute()
        try:
            status = path.stat()
        except OSError:  # loading says what is wrong with it
            return None
        return cls(
            str(path),
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    @property
    def is_settled(self) -> bool:
        """True if a change from now on gives the file other times."""
        latest = max(self.modified, self.changed)
        return time.time_ns() - latest >= _SETTLED_SECONDS * 1e9


_loaded: BoundedCache[tuple[_Identity, Hashable], OnnxModel] = BoundedCache(
    "loaded model files", 16
)
"""Models by the identity of their file and what else decides on the result."""


def load_once(
    path: str, options: Hashable, load: Callable[[], tuple[OnnxModel, bool]]
) -> OnnxModel:
    """Return the model of a file, from an earlier load if the file has not changed since.

    Parameters
    ----------
    path : str
        Path or URL, as given.
    options : hashable
        Options that decide on the result.
    load : callable
        Loads the file. Returns the model, and whether all of it is in this file.

    Raises
    ------
    ModelError
        As `load` does.
    """
    before = _Identity.of(path)
    if before is None:
        return load()[0]
    key = before, (options, config.get("model.max-nodes"))
    found = _loaded.get(key)
    if found is not None and (reopened := _reopened(found)) is not None:
        return reopened
    is_settled = before.is_settled  # before it is read
    model, is_complete = load()
    held = len(model.proto) + sum(map(len, model.blobs.values()))
    if is_settled and is_complete and held <= _MOST_HELD_BYTES:
        # Files stay open for as long as somebody has the model, and no longer.
        _loaded.put(key, dataclasses.replace(model, open_files=OpenFiles()))
    return model


def _reopened(model: OnnxModel) -> OnnxModel | None:
    """Return a model with its files open; None if they have changed meanwhile."""
    files = {place.file for place in model.places.values()}
    opened = OpenFiles()
    try:
        for file in files:
            opened.open(file)
    except OSError:
        return None
    if not all(map(opened.has, files)):
        return None
    return dataclasses.replace(model, open_files=opened)
