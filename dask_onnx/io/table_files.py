"""Files of a table: their format and compression by suffix, folders, globs, and Hive partitions."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

from dask.utils import natural_sort_key

from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url, reported_version
from dask_onnx.core.filesystems import filesystem_of, has_ranges, is_web_url

TableFormat = Literal["parquet", "csv", "jsonl", "ipc", "orc"]

SUFFIXES: dict[str, TableFormat] = {
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".orc": "orc",
}
"""Format of a table by the suffix of its files."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""Compression of a text file by its last suffix."""
TEXT_FORMATS = ("csv", "jsonl")
"""Formats that may be compressed as a whole."""
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods")
_HIDDEN = (".", "_")
"""First characters of names that are no part of a table, such as _SUCCESS."""
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""Name that Hive gives to the folder of rows without a value."""


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a table."""

    path: str
    """Absolute path, or URL."""
    size: int | None
    """Bytes; None if the server does not say."""
    format: TableFormat
    compression: str | None
    """Name of the compression of the whole file; None without one."""
    version: str = ""
    """Time or checksum that the file system reports, so that a changed file has another name in
    Dask's graph; empty if it reports none."""
    keys: tuple[tuple[str, str | None], ...] = ()
    """Names and texts of the Hive partition ``name=text`` that the file is in."""

    @property
    def is_tab_separated(self) -> bool:
        """True if the suffix says that tabs separate the columns."""
        return ".tsv" in PurePosixPath(self.path).suffixes[-2:]

    @property
    def can_be_cut(self) -> bool:
        """True if parts of the file can be read without the bytes before them."""
        return self.compression is None and self.size is not None and has_ranges(self.path)


def format_of(name: str) -> tuple[TableFormat | None, str | None]:
    """Return format and compression of a file name, path, URL or glob; None for unknown ones."""
    path = PurePosixPath(name.rstrip("/").lower())
    compression = COMPRESSIONS.get(path.suffix)
    if compression is not None:
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix), compression


def is_table(path: str) -> bool:
    """Return whether a data set is read as a table: by its suffix, or by the files of a folder."""
    if format_of(path)[0] is not None or PurePosixPath(path).suffix.lower() in SPREADSHEETS:
        return True
    return any(format_of(name)[0] for name in _names_in(path))


def _names_in(path: str) -> list[str]:
    """Return the visible names in a folder; empty for files and for what has a suffix."""
    if not is_url(path):
        folder = Path(path).expanduser()
        names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    elif is_web_url(path) or PurePosixPath(path).suffix:
        names = []
    else:
        system, root = filesystem_of(path)
        names = [PurePosixPath(name).name for name in system.find(root, maxdepth=2)]
    return [name for name in names if not name.startswith(_HIDDEN)]


def find_table(path: str) -> tuple[TableFile, ...]:
    """Return the files of a table, in the natural order of their names.

    Parameters
    ----------
    path : str
        Path or URL of a file, of a folder, or a glob of these. In folders, names that start with
        "." or "_" are left out, and folders ``name=text`` are Hive partitions.

    Raises
    ------
    InputError
        Nothing is there; the files have no format or several; they are spreadsheets; the package
        that opens the URL is missing.
    """
    suffix = PurePosixPath(path.rstrip("/").lower()).suffix
    if suffix in SPREADSHEETS:
        raise InputError(
            f"{path} is a spreadsheet, which is not read by blocks",
            "save the sheet as .csv, or with pandas: "
            "pd.read_excel(path, dtype=...).to_parquet('rows.parquet')",
            option="path",
        )
    system, root = filesystem_of(path)
    try:
        found = _listed(system, root, path)
    except FileNotFoundError as error:
        if is_web_url(path):  # such a server says no more where it cannot be reached
            raise _cannot_be_opened(path, "it is not there, or the server is not") from error
        is_pattern = glob.has_magic(path)
        raise InputError(
            f"no file matches {path}" if is_pattern else f"the table {path} does not exist",
            "check the pattern, and put it in quotes" if is_pattern else "check the path",
            option="path",
            reason=str(error),
        ) from error
    except Exception as error:  # file systems behind URLs raise errors of their own
        raise _cannot_be_opened(path, str(error) or type(error).__name__) from error
    files = [_table_file(system, info, keys) for info, keys in found]
    known = [file for file in files if file is not None]
    formats = sorted({file.format for file in known})
    if len(formats) > 1:
        raise InputError(
            f"{path} has files of several formats: {', '.join(formats)}",
            f"name those of one format: {path.rstrip('/')}/*.{formats[0]}",
            option="path",
        )
    if not known:
        names = ", ".join(PurePosixPath(info["name"]).name for info, _ in found[:3]) or "none"
        raise _cannot_be_opened(path, f"it has no file with a known suffix (files: {names})")
    _check_keys(known, path)
    return tuple(known)


def _cannot_be_opened(path: str, reason: str) -> InputError:
    return InputError(
        f"the table {path} cannot be opened: {' '.join(reason.split())[:300]}",
        f"check the path; a table is {', '.join(SUFFIXES)}, a folder or a glob of these",
        option="path",
        reason=reason,
    )


_Keys = tuple[tuple[str, str | None], ...]


def _listed(system: Any, root: str, path: str) -> list[tuple[dict[str, Any], _Keys]]:
    """Return fsspec's records of the files, with their Hive partitions."""
    if glob.has_magic(path) and not system.exists(root):
        found = system.glob(root, detail=True)
        hidden = () if PurePosixPath(root).name.startswith(_HIDDEN) else _HIDDEN
        tops = [
            found[name]
            for name in sorted(found, key=natural_sort_key)
            if not PurePosixPath(name).name.startswith(hidden)
        ]
        # A glob that ends in folders stands for the files in them.
        start = root.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0]
        records = []
        for top in tops:
            inside = _in_folder(system, top["name"]) if top["type"] == "directory" else [top]
            records += [(info, _hive_keys(info["name"], start)) for info in inside]
        if not records:
            raise FileNotFoundError(f"no file matches {path}")
        return records
    if not is_web_url(path) and system.isdir(root):
        return [(info, _hive_keys(info["name"], root)) for info in _in_folder(system, root)]
    return [(system.info(root), ())]


def _in_folder(system: Any, root: str) -> list[dict[str, Any]]:
    found = system.find(root, detail=True)
    names = sorted(found, key=natural_sort_key)
    top = len(PurePosixPath(root.rstrip("/")).parts)
    return [
        found[name]
        for name in names
        if not any(part.startswith(_HIDDEN) for part in PurePosixPath(name).parts[top:])
    ]


def _hive_keys(name: str, root: str) -> _Keys:
    """Return the partitions ``key=text`` in the folders between a root and a file."""
    inner = name.removeprefix(root).strip("/")
    pairs = [part.partition("=") for part in PurePosixPath(inner).parent.parts if "=" in part]
    return tuple(
        (unquote(key), None if text == _NO_VALUE else unquote(text)) for key, _, text in pairs
    )


def _table_file(system: Any, info: dict[str, Any], keys: _Keys) -> TableFile | None:
    """Return the record of a file; None if it is no part of a table."""
    kind, compression = format_of(info["name"])
    if kind is None:
        return None
    path = str(system.unstrip_protocol(info["name"]))
    if path.startswith(("file://", "local://")):
        path = path.partition("://")[2]
    if info.get("type") == "other":
        raise InputError(
            f"{path} is a pipe, socket or device, which may have no end",
            "save what it gives to a file first",
            option="path",
        )
    if compression is not None and kind not in TEXT_FORMATS:
        raise InputError(
            f"{path} is a compressed {kind} file, which cannot be read by blocks",
            "decompress it first: such files are compressed inside",
            option="path",
        )
    return TableFile(path, info.get("size"), kind, compression, reported_version(info), keys)


def _check_keys(files: Sequence[TableFile], path: str) -> None:
    """Refuse a data set whose files are in different kinds of Hive partitions."""
    first = [name for name, _ in files[0].keys]
    for file in files[1:]:
        names = [name for name, _ in file.keys]
        if names != first:
            raise InputError(
                f"the files of {path} are partitioned by different columns: {files[0].path} by "
                f"{first or 'none'}, {file.path} by {names or 'none'}",
                "name the files of one kind with a glob",
                option="path",
            )
