"""Profiles in files: JSON that Perfetto and Chrome show as a trace, and that is read again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dask_onnx.core.errors import InputError
from dask_onnx.diagnostics.profiling.chrome_trace import trace_of
from dask_onnx.diagnostics.profiling.run_profile import (
    Digest,
    ErrorRecord,
    Gauge,
    NodeRecord,
    Phase,
    RunProfile,
    StageRecord,
    StreamFrames,
    TaskRecord,
    TransferRecord,
    WorkerRecord,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

KEY = "dask_onnx_profile"
"""Key of the profile beside the events of the trace."""
_FORMAT = 1
"""Number of the format; another one is refused."""
_LISTS: Mapping[str, type] = {
    "workers": WorkerRecord,
    "stages": StageRecord,
    "tasks": TaskRecord,
    "transfers": TransferRecord,
    "nodes": NodeRecord,
    "gauges": Gauge,
    "digests": Digest,
    "errors": ErrorRecord,
    "streams": StreamFrames,
}
Record = TypeVar("Record", bound="DataclassInstance")


def check_target(path: str | os.PathLike[str], suffixes: tuple[str, ...], option: str) -> Path:
    """Return the path of a file to write, after checking that it can be one.

    Parameters
    ----------
    path : path
        File that is going to be written.
    suffixes : tuple of str
        Endings that it may have.
    option : str
        Name of the option in errors.

    Raises
    ------
    InputError
        Another ending, a folder, or a folder that does not exist.
    """
    target = Path(path).absolute()
    if target.suffix not in suffixes:
        raise InputError(
            f"{option} {os.fspath(path)!r} does not end in {' or '.join(suffixes)}",
            "give a name that does",
            option=option,
        )
    if target.is_dir():
        raise InputError(f"{path} is a folder", "give the name of a file in it", option=option)
    if not target.parent.is_dir():
        raise InputError(
            f"the folder {target.parent} does not exist", "create it first", option=option
        )
    return target


def write_profile(profile: RunProfile, path: str | os.PathLike[str]) -> None:
    """Write a profile with its trace.

    Parameters
    ----------
    profile : RunProfile
    path : path of a ``.json`` file

    Raises
    ------
    InputError
        See `check_target`.
    """
    target = check_target(path, (".json",), "path")
    record = {"format": _FORMAT, **asdict(profile)}
    content = {"traceEvents": trace_of(profile), "displayTimeUnit": "ms", KEY: record}
    target.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def read_profile(path: str | os.PathLike[str]) -> RunProfile:
    """Read what `write_profile` wrote.

    Raises
    ------
    InputError
        The file cannot be read, is no profile, or one of another format.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the profile {os.fspath(path)!r} cannot be read: {error}",
            "give a file that prof.save or --profile wrote",
            option="path",
            reason=str(error),
        ) from error
    record = found.get(KEY) if isinstance(found, dict) else None
    if not isinstance(record, dict):
        raise InputError(
            f"{os.fspath(path)!r} is no profile: it has no {KEY!r}",
            "give a file that prof.save or --profile wrote",
            option="path",
        )
    if record.get("format") != _FORMAT:
        raise InputError(
            f"{os.fspath(path)!r} is a profile of format {record.get('format')!r}, "
            f"this version reads {_FORMAT}",
            "record it again, or use the version of dask_onnx that wrote it",
            option="path",
            numbers={"expected_format": _FORMAT},
        )
    try:
        return _profile_of(record)
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{os.fspath(path)!r} is a damaged profile: {error}",
            "record it again",
            option="path",
            reason=str(error),
        ) from error


def _profile_of(record: Mapping[str, Any]) -> RunProfile:
    plain = {
        each.name: record[each.name]
        for each in fields(RunProfile)
        if each.name in record and each.name not in _LISTS
    }
    plain["notes"] = tuple(plain.get("notes", ()))
    plain["others"] = tuple(map(tuple, plain.get("others", ())))
    plain["edges"] = tuple(map(tuple, plain.get("edges", ())))
    lists: dict[str, Any] = {
        name: tuple(_record_of(kind, each) for each in record.get(name, ()))
        for name, kind in _LISTS.items()
    }
    return replace(RunProfile(**plain), **lists)


def _record_of(kind: type[Record], values: Mapping[str, Any]) -> Record:
    own = {each.name: values[each.name] for each in fields(kind) if each.name in values}
    if "phases" in own:
        own["phases"] = tuple(_record_of(Phase, each) for each in own["phases"])
    if "keys" in own:
        own["keys"] = tuple(own["keys"])
    if "letters" in own:
        own["letters"] = tuple(map(tuple, own["letters"]))
    return kind(**own)
