"""Files of external data: found from a model's folder, and never outside it.

Links are followed as long as they stay in the folder. The hub cache of Hugging Face is the one
layout in which they leave it: files in ``snapshots/<revision>/`` are links into ``blobs/`` of the
same repository.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from dask_onnx.core.files import is_url

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"
"""Folders of a repository in a hub cache: its revisions, and the files that they link to."""


def external_file(folder: str, location: str) -> tuple[str | None, str]:
    """Return the path of a file of external data, and why it must not be read.

    Parameters
    ----------
    folder : str
        Path or URL of the model's folder; a path is absolute.
    location : str
        Path relative to the folder, as the model names it.

    Returns
    -------
    path : str or None
        None if the file must not be read. Links in a path are resolved. The file may be missing.
    reason : str
        Why not, as a clause after "the file"; empty with a path.
    """
    plain = posixpath.normpath(location) if location else ""
    if not plain or plain.startswith(("/", "..")) or (is_url(folder) and ".." in location):
        return None, "is outside the model's folder"
    if is_url(folder):
        return f"{folder.rstrip('/')}/{location}", ""
    path = (Path(folder) / location).resolve()
    base = Path(folder).resolve()
    if path == base:
        return None, "is the model's folder itself"
    if path.is_relative_to(base):
        return str(path), ""
    blobs = _hub_blobs(Path(folder))
    if blobs is not None and path.parent == blobs:
        return str(path), ""
    return None, f"is a link to {path}, outside the model's folder"


def hub_advice(folder: str) -> str | None:
    """Return the next step where a model was loaded as a blob of a hub cache; None elsewhere."""
    if is_url(folder) or Path(folder).name != _BLOBS:
        return None
    snapshots = Path(folder).parent / _SNAPSHOTS
    if not snapshots.is_dir():
        return None
    return f"load the model by its path in {snapshots}, beside which its data have their names"


def _hub_blobs(folder: Path) -> Path | None:
    """Return the folder of blobs that belongs to a folder of a hub cache; None elsewhere."""
    for revision in (folder, *folder.parents):
        if revision.parent.name != _SNAPSHOTS:
            continue
        repository = revision.parent.parent.resolve()
        blobs = (repository / _BLOBS).resolve()
        # A folder of blobs that is itself a link may be anywhere.
        return blobs if blobs.is_dir() and blobs.parent == repository else None
    return None
