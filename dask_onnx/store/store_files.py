"""Folders and files of a store: private to the user, and written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dask_onnx.core.errors import StoreError, Suggestion

TEMPORARY = ".incoming-"
"""Prefix of the names of files that are being written."""

_DIRECTORY_OPTION = "onnx.store.directory"


class StoreWriteError(StoreError):
    """The store's folder cannot be written, so weights cannot be kept, wherever they come from."""


def make_folder(root: Path, folder: Path) -> None:
    """Make a store and a folder directly below it, if they are missing.

    Raises
    ------
    StoreError
        The folder cannot be made, it or the store is a link, or other users can write to the store.
    """
    try:
        # A link that leads nowhere cannot be made a folder, and is told as what it is.
        check_root(root)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_root(root)
        _refuse_link(folder, folder.lstat() if os.path.lexists(folder) else None)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the store's folder {folder} cannot be made: {error.strerror}",
            f"set {_DIRECTORY_OPTION} to a folder that you may write to",
            option=_DIRECTORY_OPTION,
            reason=error.strerror,
        ) from error


def check_root(root: Path) -> None:
    """Refuse a store that others can write to or lead elsewhere, since sessions map its files.

    Does nothing where there is no store yet.

    Parameters
    ----------
    root : Path
        Folder of the store.

    Raises
    ------
    StoreError
        The store is a link or no folder, belongs to another user, or others can write to it.
    """
    try:
        status = root.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(
            f"the store {root} cannot be reached: {error.strerror}",
            f"set {_DIRECTORY_OPTION} to a folder of your own",
            option=_DIRECTORY_OPTION,
            reason=error.strerror,
        ) from error
    _refuse_link(root, status)
    if status.st_uid != os.geteuid():
        raise StoreError(
            f"the store {root} belongs to user {status.st_uid}, and this is user {os.geteuid()}",
            f"each user has a store of their own: set {_DIRECTORY_OPTION} to your own folder",
            option=_DIRECTORY_OPTION,
            numbers={"owner_uid": status.st_uid, "own_uid": os.geteuid()},
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreError(
            f"others may write to the store {root} (mode {stat.S_IMODE(status.st_mode):o})",
            f"run `chmod 700 {root}` if nobody has put files there, or choose another folder",
            option=_DIRECTORY_OPTION,
            numbers={"mode": stat.S_IMODE(status.st_mode)},
        )


def _refuse_link(folder: Path, status: os.stat_result | None) -> None:
    if status is None or stat.S_ISDIR(status.st_mode):
        return
    kind = "a link" if stat.S_ISLNK(status.st_mode) else "no folder"
    raise StoreError(
        f"the store's folder {folder} is {kind}",
        f"remove it, or set {_DIRECTORY_OPTION} to a folder of your own: weights are mapped from "
        "there, so that it must not lead elsewhere",
        option=_DIRECTORY_OPTION,
        reason=kind,
    )


def write_file(root: Path, path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file of a store so that its name is never that of half a file.

    Parameters
    ----------
    root : Path
        Folder of the store.
    path : Path
        File in a folder directly below it.
    data : bytes
        Content.
    durable : bool
        True to flush the content to the disk before the file gets its name.

    Raises
    ------
    StoreError
        The folder cannot be made or written, or the disk is full.
    """
    make_folder(root, path.parent)
    temporary = None
    try:
        with explained_write_errors(path.parent, len(data)):
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=TEMPORARY, delete=False
            ) as file:
                temporary = Path(file.name)
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def explained_write_errors(folder: Path, size: int) -> Iterator[None]:
    """Turn an error of the operating system into a StoreWriteError with free and needed bytes.

    Parameters
    ----------
    folder : Path
        Folder that is written to.
    size : int
        Bytes to write.
    """
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(folder).free
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StoreWriteError(
            f"{size:,} bytes cannot be written to {folder}: {error.strerror} "
            f"({free:,} bytes are free)",
            "run `dask-onnx store prune`, free some space there, or set "
            f"{_DIRECTORY_OPTION} to another disk"
            if is_full
            else f"set {_DIRECTORY_OPTION} to a folder that you may write to",
            option=_DIRECTORY_OPTION,
            reason=error.strerror,
            numbers={"needed_bytes": size, "free_bytes": free},
            suggestions=[Suggestion(_DIRECTORY_OPTION)],
        ) from error


def write_at(descriptor: int, data: Any, offset: int) -> None:
    """Write all bytes of a buffer to a file descriptor, from an offset on."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def covers(parts: str, length: int) -> bool:
    """Return whether written parts of a file, one line of "offset length" each, leave no gap."""
    reached = 0
    for offset, size in sorted(tuple(map(int, line.split())) for line in parts.splitlines()):
        if offset > reached:
            return False
        reached = max(reached, offset + size)
    return reached >= length
