"""Paths and URLs of outputs: checks, names of incomplete files, markers, and the final swap."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dask_onnx.core.errors import InputError, OutputError
from dask_onnx.core.files import is_url
from dask_onnx.core.filesystems import filesystem_of

MARKER = "_SUCCESS"
"""Name of the file that marks a complete folder, as Spark and Hadoop write it."""
RUN_NAME = r"[\w-]+-\d+-[0-9a-f]{8}"
"""Pattern of the names that `new_run_name` makes."""
_PART = re.compile(r"\.?part-\d{6,}(-\d{6,})?(\.\w+){1,3}(\.partial)?")
"""Names of the files that are written into a folder."""
_ZARR_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}
_ZARR_CHUNK = re.compile(r"c|c(\.\d+)+|\d+([./]\d+)*")


def absolute_target(path: str) -> str:
    """Return a local path as an absolute one, which is the same in every worker; a URL as it is."""
    return path.rstrip("/") if is_url(path) else str(Path(path).expanduser().absolute())


def target_exists(target: str) -> bool:
    """Return whether an output exists, at a path or URL.

    Raises
    ------
    InputError
        The URL cannot be accessed.
    """
    if not is_url(target):
        return os.path.lexists(target)
    system, root = filesystem_of(target)
    with explained_access(target):
        return bool(system.exists(root))


@contextlib.contextmanager
def explained_access(target: str) -> Iterator[None]:
    """Turn an error of the file system behind a URL, before any work, into an InputError.

    Parameters
    ----------
    target : str
        Path or URL of an output.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # file systems behind URLs raise errors of their own
        if not is_url(target):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the output {target} cannot be accessed: {reason}",
            "check the URL, the network and the credentials",
            option="path",
            reason=reason,
        ) from error


def foreign_files(target: str) -> list[str]:
    """Return the names of what a folder holds that dask_onnx has not written.

    A folder of numbered parts and a zarr store are its own; empty for files and for what does not
    exist.
    """
    if is_url(target):
        system, root = filesystem_of(target)
        names = [path.removeprefix(root).strip("/") for path in system.find(root)]
    else:
        names = [
            os.path.relpath(Path(folder, name), target)
            for folder, _, inside in os.walk(target)
            for name in inside
        ]
    stores = {name.rpartition("/")[0] for name in names if _base(name) in _ZARR_METADATA}
    return sorted(name for name in names if name and not _is_own(name, stores))


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _is_own(name: str, stores: set[str]) -> bool:
    """Return whether a file is a part, a marker, or belongs to one of the zarr arrays."""
    if "" not in stores:
        return "/" not in name and (name == MARKER or _PART.fullmatch(name) is not None)
    if name == MARKER or _base(name) in _ZARR_METADATA:
        return name == MARKER or name.rpartition("/")[0] in stores
    parts = name.split("/")
    while parts and _ZARR_CHUNK.fullmatch(parts[-1]):
        parts.pop()
    return len(parts) < len(name.split("/")) and "/".join(parts) in stores


def target_problem(target: str) -> str | None:
    """Return the reason why this process cannot write an output; None if it can."""
    if is_url(target):
        try:
            filesystem_of(target)
        except InputError as error:
            return error.cause
        return None
    folder = Path(target).parent
    if not folder.is_dir():
        return f"the output's folder {folder} does not exist"
    return None if is_writable(folder) else f"the folder {folder} is not writable"


def is_writable(folder: Path) -> bool:
    """Return whether this process can make files in a folder."""
    return os.access(folder, os.W_OK | os.X_OK)


def new_run_name() -> str:
    """Return a name that no other run has: host, process and a random number.

    Containers that share a folder may share process ids.
    """
    host = re.sub(r"[^0-9A-Za-z_-]+", "_", socket.gethostname())[:40] or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def partial_path(target: str, run: str = "") -> Path:
    """Return the path of an incomplete output, a hidden file or folder beside its target.

    Parameters
    ----------
    target : str
        Local path.
    run : str
        Name of the run, from `new_run_name`; empty for a name that all runs share.
    """
    path = Path(target)
    return path.with_name(f".{path.name}.{run}.partial" if run else f".{path.name}.partial")


def staging_of(target: str, run: str) -> str:
    """Return where the files of an incomplete folder are collected, beside its target."""
    return f"{target}.{run}.partial" if is_url(target) else str(partial_path(target, run))


def state_path(target: str) -> str:
    """Return the path or URL of the folder that records an incomplete run, beside its target."""
    if is_url(target):
        return f"{target}.resume"
    path = Path(target)
    return str(path.with_name(f".{path.name}.resume"))


def _marker(target: str) -> tuple[Any, str]:
    system, root = filesystem_of(target)
    return system, f"{root}/{MARKER}"


def write_marker(target: str, content: bytes = b"") -> None:
    """Mark a folder or store, at a path or URL, as complete.

    Parameters
    ----------
    target : str
    content : bytes
        Record of what was written.
    """
    system, path = _marker(target)
    system.pipe_file(path, content)


def read_marker(target: str) -> bytes | None:
    """Return the content of the marker of a folder or store; None if it has none."""
    system, path = _marker(target)
    try:
        content: bytes = system.cat_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content


def folder_size(target: str) -> tuple[int, int]:
    """Return the number of files of a folder or store without its marker, and their bytes.

    Raises
    ------
    FileNotFoundError
        It does not exist.
    """
    if not is_url(target):
        paths = [
            os.path.join(folder, name)  # noqa: PTH118 - a million files
            for folder, _, names in os.walk(target)
            for name in names
            if (folder, name) != (target, MARKER)
        ]
        if not paths and not os.path.lexists(target):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target)
        return len(paths), sum(map(os.path.getsize, paths))
    system, root = filesystem_of(target)
    with contextlib.suppress(AttributeError):
        system.invalidate_cache(root)
    found = system.find(root, detail=True)
    found.pop(f"{root}/{MARKER}", None)
    return len(found), sum(int(info.get("size") or 0) for info in found.values())


def remove_marker(target: str) -> None:
    """Remove the marker of a folder or store, if it has one."""
    system, path = _marker(target)
    with contextlib.suppress(FileNotFoundError):
        system.rm(path)


def remove_folder(target: str) -> None:
    """Remove a folder of this run, at a path or URL, if it exists."""
    if not is_url(target):
        shutil.rmtree(target, ignore_errors=True)
        return
    system, root = filesystem_of(target)
    with contextlib.suppress(FileNotFoundError):
        system.rm(root, recursive=True)


def remove_local(path: Path) -> None:
    """Remove a file or a folder of this run, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_files(target: str, spared: Sequence[str]) -> None:
    """Remove the files of a folder in an object store.

    Parameters
    ----------
    target : str
        URL.
    spared : sequence of str
        Names inside the folder that stay.
    """
    system, root = filesystem_of(target)
    kept = set(spared)
    found = [path for path in system.find(root) if path.removeprefix(root).strip("/") not in kept]
    if found:
        system.rm(found)


def sync_and_rename(partial: Path, target: str) -> None:
    """Flush a complete file to the disk and give it its final name."""
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
    partial.replace(target)


def swap_folder(
    staging: str, target: str, run: str, foreign: Callable[[str], Sequence[str]] | None = None
) -> None:
    """Give a complete folder its final name, and remove the one that it replaces.

    Files of others that have appeared in the replaced folder are moved into the new one.

    Parameters
    ----------
    staging, target : str
        Paths or URLs.
    run : str
        Name of the run, from `new_run_name`.
    foreign : callable, optional
        Function of a folder that returns the names of the files of others; `foreign_files` by
        default.
    """
    if is_url(target):
        _swap_remote(staging, target)
        return
    path, old = Path(target), Path(target).with_name(f".{Path(target).name}.{run}.old")
    if not os.path.lexists(path):
        Path(staging).rename(path)
        return
    path.rename(old)
    try:
        Path(staging).rename(path)
    except BaseException:
        old.rename(path)
        raise
    if old.is_symlink() or not old.is_dir():
        old.unlink()
        return
    for name in (foreign or foreign_files)(str(old)):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).rename(path / name)
    shutil.rmtree(old, ignore_errors=True)


def _swap_remote(staging: str, target: str) -> None:
    """Replace the files of an object store, which cannot rename folders."""
    remove_marker(target)
    system, root = filesystem_of(target)
    remove_files(target, foreign_files(target))
    _, source = filesystem_of(staging)
    for path in system.find(source):
        place = root + path.removeprefix(source)
        system.makedirs(place.rpartition("/")[0], exist_ok=True)
        system.mv(path, place)
    remove_folder(staging)


@contextlib.contextmanager
def explained_writes(path: str) -> Iterator[None]:
    """Turn an error of the operating system while an output is written into an OutputError.

    Parameters
    ----------
    path : str
        Path or URL that is written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        numbers = {}
        if not is_url(path):
            with contextlib.suppress(OSError):
                numbers["free_bytes"] = shutil.disk_usage(Path(path).parent).free
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        free = f" ({numbers['free_bytes']:,} bytes are free)" if is_full and numbers else ""
        raise OutputError(
            f"the output {path} cannot be written: {reason}{free}",
            "free some space there or write to another disk, and run it again"
            if is_full
            else "check the path and its permissions, and run it again",
            option="path",
            reason=reason,
            numbers=numbers,
        ) from error
