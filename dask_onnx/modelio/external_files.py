"""Files of external data: found from a model's folder, and never outside it.

Links are followed as long as they stay in the folder. The hub cache of Hugging Face is the one
layout in which they leave it: files in ``snapshots/<revision>/`` are links into ``blobs/`` of the
same repository.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

import onnx

from dask_onnx.core.content_kinds import HEAD_BYTES
from dask_onnx.core.errors import ModelError
from dask_onnx.core.files import FileSource, is_url, stat_file
from dask_onnx.modelio.file_kinds import kind_of_file

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"
"""Folders of a repository in a hub cache: its revisions, and the files that they link to."""
_MOST_LINKS = 40
"""Links that are followed one after the other, as many as Linux follows."""


class ExternalFiles:
    """Files of a model's external data, each looked up once for all tensors that it holds.

    Parameters
    ----------
    folder : str or None
        Path or URL of the folder of external data; None for a model that came without a path.
    model_file : FileSource or None
        The file of the model. If its path is a link, files that `folder` lacks are looked for
        where it leads, link by link.
    """

    def __init__(self, folder: str | None, model_file: FileSource | None) -> None:
        self._folder, self._model_file = folder, model_file
        self._found: dict[str, FileSource] = {}

    def of(self, tensor: onnx.TensorProto, location: str) -> FileSource:
        """Return the file of a tensor's bytes.

        Raises
        ------
        ModelError
            It is missing, is outside the folder, cannot be looked for, or has no folder.
        """
        if location not in self._found:
            try:
                self._found[location] = self._find(tensor, location)
            except OSError as error:  # a name that is too long, a folder that must not be read
                raise ModelError(
                    f"initializer {tensor.name!r} is stored in {location!r}, which cannot be "
                    f"looked for: {error.strerror}",
                    "put the external data where they can be read; if there are none of that "
                    "name, export the model again: it is damaged",
                    input=tensor.name,
                    reason=str(error),
                ) from None
        return self._found[location]

    def _find(self, tensor: onnx.TensorProto, location: str) -> FileSource:
        folder = self._folder
        if folder is None:
            raise ModelError(
                f"initializer {tensor.name!r} is stored in the external file {location!r}, "
                "and a model given as bytes or as a proto has no folder",
                "load the model by its path instead",
                input=tensor.name,
            )
        if "\0" in location:
            raise ModelError(
                f"initializer {tensor.name!r} refers to {location!r}, which is no name of a file",
                "export the model again: it is damaged",
                input=tensor.name,
            )
        path, refusal = _external_file(folder, location)
        if path is None:
            raise ModelError(
                f"initializer {tensor.name!r} refers to {location!r}, and this file {refusal}",
                "put external data, not a link to them, into or below the folder of the model file",
                input=tensor.name,
                reason=refusal,
            )
        path = self._behind_link(path, location)
        if not is_url(path) and Path(path).exists() and not Path(path).is_file():
            raise ModelError(
                f"initializer {tensor.name!r} is stored in {path}, which is a folder, pipe or "
                "device",
                "put a regular file there",
                input=tensor.name,
            )
        try:
            return stat_file(path)
        except OSError as error:
            raise ModelError(
                f"initializer {tensor.name!r} is stored in {path}, which does not exist",
                _hub_advice(folder) or f"copy the external data to {path}",
                input=tensor.name,
                reason=str(error),
            ) from None

    def _behind_link(self, path: str, location: str) -> str:
        """Return the path of a file where a link to the model leads, if there is none at `path`."""
        model = self._model_file
        if model is None or is_url(model.path) or Path(path).exists():
            return path
        for folder in _folders_behind(Path(model.path)):
            beside, _ = _external_file(str(folder), location)
            if beside is not None and Path(beside).exists():
                return beside
        return path


def _folders_behind(link: Path) -> Iterator[Path]:
    """Yield the folder of each file that a chain of links leads to, the nearest first."""
    for _ in range(_MOST_LINKS):
        if not link.is_symlink():
            return
        link = Path(os.path.normpath(link.parent.resolve() / link.readlink()))
        yield link.parent


def _external_file(folder: str, location: str) -> tuple[str | None, str]:
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
    # The path may lead into a cache through links to its folders, or only seem to be in one.
    if any(blobs == path.parent for blobs in (_hub_blobs(Path(folder)), _hub_blobs(base))):
        return str(path), ""
    return None, f"is a link to {path}, outside the model's folder"


def _hub_advice(folder: str) -> str | None:
    """Return the next step where a model was loaded as a blob of a hub cache; None elsewhere."""
    if is_url(folder) or Path(folder).name != _BLOBS:
        return None
    snapshots = Path(folder).parent / _SNAPSHOTS
    if not snapshots.is_dir():
        return None
    return f"load the model by its path in {snapshots}, beside which its data have their names"


def advice_on_short(file: FileSource) -> str:
    """Return the next step where a file of external data has fewer bytes than the model needs."""
    if not is_url(file.path):
        with open(file.path, "rb") as opened:
            kind = kind_of_file(opened.read(HEAD_BYTES))
        if kind is not None:
            return f"the external file is {kind.name}: {kind.next_step}"
    return "the external file is truncated or belongs to another model: copy it again"


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
